"""Build a collection from a folder of codes: one Ray task per shard, then one commit.

The rows of the folder are cut into shards in their order. All ids are compared before the first shard is built
(`engine.ids.RepeatedIds`). Finished shards are recorded in `build/sidecars`, beside the collection's own files, until
the commit, so that the same command resumes where it was interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hashlight.engine.codes import IdArray
from hashlight.engine.collection.writing.adding import split_rows
from hashlight.engine.collection.writing.opening import JOB_FOLDER, Fresh, refuse_foreign_folder
from hashlight.engine.collection.writing.rows import live_rows
from hashlight.engine.collection.writing.transaction import Commit, Transaction
from hashlight.engine.features import FLOAT16, FeatureKind
from hashlight.engine.ids import RepeatedIds, refuse_repeated
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.places.opening import open_place, open_target
from hashlight.engine.places.place import Place
from hashlight.engine.places.reading import RetryingFile, map_ahead
from hashlight.engine.places.uris import split_name, without_credentials
from hashlight.engine.storage.columns import check_columns
from hashlight.engine.storage.leftovers import names_of, settle, sweep_intents
from hashlight.engine.storage.manifest import ShardSpec, parse_shard
from hashlight.engine.storage.shard import read_ids
from hashlight.pipelines.building.shards import ShardJob, build_shard, check_sidecar, is_whole
from hashlight.pipelines.capacity.constants import bytes_per_code
from hashlight.pipelines.codes.parts import (
    FEATURES_COLUMN,
    Part,
    attribute_columns,
    cut_parts,
    features_size,
    kind_of_codes,
    list_parts,
    read_checked,
)
from hashlight.pipelines.codes.summary import read_summary
from hashlight.pipelines.jobs import chaos
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder, JobKind
from hashlight.pipelines.jobs.nodes import look, refuse_unshared
from hashlight.pipelines.jobs.session import ray_session
from hashlight.pipelines.jobs.tasks import run_tasks

# About a gigabyte of 64-bit codes with their tables, built in seconds.
SHARD_ROWS = 20_000_000

BUILD = JobKind(
    holds="unfinished build",
    identified_by=("codes", "shards"),
    remedy="run that build again to finish it, or delete {folder} to abandon it",
    check=check_sidecar,
)

Progress = Callable[[int, int], None]


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
    upsert: bool = False,
    workers: int | None = None,
    features_as: FeatureKind | None = None,
    progress: Progress | None = None,
) -> Commit:
    """Write the codes of a folder as a collection, as the new version of one, or in addition to one.

    Parameters
    ----------
    codes : str or Path
        A folder that `encode_corpus` wrote, local or in a store.
    output : str or Path
        The collection: a folder, or a prefix in a bucket. It does not change until the last step.
    shards, shard_rows, shard_bytes : int, optional
        One of: the number of shards, or the maximum rows or bytes (roughly) of each; 20 million rows.
    tables : bool
        Build the multi-index of each shard.
    overwrite : bool
        Replace a collection that is there.
    append, upsert : bool
        Add to the collection that is there, of the same encoder. With `upsert` replace the rows that have the ids.
    workers : int, optional
        Shards built at once, here or on a cluster; one per core if left out. Each takes up to three times its bytes.
    features_as : {"float16", "bfloat16", "int8"}, optional
        What to keep features as; by default what the collection does that is added to, or the codes.
    progress : callable, optional
        Called with (shards written, shards in all).

    Raises
    ------
    PipelineError, ValueError, HashlightError
        If the codes are incomplete, an id occurs twice or is in the collection already, or that cannot be written.
    """
    _refuse_several(shards, shard_rows, shard_bytes)
    place = open_target(output)
    refuse_foreign_folder(place)
    with contextlib.ExitStack() as opened:
        with RepeatedIds() as ids:
            corpus = _find_codes(codes, ids)
            shards = _num_shards(corpus, shards, shard_rows or _rows_within(shard_bytes, corpus))
            job = JobFolder(place.location_of(JOB_FOLDER), BUILD)
            job.refuse_foreign()
            fresh = None if append else Fresh(corpus.bits, corpus.encoder, overwrite)
            writer = opened.enter_context(_writing(output, corpus, job, fresh, tables=tables))
            _refuse_repeated(ids, writer, append=append and not upsert)
        kept_as = _kept_as(corpus, writer, features_as)
        _begin(job, writer, _identity(corpus, shards, kept_as, tables=tables), overwrite=overwrite)
        tasks = _plan(job, corpus, shards, kept_as, tables=tables, output=place.location, workers=workers)
        writer.adopt(_build(job, writer, tasks, workers, progress or (lambda _done, _total: None)), upsert=upsert)
        return _commit(job, corpus, writer)


def _refuse_several(*sizes: int | None) -> None:
    if sum(size is not None for size in sizes) > 1:
        raise ValueError("give one of `shards`, `shard_rows` and `shard_bytes`")


@contextlib.contextmanager
def _writing(
    output: str | Path, corpus: _Codes, job: JobFolder, fresh: Fresh | None, *, tables: bool
) -> Iterator[Transaction]:
    """Yield a transaction, for a new collection or for more codes of the same encoder."""
    with Transaction(output, fresh=fresh, tables=tables, leases=True) as writer, _alone(job):
        if fresh is None:
            writer.require(bits=corpus.bits, encoder=corpus.encoder)
            writer.require_columns(*_columns(corpus))
        yield writer


@contextlib.contextmanager
def _alone(job: JobFolder) -> Iterator[None]:
    """Keep other builds of a local collection away; leave no folder where no build was begun."""
    if job.place.local is None:
        yield
        return
    with job.place.lock():
        try:
            yield
        finally:
            if job.identity() is None:
                job.remove()


def _kept_as(corpus: _Codes, writer: Transaction, asked: FeatureKind | None) -> FeatureKind | None:
    """Return what the shards keep features as; None without features."""
    if corpus.features_as is None and asked is not None:
        raise PipelineError(f"{open_place(corpus.location)} has no features: encode with `--features` to keep some")
    if corpus.features_as is None:
        return None
    there = writer.features_as
    if None not in (asked, there) and asked != there:
        raise ValueError(f"{writer.place} keeps features as {there}, got `features_as` {asked}: leave it out")
    return there or asked or corpus.features_as


def _identity(corpus: _Codes, shards: int, kept_as: FeatureKind | None, *, tables: bool) -> dict[str, Any]:
    """Return what the bytes of the shards depend on."""
    digest = hashlib.sha256("".join(part.sha256 for part in corpus.parts).encode()).hexdigest()
    return {
        "codes": str(open_place(corpus.location)),
        "parts": digest,
        "rows": corpus.rows,
        "bits": corpus.bits,
        "encoder": corpus.encoder,
        "shards": shards,
        "tables": tables,
        **({} if kept_as in (None, FLOAT16) else {"features_as": kept_as}),
    }


def _begin(job: JobFolder, writer: Transaction, identity: dict[str, Any], *, overwrite: bool) -> None:
    """Resume this job, or begin it; another one is in the way only if it has finished shards to lose.

    Shards that are live are not lost: that job was killed after its commit. Shards that are gone are lost already.
    """
    live = {shard.name for shard in writer.live.shards} if writer.live else set()
    left = _finished_shards(job) & set(writer.place.names("shards"))
    job.begin(identity, overwrite=overwrite or left <= live)
    _remove_unnamed(writer.place, left - _finished_shards(job))


def _plan(
    job: JobFolder,
    corpus: _Codes,
    shards: int,
    kept_as: FeatureKind | None,
    *,
    tables: bool,
    output: str,
    workers: int | None,
) -> list[ShardJob]:
    at_once = min(workers or usable_cores(), shards)
    cuts = cut_parts(corpus.parts, split_rows(corpus.rows, shards))
    both = None if corpus.features_as is None or kept_as is None else (corpus.features_as, kept_as)
    return [
        ShardJob(
            number=number,
            folder=job,
            output=output,
            pieces=tuple(pieces),
            schema=corpus.schema,
            bits=corpus.bits,
            tables=tables,
            threads=max(1, usable_cores() // at_once),
            features_as=both,
        )
        for number, pieces in enumerate(cuts)
    ]


def _refuse_repeated(ids: RepeatedIds, writer: Transaction, *, append: bool) -> None:
    """Raise ValueError if an id is in the codes twice, or in the codes and in a row alive that is kept."""
    old = writer.live.shards if append and writer.live else ()
    for spec in old:
        ids.add(read_ids(writer.place, spec)[live_rows(spec.rows, writer.reader.dead(spec))])
    where = "the codes"
    remedy = (
        "if they are other images, of a corpus that has the same name or by chance the same hash, encode them with "
        "`hashlight encode --ids name:NAME`, which names the corpus"
    )
    if old:
        where = f"{writer.place} and the codes"
        remedy = f"replace those that are there with `hashlight add {writer.place} CODES --upsert`; or {remedy}"
    refuse_repeated(ids.find(), where=where, remedy=remedy)


def _build(
    job: JobFolder, writer: Transaction, tasks: list[ShardJob], workers: int | None, progress: Progress
) -> list[ShardSpec]:
    with ray_session(num_cpus=min(workers or usable_cores(), len(tasks))):
        return _write_shards(job, tasks, writer, workers, progress)


def _write_shards(
    job: JobFolder, tasks: list[ShardJob], writer: Transaction, workers: int | None, progress: Progress
) -> list[ShardSpec]:
    """Write the unfinished shards, and return all."""
    import ray

    done = job.done(lambda _unit, said: is_whole(writer.place.location, parse_shard(said["shard"])))
    specs = {number: parse_shard(said["shard"]) for number, said in done}
    waiting = [task for task in tasks if task.number not in specs]
    progress(len(specs), len(tasks))
    ends = [tasks[0].pieces[0].part.path, tasks[-1].pieces[-1].part.path]
    refuse_unshared([look("--codes", split_name(ends[0])[0], ends)], {"--output": writer.place.location})
    build = ray.remote(build_shard)
    with _discarding(job, writer):
        for spec in specs.values():
            writer.check_shard(spec)
    for task, spec in run_tasks(build.remote, waiting, max_running=workers):
        with _discarding(job, writer):
            writer.check_shard(spec)
        specs[task.number] = spec
        progress(len(specs), len(tasks))
    return [spec for _, spec in sorted(specs.items())]


@contextlib.contextmanager
def _discarding(job: JobFolder, writer: Transaction) -> Iterator[None]:
    """Discard the finished shards if they are refused: these codes cannot become this collection."""
    try:
        yield
    except ValueError:
        _discard(job, writer)
        raise


def _commit(job: JobFolder, corpus: _Codes, writer: Transaction) -> Commit:
    shards = _finished_shards(job)
    encoder = open_place(corpus.location)
    writer.add_encoder({name: encoder.read(f"encoder/{name}") for name in encoder.names("encoder")})
    chaos.step("build:before-commit")
    done = writer.commit()
    chaos.step("build:after-commit")
    job.remove()
    settle(writer.place, shards)
    sweep_intents(writer.place)  # those of tasks that died
    return done


def _finished_shards(job: JobFolder) -> set[str]:
    """Return the names of the shards that a job, this or another, finished here."""
    return {said["shard"]["name"] for said in job.sidecars().values()}


def _discard(job: JobFolder, writer: Transaction) -> None:
    finished = _finished_shards(job)
    job.remove()
    _remove_unnamed(writer.place, finished)


def _remove_unnamed(place: Place, shards: set[str]) -> None:
    """Remove those of some finished shards that no version has."""
    if not shards or (kept := names_of(place)) is None:
        return
    for name in sorted(shards):
        if f"shards/{name}" not in kept:
            place.remove(f"shards/{name}")
    settle(place, shards)


@dataclass(frozen=True, slots=True)
class _Codes:
    """A folder of codes: its files, the schema of all of them together, and what made them."""

    location: str | Path
    parts: list[Part]
    rows: int
    schema: pa.Schema
    bits: int
    encoder: str
    features_as: FeatureKind | None


def _find_codes(codes: str | Path, ids: RepeatedIds) -> _Codes:
    """Look into every part once: at its columns, and at its ids, which are added to `ids`."""
    summary = read_summary(codes)
    parts = list_parts(codes)
    rows = sum(part.rows for part in parts)
    if rows != summary.codes:
        raise PipelineError(f"{open_place(codes)}: expected {summary.codes} codes, got {rows}: encode the corpus again")
    schema = _common_schema(parts, ids)
    try:
        check_columns(pa.schema([schema.field(name) for name in attribute_columns(schema)]))
    except ValueError as error:
        raise PipelineError(f"{open_place(codes)}: {error} in the corpus, and encode it again") from error
    kind = kind_of_codes(codes) or FLOAT16 if FEATURES_COLUMN in schema.names else None
    return _Codes(codes, parts, rows, schema, summary.bits, summary.encoder, kind)


def _common_schema(parts: list[Part], ids: RepeatedIds) -> pa.Schema:
    """Return the schema of all parts together: a column that is empty in one has no type there."""
    schemas: dict[pa.Schema, None] = {}
    for schema, ids_N in map_ahead(_schema_and_ids, parts):
        schemas.setdefault(schema)
        ids.add(ids_N)
    try:
        return pa.unify_schemas(list(schemas), promote_options="default")
    except pa.ArrowException as error:
        raise PipelineError(f"the parts of the codes disagree on their columns: {error}") from error


def _schema_and_ids(part: Part) -> tuple[pa.Schema, IdArray]:
    with _reading(part) as raw, pq.ParquetFile(raw) as file:
        ids_N: IdArray = file.read(columns=["id"], use_threads=False)["id"].cast(pa.int64()).to_numpy()
        return file.schema_arrow.remove_metadata(), ids_N


@contextlib.contextmanager
def _reading(part: Part) -> Iterator[RetryingFile]:
    try:
        with open_place(part.path).open() as file:
            yield file
    except (pa.ArrowException, OSError, LookupError, ValueError) as error:
        read_checked(part)  # raises, if the file is not what was written
        where = without_credentials(part.path)
        raise PipelineError(f"{where} is damaged ({error}): encode the corpus again") from error


def _columns(corpus: _Codes) -> tuple[pa.Schema, int | None]:
    """Return the attributes of some codes, and the dimensions of their features."""
    schema = corpus.schema
    attributes = pa.schema([schema.field(name) for name in attribute_columns(schema)])
    return attributes, features_size(schema, corpus.features_as) or None


def _num_shards(corpus: _Codes, shards: int | None, shard_rows: int) -> int:
    return -(-corpus.rows // shard_rows) if shards is None else shards


def _rows_within(budget: int | None, corpus: _Codes) -> int:
    """Estimate how many rows fit in a shard of `budget` bytes, with attributes as large as in the first part."""
    if budget is None:
        return SHARD_ROWS
    others = _other_bytes(corpus.parts[0])
    rows = max(1, budget // 32)
    for _ in range(3):  # a row's share of the tables depends on their number, which depends on the rows
        rows = max(1, int(budget / (bytes_per_code(corpus.bits, rows) + others)))
    return rows


def _other_bytes(part: Part) -> float:
    """Return the bytes per row of the columns of a part other than ids and codes."""
    with open_place(part.path).open() as file:
        metadata = pq.read_metadata(file)
    columns = [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    others = sum(c.total_compressed_size for c in columns if c.path_in_schema not in ("id", "code"))
    return float(others / metadata.num_rows)
