"""Arrow: whatever hands out record batches, and Arrow IPC files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from hashlight.engine.errors import CorruptDataError, ReadFailedError
from hashlight.engine.exchange.targets import written_file
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.place import Place

_FILE_MAGIC = b"ARROW1"
_COMPRESSED = pyarrow.ipc.IpcWriteOptions(compression="zstd")


@contextlib.contextmanager
def open_batches(source: object) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Yield the schema and the batches of a source, which are read once.

    Parameters
    ----------
    source : pyarrow.RecordBatchReader, Table or RecordBatch, iterable of RecordBatch, or str or Path
        Or anything with `__arrow_c_stream__`, as tables of other libraries have. Text is the place of an Arrow IPC file
        or stream.

    Raises
    ------
    TypeError
        If it is none of these.
    CorruptDataError
        If the file is not readable.
    """
    if isinstance(source, str | Path):
        with _open_file(source) as opened:
            yield opened
    elif isinstance(source, pa.RecordBatch):
        yield source.schema, iter([source])
    elif isinstance(source, pa.RecordBatchReader) or hasattr(source, "__arrow_c_stream__"):
        reader = source if isinstance(source, pa.RecordBatchReader) else pa.RecordBatchReader.from_stream(source)
        yield reader.schema, iter(reader)
    elif isinstance(source, Iterable):
        yield _iterated(iter(source))
    else:
        raise TypeError(
            "`source` must be a record batch reader, a table, record batches, or the place of an Arrow file, got "
            f"{type(source).__name__}"
        )


def _iterated(batches: Iterator[object]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    first = next(batches, None)
    if first is None:
        raise ValueError("`source` has no record batches, expected at least 1")
    if not isinstance(first, pa.RecordBatch):
        raise TypeError(f"`source` must be record batches, got an iterable of {type(first).__name__}")

    def checked() -> Iterator[pa.RecordBatch]:
        yield first
        for number, batch in enumerate(batches, start=1):
            if not isinstance(batch, pa.RecordBatch) or batch.schema != first.schema:
                got = batch.schema.to_string() if isinstance(batch, pa.RecordBatch) else type(batch).__name__
                raise ValueError(f"record batches must have one schema, batch {number} has another: {got}")
            yield batch

    return first.schema, checked()


@contextlib.contextmanager
def _open_file(source: str | Path) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    place = open_place(source)
    with place.open() as file:
        head = file.read(len(_FILE_MAGIC))
        file.seek(0)
        with _readable(place):
            opened = pyarrow.ipc.open_file(file) if head == _FILE_MAGIC else pyarrow.ipc.open_stream(file)
        yield opened.schema, _checked(place, opened)


@contextlib.contextmanager
def _readable(place: Place) -> Iterator[None]:
    try:
        yield
    except ReadFailedError:
        raise
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        raise CorruptDataError(f"{place} is not readable as an Arrow file: {error}") from error


def _checked(place: Place, opened: pa.RecordBatchFileReader | pa.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
    """Check every value before it is used: Arrow trusts a file."""
    if isinstance(opened, pa.RecordBatchFileReader):
        batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
    else:
        batches = iter(opened)
    while True:
        with _readable(place):
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)
        yield batch


def write_arrow_file(reader: pa.RecordBatchReader, target: str | Path, *, overwrite: bool = False) -> None:
    """Write record batches as an Arrow IPC file, compressed by zstd; see `written_file`."""
    with (
        written_file(target, overwrite=overwrite) as path,
        pa.OSFile(str(path), "wb") as sink,
        pyarrow.ipc.new_file(sink, reader.schema, options=_COMPRESSED) as writer,
    ):
        for batch in reader:
            writer.write_batch(batch)
