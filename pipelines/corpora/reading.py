"""The encoded bytes of a listing's images, streamed: from files, rows of Parquet and IDX files, and tar shards."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hashlight.engine.places.buckets import split_options
from hashlight.pipelines.corpora import idx
from hashlight.pipelines.corpora.listing import IMAGE_COLUMN, IMAGE_SUFFIXES, ROW, SOURCE, TAR_SUFFIXES
from hashlight.pipelines.corpora.webdataset import Sample, read_samples
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.filesystems import is_local
from hashlight.pipelines.jobs.reads import ReadFailedError, RetryingFile, map_ahead, read_bytes

# Above every photograph's file, below what would hurt a worker.
MAX_ENCODED_BYTES = 64 << 20

_REMOTE_READS = 32
_PARQUET_BATCH = 256


def read_images(entries: pa.Table) -> Iterator[bytes | OSError]:
    """Read the encoded bytes of each entry, in order; one that is not there or damaged yields the error instead.

    Raises
    ------
    ReadFailedError
        If a read failed at every try for a reason that may be gone later: of the images nothing is known.
    """
    rows = zip(entries[SOURCE].to_pylist(), entries[ROW].to_pylist(), strict=True)
    for is_row, run in itertools.groupby(rows, key=lambda pair: pair[1] >= 0):
        if is_row:
            for source, pairs in itertools.groupby(run, key=lambda pair: pair[0]):
                yield from _read_rows(source, np.array([row for _, row in pairs]))
        else:
            yield from _read_files(source for source, _ in run)


def read_shard(source: str) -> Iterator[Sample]:
    """Read the samples of one WebDataset shard."""
    return read_samples(source, IMAGE_SUFFIXES, MAX_ENCODED_BYTES)


def read_uri(uri: str) -> bytes:
    """Read the encoded image at a URI of a listing: a file's, or `FILE#row` or `SHARD.tar#name`.

    Raises
    ------
    OSError
        If it is not there, or cannot be read.
    """
    source, _, inner = uri.rpartition("#")
    if source.endswith(TAR_SUFFIXES):
        found = next((sample.data for sample in read_shard(source) if sample.name == inner), None)
        image = OSError(f"{source} has no image {inner}") if found is None else found
    elif inner.isdigit() and (source.endswith(".parquet") or idx.is_idx(source)):
        image = next(_read_rows(source, np.array([int(inner)])))
    else:
        image = _read_file(uri)
    if isinstance(image, OSError):
        raise image
    return image


def _read_file(source: str) -> bytes | OSError:
    try:
        return read_bytes(source, most=MAX_ENCODED_BYTES)
    except ReadFailedError:
        raise
    except OSError as error:
        return error
    except (ValueError, pa.ArrowException, PipelineError) as error:  # no name of a file, or of no store
        return OSError(str(error))


def _read_files(sources: Iterable[str]) -> Iterator[bytes | OSError]:
    for local, run in itertools.groupby(sources, key=is_local):
        if local:
            yield from map(_read_file, run)
        else:
            yield from map_ahead(_read_file, run, _REMOTE_READS)


def _read_rows(source: str, rows: np.ndarray) -> Iterator[bytes | OSError]:
    name = split_options(source)[0].lower()
    if name.endswith(TAR_SUFFIXES):
        yield from _read_tar_rows(source, rows)
    elif idx.is_idx(name):
        yield from _read_idx_rows(source, rows)
    else:
        yield from _read_parquet_rows(source, rows)


def _read_tar_rows(source: str, rows: np.ndarray) -> Iterator[bytes | OSError]:
    """Read ascending samples of a shard by their numbers."""
    wanted = iter(rows.tolist())
    row = next(wanted, None)
    for number, sample in enumerate(read_shard(source)):
        if number == row:
            yield sample.data
            row = next(wanted, None)
    while row is not None:
        yield OSError(f"{source} has no sample {row}")
        row = next(wanted, None)


def _read_idx_rows(source: str, rows: np.ndarray) -> Iterator[bytes | OSError]:
    """Read ascending rows of an IDX file, which stand side by side but for a few."""
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
        try:
            pixels = idx.read_rows(source, int(run[0]), int(run[-1]) + 1)
        except ReadFailedError:
            raise
        except (OSError, EOFError, zlib.error, struct.error, PipelineError) as error:
            yield from [OSError(str(error))] * len(run)
            continue
        yield from map(idx.as_png, pixels)


def _read_parquet_rows(source: str, rows: np.ndarray) -> Iterator[bytes | OSError]:
    """Read the image column of ascending rows, a part of a row group at a time; what cannot be read is an error."""
    path = split_options(source)[0]
    try:
        raw = RetryingFile(source)
        file = pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20)
    except ReadFailedError:
        raise
    except (pa.ArrowException, OSError) as error:
        yield from [OSError(f"{path} cannot be read: {error}")] * len(rows)
        return
    with raw, file:
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        groups = np.searchsorted(ends, rows, side="right")
        for group in np.unique(groups):
            yield from _read_row_group(file, int(group), ends, rows[groups == group], path)


def _read_row_group(
    file: pq.ParquetFile, group: int, ends: np.ndarray, rows: np.ndarray, path: str
) -> Iterator[bytes | OSError]:
    read = 0
    try:
        first = ends[group] - file.metadata.row_group(group).num_rows
        for batch in file.iter_batches(_PARQUET_BATCH, row_groups=[group], columns=[IMAGE_COLUMN]):
            column = batch.column(0)
            while read < len(rows) and rows[read] < first + len(column):
                row = rows[read]
                read += 1
                yield _encoded_bytes(column[int(row - first)].as_py(), f"{path}#{row}")
            if read == len(rows):
                return
            first += len(column)
    except ReadFailedError:
        raise
    except (pa.ArrowException, OSError, IndexError) as error:
        yield from [OSError(f"row group {group} of {path} cannot be read: {error}")] * (len(rows) - read)


def _encoded_bytes(value: object, uri: str) -> bytes | OSError:
    """Take plain bytes, or the `{bytes, path}` struct that image data sets are often published with."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else OSError(f"{uri} has no image bytes")
