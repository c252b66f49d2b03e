"""Writing one shard of a collection: the task that a build starts for each shard.

A task reads each part that holds rows of it once, whole, and checks it; a few parts are read ahead. Codes and ids stay
in memory until their order is known. Features, attributes and thumbnails, whose order follows from theirs, are put
aside in temporary files, so that a process needs little more memory than its codes, ids and tables.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import mmap
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from hashlight.engine.codes import CodeArray, IdArray, num_words
from hashlight.engine.collection.writing.draft import new_shard
from hashlight.engine.collection.writing.opening import JOB_FOLDER
from hashlight.engine.features import FeatureKind, Features, from_bytes, write_features
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.reading import map_ahead
from hashlight.engine.storage.attributes import write_attributes
from hashlight.engine.storage.columns import as_stored, stored_schema
from hashlight.engine.storage.leftovers import Intent
from hashlight.engine.storage.manifest import ShardSpec, parse_shard
from hashlight.engine.storage.shard import (
    FEATURES_FILE,
    finish_shard,
    order_rows,
    write_codes,
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
    features_size,
    read_part,
)
from hashlight.pipelines.jobs import chaos
from hashlight.pipelines.jobs.folder import JobFolder, sidecar_name

# From malloc.h: blocks of this size or more are mapped separately.
_M_MMAP_THRESHOLD = -3
_LARGE_ARRAY_BYTES = 1 << 20
# Parts in memory at a time; some are read and checked while one is copied.
_PARTS_AHEAD = 4


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
    features_as : tuple of two of {"float16", "bfloat16", "int8"}, or None
        What the parts have features as, and what the shard is to keep them as; None without features.
    """

    number: int
    folder: JobFolder
    output: str
    pieces: tuple[Piece, ...]
    schema: pa.Schema
    bits: int
    tables: bool
    threads: int
    features_as: tuple[FeatureKind, FeatureKind] | None = None


def build_shard(job: ShardJob) -> ShardSpec:
    """Write one shard and publish its sidecar; return its description.

    Ray restarts a task whose process died after that, and a task whose driver died may still be running beside that of
    the next driver: the first sidecar counts.
    """
    if (finished := _finished(job)) is not None:
        return finished
    chaos.step("build:shard", job.number)
    place = open_place(job.output)
    with Intent(place, until_gone=f"{JOB_FOLDER}/{sidecar_name(job.number)}") as intent:
        with new_shard(place, intent) as folder:
            spec = _write_shard(job, folder)
            chaos.step("build:shard-written", job.number)
        _finished(job)  # withdraws what cannot be used, which would take precedence
        said = job.folder.publish(job.number, sidecar_of(spec))
        chaos.step("build:shard-done", job.number)
        published = parse_shard(said["shard"])
        if published.name == spec.name:
            intent.abandon()  # the sidecar speaks for it, until the commit or another job removes that
        return published


def sidecar_of(spec: ShardSpec) -> dict[str, Any]:
    """Return what the sidecar of a finished shard says, with a checksum of it: it becomes part of a manifest."""
    shard = asdict(spec)
    return {"shard": shard, "sha256": _checksum(shard)}


def check_sidecar(said: dict[str, Any]) -> None:
    """Raise ValueError, LookupError, TypeError or AttributeError unless a sidecar says what `sidecar_of` says."""
    parse_shard(said["shard"])
    if said["sha256"] != _checksum(said["shard"]):
        raise ValueError("it does not have its checksum")


def _checksum(shard: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(shard, sort_keys=True).encode()).hexdigest()


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
    folder.mkdir(parents=True)
    with _Aside(job, folder) as aside:
        order_N = _write_rows(job, folder, aside)
        chaos.step("build:rows-written", job.number)
        if attributes := attribute_columns(job.schema):
            write_attributes(folder / "attributes.arrow", aside.columns(attributes), order_N)
        if job.features_as is not None:
            write_features(folder / FEATURES_FILE, aside.features(), order_N, job.features_as[1])
        if THUMBNAIL_COLUMN in job.schema.names:
            write_thumbnails(folder, aside.columns([THUMBNAIL_COLUMN]), order_N)
    return finish_shard(folder, len(order_N))


