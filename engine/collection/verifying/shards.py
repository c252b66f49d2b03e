"""One shard: its files, the rows deleted from it, the columns set since, and what the manifest says about it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.codes import IdArray
from hashlight.engine.collection.verifying.report import REBUILT, RESTORE, UNCLEAR, Fault
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.ids import find_repeated
from hashlight.engine.places.arrays import map_array, parse_array
from hashlight.engine.places.files import sha256_of
from hashlight.engine.places.integrity import FileSpec
from hashlight.engine.storage.attributes import AttributeFile, check_attributes
from hashlight.engine.storage.checking import checks_of
from hashlight.engine.storage.manifest import ShardSpec
from hashlight.engine.storage.scalars import BLOCK_ROWS, SCALARS, column_statistics, merge_statistics
from hashlight.engine.wording import counted

# Made from codes, ids and attributes alone.
_REBUILT_FILES = re.compile(r"rows_by_id\.npy|tables/.*|" + re.escape(SCALARS))
_REBUILT_CHECKS = frozenset({"order", "rows-by-id", "tables", "scalars"})
_LOST = f"{RESTORE}, or roll back to a version without this shard"


class ShardFiles:
    """The files of a shard, checked.

    Parameters
    ----------
    folder : Path
        Where they are.
    spec : ShardSpec
    bits : int

    Attributes
    ----------
    faults : list of Fault
    damaged : set of str
        Files that are missing or do not have their checksum.
    failed : set of str
        Names of the checks that failed; see `engine.storage.checking.checks_of`.
    """

    def __init__(self, folder: Path, spec: ShardSpec, *, bits: int) -> None:
        self.folder, self.spec = folder, spec
        self.faults: list[Fault] = []
        self.damaged: set[str] = set()
        self.failed: set[str] = set()
        for name, file in spec.files.items():
            if (found := file_fault(folder / name, file)) is not None:
                self.damaged.add(name)
                self._add(found[0], name, found[1], is_mendable=bool(_REBUILT_FILES.fullmatch(name)))
        repeated = self._repeated()
        for check in checks_of(folder, spec, bits=bits):
            if check.files & self.damaged or check.after & self.failed or (check.name == "rows-by-id" and repeated):
                continue
            try:
                check.run()
            except CorruptDataError as error:
                self.failed.add(check.name)
                what = reason_of(error, folder, f"shards/{spec.name}")
                self._add(check.name, sorted(check.files)[-1], what, is_mendable=check.name in _REBUILT_CHECKS)

    def _add(self, kind: str, name: str, what: str, *, is_mendable: bool) -> None:
        remedy = REBUILT if is_mendable else _LOST
        where = f"shards/{self.spec.name}/{name}"
        self.faults.append(Fault(kind, where, what, remedy, is_mendable, self.spec.name))

    def ids(self) -> IdArray | None:
        """Return the ids (N,) of all rows; None if they cannot be read."""
        if "ids.npy" in self.damaged:
            return None
        try:
            ids_N: IdArray = map_array(self.folder / "ids.npy", np.int64, (self.spec.rows,))
        except CorruptDataError:
            return None
        return ids_N

    def _repeated(self) -> bool:
        ids_N = self.ids()
        return ids_N is not None and len(find_repeated(ids_N)) > 0

    def attributes(self) -> AttributeFile | None:
        """Return the shard's own attributes; None if there are none that can be read."""
        name = "attributes.arrow"
        if name not in self.spec.files or name in self.damaged or "attributes" in self.failed:
            return None
        return AttributeFile(self.folder / name)


def file_fault(path: Path, file: FileSpec) -> tuple[str, str] | None:
    """Return the kind of a fault of a file, and what is wrong with it; None if it is as it was written."""
    if not path.is_file():
        return "missing", f"it is missing, expected {file.bytes:,} bytes"
    if (size := path.stat().st_size) != file.bytes:
        return "checksum", f"expected {file.bytes:,} bytes, got {size:,}"
    if (checksum := sha256_of(path)) != file.sha256:
        return "checksum", f"expected SHA-256 {file.sha256[:16]}…, got {checksum[:16]}…"
    return None


def reason_of(error: Exception, folder: Path, name: str) -> str:
    """Return what an error says about files in a folder, without what to do about it."""
    text = str(error).replace(str(folder), name)
    return re.sub(r": restore (it|the shard) from a copy, or .*$", "", text)


def check_dead_rows(data: bytes | None, spec: ShardSpec) -> tuple[NDArray[np.uint32] | None, Fault | None]:
    """Check the file of the deleted rows of a shard.

    Returns
    -------
    ndarray of uint32, shape (D,), or None; Fault or None
        The deleted rows, ascending, each once, as far as they can be told.
    """
    dead = spec.dead
    assert dead is not None, "there is a file"
    where, before = f"deletions/{dead.name}", f"{RESTORE}, or roll back to a version before"
    if data is None:
        return None, Fault("missing", where, f"it is missing, expected {dead.bytes:,} bytes", before)
    got = FileSpec(len(data), hashlib.sha256(data).hexdigest())
    if got != FileSpec(dead.bytes, dead.sha256):
        what = (
            f"expected {dead.bytes:,} bytes with SHA-256 {dead.sha256[:16]}…, got {got.bytes:,} with {got.sha256[:16]}…"
        )
        return None, Fault("checksum", where, what, before)
    try:
        dead_D: NDArray[np.uint32] = parse_array(where, data, np.uint32, (dead.count,))
    except CorruptDataError as error:
        return None, Fault("dead-rows", where, reason_of(error, Path("/"), "/"), before)
    if int(dead_D.max()) >= spec.rows:
        what = f"expected rows up to {spec.rows - 1}, got {dead_D.max()}"
        return None, Fault("dead-rows", where, what, before)
    if (dead_D[1:] > dead_D[:-1]).all():
        return dead_D, None
    what = "expected rows in ascending order, each once, got others"
    return np.unique(dead_D), Fault("dead-rows", where, what, REBUILT, is_mendable=True, shard=spec.name)


