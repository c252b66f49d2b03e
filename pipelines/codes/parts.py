"""The files of a folder of codes: which rows each file holds, and their columns as arrays."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import without_credentials
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder, JobKind, sidecar_name

CODES = JobKind(
    holds="codes",
    identified_by=("corpus", "encoder"),
    entries=("codes.json", "parts", "attempts", "rejects.parquet", "stats.json", "encoder", "plan.parquet"),
)
FEATURES_COLUMN = "features"
THUMBNAIL_COLUMN = "thumbnail"


@dataclass(frozen=True, slots=True)
class Part:
    """One file of codes: its path or URI, its rows, and what its bytes must be."""

    path: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start` to `stop` of a part."""

    part: Part
    start: int
    stop: int


def part_name(unit: int) -> str:
    """Name the file of a unit's codes."""
    return f"parts/{unit:05d}.parquet"


def list_parts(codes: str | Path) -> list[Part]:
    """List the files of a folder of codes that have rows, local or in a bucket, in order; see `Part`."""
    job = JobFolder(codes, CODES)
    units = job.units()
    said = [json.loads(sidecar) for sidecar in job.place.read_many(map(sidecar_name, units))]
    return [
        Part(job.place.location_of(part_name(unit)), sidecar["codes"], sidecar["sha256"])
        for unit, sidecar in zip(units, said, strict=True)
        if sidecar["codes"]
    ]


def read_parts(codes: str | Path) -> Iterator[pa.Table]:
    """Read the files of a folder of codes in order; see `read_checked`."""
    return (pq.read_table(read_checked(part)) for part in list_parts(codes))


def cut_parts(parts: list[Part], cuts: Iterable[slice]) -> Iterator[list[Piece]]:
    """Cut the rows of consecutive parts; `cuts` are slices over all rows."""
    ends = list(itertools.accumulate((part.rows for part in parts), initial=0))
    first = 0
    for cut in cuts:
        while ends[first + 1] <= cut.start:
            first += 1
        pieces, number = [], first
        while number < len(parts) and ends[number] < cut.stop:
            start, stop = max(cut.start, ends[number]), min(cut.stop, ends[number + 1])
            pieces.append(Piece(parts[number], start - ends[number], stop - ends[number]))
            number += 1
        yield pieces


def read_checked(part: Part) -> pa.BufferReader:
    """Read a part's bytes, checked against its sidecar.

    Raises
    ------
    PipelineError
        If it is missing or damaged.
    """
    try:
        data = open_place(part.path).read()
        got = hashlib.sha256(data).hexdigest()
    except FileNotFoundError:
        data, got = b"", "nothing"
    if got != part.sha256:
        raise PipelineError(
            f"{without_credentials(part.path)} is damaged: expected SHA-256 {part.sha256[:16]}…, got {got[:16]}…: "
            "delete it, its sidecar and codes.json, and encode again as before"
        )
    return pa.BufferReader(data)


def codes_column(column: pa.ChunkedArray) -> CodeArray:
    """View a column of fixed-size binary codes as words, uint64 of shape (N, W)."""
    return _fixed_column(column, "<u8").astype(np.uint64, copy=False)


def stored_features(features_D: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return an image's features as they are stored.

    Raises
    ------
    PipelineError
        If one is not a number that float16 can hold: the fault is the encoder's, whatever the image.
    """
    largest = np.abs(features_D).max(initial=0.0)
    if not largest <= np.finfo(np.float16).max:
        raise PipelineError(
            f"the encoder's features reach {largest:,.0f}, and are stored as float16, up to "
            f"{np.finfo(np.float16).max:,.0f}: encode without `--features`"
        )
    return features_D.astype("<f2")


def features_column(column: pa.ChunkedArray) -> np.ndarray:
    """View a column of fixed-size binary features as float16 (N, F)."""
    return _fixed_column(column, "<f2").astype(np.float16, copy=False)


def attribute_columns(schema: pa.Schema) -> list[str]:
    """Return the columns of codes that are kept as attributes."""
    own = {"id", "code", FEATURES_COLUMN, THUMBNAIL_COLUMN}
    return [name for name in schema.names if name not in own]


def _fixed_column(column: pa.ChunkedArray, dtype: str) -> np.ndarray:
    size = np.dtype(dtype).itemsize
    width = column.type.byte_width // size
    chunks = [
        np.frombuffer(chunk.buffers()[1] or b"", dtype, count=len(chunk) * width, offset=chunk.offset * size * width)
        for chunk in column.chunks
    ]
    return (np.concatenate(chunks) if chunks else np.empty(0, dtype)).reshape(-1, width)
