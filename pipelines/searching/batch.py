"""Search for millions of queries: blocks of queries against shards as Ray tasks, merged exactly, into one Parquet file.

A task asks one shard for one block of queries and writes what it found aside; a second merges the answers of a block
over all shards by (distance, id). Both go through their block a few thousand queries at a time, so that memory does not
grow with queries or shards. Blocks that are done are kept beside the output until it is published in one step, so that
the same command goes on where it was interrupted.

The output has one row a query, in the order of the queries:

==========  ===========  ==============================================================================================
query       int64        the queries' column `id`, or the row's number
ids         list<int64>  ascending by (distance, id)
distances   list<int32>
truncated   bool         whether a limit cut the answers of a radius search
==========  ===========  ==============================================================================================
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from hashlight.engine.codes import CodeArray, IdArray, check_codes, num_words
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.places.files import aside_of, sync_file, sync_folder, write_atomically, writer_lock
from hashlight.engine.places.opening import open_place
from hashlight.engine.query import Query
from hashlight.engine.results import RangeResult, SearchResult, as_range, merge_range
from hashlight.engine.storage.manifest import Manifest, ShardSpec, read_current
from hashlight.engine.storage.mirror import local_shard
from hashlight.engine.storage.shard import Shard
from hashlight.pipelines.codes.parts import Part, Piece, codes_column, cut_parts, list_parts, read_checked
from hashlight.pipelines.jobs import chaos
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.session import ray_session
from hashlight.pipelines.jobs.tasks import run_tasks
from hashlight.pipelines.searching.bounded import search_bounded

# A block is long, because a shard that is larger than memory is read through once for each.
BLOCK_QUERIES = 131_072
# What is answered and merged at a time: 10 nearest of each are half a megabyte.
BATCH_QUERIES = 4096
# Of a batch, unless one query has more: 12 MB.
BATCH_HITS = 1_000_000
_ROW_GROUP_BYTES = 64_000_000

SCHEMA = pa.schema(
    {
        "query": pa.int64(),
        "ids": pa.large_list(pa.int64()),
        "distances": pa.large_list(pa.int32()),
        "truncated": pa.bool_(),
    }
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class SearchJob:
    """What a batch search asks.

    Attributes
    ----------
    collection : str
        Where it lies.
    version, bits : int
        The version that is searched, and its codes' bits.
    encoder : str or None
    codes : int
        Codes of that version, all of which are searched.
    k, radius, limit : int or None
        The `k` nearest, or all within `radius`, of which the nearest `limit`.
    queries : int
    sources : tuple of (path, bytes, ns)
        The files of queries, their sizes and when they were written.
    """

    collection: str
    version: int
    bits: int
    encoder: str | None
    codes: int
    k: int | None
    radius: int | None
    limit: int | None
    queries: int
    sources: tuple[tuple[str, int, int], ...]

    @property
    def name(self) -> str:
        """A hash of all that it asks."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()

    @property
    def query(self) -> Query:
        """What each shard is asked, by a task that has one core."""
        return Query(k=self.k, radius=self.radius, limit=self.limit, threads=1)

    @property
    def most(self) -> int | None:
        """Most answers of a query."""
        return self.k if self.k is not None else self.limit


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive queries: a number, the first one's row, and where they stand."""

    number: int
    first: int
    pieces: tuple[Piece, ...]


