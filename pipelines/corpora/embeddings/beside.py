"""Embeddings in one file and what is known of them in another, row by row, as clip-retrieval writes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hashlight.engine.errors import ReadFailedError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import without_credentials
from hashlight.pipelines.corpora.embeddings.columns import other_columns
from hashlight.pipelines.corpora.embeddings.files import BATCH_ROWS, Batch, EmbeddingFile, PlainRows
from hashlight.pipelines.corpora.kinds.columns import refuse_repeated
from hashlight.pipelines.jobs.errors import PipelineError


class WithMetadata(EmbeddingFile):
    """Plain rows, and a file of Parquet with as many rows that describe them.

    Parameters
    ----------
    rows : PlainRows
    metadata : str
        URI of the other file.
    """

    def __init__(self, rows: PlainRows, metadata: str) -> None:
        self._plain = rows
        self._where = without_credentials(metadata)
        self.rows, self.dims = rows.rows, rows.dims
        self._opened = contextlib.ExitStack()
        try:
            raw = self._opened.enter_context(open_place(metadata).open())
            self._file = self._opened.enter_context(pq.ParquetFile(raw, pre_buffer=False))
            refuse_repeated(self._file.schema_arrow, self._where)
        except (ReadFailedError, PipelineError):
            self._opened.close()
            raise
        except (pa.ArrowException, OSError) as error:
            self._opened.close()
            raise PipelineError(f"{self._where} is not a readable Parquet file: {error}") from error
        if (found := self._file.metadata.num_rows) != self.rows:
            self._opened.close()
            raise PipelineError(
                f"{self._where} has {found:,} rows, {without_credentials(rows.uri)} has {self.rows:,} embeddings: "
                "expected a row for each; write both again"
            )
        schema = self._file.schema_arrow
        self._names = other_columns(schema, "")
        self.schema = pa.schema([schema.field(name) for name in self._names]).remove_metadata()

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def read(self, start: int, stop: int) -> Iterator[Batch]:
        """Read rows `start` to `stop`, in batches."""
        try:
            described = self._described(start, stop)
            for batch in self._plain.read(start, stop):
                count = len(batch.embeddings)
                while len(described) < count:
                    described = pa.concat_tables([described, next(self._tables)])
                yield batch._replace(columns=described.slice(0, count))
                described = described.slice(count)
        except ReadFailedError:
            raise
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise PipelineError(f"{self._where} cannot be read: {error}") from error

    def _described(self, start: int, stop: int) -> pa.Table:
        """Begin to read the metadata; return the rows of the first batch that are wanted."""
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        ends = np.cumsum(sizes, dtype=np.int64)
        group = int(np.searchsorted(ends, start, side="right"))
        first = int(ends[group - 1]) if group else 0
        batches = self._file.iter_batches(
            BATCH_ROWS, row_groups=list(range(group, len(ends))), columns=self._names, use_threads=False
        )
        self._tables = (pa.Table.from_batches([batch]) for batch in batches)
        skip = start - first
        for table in self._tables:
            if len(table) > skip:
                return table.slice(skip)
            skip -= len(table)
        return self.schema.empty_table()
