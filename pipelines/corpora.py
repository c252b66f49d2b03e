"""Corpora: where images and what is known of them come from.

A corpus is listed once, without opening an image, into a table with one entry an image:

===========  ======  =================================================================================================
id           int64   the corpus's own `id` column, or 63 bits of a hash of where the image is within the corpus
uri          string  where the image is: `/path/to/image.png`, or `/path/to/file.parquet#row`
__source     string  the file to read
__row        int64   the row of that file, -1 if the file is the image
(others)             every other column of a Parquet corpus; for a folder `label`, the name of the image's sub-folder
===========  ======  =================================================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import PipelineError

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
IMAGE_COLUMN = "image"
SOURCE, ROW = "__source", "__row"
_RESERVED = {"code", SOURCE, ROW}


def list_corpus(path: str | Path) -> pa.Table:
    """List the images of a corpus: a folder of images, a Parquet file, or a folder of Parquet files.

    Returns
    -------
    pyarrow.Table
        One entry an image, as in the module's docstring, in the order of the names (of the rows, in a Parquet file).

    Raises
    ------
    PipelineError
        If there is nothing at `path`, no image in it, no image column, or one id stands twice.
    """
    path = Path(path).resolve()
    if not path.exists():
        raise PipelineError(f"no corpus at {path}: expected a folder of images, a Parquet file or a folder of those")
    files = [path] if path.is_file() else sorted(entry for entry in path.rglob("*") if _is_visible_file(entry, path))
    tables = [file for file in files if file.suffix == ".parquet"]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if tables and images:
        raise PipelineError(f"{path} has Parquet files ({len(tables)}) and images ({len(images)}): name one kind")
    if tables:
        entries = _concatenate([_list_parquet(file, path) for file in tables], path)
    elif images:
        entries = _list_images(images, path)
    else:
        raise PipelineError(
            f"{path} has no images: expected files ending in {' '.join(sorted(IMAGE_SUFFIXES))} or .parquet, "
            f"got {len(files)} other files"
        )
    if not len(entries):
        raise PipelineError(f"{path} has no images: its Parquet files have no rows")
    _refuse_repeated_ids(entries)
    return entries


def attribute_names(entries: pa.Table) -> list[str]:
    """Return the columns of a listing that are stored with the codes as attributes."""
    return [name for name in entries.column_names if name not in ("id", SOURCE, ROW)]


def read_images(entries: pa.Table) -> Iterator[bytes | OSError]:
    """Read the encoded bytes of each entry, in order; an entry that cannot be read yields the error instead."""
    sources, rows = entries[SOURCE].to_pylist(), entries[ROW].to_numpy()
    start = 0
    while start < len(sources):
        stop = start + 1
        while stop < len(sources) and sources[stop] == sources[start]:
            stop += 1
        if rows[start] < 0:
            yield _read_file(sources[start])
        else:
            yield from _read_parquet_images(sources[start], rows[start:stop])
        start = stop


def read_uri(uri: str) -> bytes:
    """Read the encoded image at a URI of a listing.

    Raises
    ------
    OSError
        If it is not there, or not a local file.
    """
    source, _, row = uri.rpartition("#")
    is_row = source.endswith(".parquet") and row.isdigit()
    if not is_row:
        return Path(uri).read_bytes()
    image = next(_read_parquet_images(source, np.array([int(row)])))
    if isinstance(image, OSError):
        raise image
    return image


def has_labels(entries: pa.Table) -> bool:
    """Whether the corpus has a column `label`."""
    return "label" in entries.column_names


def labels_of(entries: pa.Table) -> tuple[np.ndarray, list[str]]:
    """Return what labels the entries have, and the labels' names.

    A column `label` of plain values gives a label's number for each entry, (N,) int64. One of lists, of several labels
    an image, gives (N, C) bool with a column a name.

    Raises
    ------
    PipelineError
        If the corpus has no `label` column, or an entry lacks one.
    """
    if not has_labels(entries):
        raise PipelineError(
            "the corpus has no labels: expected sub-folders named after classes, or a Parquet column `label`; "
            f"got the columns {attribute_names(entries)}"
        )
    column = entries["label"]
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    missing = pc.fill_null(pc.equal(pc.list_value_length(column), 0), True) if lists else column.is_null()
    count = pc.sum(missing).as_py()
    if count:
        first = entries["uri"][pc.index(missing, True).as_py()]
        raise PipelineError(
            f"{count} of {len(column)} images have no label (first: {first}): leave them out or label them"
        )
    if lists:
        return _several_labels(column)
    names, numbers = np.unique(column.to_numpy(zero_copy_only=False), return_inverse=True)
    return numbers.astype(np.int64), [str(name) for name in names]


def _several_labels(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    lists = column.combine_chunks()
    names, numbers = np.unique(lists.flatten().to_numpy(zero_copy_only=False), return_inverse=True)
    matrix = np.zeros((len(lists), len(names)), np.bool_)
    matrix[pc.list_parent_indices(lists).to_numpy(), numbers] = True
    return matrix, [str(name) for name in names]


def _is_visible_file(path: Path, root: Path) -> bool:
    return (path.is_file() or path.is_symlink()) and not any(
        part.startswith(".") for part in path.relative_to(root).parts
    )


def _concatenate(tables: list[pa.Table], path: Path) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        raise PipelineError(f"the Parquet files of {path} disagree on their columns: {error}") from error


def _list_images(files: list[Path], root: Path) -> pa.Table:
    base = root if root.is_dir() else root.parent
    names = [file.relative_to(base) for file in files]
    for file in files:
        if not _is_utf8(file):
            raise PipelineError(f"the name of {str(file)!r} is not UTF-8, so it cannot be stored as a URI: rename it")
    columns = {
        "id": _hashed_ids(name.as_posix() for name in names),
        "uri": [str(file) for file in files],
        SOURCE: [str(file) for file in files],
        ROW: np.full(len(files), -1, np.int64),
    }
    labels = [name.parts[0] if len(name.parts) > 1 else None for name in names]
    if any(labels):
        columns["label"] = labels
    return pa.table(columns)


def _is_utf8(file: Path) -> bool:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return False
    return True


def _list_parquet(file: Path, root: Path) -> pa.Table:
    rows, images = _read_all_but_images(file)
    names = rows.column_names
    if images is None or not (
        _is_binary(images) or (pa.types.is_struct(images) and images.get_field_index("bytes") >= 0)
    ):
        raise PipelineError(
            f"{file} has no column `{IMAGE_COLUMN}` with encoded images (binary, or a struct with `bytes`): it has "
            f"{[*names, *([f'{IMAGE_COLUMN} ({images})'] if images else [])]}"
        )
    reserved = _RESERVED & set(names)
    if reserved:
        raise PipelineError(f"{file} has columns named {sorted(reserved)}, which Hashlight writes itself: rename them")
    numbers = np.arange(len(rows))
    where = file.name if root.is_file() else file.relative_to(root).as_posix()
    entries = {
        "id": _given_ids(rows["id"], file) if "id" in names else _hashed_ids(f"{where}#{row}" for row in numbers),
        "uri": rows["uri"] if "uri" in names else [f"{file}#{row}" for row in numbers],
        SOURCE: pa.array([str(file)] * len(rows), pa.string()),
        ROW: numbers,
    }
    others = {name: rows[name] for name in names if name not in entries}
    return pa.table({**entries, **others})


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _read_all_but_images(file: Path) -> tuple[pa.Table, pa.DataType | None]:
    """Return all other columns, and the type of the image column if there is one."""
    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            rows = table.read([name for name in schema.names if name != IMAGE_COLUMN])
            return rows, schema.field(IMAGE_COLUMN).type if IMAGE_COLUMN in schema.names else None
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(f"{file} is not a readable Parquet file: {error}") from error


def _given_ids(column: pa.ChunkedArray, file: Path) -> pa.ChunkedArray:
    if not pa.types.is_integer(column.type):
        raise PipelineError(f"{file}: `id` must be whole numbers, got {column.type}: leave it out to have ids made")
    least = pc.min(column).as_py()
    if column.null_count or (least is not None and least < 0):
        raise PipelineError(
            f"{file}: `id` must be 0 or more in every row, got {column.null_count} nulls and a least of {least}"
        )
    return column.cast(pa.int64())


def _hashed_ids(names: Iterator[str]) -> np.ndarray:
    """Ids that do not depend on the listing's order: the first 63 bits of BLAKE2b of each name."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return (np.frombuffer(digests, "<u8") >> np.uint64(1)).astype(np.int64)


