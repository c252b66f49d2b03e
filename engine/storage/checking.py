"""Whether the files of a shard make sense, alone and together. A checksum only says that they are as they were written.

Nothing that answers a query checks bounds, so a shard whose files contradict each other would give wrong answers or end
the process. Checking reads everything, so it is done where files are read anyway: when they are first hashed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray, check_codes
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.features import map_features
from hashlight.engine.indexes.multi_index.checking import find_wrong
from hashlight.engine.indexes.multi_index.tables import Tables
from hashlight.engine.places.arrays import map_array, parse_array
from hashlight.engine.places.integrity import FileSpec, check_bytes, verify_files
from hashlight.engine.storage.attributes import check_attributes
from hashlight.engine.storage.faiss_file import map_faiss_flat
from hashlight.engine.storage.manifest import ColumnFile, DeadRows, ShardSpec
from hashlight.engine.storage.scalars import SCALARS, check_scalars

_CHUNK_ROWS = 1 << 20
_REMEDY = "restore the shard from a copy, or build the collection again"


def verify_shard(folder: Path, spec: ShardSpec, *, bits: int, full: bool = False) -> None:
    """Hash the files of a shard and check that they make sense, once on each machine.

    Parameters
    ----------
    folder : Path
    spec : ShardSpec
    bits : int
    full : bool
        Do so even if the shard was verified on this machine and not written since.

    Raises
    ------
    CorruptDataError
        If a file is missing or damaged, or contradicts the manifest or another file.
    """
    verify_files(folder, spec.files, full=full, check=functools.partial(check_shard, folder, spec, bits=bits))


def read_dead_rows(path: Path, dead: DeadRows, rows: int) -> NDArray[np.uint32]:
    """Read the deleted rows (D,) of a shard with `rows` rows; errors as in `parse_dead_rows`."""
    return parse_dead_rows(path, path.read_bytes() if path.is_file() else None, dead, rows)


def parse_dead_rows(name: object, data: bytes | None, dead: DeadRows, rows: int) -> NDArray[np.uint32]:
    """View the contents of a file of deleted rows as an array (D,), ascending.

    Parameters
    ----------
    name : object
        The file's, for messages.
    data : bytes or None
        None if there is no file.
    dead : DeadRows
        What the manifest says about it.
    rows : int
        Of the shard.

    Raises
    ------
    CorruptDataError
        If the file is missing or damaged, or does not hold as many rows as the manifest says, each once, ascending.
    """
    check_bytes(str(name), data, FileSpec(dead.bytes, dead.sha256))
    dead_D: NDArray[np.uint32] = parse_array(name, data or b"", np.uint32, (dead.count,))
    if not (dead_D[1:] > dead_D[:-1]).all() or int(dead_D[-1]) >= rows:
        raise CorruptDataError(
            f"{name}: expected deleted rows from 0 to {rows - 1} in ascending order, each once, got others: restore it "
            "from a copy, or roll back to a version before"
        )
    return dead_D


def verify_column(path: Path, file: ColumnFile, attribute: str, rows: int, *, full: bool = False) -> None:
    """Hash the file of an attribute that was added later and check that it makes sense, once on each machine.

    Raises
    ------
    CorruptDataError
        If it is missing or damaged, or does not hold that attribute of as many rows.
    """

    def check() -> None:
        names = check_attributes(path, rows).names
        if names != [attribute]:
            raise CorruptDataError(f"{path}: expected one attribute, {attribute}, got {', '.join(names)}: {_REMEDY}")

    files = {file.name: FileSpec(file.bytes, file.sha256)}
    verify_files(path.parent, files, full=full, check=check, name=file.name)


class Check(NamedTuple):
    """One of the checks of `checks_of`.

    Attributes
    ----------
    name : str
    files : frozenset of str
        That it reads, which must be there, with the right checksums.
    after : frozenset of str
        Names of the checks that must have passed before.
    run : callable
        Raises CorruptDataError.
    """

    name: str
    files: frozenset[str]
    after: frozenset[str]
    run: Callable[[], object]


def check_shard(folder: Path, spec: ShardSpec, *, bits: int) -> None:
    """Check that files with the right checksums make sense; see `verify_shard`."""
    for check in checks_of(folder, spec, bits=bits):
        check.run()


def checks_of(folder: Path, spec: ShardSpec, *, bits: int) -> Iterator[Check]:
    """Yield the checks that the files of a shard make sense, alone and together."""

    def check(name: str, files: Iterable[str], run: Callable[[], object], *after: str) -> Check:
        return Check(name, frozenset(files), frozenset(after), run)

    codes, ids, by_id = "codes.faiss", "ids.npy", "rows_by_id.npy"
    tables = [name for name in spec.files if name.startswith("tables/")]
    yield check("codes", [codes], lambda: _check_codes(folder / codes, _codes(folder, spec, bits), bits))
    yield check("ids", [ids], lambda: _check_ids(folder / ids, _ids(folder, spec)))
    yield check(
        "order",
        [codes, ids],
        lambda: _check_order(folder, _codes(folder, spec, bits), _ids(folder, spec)),
        "codes",
        "ids",
    )
    yield check("rows-by-id", [ids, by_id], lambda: _check_rows_by_id(folder, spec), "ids")
    if tables:
        yield check("tables", [codes, *tables], lambda: _check_tables(folder, spec, bits), "codes", "order")
    if "features.npy" in spec.files:
        features = folder / "features.npy"
        yield check("features", [features.name], lambda: map_features(features, spec.rows))
    if "attributes.arrow" in spec.files:
        attributes = folder / "attributes.arrow"
        yield check("attributes", [attributes.name], lambda: check_attributes(attributes, spec.rows))
    if SCALARS in spec.files:
        yield check("scalars", [SCALARS, "attributes.arrow"], lambda: check_scalars(folder), "attributes")
    if "thumbnails.arrow" in spec.files:
        pictures = folder / "thumbnails.arrow"
        yield check("thumbnails", [pictures.name], lambda: _check_thumbnails(pictures, spec.rows))


def _codes(folder: Path, spec: ShardSpec, bits: int) -> CodeArray:
    return map_faiss_flat(folder / "codes.faiss", bits=bits, rows=spec.rows)


def _ids(folder: Path, spec: ShardSpec) -> IdArray:
    ids_N: IdArray = map_array(folder / "ids.npy", np.int64, (spec.rows,))
    return ids_N


def _check_tables(folder: Path, spec: ShardSpec, bits: int) -> None:
    tables = Tables.open(folder / "tables", bits=bits, rows=spec.rows)
    if wrong := find_wrong(tables, _codes(folder, spec, bits)):
        raise CorruptDataError(f"{folder / 'tables'} do not belong to {folder / 'codes.faiss'}: {wrong}: {_REMEDY}")


def _check_thumbnails(path: Path, rows: int) -> None:
    schema = check_attributes(path, rows)
    if schema.names != ["thumbnail"] or schema.types[0] not in (pa.binary(), pa.large_binary()):
        raise CorruptDataError(
            f"{path}: expected one column, thumbnail (binary), got "
            f"{', '.join(f'{field.name} ({field.type})' for field in schema)}: {_REMEDY}"
        )


def _check_codes(path: Path, codes_NW: CodeArray, bits: int) -> None:
    for start in range(0, len(codes_NW), _CHUNK_ROWS):
        try:
            check_codes(codes_NW[start : start + _CHUNK_ROWS], bits=bits, name="codes")
        except ValueError as error:
            raise CorruptDataError(f"{path}, from row {start} on: {error}: {_REMEDY}") from error


def _check_ids(path: Path, ids_N: IdArray) -> None:
    for start in range(0, len(ids_N), _CHUNK_ROWS):
        if (lowest := ids_N[start : start + _CHUNK_ROWS].min()) < 0:
            raise CorruptDataError(f"{path}: expected ids of 0 or more, got {lowest}: {_REMEDY}")


def _check_order(folder: Path, codes_NW: CodeArray, ids_N: IdArray) -> None:
    """Refuse rows that do not ascend by (code, id)."""
    for start in range(0, len(ids_N), _CHUNK_ROWS):
        part = slice(max(start - 1, 0), start + _CHUNK_ROWS)
        codes, ids = codes_NW[part], ids_N[part]
        ascends = ids[1:] > ids[:-1]
        for word in range(codes.shape[1]):  # the last one is the most significant
            above, below = codes[1:, word], codes[:-1, word]
            ascends = (above > below) | ((above == below) & ascends)
        if not ascends.all():
            row = part.start + int(ascends.argmin()) + 1
            raise CorruptDataError(
                f"{folder}: rows of codes.faiss and ids.npy must ascend by (code, id), row {row} does not come after "
                f"row {row - 1}: {_REMEDY}"
            )


def _check_rows_by_id(folder: Path, spec: ShardSpec) -> None:
    """Refuse what is not the order of the rows by id. Ids that ascend strictly are distinct, and so are their rows."""
    path, ids_N = folder / "rows_by_id.npy", _ids(folder, spec)
    rows_by_id_N: NDArray[np.uint32] = map_array(path, np.uint32, (spec.rows,))
    for start in range(0, len(ids_N), _CHUNK_ROWS):
        rows = rows_by_id_N[max(start - 1, 0) : start + _CHUNK_ROWS]
        if rows.max() >= len(ids_N):
            raise CorruptDataError(f"{path}: expected rows up to {len(ids_N) - 1}, got {rows.max()}: {_REMEDY}")
        ids = ids_N[rows]
        if not (ids[1:] > ids[:-1]).all():
            raise CorruptDataError(f"{path}: expected rows in ascending order of their ids, each once: {_REMEDY}")
