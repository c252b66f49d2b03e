"""The attributes of each row (URI, labels, anything), as an Arrow IPC file read by row number.

Batches of 1,024 rows, each buffer compressed: measured on 2 million URIs with a label (`benchmarks/attributes.py`), 5.2
bytes a row, 0.16 ms to open and 2.1 ms for 10 scattered rows. Parquet with row groups of the same size took 4.2 bytes,
2.6 ms, and 2.8 ms to open, growing with the rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from hashlight.engine.errors import CorruptDataError
from hashlight.engine.places.arrays import map_file
from hashlight.engine.storage.columns import as_stored, stored_schema
from hashlight.engine.storage.sorting import sort_rows_aside

BATCH_ROWS = 1024
_COMPRESSED = pyarrow.ipc.IpcWriteOptions(compression="zstd")
_PLAIN = pyarrow.ipc.IpcWriteOptions()

_JOINED_BYTES = 64 * 2**20  # of rows that are read together
_KEPT_READERS = 32  # each of some columns

_REMEDY = "restore it from a copy, or build the collection again"


def write_attributes(
    path: Path, tables: Iterable[pa.Table], order_N: NDArray[np.integer[Any]], *, compressed: bool = True
) -> None:
    """Write rows in the order of the shard's: row n of the file is row `order_N[n]` of all tables together.

    Columns may be longer than memory, or than one Arrow array can be: `tables` are read once, and only a part of them
    is in memory at a time. Pictures are already compressed; `compressed=False` stores them as they are, so that reading
    one does not decompress a whole batch.

    Raises
    ------
    ValueError
        If a batch of rows has more text or bytes in a column than Arrow can address.
    """
    tables = iter(tables)
    first = next(tables)
    schema = stored_schema(first.schema)
    sorted_rows = sort_rows_aside(
        itertools.chain([first], tables), order_N, schema, batch_rows=BATCH_ROWS, folder=path.parent
    )
    write_batches(path, sorted_rows, schema, compressed=compressed)


def write_batches(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema, *, compressed: bool = True) -> None:
    """Write rows in the order of the shard's, which come in batches of `BATCH_ROWS`."""
    options = _COMPRESSED if compressed else _PLAIN
    with pa.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)


def check_attributes(path: Path, rows: int) -> pa.Schema:
    """Check every value of an attribute file, which Arrow trusts when it reads one; return the schema.

    Parameters
    ----------
    path : Path
    rows : int
        The shard's; row n must be row `n % 1024` of batch `n // 1024`.

    Raises
    ------
    CorruptDataError
        If the file cannot be read, or its rows are not the shard's.
    """
    expected = [min(BATCH_ROWS, rows - start) for start in range(0, rows, BATCH_ROWS)]
    try:
        reader = pyarrow.ipc.open_file(map_file(path))
        names = reader.schema.names  # fails if one is not UTF-8
        got = [0] * reader.num_record_batches
        for number in range(len(got)):
            batch = reader.get_batch(number)
            batch.validate(full=True)
            got[number] = batch.num_rows
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise CorruptDataError(f"{path} is not readable as attributes ({error}): {_REMEDY}") from error
    if got != expected:
        wrong = next((n for n, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), len(expected))
        raise CorruptDataError(
            f"{path}: expected {rows} rows in {len(expected)} batches of {BATCH_ROWS}, got {sum(got)} rows in "
            f"{len(got)} batches ({', '.join(names)}), of which batch {wrong} is the first of another length: {_REMEDY}"
        )
    return reader.schema