def _refuse_repeated_ids(entries: pa.Table) -> None:
    counts = pc.value_counts(entries["id"].combine_chunks())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        example = repeated[0]["values"].as_py()
        uris = entries.filter(pc.equal(entries["id"], example))["uri"].to_pylist()[:2]
        raise PipelineError(
            f"{len(repeated)} ids stand more than once in the corpus, for example {example} for {' and '.join(uris)}: "
            "give each image its own `id`"
        )


def _read_file(path: str) -> bytes | OSError:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return error


def _read_parquet_images(path: str, rows: np.ndarray) -> Iterator[bytes | OSError]:
    """Read the image column of ascending rows, one row group at a time; what cannot be read is an error."""
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        yield from [OSError(f"{path} cannot be read: {error}")] * len(rows)
        return
    with file:
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        groups = np.searchsorted(ends, rows, side="right")
        for group in np.unique(groups):
            yield from _read_row_group(file, int(group), ends, rows[groups == group], path)


def _read_row_group(
    file: pq.ParquetFile, group: int, ends: np.ndarray, rows: np.ndarray, path: str
) -> Iterator[bytes | OSError]:
    try:
        column = file.read_row_group(group, columns=[IMAGE_COLUMN]).column(0).combine_chunks()
    except (pa.ArrowException, OSError, IndexError) as error:
        yield from [OSError(f"row group {group} of {path} cannot be read: {error}")] * len(rows)
        return
    first = ends[group] - len(column)
    for row in rows:
        yield _encoded_bytes(column[int(row - first)].as_py(), f"{path}#{row}")


def _encoded_bytes(value: object, uri: str) -> bytes | OSError:
    """Take plain bytes, or the `{bytes, path}` struct that image data sets are often published with."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else OSError(f"{uri} has no image bytes")
