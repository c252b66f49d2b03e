"""Build a collection from a folder of codes: a Ray task a shard, then one commit.

The rows of the folder are cut into shards in their order. A task reads its rows from the parts they stand in, one kind
of data after another, so that a process needs little more memory than its shard. The ids of all shards are compared
before the commit, while the shards are built (`engine.ids.RepeatedIds`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hashlight.engine.codes import CodeArray, IdArray, num_words
from hashlight.engine.collection.writer import CollectionWriter, new_shard, refuse_foreign_folder, split_rows
from hashlight.engine.ids import RepeatedIds, refuse_repeated
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.reading import map_ahead
from hashlight.engine.places.uris import split_options
from hashlight.engine.storage.attributes import RESERVED, write_attributes
from hashlight.engine.storage.manifest import ShardSpec
from hashlight.engine.storage.shard import (
    finish_shard,
    order_rows,
    read_ids,
    write_codes,
    write_features,
    write_ids,
    write_thumbnails,
)
from hashlight.pipelines.capacity.constants import bytes_a_code
from hashlight.pipelines.codes.parts import (
    FEATURES_COLUMN,
    THUMBNAIL_COLUMN,
    Part,
    Piece,
    attribute_columns,
    codes_column,
    cut_parts,
    features_column,
    list_parts,
    read_checked,
)
from hashlight.pipelines.jobs import chaos
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.session import ray_session
from hashlight.pipelines.jobs.tasks import run_tasks

# About a gigabyte of 64-bit codes with their tables, built in seconds.
SHARD_ROWS = 20_000_000

# malloc.h; from this size on a block is a map of its own.
_M_MMAP_THRESHOLD = -3
_LARGE_ARRAY_BYTES = 1 << 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class EncodedCorpus:
    """All of a folder: codes (N, W) uint64, ids (N,), attributes (N rows), features (N, F) or None, the encoder."""

    codes: CodeArray
    ids: np.ndarray
    attributes: pa.Table
    features: np.ndarray | None
    bits: int
    fingerprint: str
    encoder: Path


@dataclass(frozen=True, slots=True)
class ShardJob:
    """What a task needs to know to write one shard.

    Attributes
    ----------
    number : int
    output : str
        Where the collection lies.
    pieces : tuple of Piece
        Its rows, in their order.
    schema : pyarrow.Schema
        Of all parts together.
    bits : int
    tables : bool
    threads : int
    """

    number: int
    output: str
    pieces: tuple[Piece, ...]
    schema: pa.Schema
    bits: int
    tables: bool
    threads: int


def read_codes(folder: str | Path) -> EncodedCorpus:
    """Read a folder that `encode_corpus` wrote, as a whole."""
    from hashlight.pipelines.encoding.encode import read_parts, read_summary

    summary = read_summary(folder)
    table = pa.concat_tables(list(read_parts(folder)), promote_options="default").combine_chunks()
    if len(table) != summary.codes:
        raise PipelineError(f"{folder}: expected {summary.codes} codes, got {len(table)}: encode the corpus again")
    has_features = FEATURES_COLUMN in table.column_names
    return EncodedCorpus(
        codes=codes_column(table["code"]),
        ids=table["id"].to_numpy(),
        attributes=table.select(attribute_columns(table.schema)),
        features=features_column(table[FEATURES_COLUMN]) if has_features else None,
        bits=summary.bits,
        fingerprint=summary.encoder,
        encoder=Path(folder) / "encoder",
    )


def build_collection(
    codes: str | Path,
    output: str | Path,
    *,
    shards: int | None = None,
    shard_rows: int | None = None,
    shard_bytes: int | None = None,
    tables: bool = True,
    overwrite: bool = False,
    append: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the codes of a folder as a collection, as the new version of one, or in addition to one.

    Parameters
    ----------
    codes : str or Path
        A folder that `encode_corpus` wrote, local or in a store.
    output : str or Path
        The collection: a folder, or a place in a bucket. Until the last step it is what it was before.
    shards, shard_rows, shard_bytes : int, optional
        One of: the number of shards, the most rows of one, or about the most bytes of one. 20 million rows if all
        are left out.
    tables : bool
        Build the multi-index of each shard.
    overwrite : bool
        Replace a collection that is there.
    append : bool
        Add to the collection that is there, which must be of the same encoder and hold none of the ids.
    workers : int, optional
        Shards built at once on this machine, one a core if left out. Each takes up to three times a shard's bytes.
    progress : callable, optional
        Called with (shards written, shards in all).

    Raises
    ------
    PipelineError
        If the codes are not whole.
    ValueError
        If an id stands twice, or is in the collection already.
    HashlightError
        If the collection cannot be written; see `engine.collection.writer.CollectionWriter`.
    """
    if sum(size is not None for size in (shards, shard_rows, shard_bytes)) > 1:
        raise ValueError("give one of `shards`, `shard_rows` and `shard_bytes`")
    refuse_foreign_folder(open_place(output))
    corpus = _find_codes(codes)
    if shards is None:
        shards = -(-corpus.rows // (shard_rows or _rows_within(shard_bytes, corpus)))
    at_once = min(workers or usable_cores(), shards)
    options = {"fingerprint": corpus.encoder, "tables": tables, "overwrite": overwrite, "append": append}
    with CollectionWriter(output, bits=corpus.bits, **options) as writer:
        old = writer.previous.shards if append and writer.previous else ()
        jobs = [
            ShardJob(
                number=number,
                output=writer.store.location,
                pieces=tuple(pieces),
                schema=corpus.schema,
                bits=corpus.bits,
                tables=tables,
                threads=max(1, usable_cores() // at_once),
            )
            for number, pieces in enumerate(cut_parts(corpus.parts, split_rows(corpus.rows, shards)))
        ]
        with ray_session(num_cpus=at_once):
            _write_shards(jobs, old, writer, progress or (lambda _done, _total: None))
        encoder = open_place(codes)
        writer.add_encoder({name: encoder.read(f"encoder/{name}") for name in encoder.names("encoder")})
        chaos.step("build:before-commit")
        writer.commit()
        chaos.step("build:after-commit")


@dataclass(frozen=True, slots=True)
class _Codes:
    """A folder of codes: its files, the schema of all of them together, and what made them."""

    parts: list[Part]
    rows: int
    schema: pa.Schema
    bits: int
    encoder: str


def _find_codes(codes: str | Path) -> _Codes:
    # Not above: the tasks import this module, and have no use for torch, which takes more memory than a shard.
    from hashlight.pipelines.encoding.encode import read_summary

    summary = read_summary(codes)
    parts = list_parts(codes)
    rows = sum(part.rows for part in parts)
    if rows != summary.codes:
        raise PipelineError(f"{codes}: expected {summary.codes} codes, got {rows}: encode the corpus again")
    schema = _common_schema(parts)
    reserved = RESERVED & set(attribute_columns(schema))
    if reserved:
        raise PipelineError(
            f"{codes} has attributes named {sorted(reserved)}, which are columns of answers themselves: rename them in "
            "the corpus and encode it again"
        )
    return _Codes(parts, rows, schema, summary.bits, summary.encoder)


def _write_shards(jobs: list[ShardJob], old: Sequence[ShardSpec], writer: CollectionWriter, progress: Progress) -> None:
    """Write all shards, and compare their ids with each other and with those of the `old` ones."""
    import ray

    build = ray.remote(build_shard)
    with RepeatedIds() as ids:
        for done, (job, spec) in enumerate(run_tasks(build.remote, jobs), start=1):
            writer.add_written(spec, number=job.number)
            ids.add(read_ids(writer.store, spec))
            progress(done, len(jobs))
        for spec in old:
            ids.add(read_ids(writer.store, spec))
        refuse_repeated(ids.find(), where=f"{writer.store} and the codes" if old else "the codes")


def build_shard(job: ShardJob) -> ShardSpec:
    """Write one shard and return its description."""
    chaos.step("build:shard", job.number)
    with new_shard(open_place(job.output)) as folder:
        order_N = _write_rows(job, folder)
        chaos.step("build:rows-written", job.number)
        attributes = attribute_columns(job.schema)
        if attributes:
            write_attributes(folder / "attributes.arrow", _read_columns(job, attributes), order_N)
        if FEATURES_COLUMN in job.schema.names:
            write_features(folder, features_column(_read_columns(job, [FEATURES_COLUMN])[FEATURES_COLUMN]), order_N)
        if THUMBNAIL_COLUMN in job.schema.names:
            write_thumbnails(folder, _read_columns(job, [THUMBNAIL_COLUMN])[THUMBNAIL_COLUMN], order_N)
        spec = finish_shard(folder, len(order_N))
        chaos.step("build:shard-written", job.number)
    return spec


def _write_rows(job: ShardJob, folder: Path) -> np.ndarray:
    """Write ids, codes and tables, and let go of each before the next; return the order of the rows."""
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


def _common_schema(parts: list[Part]) -> pa.Schema:
    """Return the schema of all parts together: a column that is empty in one has no type there."""
    schemas = dict.fromkeys(map_ahead(_schema_of, parts))
    try:
        return pa.unify_schemas(list(schemas), promote_options="default")
    except pa.ArrowException as error:
        raise PipelineError(f"the parts of the codes disagree on their columns: {error}") from error


def _schema_of(part: Part) -> pa.Schema:
    try:
        with open_place(part.path).open() as file:
            return pq.read_schema(file).remove_metadata()
    except (pa.ArrowException, OSError) as error:
        where = split_options(part.path)[0]
        raise PipelineError(f"{where} is damaged ({error}): encode the corpus again") from error


def _rows_within(budget: int | None, corpus: _Codes) -> int:
    """Estimate how many rows a shard of `budget` bytes has; attributes take about what they take in the first part."""
    if budget is None:
        return SHARD_ROWS
    others = _other_bytes(corpus.parts[0])
    rows = max(1, budget // 32)
    for _ in range(3):  # what a row takes of the tables depends on their number, and that on the rows
        rows = max(1, int(budget / (bytes_a_code(corpus.bits, rows) + others)))
    return rows


def _other_bytes(part: Part) -> float:
    """Return the bytes a row of whatever a part has beside ids and codes."""
    with open_place(part.path).open() as file:
        metadata = pq.read_metadata(file)
    columns = [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    return sum(c.total_compressed_size for c in columns if c.path_in_schema not in ("id", "code")) / metadata.num_rows


def _return_freed_memory() -> None:
    """Have the C library return arrays to the system when they are freed.

    glibc keeps freed blocks of up to 32 MB for later, which here, where each array is used once, came to half a shard.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_ARRAY_BYTES)


def _read_rows(job: ShardJob) -> tuple[CodeArray, IdArray]:
    """Read codes (N, W) and ids (N,) of a shard, each part checked against its sidecar."""
    rows = sum(piece.stop - piece.start for piece in job.pieces)
    codes_NW, ids_N = np.empty((rows, num_words(job.bits)), np.uint64), np.empty(rows, np.int64)
    place = 0
    for piece in job.pieces:
        table = pq.read_table(read_checked(piece.part), columns=["id", "code"], use_threads=False)
        table = table.slice(piece.start, piece.stop - piece.start)
        codes_NW[place : place + len(table)] = codes_column(table["code"])
        ids_N[place : place + len(table)] = table["id"].to_numpy()
        place += len(table)
    if ids_N.min() < 0:
        raise ValueError(f"`ids` must be 0 or more (-1 pads short answers), got {ids_N.min()}")
    return codes_NW, ids_N


def _read_columns(job: ShardJob, names: list[str]) -> pa.Table:
    wanted = pa.schema([job.schema.field(name) for name in names])
    tables = []
    for piece in job.pieces:
        table = pq.read_table(read_checked(piece.part), columns=names, use_threads=False)
        tables.append(table.slice(piece.start, piece.stop - piece.start).select(names).cast(wanted))
    return pa.concat_tables(tables)