def search_codes(
    collection: str | Path,
    queries: str | Path,
    output: str | Path,
    *,
    k: int | None = None,
    radius: int | None = None,
    limit: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SearchJob:
    """Answer every query of a file from all shards of a collection.

    Parameters
    ----------
    collection : str or Path
    queries : str or Path
        A Parquet file with a column `code` (binary, `8 * W` bytes) and perhaps one `id`, or a folder of codes.
    output : str or Path
        The Parquet file to write; see the module's docstring.
    k, radius : int
        One of: how many nearest, or within what distance.
    limit : int, optional
        With `radius`: keep the nearest this many.
    workers : int, optional
        Tasks at once on this machine; one a core if left out.
    overwrite : bool
        Replace an output that is there.
    progress : callable, optional
        Called with (queries done, queries in all).

    Raises
    ------
    PipelineError
        If the queries are not codes like the collection's, or there is an output already.
    """
    output = Path(output).absolute()
    work = output.with_name(f".{output.name}.work")
    if not overwrite:
        _remove_finished_work(output, work)
    _refuse_taken(output, overwrite=overwrite)
    store = open_place(collection)
    live = read_current(store)
    parts = _list_queries(Path(queries), live)
    job = _make_job(store.location, live, parts, k, radius, limit)
    work.mkdir(exist_ok=True)
    with writer_lock(work):
        _keep_work_of(work, job)
        blocks = _cut_blocks(parts, job.queries)
        _answer(job, work, blocks, live.shards, workers or usable_cores(), progress or (lambda _done, _total: None))
        chaos.step("search:before-publish")
        _publish(output, job, [_answers_path(work, block) for block in blocks])
        chaos.step("search:published")
        shutil.rmtree(work)
    return job


def _answer(
    job: SearchJob, work: Path, blocks: list[Block], shards: tuple[ShardSpec, ...], workers: int, progress: Progress
) -> None:
    """Answer the blocks that have no answers yet."""
    waiting = [block for block in blocks if not _answers_path(work, block).is_file()]
    done = job.queries - sum(_size(block) for block in waiting)
    progress(done, job.queries)
    if not waiting:
        return
    with ray_session(num_cpus=workers):
        for block in _run(job, work, waiting, shards):
            done += _size(block)
            progress(done, job.queries)


def _run(job: SearchJob, work: Path, blocks: list[Block], shards: tuple[ShardSpec, ...]) -> Iterator[Block]:
    import ray

    search, merge = ray.remote(search_block), ray.remote(merge_block)

    def submit(block: Block) -> Any:
        found = [search.remote(job, str(work), block, spec) for spec in shards]
        return merge.remote(job, str(work), block, *found)

    for block, _ in run_tasks(submit, blocks):
        yield block


def search_block(job: SearchJob, work: str, block: Block, spec: ShardSpec) -> str:
    """Ask one shard for one block of queries; write batches of `SCHEMA` and return the file's path."""
    chaos.step("search:shard", block.number)
    shard = Shard(local_shard(open_place(job.collection), spec), spec, bits=job.bits)
    queries_QW, ids_Q = read_queries(job, block)
    path = Path(work) / f"block-{block.number:06d}.{spec.name}.arrow"
    aside = aside_of(path)
    with pa.OSFile(str(aside), "wb") as sink, pyarrow.ipc.new_file(sink, SCHEMA) as writer:
        for start in range(0, len(queries_QW), BATCH_QUERIES):
            batch_ids_Q = ids_Q[start : start + BATCH_QUERIES]
            for run, found in _ask(shard, queries_QW[start : start + BATCH_QUERIES], job):
                writer.write_batch(_as_batch(batch_ids_Q[run], found))
    aside.replace(path)
    return str(path)


def merge_block(job: SearchJob, work: str, block: Block, *found: str) -> None:
    """Merge what the shards found for one block, and publish it."""
    chaos.step("search:merge", block.number)
    path = _answers_path(Path(work), block)
    if path.is_file():  # by a task that died before it could say so, when what the shards found was gone
        return
    aside = aside_of(path)
    with pq.ParquetWriter(aside, SCHEMA) as writer:
        for batches in _aligned([_batches(shard) for shard in found]):
            merged = merge_range([_as_result(batch) for batch in batches], job.most)
            if job.k is not None:
                merged = merged._replace(truncated=np.zeros_like(merged.truncated))
            writer.write_batch(_as_batch(batches[0]["query"], merged))
    sync_file(aside)
    aside.replace(path)
    sync_folder(path.parent)
    for shard in found:
        Path(shard).unlink(missing_ok=True)


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    with pyarrow.ipc.open_file(pa.memory_map(path)) as file:
        for number in range(file.num_record_batches):
            yield file.get_batch(number)


def _aligned(files: list[Iterator[pa.RecordBatch]]) -> Iterator[list[pa.RecordBatch]]:
    """Yield the rows of the same queries from each file; files cut their rows into batches each in its own way."""
    current = [next(batches, None) for batches in files]
    while len(there := [batch for batch in current if batch is not None]) == len(files):
        rows = min(map(len, there))
        yield [batch.slice(0, rows) for batch in there]
        current = [
            batch.slice(rows) if len(batch) > rows else next(batches, None)
            for batch, batches in zip(there, files, strict=True)
        ]
    assert not there, "every shard is asked the same queries"


def read_queries(job: SearchJob, block: Block) -> tuple[CodeArray, IdArray]:
    """Read the codes (Q, W) and ids (Q,) of a block."""
    codes, ids, first = [], [], block.first
    for piece in block.pieces:
        table = _read_rows(piece)
        codes.append(codes_column(_fixed(table["code"], 8 * num_words(job.bits), piece)))
        ids.append(table["id"].to_numpy() if "id" in table.column_names else np.arange(first, first + len(table)))
        first += len(table)
    queries_QW = np.concatenate(codes)
    return check_codes(queries_QW, bits=job.bits, name="queries"), np.concatenate(ids).astype(np.int64)


def _fixed(column: pa.ChunkedArray, width: int, piece: Piece) -> pa.ChunkedArray:
    try:
        return column.cast(pa.binary(width))
    except pa.ArrowException as error:
        raise PipelineError(
            f"{piece.part.path}: `code` must be {width} bytes in every row {piece.start} to {piece.stop}: {error}"
        ) from error


def _read_rows(piece: Piece) -> pa.Table:
    """Read the rows of a piece from the row groups in which they stand."""
    with pq.ParquetFile(read_checked(piece.part) if piece.part.sha256 else piece.part.path) as file:
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        first, last = np.searchsorted(ends, [piece.start, piece.stop - 1], side="right").tolist()
        columns = [name for name in ("id", "code") if name in file.schema_arrow.names]
        table = file.read_row_groups(list(range(first, last + 1)), columns=columns, use_threads=False)
    return table.slice(piece.start - (int(ends[first - 1]) if first else 0), piece.stop - piece.start)


def _ask(shard: Shard, queries_QW: CodeArray, job: SearchJob) -> Iterator[tuple[slice, RangeResult]]:
    """Yield what a shard answers to runs of the queries, in their order."""
    if job.radius is not None and job.limit is None:
        yield from search_bounded(shard, queries_QW, job.radius, most_hits=BATCH_HITS)
        return
    query = job.query if job.k is None else replace(job.query, k=min(job.k, len(shard)))
    size = max(1, BATCH_HITS // (query.k or query.limit or 1))
    for start in range(0, len(queries_QW), size):
        run = slice(start, start + size)
        found = shard.answer(queries_QW[run], query)
        yield run, as_range(found) if isinstance(found, SearchResult) else found


def _as_batch(query: Any, result: RangeResult) -> pa.RecordBatch:
    lists = [
        pa.LargeListArray.from_arrays(pa.array(result.lims), pa.array(values))
        for values in (result.ids, result.distances)
    ]
    return pa.record_batch([pa.array(query), *lists, pa.array(result.truncated)], schema=SCHEMA)


def _as_result(batch: pa.RecordBatch) -> RangeResult:
    ids, distances = batch["ids"], batch["distances"]
    lims = ids.offsets.to_numpy()
    hits = slice(int(lims[0]), int(lims[-1]))
    truncated = batch["truncated"].to_numpy(zero_copy_only=False)
    return RangeResult(lims - lims[0], distances.values.to_numpy()[hits], ids.values.to_numpy()[hits], truncated)


def _refuse_taken(output: Path, *, overwrite: bool) -> None:
    if not output.parent.is_dir() or output.is_dir():
        raise PipelineError(f"{output} must be a file in a folder that is there: choose another --output")
    if output.exists() and not overwrite:
        raise PipelineError(f"{output} is there already: choose another --output, or replace it with --overwrite")


def _list_queries(path: Path, live: Manifest) -> list[Part]:
    """Return the files of queries, each known to hold codes as wide as the collection's."""
    if path.is_dir():
        from hashlight.pipelines.encoding.encode import read_summary

        summary = read_summary(path)
        if live.encoder not in (None, summary.encoder):
            raise PipelineError(
                f"{path} has codes of encoder {summary.encoder[:12]}…, the collection stores codes of encoder "
                f"{str(live.encoder)[:12]}…: encode the queries with the encoder that made the collection's codes"
            )
        return list_parts(path)
    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(f"{path} is not a readable Parquet file: {error}") from error
    if "code" not in schema.names:
        raise PipelineError(f"{path} has no column `code`, expected codes of {live.bits} bits, got {schema.names}")
    if "id" in schema.names and not pa.types.is_integer(schema.field("id").type):
        raise PipelineError(f"{path}: `id` must be whole numbers, got {schema.field('id').type}")
    kind, width = schema.field("code").type, 8 * num_words(live.bits)
    if kind not in (pa.binary(width), pa.binary(), pa.large_binary()):
        raise PipelineError(
            f"{path}: `code` is {kind}, codes of {live.bits} bits are binary of {width} bytes (little-endian words): "
            "encode the queries with the encoder that made the collection's codes"
        )
    if not rows:
        raise PipelineError(f"{path} has no rows, expected at least one query")
    return [Part(str(path.resolve()), rows, "")]


def _make_job(
    location: str, live: Manifest, parts: list[Part], k: int | None, radius: int | None, limit: int | None
) -> SearchJob:
    query = Query(k=k, radius=radius, limit=limit).checked(bits=live.bits)
    stats = [Path(part.path).stat() for part in parts]
    return SearchJob(
        collection=location,
        version=live.version,
        bits=live.bits,
        encoder=live.encoder,
        codes=live.rows,
        k=query.k,
        radius=query.radius,
        limit=query.limit,
        queries=sum(part.rows for part in parts),
        sources=tuple((p.path, s.st_size, s.st_mtime_ns) for p, s in zip(parts, stats, strict=True)),
    )


def _keep_work_of(work: Path, job: SearchJob) -> None:
    """Keep the finished blocks of the same job, and remove those of any other; the lock is in use."""
    marker = work / "job"
    is_ours = marker.is_file() and marker.read_text() == job.name
    for path in work.iterdir():
        if path.name != ".lock" and not (is_ours and path.suffix == ".parquet"):
            path.unlink(missing_ok=True)  # a task of a killed driver may be at work yet
    write_atomically(marker, job.name.encode())


def _remove_finished_work(output: Path, work: Path) -> None:
    """Remove what a process left that was killed between publishing its answers and the end."""
    marker = work / "job"
    if output.is_file() and marker.is_file() and _job_of(output) == marker.read_text():
        with writer_lock(work):
            shutil.rmtree(work)


def _job_of(output: Path) -> str | None:
    """Return the name of the job that wrote a file of answers; None if it is something else."""
    try:
        about = json.loads((pq.read_schema(output).metadata or {})[b"hashlight"])
        return str(about["job"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None


def _cut_blocks(parts: list[Part], queries: int) -> list[Block]:
    edges = [*range(0, queries, BLOCK_QUERIES), queries]
    cuts = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    return [
        Block(number, cut.start, tuple(pieces))
        for number, (cut, pieces) in enumerate(zip(cuts, cut_parts(parts, cuts), strict=True))
    ]


def _answers_path(work: Path, block: Block) -> Path:
    return work / f"block-{block.number:06d}.parquet"


def _size(block: Block) -> int:
    return sum(piece.stop - piece.start for piece in block.pieces)


def _publish(output: Path, job: SearchJob, blocks: list[Path]) -> None:
    """Join the blocks' answers into the output, which appears in one step."""
    about = {name: value for name, value in asdict(job).items() if name != "sources"} | {"job": job.name}
    schema = SCHEMA.with_metadata({"hashlight": json.dumps(about)})
    aside = output.with_name(f".{output.name}.tmp")  # of a driver, which holds the lock
    try:
        with pq.ParquetWriter(aside, schema) as writer:
            for block in blocks:
                _copy_rows(block, writer)
        chaos.step("search:written-aside")
        sync_file(aside)
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(output.parent)


def _copy_rows(block: Path, writer: pq.ParquetWriter) -> None:
    """Copy a block's rows, in row groups of a useful size."""
    waiting: list[pa.Table] = []
    with pq.ParquetFile(block) as file:
        for group in range(file.num_row_groups):
            waiting.append(file.read_row_group(group))
            if sum(table.nbytes for table in waiting) > _ROW_GROUP_BYTES or group == file.num_row_groups - 1:
                writer.write_table(
                    pa.concat_tables(waiting).combine_chunks().replace_schema_metadata(None).cast(SCHEMA)
                )
                waiting = []