class AttributeFile:
    """Attributes of one shard, in a mapped file or in memory. Thread-safe."""

    def __init__(self, path: Path, *, source: pa.Buffer | None = None) -> None:
        self._path = path
        self._source = map_file(path) if source is None else source
        # In several threads, decompressing a batch of URIs and labels takes one and a half times the processor time.
        self._reader = pyarrow.ipc.open_file(self._source, options=pyarrow.ipc.IpcReadOptions(use_threads=False))
        self.schema = stored_schema(self._reader.schema)
        self._readers: dict[tuple[str, ...], tuple[Any, pa.Schema]] = {}
        if self.schema.types != self._reader.schema.types:
            # Earlier releases stored dictionaries. Arrow reads them with the first batch, and not safely in threads.
            self._reader.get_batch(0)

    @classmethod
    def in_memory(cls, name: str, table: pa.Table) -> AttributeFile:
        """Hold rows as a file of them would."""
        sink = pa.BufferOutputStream()
        with pyarrow.ipc.new_file(sink, table.schema, options=_PLAIN) as writer:
            writer.write_table(table.combine_chunks(), max_chunksize=BATCH_ROWS)
        return cls(Path(name), source=sink.getvalue())

    def __repr__(self) -> str:
        """Name the file."""
        return f"AttributeFile({self._path})"

    def take(self, rows_N: NDArray[np.int64], names: Sequence[str] | None = None) -> pa.Table:
        """Return the named attributes (None: all) of `rows_N`, in that order, as a table of N rows.

        Batches are read one after another, and only the rows asked for are kept of each.
        """
        reader, schema = (self._reader, self.schema) if names is None else self._reader_of(tuple(names))

        def pick(number: int, row_P: NDArray[np.int64]) -> pa.RecordBatch:
            return as_stored(reader.get_batch(number), schema).take(pa.array(row_P % BATCH_ROWS))

        number_N = rows_N // BATCH_ROWS
        numbers = sorted(set(number_N.tolist()))
        if len(numbers) <= 1:  # as for rows of a small shard
            return pa.Table.from_batches([pick(number, rows_N) for number in numbers], schema)
        order_N = np.argsort(number_N, kind="stable")
        runs = np.split(order_N, np.flatnonzero(np.diff(number_N[order_N])) + 1)
        picked = [pick(number, rows_N[run_P]) for number, run_P in zip(numbers, runs, strict=True)]
        back_N = np.empty(len(order_N), np.int64)
        back_N[order_N] = np.arange(len(order_N))
        return pa.Table.from_batches(picked, schema).take(pa.array(back_N))

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        last: int = self._reader.num_record_batches - 1
        return last * BATCH_ROWS + int(self._reader.get_batch(last).num_rows)

    def rows(self, names: Sequence[str], start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield the named attributes of rows `start` to `stop`, in order, in batches of up to 64 MiB.

        `start` must be a multiple of 1,024, and so is the number of rows of every batch but the last.
        """
        reader, schema = self._reader_of(tuple(names))
        waiting: list[pa.RecordBatch] = []
        num_bytes = 0
        for number in range(start // BATCH_ROWS, -(-stop // BATCH_ROWS)):
            batch = as_stored(reader.get_batch(number), schema)
            if waiting and num_bytes + batch.nbytes > _JOINED_BYTES:
                yield pa.concat_batches(waiting)
                waiting, num_bytes = [], 0
            waiting.append(batch)
            num_bytes += batch.nbytes
        yield pa.concat_batches(waiting)

    def _reader_of(self, names: tuple[str, ...]) -> tuple[Any, pa.Schema]:
        """Return a reader of the named attributes alone, and their schema."""
        if (found := self._readers.get(names)) is None:
            fields = [self._reader.schema.get_field_index(name) for name in names]
            options = pyarrow.ipc.IpcReadOptions(included_fields=fields)
            reader = pyarrow.ipc.open_file(self._source, options=options)
            if self.schema.types != self._reader.schema.types:
                reader.get_batch(0)
            found = reader, pa.schema([self.schema.field(number) for number in sorted(fields)])
            if len(self._readers) >= _KEPT_READERS:
                self._readers = {}
            self._readers[names] = found
        return found


class Attributes:
    """The attributes of a shard as its collection shows them. Thread-safe.

    Parameters
    ----------
    schema : pyarrow.Schema
        Of the collection, which all its shards show.
    rows : int
        The shard's.
    own : AttributeFile or None
        The attributes that the shard was written with; those that are not in `schema` are not shown.
    columns : dict of str to AttributeFile
        Files of one attribute each, by its name, which take precedence. What is in no file is null.

    Attributes
    ----------
    own_names : frozenset of str
        The attributes that are shown as the shard was written with them.

    Raises
    ------
    CorruptDataError
        If a file has another type than `schema`.
    """

    def __init__(
        self, schema: pa.Schema, rows: int, own: AttributeFile | None, columns: Mapping[str, AttributeFile]
    ) -> None:
        self.schema, self._rows = schema, rows
        self._files: dict[str, AttributeFile] = {}
        for field in schema:
            file = columns.get(field.name, own)
            if file is None or field.name not in file.schema.names:
                continue
            # By its number: in the first collections a name may occur twice.
            if (got := file.schema.field(file.schema.names.index(field.name)).type) != field.type:
                raise CorruptDataError(
                    f"{file} has attribute `{field.name}` as {got}, the manifest as {field.type}: {_REMEDY}"
                )
            self._files[field.name] = file
        self.own_names = frozenset(name for name, file in self._files.items() if file is own)
        self._whole_file = own if own is not None and not columns and own.schema.equals(schema) else None

    def take(self, rows_N: NDArray[np.int64], names: Sequence[str] | None = None) -> pa.Table:
        """Return the named attributes (None: all) of `rows_N`, in that order, as a table of N rows."""
        schema = self._only(names)
        if (file := self._whole_file) is not None and schema.equals(self.schema):
            return file.take(rows_N)
        taken: dict[str, pa.ChunkedArray] = {}
        for file, wanted in self._by_file(schema.names):
            found = file.take(rows_N, wanted)
            taken |= {name: found[name] for name in wanted}
        columns = [taken[field.name] if field.name in taken else pa.nulls(len(rows_N), field.type) for field in schema]
        return pa.table(columns, schema=schema) if columns else schema.empty_table()

    def rows(self, names: Sequence[str], start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Yield the named attributes of rows `start` to `stop`, deleted ones included; see `AttributeFile.rows`."""
        files = self._by_file(names)
        if len(files) == 1 and len(files[0][1]) == len(names):
            yield from files[0][0].rows(names, start, stop)
            return
        schema = self._only(names)
        for first in range(start, stop, BATCH_ROWS):
            last = min(first + BATCH_ROWS, stop)
            read: dict[str, pa.Array] = {}
            for file, wanted in files:
                (batch,) = file.rows(wanted, first, last)
                read |= {name: batch.column(name) for name in wanted}
            columns = [
                read[field.name] if field.name in read else pa.nulls(last - first, field.type) for field in schema
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def _only(self, names: Sequence[str] | None) -> pa.Schema:
        """Return the schema of the named attributes, in the order of the names."""
        return self.schema if names is None else pa.schema([self.schema.field(name) for name in names])

    def _by_file(self, names: Sequence[str]) -> list[tuple[AttributeFile, list[str]]]:
        """Return which of the named attributes to read from each file."""
        found: dict[int, tuple[AttributeFile, list[str]]] = {}
        for name in names:
            if (file := self._files.get(name)) is not None:
                found.setdefault(id(file), (file, []))[1].append(name)
        return list(found.values())
