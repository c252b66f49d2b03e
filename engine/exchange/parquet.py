"""Parquet: a file or a folder of files, read in batches, and one file, written in row groups."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from hashlight.engine.errors import CorruptDataError, ReadFailedError
from hashlight.engine.exchange.parquet_types import from_portable, portable_schema, to_portable
from hashlight.engine.exchange.targets import written_file
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.place import Place

# In the metadata of a file: the Arrow schema of what was written, where it is not what Parquet holds.
_TYPES = b"hashlight.types"
_BATCH_ROWS = 65_536


@contextlib.contextmanager
def open_parquet(source: str | Path) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Yield the schema and the batches of a file, or of all files of a folder whose names end in `.parquet`.

    Parameters
    ----------
    source : str or Path
        A path or URI, in any place.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the files of a folder have different columns.
    CorruptDataError
        If a file is not readable.
    """
    place = open_place(source)
    entry = place.entry()
    names = [""]
    if entry is not None and entry.is_folder:
        names = [found.name for found in place.walk() if found.name.endswith(".parquet")]
        if not names:
            raise FileNotFoundError(f"{place} has no files whose names end in .parquet: expected at least 1")
    with _open_file(place, names[0]) as file:
        wanted = _schema_of(file)
    yield wanted, _batches(place, names, wanted)


def _batches(place: Place, names: list[str], wanted: pa.Schema) -> Iterator[pa.RecordBatch]:
    for name in names:
        with _open_file(place, name) as file:
            schema = _schema_of(file)
            if not schema.equals(wanted):
                raise ValueError(
                    f"the files of {place} must have the same columns; {names[0]} has {_text(wanted)}, {name} has "
                    f"{_text(schema)}"
                )
            reading = file.iter_batches(_BATCH_ROWS)
            while (batch := _next_batch(place.path(name), reading)) is not None:
                yield from_portable(batch, schema)


def _next_batch(path: str, reading: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    with _readable(path):
        batch = next(reading, None)
        if batch is not None:
            batch.validate(full=True)
        return batch


@contextlib.contextmanager
def _open_file(place: Place, name: str) -> Iterator[pq.ParquetFile]:
    with place.open(name) as file:
        with _readable(place.path(name)):
            opened = pq.ParquetFile(file)
        with opened:
            yield opened


@contextlib.contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except ReadFailedError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptDataError(f"{path} is not readable as Parquet: {error}") from error


def _schema_of(file: pq.ParquetFile) -> pa.Schema:
    """Return the schema of what a file was written from; of what it holds, if another program changed that."""
    held = file.schema_arrow
    metadata = dict(held.metadata or {})
    said = metadata.pop(_TYPES, None)
    held = held.with_metadata(metadata or None)
    if said is None:
        return held
    try:
        written = pyarrow.ipc.read_schema(pa.py_buffer(base64.b64decode(said)))
    except (pa.ArrowException, ValueError):
        return held
    kinds = {field.name: field for field in written}
    portable = {field.name: field.type for field in portable_schema(written)}
    fields = [kinds[f.name] if portable.get(f.name) == f.type else f for f in held]
    return pa.schema(fields, held.metadata)


def _text(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def write_parquet(reader: pa.RecordBatchReader, target: str | Path, *, overwrite: bool = False) -> None:
    """Write record batches as a Parquet file with a row group for each, compressed by zstd; see `written_file`.

    Types that Parquet does not have are written as it can hold them (`parquet_types`), and are read back as they were.

    Raises
    ------
    ValueError
        If a value is beyond what Parquet can hold.
    """
    schema = portable_schema(reader.schema)
    if schema.types != reader.schema.types:
        said = base64.b64encode(reader.schema.remove_metadata().serialize())
        schema = schema.with_metadata({**(schema.metadata or {}), _TYPES: said})
    with (
        written_file(target, overwrite=overwrite) as path,
        path.open("wb") as sink,
        pq.ParquetWriter(sink, schema, compression="zstd") as writer,
    ):
        for batch in reader:
            writer.write_batch(to_portable(batch, schema))
