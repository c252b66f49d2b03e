"""Parquet files as corpora: with encoded images in a column, or with their URIs in one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashlight.engine.errors import ReadFailedError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import without_credentials
from hashlight.engine.storage.columns import stored_schema
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.kinds.columns import as_rows, image_column_of
from hashlight.pipelines.corpora.kinds.images import read_file
from hashlight.pipelines.corpora.kinds.rows import Look, Rows, list_rows
from hashlight.pipelines.corpora.listing import CHUNK_ENTRIES, File, FileStream, Listing, mentioned_in
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.corpora.reasons import reworded
from hashlight.pipelines.jobs.errors import PipelineError

SUFFIX = ".parquet"

_BATCH_ROWS = 256
# A part of a file that is listed by itself has as many row groups as make this many rows.
_PART_ROWS = 200_000
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


class Parquet:
    """The format; see `pipelines.corpora.kinds.rows.RowFormat`."""

    what = "Parquet files"

    def look(self, file: File) -> Look:
        """Read the footer of a file; its parts are row groups, from the first to the one after the last."""
        try:
            with open_place(file.uri).open() as raw, pq.ParquetFile(raw) as table:
                ends = _row_group_ends(table)
                return Look(stored_schema(table.schema_arrow), _parts(ends), ends)
        except ReadFailedError:
            raise
        except _DAMAGE as error:
            raise _unreadable(file, error) from error

    def read(self, file: File, part: tuple[int, int], columns: list[str]) -> Iterator[Rows]:
        """Read columns of some row groups."""
        try:
            with open_place(file.uri).open() as raw, pq.ParquetFile(raw, pre_buffer=False) as parquet:
                ends = _row_group_ends(parquet)
                first, stop = int(ends[part[0] - 1]) if part[0] else 0, int(ends[part[1] - 1]) if part[1] else 0
                if not columns:
                    for start in range(first, stop, CHUNK_ENTRIES):
                        yield Rows(start, min(CHUNK_ENTRIES, stop - start), pa.table({}))
                    return
                for batch in parquet.iter_batches(CHUNK_ENTRIES, row_groups=list(range(*part)), columns=columns):
                    batch.validate(full=True)  # a text that is not UTF-8
                    yield Rows(first, len(batch), as_rows(batch))
                    first += len(batch)
        except ReadFailedError:
            raise
        except _DAMAGE as error:
            raise _unreadable(file, error) from error


PARQUET = Parquet()


def list_files(root: str, found: FileStream, ids: IdRule, options: CorpusOptions) -> Listing:
    """List the rows of Parquet files; see `pipelines.corpora.kinds.rows.list_rows`."""
    return list_rows(root, found, ids, options, PARQUET)


def _unreadable(file: File, error: Exception) -> PipelineError:
    return PipelineError(f"{without_credentials(file.uri)} is not a readable Parquet file: {error}")


def _row_group_ends(file: pq.ParquetFile) -> NDArray[np.int64]:
    """Return the row after the last of each row group."""
    return np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)], dtype=np.int64)


def _parts(ends: NDArray[np.int64]) -> list[tuple[int, int]]:
    cuts = np.flatnonzero(np.diff(ends // _PART_ROWS, prepend=0))
    stops = sorted({*(cuts + 1).tolist(), len(ends)})
    return list(zip([0, *stops[:-1]], stops, strict=True))


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
        self._source = ("", "")
        self._file: pq.ParquetFile
        self._ends: NDArray[np.int64]
        self._place: _Place | None = None

    def close(self) -> None:
        """Close the file that is open."""
        self._source, self._place = ("", ""), None
        self._opened.close()

    def read(self, source: str, rows: np.ndarray, column: str | None = None) -> Iterator[bytes | OSError]:
        """Read the images of ascending rows, a part of a row group at a time; what cannot be read is an error.

        Parameters
        ----------
        source : str
        rows : ndarray of int64
        column : str, optional
            That of the images; by default the one with a known name.
        """
        path = without_credentials(source)
        try:
            self._open(source, column)
        except ReadFailedError:
            raise
        except (pa.ArrowException, OSError) as error:
            yield from [reworded(error, f"{path} cannot be read: {error}")] * len(rows)
            return
        groups = np.searchsorted(self._ends, rows, side="right")
        for group in np.unique(groups):
            yield from self._read_row_group(int(group), rows[groups == group], source)

    def _open(self, source: str, column: str | None) -> None:
        if (source, column or "") == self._source:
            return
        self.close()
        raw = self._opened.enter_context(open_place(source).open())
        self._file = self._opened.enter_context(pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20))
        self._ends = _row_group_ends(self._file)
        self._column = column or image_column_of(self._file.schema_arrow)
        if self._column not in self._file.schema_arrow.names:
            raise OSError(f"it has no column `{self._column or 'image'}` with encoded images")
        self._source = (source, column or "")

    def _read_row_group(self, group: int, rows: np.ndarray, source: str) -> Iterator[bytes | OSError]:
        read, path = 0, without_credentials(source)
        try:
            place = self._place_before(group, int(rows[0]))
            for row in rows.tolist():
                if not place.read_to(row):
                    raise IndexError(f"it has no row {row}")
                image = _encoded_bytes(place.column[row - place.first].as_py(), source, row)
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
            batches = self._file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[self._column])
            self._place = _Place(group, batches, first, pa.array([], pa.binary()))
        return self._place


def _encoded_bytes(value: object, source: str, row: int) -> bytes | OSError:
    """Take plain bytes, or the struct of Hugging Face's images: `bytes`, or else the `path` of a file."""
    if isinstance(value, dict):
        path, value = value.get("path"), value.get("bytes")
        if value is None and isinstance(path, str) and path:
            return read_file(mentioned_in(source, [path])[1][0])
    return value if isinstance(value, bytes) else OSError(f"{without_credentials(source)}#{row} has no image bytes")
