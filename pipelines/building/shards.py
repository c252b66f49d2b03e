"""Writing one shard of a collection: the task that a build starts for each shard.

A task reads its rows from the parts that hold them, one kind of data after another, so that a process needs little more
memory than its shard.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from hashlight.engine.codes import CodeArray, IdArray, num_words
from hashlight.engine.collection.writer import new_shard
from hashlight.engine.places.opening import open_place
from hashlight.engine.storage.attributes import write_attributes
from hashlight.engine.storage.manifest import ShardSpec, parse_shard
from hashlight.engine.storage.shard import (
    finish_shard,
    order_rows,
    write_codes,
    write_features,
    write_ids,
    write_thumbnails,
)
from hashlight.pipelines.codes.parts import (
    FEATURES_COLUMN,
    THUMBNAIL_COLUMN,
    Piece,
    attribute_columns,
    codes_column,
    features_column,
    read_part,
)
from hashlight.pipelines.jobs import chaos
from hashlight.pipelines.jobs.folder import JobFolder

# From malloc.h: blocks of this size or more are mapped separately.
_M_MMAP_THRESHOLD = -3
_LARGE_ARRAY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ShardJob:
    """What a task needs to know to write one shard.

    Attributes
    ----------
    number : int
    folder : JobFolder
        Where its sidecar is published.
    output : str
        Path or URI of the collection.
    pieces : tuple of Piece
        Its rows, in their order.
    schema : pyarrow.Schema
        Of all parts together.
    bits : int
    tables : bool
    threads : int
    """

    number: int
    folder: JobFolder
    output: str
    pieces: tuple[Piece, ...]
    schema: pa.Schema
    bits: int
    tables: bool
    threads: int


def build_shard(job: ShardJob) -> ShardSpec:
    """Write one shard and publish its sidecar; return its description.

    Ray restarts a task whose process died after that, and a task whose driver died may still be running beside that of
    the next driver: the first sidecar counts.
    """
    if (finished := _finished(job)) is not None:
        return finished
    chaos.step("build:shard", job.number)
    place = open_place(job.output)
    with new_shard(place) as folder:
        spec = _write_shard(job, folder)
        chaos.step("build:shard-written", job.number)
    _finished(job)  # withdraws what cannot be used, which would take precedence
    said = job.folder.publish(job.number, {"shard": asdict(spec)})
    chaos.step("build:shard-done", job.number)
    published = parse_shard(said["shard"])
    if published.name != spec.name:
        place.remove(f"shards/{spec.name}")
    return published


def is_whole(location: str, spec: ShardSpec) -> bool:
    """Whether all files of a shard are in a collection: another write to it removes shards that no version names."""
    sizes = {entry.name: entry.size for entry in open_place(location).walk(f"shards/{spec.name}")}
    return all(sizes.get(name) == file.bytes for name, file in spec.files.items())


def _finished(job: ShardJob) -> ShardSpec | None:
    """Return the shard that another task finished, unless its files are gone."""
    if (said := job.folder.sidecar(job.number)) is None:
        return None
    spec = parse_shard(said["shard"])
    if is_whole(job.output, spec):
        return spec
    job.folder.withdraw(job.number)
    return None


def _write_shard(job: ShardJob, folder: Path) -> ShardSpec:
    order_N = _write_rows(job, folder)
    chaos.step("build:rows-written", job.number)
    attributes = attribute_columns(job.schema)
    if attributes:
        write_attributes(folder / "attributes.arrow", _columns(job, attributes), order_N)
    if FEATURES_COLUMN in job.schema.names:
        features = pa.concat_tables(_columns(job, [FEATURES_COLUMN]))[FEATURES_COLUMN]
        write_features(folder, features_column(features), order_N)
    if THUMBNAIL_COLUMN in job.schema.names:
        write_thumbnails(folder, _columns(job, [THUMBNAIL_COLUMN]), order_N)
    return finish_shard(folder, len(order_N))


def _write_rows(job: ShardJob, folder: Path) -> np.ndarray:
    """Write ids, codes and tables, and free each before the next; return the order of the rows."""
    _return_freed_memory()
    codes_NW, ids_N = _read_rows(job)
    pa.default_memory_pool().release_unused()
    order_N = order_rows(codes_NW, ids_N)
    folder.mkdir(parents=True)
    write_ids(folder, ids_N[order_N])
    del ids_N
    codes_NW = codes_NW[order_N]
    order_N = order_N.astype(np.uint32)
    write_codes(folder, codes_NW, bits=job.bits, tables=job.tables, threads=job.threads)
    return order_N


def _read_rows(job: ShardJob) -> tuple[CodeArray, IdArray]:
    """Read codes (N, W) and ids (N,) of a shard, each part checked against its sidecar."""
    rows = sum(piece.stop - piece.start for piece in job.pieces)
    wanted = pa.schema([("id", pa.int64()), ("code", pa.binary(8 * num_words(job.bits)))])
    wanted = pa.schema([field.with_nullable(False) for field in wanted])
    codes_NW, ids_N = np.empty((rows, num_words(job.bits)), np.uint64), np.empty(rows, np.int64)
    place = 0
    for piece in job.pieces:
        table = read_part(piece.part, wanted).slice(piece.start, piece.stop - piece.start)
        codes_NW[place : place + len(table)] = codes_column(table["code"])
        ids_N[place : place + len(table)] = table["id"].to_numpy()
        place += len(table)
    if ids_N.min() < 0:
        raise ValueError(f"`ids` must be 0 or more (-1 pads short answers), got {ids_N.min()}")
    return codes_NW, ids_N


def _columns(job: ShardJob, names: list[str]) -> Iterator[pa.Table]:
    """Yield columns of the shard's rows, one piece after another."""
    wanted = pa.schema([job.schema.field(name) for name in names])
    for piece in job.pieces:
        yield read_part(piece.part, wanted).slice(piece.start, piece.stop - piece.start)


def _return_freed_memory() -> None:
    """Have the C library return arrays to the system when they are freed.

    glibc keeps freed blocks of up to 32 MB for later; here, where each array is used once, they came to half a shard.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_ARRAY_BYTES)