def _write_rows(job: ShardJob, folder: Path, aside: _Aside) -> np.ndarray:
    """Write ids, codes and tables, and free each before the next; return the order of the rows."""
    _return_freed_memory()
    codes_NW, ids_N = _read_rows(job, aside)
    pa.default_memory_pool().release_unused()
    order_N = order_rows(codes_NW, ids_N)
    write_ids(folder, ids_N[order_N])
    del ids_N
    codes_NW = codes_NW[order_N]
    order_N = order_N.astype(np.uint32)
    write_codes(folder, codes_NW, bits=job.bits, tables=job.tables, threads=job.threads)
    return order_N


def _read_rows(job: ShardJob, aside: _Aside) -> tuple[CodeArray, IdArray]:
    """Return codes (N, W) and ids (N,) of a shard, and put its other columns aside; each part is read once."""
    rows = sum(piece.stop - piece.start for piece in job.pieces)
    codes_NW, ids_N = np.empty((rows, num_words(job.bits)), np.uint64), np.empty(rows, np.int64)
    place = 0
    for table in map_ahead(functools.partial(_read_piece, job), job.pieces, _PARTS_AHEAD):
        codes_NW[place : place + len(table)] = codes_column(table["code"])
        ids_N[place : place + len(table)] = table["id"].to_numpy()
        place += len(table)
        aside.add(table)
    if ids_N.min() < 0:
        raise ValueError(f"`ids` must be 0 or more (-1 pads short answers), got {ids_N.min()}")
    return codes_NW, ids_N


def _read_piece(job: ShardJob, piece: Piece) -> pa.Table:
    own = {"id": pa.int64(), "code": pa.binary(8 * num_words(job.bits))}
    fields = [pa.field(field.name, own[field.name], False) if field.name in own else field for field in job.schema]
    return read_part(piece.part, pa.schema(fields)).slice(piece.start, piece.stop - piece.start)


class _Aside:
    """The columns of a shard's rows other than ids and codes, in temporary files that have no names.

    Parameters
    ----------
    job : ShardJob
    folder : Path
        For the files.
    """

    def __init__(self, job: ShardJob, folder: Path) -> None:
        schema = job.schema
        names = attribute_columns(schema) + [THUMBNAIL_COLUMN] * (THUMBNAIL_COLUMN in schema.names)
        self._schema = pa.schema([schema.field(name) for name in names])
        self._stored = stored_schema(self._schema)
        self._kind = job.features_as[0] if job.features_as else None
        self._dims = features_size(schema, self._kind)
        self._opened = contextlib.ExitStack()
        self._columns: IO[bytes] = self._opened.enter_context(_temporary_file(folder))
        self._features: IO[bytes] = self._opened.enter_context(_temporary_file(folder))
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._columns, "w"), self._stored)

    def __enter__(self) -> _Aside:
        """Start empty."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the disk back."""
        self._opened.close()

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        for batch in table.select(self._schema.names).to_batches() if self._schema.names else ():
            self._writer.write_batch(as_stored(batch, self._stored))
        if self._kind is not None:
            self._features.write(features_column(table[FEATURES_COLUMN], self._kind).packed.data)

    def columns(self, names: list[str]) -> Iterator[pa.Table]:
        """Yield some columns of all rows."""
        self._writer.close()
        with pa.ipc.open_stream(pa.BufferReader(pa.py_buffer(_mapped(self._columns)))) as batches:
            for batch in batches:
                yield pa.Table.from_batches([batch]).select(names)

    def features(self) -> Features:
        """Return the features of all rows, mapped."""
        assert self._kind is not None, "there are some"
        return from_bytes(_mapped(self._features), self._kind, self._dims)


def _temporary_file(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)


def _mapped(file: IO[bytes]) -> mmap.mmap:
    file.flush()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _return_freed_memory() -> None:
    """Have the C library return arrays to the system when they are freed.

    glibc keeps freed blocks of up to 32 MB for later; here, where each array is used once, they came to half a shard.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_ARRAY_BYTES)
