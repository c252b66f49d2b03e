"""Files of Parquet and of Arrow, whose rows have an embedding and other columns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from hashlight.engine.errors import ReadFailedError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import without_credentials
from hashlight.pipelines.corpora.embeddings.columns import (
    dims_of,
    embedding_column,
    embeddings_of,
    first_length,
    other_columns,
)
from hashlight.pipelines.corpora.embeddings.files import BATCH_ROWS, Batch, EmbeddingFile
from hashlight.pipelines.corpora.kinds.columns import refuse_repeated
from hashlight.pipelines.jobs.errors import PipelineError


class TableFile(EmbeddingFile):
    """A file of rows of Arrow.

    Parameters
    ----------
    uri : str
    column : str
        Of the embeddings; "" if there is only one.
    dims : int, optional
        Of other files, so that lists of other lengths are told apart; otherwise the first list has the right length.
    """

    def __init__(self, uri: str, column: str = "", dims: int | None = None) -> None:
        self.where = without_credentials(uri)
        self._uri = uri
        self._opened = contextlib.ExitStack()
        try:
            schema = self._open()
            refuse_repeated(schema, self.where)
            self.column = embedding_column(schema, column, self.where)
            self._others = other_columns(schema, self.column)
            self.schema = pa.schema([schema.field(name) for name in self._others]).remove_metadata()
            self.left_out = [name for name in schema.names if name not in (*self._others, self.column)]
            self.dims = dims or dims_of(schema.field(self.column).type) or self._first_length()
        except (ReadFailedError, PipelineError):
            self.close()
            raise
        except (pa.ArrowException, OSError) as error:
            self.close()
            raise PipelineError(f"{self.where} cannot be read: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def read(self, start: int, stop: int) -> Iterator[Batch]:
        """Read rows `start` to `stop`, in batches."""
        try:
            for first, batch in self._batches(start, [self.column, *self._others]):
                if first >= stop:
                    return
                skipped = max(0, start - first)
                part = batch.slice(skipped, stop - first - skipped)
                for place in range(0, len(part), BATCH_ROWS):
                    yield self._read(first + skipped + place, part.slice(place, BATCH_ROWS))
        except ReadFailedError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise PipelineError(f"{self.where} cannot be read: {error}") from error

    def _read(self, first: int, batch: pa.RecordBatch) -> Batch:
        batch.validate(full=True)
        embedding_RD, faults = embeddings_of(batch.column(self.column), self.dims)
        return Batch(first, embedding_RD, pa.Table.from_batches([batch]).select(self._others), faults)

    def _first_length(self) -> int:
        for _, batch in self._batches(0, [self.column]):
            if length := first_length(batch.column(0)):
                return length
        raise PipelineError(f"{self.where} has no embeddings: every list of `{self.column}` is empty or missing")

    def _open(self) -> pa.Schema:
        """Open the file, find out its rows, and return its schema."""
        raise NotImplementedError

    def _batches(self, start: int, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield batches of columns, with their first rows, the first at or before row `start`."""
        raise NotImplementedError


class ParquetFile(TableFile):
    """A file of Parquet. A row group can only be read from its start."""

    def _open(self) -> pa.Schema:
        raw = self._opened.enter_context(open_place(self._uri).open())
        self._file = self._opened.enter_context(pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20))
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.ends = np.cumsum(sizes, dtype=np.int64)
        self.rows = metadata.num_rows
        return self._file.schema_arrow

    def _batches(self, start: int, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        group = int(np.searchsorted(self.ends, start, side="right"))
        first = int(self.ends[group - 1]) if group else 0
        groups = list(range(group, len(self.ends)))
        for batch in self._file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
            yield first, batch.select(columns)
            first += len(batch)


class ArrowFile(TableFile):
    """A file of Arrow: of record batches in any order (IPC file, Feather), or a stream, as of Hugging Face's data sets.

    A local file is mapped, and its batches are found without reading them.
    """

    def _open(self) -> pa.Schema:
        source = self._source()
        try:
            self._file: Any = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            self._file = None
        if self._file is not None:
            firsts = [0]
            for number in range(self._file.num_record_batches):
                firsts.append(firsts[-1] + self._file.get_batch(number).num_rows)
            self._firsts = np.array(firsts, np.int64)
            self.rows = firsts[-1]
            return self._file.schema
        with pa.ipc.open_stream(self._source()) as stream:
            self.rows = sum(batch.num_rows for batch in stream)
            return stream.schema

    def _source(self) -> Any:
        place = open_place(self._uri)
        return self._opened.enter_context(pa.memory_map(str(place.local)) if place.local else place.open())

    def _batches(self, start: int, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        if self._file is not None:
            number = max(0, int(np.searchsorted(self._firsts, start, side="right")) - 1)
            for place in range(number, self._file.num_record_batches):
                yield int(self._firsts[place]), self._file.get_batch(place).select(columns)
            return
        first = 0
        with pa.ipc.open_stream(self._source()) as stream:
            for batch in stream:
                if first + batch.num_rows > start:
                    yield first, batch.select(columns)
                first += batch.num_rows