def check_column(path: Path, name: str, attribute: str, spec: ShardSpec, kind: pa.DataType | None) -> Fault | None:
    """Check the file of an attribute that was set later; `kind` is its type in the manifest."""
    file = spec.columns[attribute]
    where, remedy = f"columns/{name}", f"{RESTORE}, or set the column again (`hashlight set-column`)"
    found = file_fault(path, FileSpec(file.bytes, file.sha256))
    if found is not None:
        return Fault(found[0], where, found[1], remedy)
    try:
        schema = check_attributes(path, spec.rows)
    except CorruptDataError as error:
        return Fault("column", where, reason_of(error, path, where), remedy)
    if schema.names != [attribute] or kind not in (None, schema.types[0]):
        got = ", ".join(f"{field.name} ({field.type})" for field in schema)
        return Fault("column", where, f"expected one attribute, {attribute} ({kind}), got {got}", remedy)
    return None


def check_described(
    files: ShardFiles, spec: ShardSpec, schema: pa.Schema | None, columns: dict[str, Path], dead_D: NDArray[np.uint32]
) -> Iterator[Fault]:
    """Check what a manifest says about a shard: ids, types, statistics.

    Parameters
    ----------
    files : ShardFiles
    spec : ShardSpec
    schema : pyarrow.Schema or None
        Of the attributes that the version shows.
    columns : dict of str to Path
        Sound files of attributes that were set later.
    dead_D : ndarray of uint32, shape (D,)
    """
    where = f"shards/{spec.name}"
    ids_N = files.ids()
    if ids_N is not None:
        yield from _check_repeated(ids_N, dead_D, where, spec)
        got = (int(ids_N.min()), int(ids_N.max()))
        if spec.ids not in (None, got):
            what = f"the manifest has ids from {spec.ids[0]} to {spec.ids[1]}, the shard from {got[0]} to {got[1]}"
            yield Fault("id-range", f"{where}/ids.npy", what, REBUILT, is_mendable=True, shard=spec.name)
    own = files.attributes()
    kinds = {} if own is None else {field.name: field.type for field in own.schema if field.name not in spec.columns}
    wrong = {field.name for field in schema or () if kinds.get(field.name, field.type) != field.type}
    for name in sorted(wrong):
        what = f"attribute {name} is {kinds[name]}, another type than in the manifest"
        yield Fault("attributes", f"{where}/attributes.arrow", what, _LOST, shard=spec.name)
    shown = {field.name for field in schema or ()}
    for name, said in spec.statistics.items():
        if name in wrong or (name in spec.columns and name not in columns):
            continue
        source = AttributeFile(columns[name]) if name in columns else own
        if source is not None and name in source.schema.names:
            fault = _statistics_fault(source, name, said, spec.rows)
        else:
            fault = _null_fault(said, spec.rows) if name in shown else "there is no such attribute"
        if fault is not None:
            yield Fault("statistics", where, f"those of {name}: {fault}", REBUILT, is_mendable=True, shard=spec.name)


def _check_repeated(ids_N: IdArray, dead_D: NDArray[np.uint32], where: str, spec: ShardSpec) -> Iterator[Fault]:
    repeated = find_repeated(ids_N)
    if not len(repeated):
        return
    alive_N = np.ones(len(ids_N), np.bool_)
    alive_N[dead_D] = False
    is_mendable = not len(find_repeated(ids_N[alive_N]))
    what = f"{counted(len(repeated), 'id')}, first {repeated[0]}, more than once"
    remedy = REBUILT if is_mendable else UNCLEAR
    yield Fault("repeated-ids", f"{where}/ids.npy", what, remedy, is_mendable, spec.name)


def _statistics_fault(source: AttributeFile, name: str, said: Any, rows: int) -> str | None:
    """Return in what statistics differ from the values; a bound may be unknown."""
    parts, lengths = [], []
    for start in range(0, rows, BLOCK_ROWS):
        batches = list(source.rows((name,), start, min(start + BLOCK_ROWS, rows)))
        parts.append(column_statistics(pa.Table.from_batches(batches)))
        lengths.append(sum(len(batch) for batch in batches))
    true = merge_statistics(parts, lengths).get(name)
    if true is None:
        return "it is not a scalar attribute"
    if said["nulls"] != true["nulls"]:
        return f"the manifest has {said['nulls']} nulls, the shard {true['nulls']}"
    for end in ("min", "max"):
        if said[end] is not None and (said[end] != true[end] or type(said[end]) is not type(true[end])):
            return f"the manifest has {end} {said[end]!r}, the shard {true[end]!r}"
    return None


def _null_fault(said: Any, rows: int) -> str | None:
    """Return in what statistics differ from those of an attribute that other shards have, which is null in this one."""
    if (said["nulls"], said["min"], said["max"]) == (rows, None, None):
        return None
    return f"the manifest has {said['nulls']} nulls, the shard, which has no values of it, {rows}"
