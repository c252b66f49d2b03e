"""Search for millions of queries: blocks of queries against shards as Ray tasks, merged exactly, into one Parquet file.

One task asks one shard for one block of queries and writes what it found to the job's folder; another merges the
answers of a block over all shards by (distance, id). Both go through their block a few thousand queries at a time, so
that memory does not grow with queries or shards. Finished blocks are kept beside the output until it is published in
one step, so that the same command resumes where it was interrupted.

The output has one row per query, in the order of the queries:

==========  ===========  ==============================================================================================
query       int64        the query's `id`, or its row number where the queries have no such column
ids         list<int64>  ascending by (distance, id)
distances   list<int32>
truncated   bool         whether a limit cut the answers of a radius search
==========  ===========  ==============================================================================================
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from hashlight.engine.codes import CodeArray, IdArray, check_codes, num_words
from hashlight.engine.collection.bounded import search_bounded
from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import ReadFailedError
from hashlight.engine.filters.filter import Filter
from hashlight.engine.indexes.choice import IndexChoice, check_index
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.places.files import remove_leftovers
from hashlight.engine.places.opening import open_place, open_target
from hashlight.engine.places.place import Place
from hashlight.engine.places.uris import split_name
from hashlight.engine.query import Query
from hashlight.engine.results import RangeResult, SearchResult, as_range, merge_range, no_answers
from hashlight.engine.storage.copies import open_shard
from hashlight.engine.storage.manifest import Manifest, ShardSpec
from hashlight.engine.storage.shard import Shard
from hashlight.engine.storage.versions import holding_live
from hashlight.pipelines.codes.parts import Part, Piece, codes_column, cut_parts, list_parts, read_checked
from hashlight.pipelines.codes.summary import read_summary
from hashlight.pipelines.jobs import chaos
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder, JobKind, name_of
from hashlight.pipelines.jobs.nodes import look, look_at_collection, refuse_unshared
from hashlight.pipelines.jobs.session import ray_session
from hashlight.pipelines.jobs.tasks import run_tasks

# Blocks are long, because a shard that is larger than memory is read in full once for each.
BLOCK_QUERIES = 131_072
# Queries answered and merged at a time: the 10 nearest of each take half a megabyte.
BATCH_QUERIES = 4096
# Maximum answers in a batch, unless a single query has more: 12 MB.
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


def check_sidecar(said: dict[str, Any]) -> None:
    """Raise ValueError or LookupError unless the sidecar of a block has the number of its queries."""
    if type(said["queries"]) is not int or said["queries"] < 0:
        raise ValueError(f"expected a number of queries, got {said['queries']!r}")


ANSWERS = JobKind(
    holds="unfinished answers",
    private=True,
    remedy="run that search again to finish it, choose another --output, or start over with --overwrite",
    check=check_sidecar,
)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class SearchJob:
    """What a batch search asks.

    Attributes
    ----------
    collection : str
        Its path or URI.
    version, bits : int
        The version that is searched, and its codes' bits.
    encoder : str or None
    codes : int
        Codes of that version, all of which are searched.
    k, radius, limit : int or None
        The `k` nearest, or all within `radius`, of which the nearest `limit`.
    filter : str or None
        A condition on attributes and ids that answers satisfy.
    queries : int
    sources : tuple of (path, stamp)
        The files of queries, each with a text that changes when the file does.
    index : str
        The index that answers, as in `Collection.open`. Two jobs that differ in nothing else are the same job.
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
    sources: tuple[tuple[str, str], ...]
    filter: str | None = None
    index: IndexChoice = "auto"

    @property
    def query(self) -> Query:
        """What each shard is asked, by a task that has one core."""
        return Query(k=self.k, radius=self.radius, limit=self.limit, filter=self.filter, threads=1)

    @property
    def max_hits(self) -> int | None:
        """Maximum number of answers to a query."""
        return self.k if self.k is not None else self.limit


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive queries: the block's number, the row of its first query, and the pieces of files that hold them."""

    number: int
    first: int
    pieces: tuple[Piece, ...]


