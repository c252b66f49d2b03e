"""Parquet files as corpora: with encoded images in a column `image`, or with their URIs in a column `uri`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashlight.engine.errors import ReadFailedError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import without_credentials
from hashlight.engine.storage.columns import RESERVED
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.listing import (
    BASE_SCHEMA,
    CHUNK_ENTRIES,
    GROUP,
    HOW_TO_READ,
    IMAGES,
    ROW,
    SOURCE,
    STAMP,
    File,
    FileStream,
    Listing,
    mentioned_in,
)
from hashlight.pipelines.corpora.reasons import reworded
from hashlight.pipelines.jobs.errors import PipelineError

SUFFIX = ".parquet"
IMAGE_COLUMN = "image"

_MAX_ID = 2**63 - 1
_RESERVED = (RESERVED - {"id"}) | HOW_TO_READ
_BATCH_ROWS = 256


def list_files(root: str, found: FileStream, ids: IdRule) -> Listing:
    """List the rows of Parquet files.

    Raises
    ------
    PipelineError
        If a file is not a corpus, or the files disagree on their columns.
    """
    files = list(found())
    listed = [_listed_columns(file) for file in files]
    try:
        schema = pa.unify_schemas([_entry_schema(*columns) for columns in listed], promote_options="default")
    except pa.ArrowException as error:
        raise PipelineError(
            f"the Parquet files of {without_credentials(root)} disagree on their columns: {error}"
        ) from error

    def chunks() -> Iterator[pa.Table]:
        for file in files:
            for table in _list_rows(file, ids):
                yield _promote(table, schema)

    has_ids = any(ids.column_among(names) for names, _ in listed)
    return Listing(root, IMAGES, schema, chunks, found.skipped, has_ids)


def _entry_schema(names: list[str], schema: pa.Schema) -> pa.Schema:
    others = [pa.field(name, _plain(schema.field(name).type)) for name in names if name not in ("id", "uri")]
    return pa.schema([*BASE_SCHEMA, pa.field(GROUP, pa.int64()), *others])


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return a type without dictionaries: files of one corpus, and row groups of one file, have different ones."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in kind])
    return kind


def _listed_columns(file: File) -> tuple[list[str], pa.Schema]:
    """Return the columns other than the image, and the schema, of a Parquet file that can be a corpus."""
    where = without_credentials(file.uri)
    try:
        with open_place(file.uri).open() as raw, pq.ParquetFile(raw) as table:
            schema = table.schema_arrow
            names = [name for name in schema.names if name != IMAGE_COLUMN]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{where} is not a readable Parquet file: {error}") from error
    images = schema.field(IMAGE_COLUMN).type if IMAGE_COLUMN in schema.names else None
    by_uri = images is None and "uri" in names and _is_text(schema.field("uri").type)
    if not by_uri and not _holds_bytes(images):
        raise PipelineError(
            f"{where} has no column `{IMAGE_COLUMN}` with encoded images (binary, or a struct with `bytes`) and no "
            f"column `uri` to read them from: it has {[*names, *([f'{IMAGE_COLUMN} ({images})'] if images else [])]}"
        )
    reserved = _RESERVED & set(names)
    if reserved:
        raise PipelineError(f"{where} has columns named {sorted(reserved)}, which Hashlight writes itself: rename them")
    return names, schema


def _holds_bytes(kind: pa.DataType | None) -> bool:
    if kind is None:
        return False
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return bool(binary or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _list_rows(file: File, ids: IdRule) -> Iterator[pa.Table]:
    names, schema = _listed_columns(file)
    by_uri = IMAGE_COLUMN not in schema.names
    try:
        with open_place(file.uri).open() as raw, pq.ParquetFile(raw, pre_buffer=False) as parquet:
            ends = None if by_uri else _row_group_ends(parquet)
            first = 0
            if not names:
                for start in range(0, parquet.metadata.num_rows, CHUNK_ENTRIES):
                    rows = min(CHUNK_ENTRIES, parquet.metadata.num_rows - start)
                    yield _entries_of(None, rows, start, file, ids, ends)
                return
            for batch in parquet.iter_batches(CHUNK_ENTRIES, columns=names):
                batch.validate(full=True)  # a text that is not UTF-8
                yield _entries_of(pa.Table.from_batches([batch]), len(batch), first, file, ids, ends)
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(f"{without_credentials(file.uri)} is not a readable Parquet file: {error}") from error


def _row_group_ends(file: pq.ParquetFile) -> NDArray[np.int64]:
    """Return the row after the last of each row group."""
    return np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)], dtype=np.int64)


def _entries_of(
    table: pa.Table | None, count: int, first: int, file: File, ids: IdRule, ends: NDArray[np.int64] | None
) -> pa.Table:
    """Make the entries of rows from `first` on, of row groups with these ends; None if they have only URIs."""
    base = without_credentials(file.uri)
    columns = {} if table is None else dict(zip(table.column_names, table.columns, strict=True))
    rows = np.arange(first, first + count)
    groups = np.full(count, -1) if ends is None else np.searchsorted(ends, rows, side="right")
    if ends is None:
        names = columns["uri"].to_pylist()
        if None in names:
            raise PipelineError(f"{base}: every row must have a `uri`, row {first + names.index(None)} has none")
        uris, sources = mentioned_in(file.uri, names)
        rows = np.full(count, -1, np.int64)
    else:
        names = [f"{file.name}#{row}" for row in rows]
        given = columns["uri"].cast(pa.string()).to_pylist() if "uri" in columns else [None] * count
        uris = [uri or f"{base}#{row}" for uri, row in zip(given, rows, strict=True)]
        sources = [file.uri] * count
    own = ids.column_among(columns)
    entries = {
        "id": ids.ids_of(names, uris) if own is None else _given_ids(own, columns.get(own), base),
        "uri": uris,
        SOURCE: sources,
        ROW: rows,
        STAMP: [file.stamp] * count,
        GROUP: groups,
    }
    return pa.table({**entries, **{name: column for name, column in columns.items() if name not in entries}})


def _promote(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = {
        field.name: table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    }
    return pa.table(columns, schema)


def _given_ids(name: str, column: pa.ChunkedArray | None, file: str) -> pa.ChunkedArray:
    if column is None:
        raise PipelineError(f"{file} has no column `{name}` to take ids from: name another, or have ids made")
    if not pa.types.is_integer(column.type):
        raise PipelineError(f"{file}: `{name}` must be whole numbers, got {column.type}: have ids made from the names")
    lowest, highest = pc.min_max(column).as_py().values()
    if column.null_count or (lowest is not None and (lowest < 0 or highest > _MAX_ID)):
        raise PipelineError(
            f"{file}: `{name}` must be 0 to {_MAX_ID} in every row, got {column.null_count} nulls, a minimum of "
            f"{lowest} and a maximum of {highest}"
        )
    return column.cast(pa.int64())


@dataclass(slots=True)
class _Place:
    """How far a row group has been read: its batches, the last one of them, and the row with which that begins."""

    group: int
    batches: Iterator[pa.RecordBatch]
    first: int
    column: pa.Array

    def read_to(self, row: int) -> bool:
        """Read on to the batch with a row; return whether there is one."""
        while row >= self.first + len(self.column):
            batch = next(self.batches, None)
            if batch is None:
                return False
            self.first += len(self.column)
            self.column = batch.column(0)
        return row >= self.first


class RowReader:
    """Reads images by their rows. A row group can only be read from its start: it is read on, not again."""

    def __init__(self) -> None:
        self._opened = contextlib.ExitStack()
        self._source = ""
        self._file: pq.ParquetFile
        self._ends: NDArray[np.int64]
        self._place: _Place | None = None

    def close(self) -> None:
        """Close the file that is open."""
        self._source, self._place = "", None
        self._opened.close()

    def read(self, source: str, rows: np.ndarray) -> Iterator[bytes | OSError]:
        """Read the image column of ascending rows, a part of a row group at a time; what cannot be read is an error."""
        path = without_credentials(source)
        try:
            self._open(source)
        except ReadFailedError:
            raise
        except (pa.ArrowException, OSError) as error:
            yield from [reworded(error, f"{path} cannot be read: {error}")] * len(rows)
            return
        groups = np.searchsorted(self._ends, rows, side="right")
        for group in np.unique(groups):
            yield from self._read_row_group(int(group), rows[groups == group], path)

    def _open(self, source: str) -> None:
        if source == self._source:
            return
        self.close()
        raw = self._opened.enter_context(open_place(source).open())
        self._file = self._opened.enter_context(pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20))
        self._ends = _row_group_ends(self._file)
        self._source = source

    def _read_row_group(self, group: int, rows: np.ndarray, path: str) -> Iterator[bytes | OSError]:
        read = 0
        try:
            place = self._place_before(group, int(rows[0]))
            for row in rows.tolist():
                if not place.read_to(row):
                    raise IndexError(f"it has no row {row}")
                image = _encoded_bytes(place.column[row - place.first].as_py(), f"{path}#{row}")
                read += 1
                yield image
        except ReadFailedError:
            self._place = None
            raise
        except (pa.ArrowException, OSError, IndexError) as error:
            self._place = None
            words = f"row group {group} of {path} cannot be read: {error}"
            yield from [reworded(error, words)] * (len(rows) - read)

    def _place_before(self, group: int, row: int) -> _Place:
        """Return a place in a row group, at or before a row: where the last reading ended, or the start."""
        if self._place is None or self._place.group != group or self._place.first > row:
            self._place = None
            first = int(self._ends[group]) - self._file.metadata.row_group(group).num_rows
            batches = self._file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[IMAGE_COLUMN])
            self._place = _Place(group, batches, first, pa.array([], pa.binary()))
        return self._place


def _encoded_bytes(value: object, uri: str) -> bytes | OSError:
    """Take plain bytes, or the `{bytes, path}` struct that image data sets are often published with."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else OSError(f"{uri} has no image bytes")
