"""The files of a folder of codes: which rows each file holds, and their columns as arrays."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray
from hashlight.engine.features import FLOAT16, FeatureKind, Features, check_kind, dims_of, from_bytes
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import without_credentials
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder, JobKind, parse_object, sidecar_name

PLAN = "plan.arrow"
# Of a unit of work.
STEPS = ("read", "decode", "encode", "write")


def check_sidecar(said: dict[str, Any]) -> None:
    """Raise ValueError, LookupError, TypeError or AttributeError unless the sidecar of a unit makes sense."""
    counts = [said[name] for name in ("entries", "codes", "rejects", "bytes")]
    counts += [*said["skipped"].values(), *said.get("hashes", {}).values()]
    if not all(type(count) is int and 0 <= count < 2**64 for count in counts):
        raise ValueError(f"expected numbers of 0 or more, got {counts}")
    if not re.fullmatch("[0-9a-f]{64}", said["sha256"]):
        raise ValueError(f"expected a SHA-256, got {said['sha256']!r}")
    if not all(type(name) is str for name in said["left_out"]):
        raise TypeError(f"expected names of attributes, got {said['left_out']!r}")
    if not all(0 <= said["seconds"][step] < math.inf for step in STEPS):
        raise ValueError(f"expected the seconds of each step, got {said['seconds']!r}")
    if not all(0 <= int(row) < said["codes"] for row in said.get("hashes", {})):
        raise ValueError("expected hashes of rows of the part")
    rows = [_row_of_reject(reject) for reject in said["rejected"]]
    if len(rows) != said["rejects"] or rows != sorted(set(rows)) or (rows and rows[-1] >= said["codes"] + len(rows)):
        raise ValueError(f"expected {said['rejects']} rejects of distinct rows, got rows {rows[:10]}")


def _row_of_reject(reject: dict[str, Any]) -> int:
    row, id_ = reject["row"], reject["id"]
    if type(row) is not int or row < 0 or type(id_) is not int or not 0 <= id_ < 2**63:
        raise ValueError(f"expected the row and the id of a reject, got {row!r} and {id_!r}")
    for name in ("uri", "kind", "reason"):
        reject[name].encode()
    return row


CODES = JobKind(
    holds="codes",
    identified_by=("corpus", "encoder"),
    entries=("codes.json", "parts", "attempts", "rejects.parquet", "stats.json", "encoder", PLAN),
    check=check_sidecar,
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


def part_name(unit: int, sha256: str) -> str:
    """Name the file of a unit's codes by its bytes.

    Two processes may encode one unit, on unlike machines to unlike bytes: then each has a file of its own, and the
    sidecar that was first says which one counts.
    """
    return f"parts/{unit:05d}-{sha256[:16]}.parquet"


def list_parts(codes: str | Path) -> list[Part]:
    """List the files of a folder of codes that have rows, local or in a bucket, in order; see `Part`.

    Raises
    ------
    PipelineError
        If a sidecar is damaged.
    """
    job = JobFolder(codes, CODES)
    units = job.units()
    # One at a time: a sidecar has the rejects of its unit.
    sidecars = zip(units, job.place.read_many(map(sidecar_name, units)), strict=True)
    parts = (_part_of(job, unit, sidecar) for unit, sidecar in sidecars)
    return [part for part in parts if part.rows]


def _part_of(job: JobFolder, unit: int, sidecar: bytes) -> Part:
    try:
        said = parse_object(sidecar)
        rows, sha256 = said["codes"], said["sha256"]
        if type(rows) is not int or rows < 0 or not re.fullmatch("[0-9a-f]{64}", str(sha256)):
            raise ValueError(f"expected a number of codes and a SHA-256, got {rows!r} and {sha256!r}")
    except (ValueError, KeyError) as error:
        raise PipelineError(
            f"{job.place.path(sidecar_name(unit))} is damaged ({error}): delete it and codes.json, and encode again "
            "as before"
        ) from error
    return Part(job.place.location_of(part_name(unit, sha256)), rows, sha256)


def read_parts(codes: str | Path) -> Iterator[pa.Table]:
    """Read the files of a folder of codes in order; see `read_part`."""
    return (read_part(part) for part in list_parts(codes))


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
    where = without_credentials(part.path)
    try:
        data = open_place(part.path).read()
    except FileNotFoundError as error:
        raise PipelineError(
            f"{where} is missing, its sidecar says that it is complete: delete the sidecar and codes.json, and encode "
            "again as before"
        ) from error
    got = hashlib.sha256(data).hexdigest()
    if got != part.sha256:
        raise PipelineError(
            f"{where} is damaged: expected SHA-256 {part.sha256[:16]}…, got {got[:16]}…: delete it, its sidecar and "
            "codes.json, and encode again as before"
        )
    return pa.BufferReader(data)


def read_part(part: Part, wanted: pa.Schema | None = None) -> pa.Table:
    """Read the rows of a part: its bytes are checked against its sidecar, and its values for sense.

    Parameters
    ----------
    part : Part
    wanted : pyarrow.Schema, optional
        The columns to read, and what they must be or become; all columns as they are by default.

    Raises
    ------
    PipelineError
        If it is missing or damaged, or holds something else.
    """
    data = read_checked(part)
    try:
        # Not `read_table`: its threads may outlive a damaged file, and abort a process that ends meanwhile.
        table = pq.ParquetFile(data).read(None if wanted is None else wanted.names, use_threads=False)
        table.validate(full=True)
        if len(table) != part.rows:
            raise ValueError(f"it has {len(table)} rows, its sidecar says {part.rows}")
        return table if wanted is None else table.select(wanted.names).cast(wanted)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise PipelineError(
            f"{without_credentials(part.path)} is not readable as codes ({error}): delete it, its sidecar and "
            "codes.json, and encode again as before"
        ) from error


def codes_column(column: pa.ChunkedArray) -> CodeArray:
    """View a column of fixed-size binary codes as words, uint64 of shape (N, W)."""
    return _fixed_column(column, "<u8").astype(np.uint64, copy=False)


def features_kind(said: object) -> FeatureKind | None:
    """Return what features are kept as, by what the identity of a job says: true stands for float16, false for none."""
    return (FLOAT16 if said else None) if isinstance(said, bool) else check_kind(said, "features")


def kind_of_codes(codes: str | Path) -> FeatureKind | None:
    """Return what a folder of codes keeps features as; None if it has none.

    Raises
    ------
    PipelineError
        If its marker is damaged, or says what this release does not know.
    """
    job = JobFolder(codes, CODES)
    try:
        return features_kind((job.identity() or {}).get("features", True))
    except ValueError as error:
        raise PipelineError(f"{job} has features that this release cannot read ({error}): use a later one") from error


def stored_features(features_ND: NDArray[np.float32], kind: FeatureKind = FLOAT16) -> Features:
    """Return images' features as they are stored.

    Raises
    ------
    PipelineError
        If one is not a number that the kind can hold: the fault is the encoder's, whatever the image.
    """
    try:
        return Features.of(features_ND, kind)
    except ValueError as error:
        raise PipelineError(
            f"the encoder's features cannot be kept ({error}): encode with another `--features-as`, or without features"
        ) from error


def features_size(schema: pa.Schema, kind: FeatureKind | None) -> int:
    """Return the dimensions of the fine features of codes; 0 if there are none."""
    if FEATURES_COLUMN not in schema.names:
        return 0
    return dims_of(kind or FLOAT16, schema.field(FEATURES_COLUMN).type.byte_width)


def features_column(column: pa.ChunkedArray, kind: FeatureKind) -> Features:
    """View a column of fixed-size binary as features."""
    return from_bytes(_fixed_column(column, "|u1"), kind, dims_of(kind, column.type.byte_width))


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