class Searched(NamedTuple):
    """The shards that are searched, and the attributes that a filter may name; None without a filter."""

    shards: tuple[ShardSpec, ...]
    schema: pa.Schema | None


def search_codes(
    collection: str | Path,
    queries: str | Path,
    output: str | Path,
    *,
    k: int | None = None,
    radius: int | None = None,
    limit: int | None = None,
    filter: str | None = None,
    index: IndexChoice = "auto",
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SearchJob:
    """Answer every query of a file from all shards of a collection.

    Parameters
    ----------
    collection : str or Path
    queries : str or Path
        A Parquet file with a column `code` (binary, `8 * W` bytes) and optionally `id`, or a folder of codes.
    output : str or Path
        The Parquet file to write, local or in a bucket; see the module's docstring.
    k, radius, limit, filter
        As in `engine.query.Query`.
    index : str
        Which index answers, as in `Collection.open`.
    workers : int, optional
        Tasks at once, on this machine or a cluster; one per core if left out.
    overwrite : bool
        Replace an output that is there.
    progress : callable, optional
        Called with (queries done, queries in all).

    Raises
    ------
    PipelineError
        If the queries are not codes like the collection's, or the output exists already.
    FilterError
        If `filter` is not a condition on the collection's attributes.
    """
    target, name = _target_of(output)
    folder = JobFolder(target.location_of(f".{name}.work"), ANSWERS)
    if not overwrite:
        _remove_finished_work(target, name, folder)
    _refuse_taken(target, name, overwrite=overwrite)
    place, report = open_place(collection), progress or (lambda _done, _all: None)
    with holding_live(place) as live:
        parts = _list_queries(queries, live)
        query = Query(k=k, radius=radius, limit=limit, filter=filter)
        job = _make_job(place.location, live, parts, query, index)
        searched = Searched(live.shards, _attributes(job))
        with folder.place.lock():
            folder.begin({**_asked(job), "collection": str(place)}, overwrite=overwrite)
            blocks = _cut_blocks(parts, job.queries)
            _answer(job, folder, blocks, searched, workers, report)
            _finish(target, name, job, folder, blocks)
    return job


def _finish(target: Place, name: str, job: SearchJob, folder: JobFolder, blocks: list[Block]) -> None:
    """Publish the answers, and remove the job's folder."""
    _remove_asides(target, name)
    chaos.step("search:before-publish")
    _publish(target, name, job, folder, blocks)
    chaos.step("search:published")
    folder.remove()


def _answer(
    job: SearchJob,
    folder: JobFolder,
    blocks: list[Block],
    searched: Searched,
    workers: int | None,
    progress: Progress,
) -> None:
    """Answer the blocks that have no answers yet."""
    finished = {unit for unit, _ in folder.done()}
    waiting = [block for block in blocks if block.number not in finished]
    done = job.queries - sum(_size(block) for block in waiting)
    progress(done, job.queries)
    if not waiting:
        return
    with ray_session(num_cpus=workers or usable_cores()):
        queries = look("--codes", job.sources[0][0], {block.pieces[0].part.path for block in (waiting[0], waiting[-1])})
        refuse_unshared(
            [look_at_collection(job.collection, searched.shards), queries], {"--output": folder.place.location}
        )
        for block in _run(job, folder, waiting, searched, workers):
            done += _size(block)
            progress(done, job.queries)


def _run(
    job: SearchJob, folder: JobFolder, blocks: list[Block], searched: Searched, workers: int | None
) -> Iterator[Block]:
    import ray

    search, merge = ray.remote(search_block), ray.remote(merge_block)
    # A version without codes has answers, too: none to each query.
    asked: list[ShardSpec | None] = [spec for spec in searched.shards if spec.alive] or [None]
    at_once = min(workers or len(asked), len(asked))

    def submit(block: Block) -> Any:
        found: list[Any] = []
        for spec in asked:
            # What is waited for, so that no more than `at_once` shards are searched for a block at a time.
            before = found[-at_once] if len(found) >= at_once else None
            found.append(search.remote(job, folder, block, spec, before, searched.schema))
        return merge.remote(job, folder, block, *found)

    for block, _ in run_tasks(submit, blocks, max_running=None if workers is None else max(1, workers // at_once)):
        yield block


def search_block(
    job: SearchJob,
    folder: JobFolder,
    block: Block,
    spec: ShardSpec | None,
    _before: str | None,
    schema: pa.Schema | None = None,
) -> str:
    """Ask one shard (None: none) for one block of queries; return the name of a file in the folder.

    The file has batches of `SCHEMA`. Ray starts a task when its arguments are there: `_before` is of one that must have
    ended. `schema` is as in `Searched`.
    """
    chaos.step("search:shard", block.number)
    shard = None
    if spec is not None:
        shard = open_shard(open_place(job.collection), spec, bits=job.bits, index=job.index, schema=schema)
    queries_QW, ids_Q = read_queries(job, block)
    name = f"found-{block.number:06d}.{spec.name if spec else 'none'}.arrow"
    with folder.place.scratch(name) as aside:
        with pa.OSFile(str(aside), "wb") as sink, pyarrow.ipc.new_file(sink, SCHEMA) as writer:
            for start in range(0, len(queries_QW), BATCH_QUERIES):
                batch_ids_Q = ids_Q[start : start + BATCH_QUERIES]
                for run, found in _ask(shard, queries_QW[start : start + BATCH_QUERIES], job):
                    writer.write_batch(_as_batch(batch_ids_Q[run], found))
        if folder.place.local:
            # Needed only until the merge, so it does not have to be forced to the disk.
            aside.replace(folder.place.local / name)
        else:
            folder.place.put_file(name, aside)
    return name


def merge_block(job: SearchJob, folder: JobFolder, block: Block, *found: str) -> None:
    """Merge what the shards found for one block, and publish it."""
    chaos.step("search:merge", block.number)
    # A task that died before it could return may have finished the block and removed what the shards found.
    if folder.sidecar(block.number) is not None:
        return
    name = _answers_name(block)
    with folder.place.scratch(name) as aside:
        with pq.ParquetWriter(aside, SCHEMA, write_page_checksum=True) as writer:
            for batches in _aligned(folder, block, [_found(folder, block, file) for file in found]):
                merged = merge_range([_as_result(batch) for batch in batches], job.max_hits)
                if job.k is not None:
                    merged = merged._replace(truncated=np.zeros_like(merged.truncated))
                writer.write_batch(_as_batch(batches[0]["query"], merged))
        folder.place.put_file(name, aside)
    folder.publish(block.number, {"queries": _size(block)})
    for file in found:
        folder.place.remove(file)


def _found(folder: JobFolder, block: Block, name: str) -> Iterator[pa.RecordBatch]:
    """Read what a shard found for a block."""
    place = folder.place
    with _checked(folder, block, name):
        source = pa.memory_map(str(place.local / name)) if place.local else place.open(name)
        with source, pyarrow.ipc.open_file(source) as file:
            for number in range(file.num_record_batches):
                yield _sensible(file.get_batch(number))


@contextlib.contextmanager
def _checked(folder: JobFolder, block: Block, name: str) -> Iterator[None]:
    """Name the file of a block that is damaged, and have the next run repeat the block."""
    try:
        yield
    except (ReadFailedError, PipelineError):
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        folder.withdraw(block.number)
        raise PipelineError(
            f"{folder.place.path(name)} is damaged ({error}): run the same search again, which repeats this block of "
            "queries"
        ) from error


def _sensible(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return answers whose values Arrow may read, and which are in order; ValueError for others."""
    batch.validate(full=True)
    if batch.schema.remove_metadata() != SCHEMA:
        raise ValueError(f"expected {SCHEMA}, got {batch.schema}")
    ids, distances = batch["ids"], batch["distances"]
    lims, others = ids.offsets.to_numpy(), distances.offsets.to_numpy()
    if any(column.null_count for column in (*batch.columns, ids.flatten(), distances.flatten())):
        raise ValueError("a value is missing")
    if not np.array_equal(lims - lims[0], others - others[0]):
        raise ValueError("it has not as many ids as distances")
    id_A, distance_A = ids.flatten().to_numpy(), distances.flatten().to_numpy()
    ascends_A = (distance_A[1:] > distance_A[:-1]) | ((distance_A[1:] == distance_A[:-1]) & (id_A[1:] > id_A[:-1]))
    starts = lims[1:-1] - lims[0] - 1
    ascends_A[starts[(starts >= 0) & (starts < len(ascends_A))]] = True
    if not ascends_A.all() or min(id_A.min(initial=0), distance_A.min(initial=0)) < 0:
        raise ValueError("its answers are not in the order of distances and ids")
    return batch


def _aligned(folder: JobFolder, block: Block, files: list[Iterator[pa.RecordBatch]]) -> Iterator[list[pa.RecordBatch]]:
    """Yield the rows of the same queries from each file; files differ in how their rows are cut into batches."""
    current, count = [next(batches, None) for batches in files], 0
    while len(there := [batch for batch in current if batch is not None]) == len(files):
        rows = min(map(len, there))
        cut = [batch.slice(0, rows) for batch in there]
        if any(not batch["query"].equals(cut[0]["query"]) for batch in cut):
            break
        yield cut
        count += rows
        current = [
            batch.slice(rows) if len(batch) > rows else next(batches, None)
            for batch, batches in zip(there, files, strict=True)
        ]
    if there or count != _size(block):
        raise PipelineError(
            f"the files of block {block.number} in {folder} are not answers to its {_size(block)} queries: run the "
            "same search again, which repeats the block"
        )


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
    """Read the rows of a piece from the row groups that hold them."""
    source = read_checked(piece.part) if piece.part.sha256 else open_place(piece.part.path).open()
    with source, pq.ParquetFile(source) as file:
        ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        first, last = np.searchsorted(ends, [piece.start, piece.stop - 1], side="right").tolist()
        columns = [name for name in ("id", "code") if name in file.schema_arrow.names]
        table = file.read_row_groups(list(range(first, last + 1)), columns=columns, use_threads=False)
    return table.slice(piece.start - (int(ends[first - 1]) if first else 0), piece.stop - piece.start)


def _ask(shard: Shard | None, queries_QW: CodeArray, job: SearchJob) -> Iterator[tuple[slice, RangeResult]]:
    """Yield a shard's answers to runs of the queries, in order."""
    if shard is None:
        nothing = no_answers(len(queries_QW), Query(radius=0))
        assert isinstance(nothing, RangeResult), "of a radius"
        yield slice(0, len(queries_QW)), nothing
        return
    if job.radius is not None and job.limit is None:
        yield from search_bounded(shard.answer, queries_QW, job.query, max_hits=BATCH_HITS)
        return
    query = job.query if job.k is None else job.query._replace(k=min(job.k, len(shard)))
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


def _target_of(output: str | Path) -> tuple[Place, str]:
    """Return the place of the folder of the output, and the output's name in it."""
    location, name = split_name(open_place(output).location)
    return open_target(location), name


def _refuse_taken(target: Place, name: str, *, overwrite: bool) -> None:
    there = target.entry(name)
    if (target.local and not target.local.is_dir()) or (there and there.is_folder):
        raise PipelineError(f"{target.path(name)} must be a file in a folder that exists: choose another --output")
    if there and not overwrite:
        raise PipelineError(
            f"{target.path(name)} exists already: choose another --output, or replace it with --overwrite"
        )


def _list_queries(queries: str | Path, live: Manifest) -> list[Part]:
    """Return the files of queries, each checked to hold codes as wide as the collection's."""
    path = open_place(queries)
    entry = path.entry()
    if entry is None:
        raise PipelineError(f"{path} does not exist: expected a Parquet file of codes, or a folder of codes")
    if entry.is_folder:
        summary = read_summary(queries)
        if live.encoder not in (None, summary.encoder):
            raise PipelineError(
                f"{path} has codes of encoder {summary.encoder[:12]}…, the collection stores codes of encoder "
                f"{str(live.encoder)[:12]}…: encode the queries with the encoder that made the collection's codes"
            )
        return list_parts(queries)
    try:
        with path.open() as raw, pq.ParquetFile(raw) as file:
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
    return [Part(path.location, rows, "")]


def _make_job(location: str, live: Manifest, parts: list[Part], query: Query, index: IndexChoice) -> SearchJob:
    query = query.checked(bits=live.bits)
    return SearchJob(
        collection=location,
        version=live.version,
        bits=live.bits,
        encoder=live.encoder,
        codes=live.rows,
        k=query.k,
        radius=query.radius,
        limit=query.limit,
        filter=query.filter,
        queries=sum(part.rows for part in parts),
        sources=tuple((str(open_place(part.path)), part.sha256 or _stamp_of(part)) for part in parts),
        index=check_index(index),
    )


def _attributes(job: SearchJob) -> pa.Schema | None:
    """Return the attributes of the version that is searched, if there is a filter, which is checked."""
    if job.filter is None:
        return None
    schema = Collection.open(job.collection, version=job.version).schema
    Filter(job.filter, schema)
    return schema


def _stamp_of(part: Part) -> str:
    entry = open_place(part.path).entry()
    return entry.stamp if entry else ""


def _remove_finished_work(target: Place, name: str, folder: JobFolder) -> None:
    """Remove the leftovers of a process that was killed after it had published its answers."""
    if target.exists(name) and (identity := folder.identity()) and _job_of(target, name) == name_of(identity):
        with folder.place.lock():
            folder.remove()


def _remove_asides(target: Place, name: str) -> None:
    """Remove the temporary files that killed drivers left beside a local output, whose lock this process holds now."""
    if target.local:
        remove_leftovers(target.local, name)


def _job_of(target: Place, name: str) -> str | None:
    """Return the name of the job that wrote a file of answers; None if it is something else."""
    try:
        with target.open(name) as raw:
            about = json.loads((pq.read_schema(raw).metadata or {})[b"hashlight"])
        return str(about["job"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RecursionError):
        return None


def _asked(job: SearchJob) -> dict[str, Any]:
    """Return what a job asks, without the index, which does not affect the answers."""
    return {key: value for key, value in asdict(job).items() if key != "index"}


def _cut_blocks(parts: list[Part], queries: int) -> list[Block]:
    edges = [*range(0, queries, BLOCK_QUERIES), queries]
    cuts = [slice(start, stop) for start, stop in itertools.pairwise(edges)]
    return [
        Block(number, cut.start, tuple(pieces))
        for number, (cut, pieces) in enumerate(zip(cuts, cut_parts(parts, cuts), strict=True))
    ]


def _answers_name(block: Block) -> str:
    return f"block-{block.number:06d}.parquet"


def _size(block: Block) -> int:
    return sum(piece.stop - piece.start for piece in block.pieces)


def _publish(target: Place, name: str, job: SearchJob, folder: JobFolder, blocks: list[Block]) -> None:
    """Join the blocks' answers into the output, which appears in one step."""
    about = {key: value for key, value in _asked(job).items() if key != "sources"}
    about |= {"collection": str(open_place(job.collection)), "job": folder.name}
    schema = SCHEMA.with_metadata({"hashlight": json.dumps(about)})
    with target.scratch(name) as aside:
        with pq.ParquetWriter(aside, schema) as writer:
            for block in blocks:
                for rows in _answers(folder, block):
                    writer.write_table(rows)
        chaos.step("search:written-aside")
        target.put_file(name, aside)


def _answers(folder: JobFolder, block: Block) -> Iterator[pa.Table]:
    """Read a block's answers, in row groups of a useful size."""
    name, count = _answers_name(block), 0
    waiting: list[pa.Table] = []
    with (
        _checked(folder, block, name),
        folder.place.open(name) as raw,
        pq.ParquetFile(raw, page_checksum_verification=True) as file,
    ):
        for group in range(file.num_row_groups):
            table = file.read_row_group(group).replace_schema_metadata(None)
            table.validate(full=True)
            waiting.append(pa.Table.from_batches(map(_sensible, table.cast(SCHEMA).to_batches()), SCHEMA))
            count += len(table)
            if sum(table.nbytes for table in waiting) > _ROW_GROUP_BYTES or group == file.num_row_groups - 1:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting = []
        if count != _size(block):
            raise ValueError(f"it has the answers to {count} queries, expected {_size(block)}")
