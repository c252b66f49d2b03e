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

from hashlight.engine.codes import CodeArray
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import without_credentials
from hashlight.pipelines.jobs.errors import PipelineError

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


def list_parts(codes: str | Path) -> list[Part]:
    """List the files of a folder of codes, local or in a store, in order, as their sidecars describe them."""
    folder = open_place(codes)
    # By number: names have five digits or more.
    names = sorted(folder.names("sidecars"), key=lambda name: int(name.partition(".")[0]))
    said = [json.loads(sidecar) for sidecar in folder.read_many(f"sidecars/{name}" for name in names)]
    return [
        Part(folder.location_of(f"parts/{name.removesuffix('.json')}.parquet"), sidecar["codes"], sidecar["sha256"])
        for name, sidecar in zip(names, said, strict=True)
        if sidecar["codes"]
    ]


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
            "encode the corpus again"
        )
    return pa.BufferReader(data)


def codes_column(column: pa.ChunkedArray) -> CodeArray:
    """View a column of fixed-size binary codes as words, uint64 of shape (N, W)."""
    return _fixed_column(column, "<u8").astype(np.uint64, copy=False)


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
