"""Encode a corpus: images to codes, on Ray Data, losing nothing.

A job is four steps. The corpus is listed into `plan.arrow`, whose batches are the units of work. Actors, which load the
encoder once, read, decode and encode a unit and write its codes under the unit's number and a hash of the codes, with a
sidecar that says they are complete. Rejects are gathered. `codes.json` is written last, and says that the folder is
complete.

::

    CODES/
      codes.json         bits, encoder fingerprint, counts; written last
      job.json           what the codes depend on: corpus, what ids are made from, encoder, what is kept
      plan.arrow         the work list (`pipelines.corpora.work`), one batch per unit
      parts/00000-HASH.parquet  id, code, uri and attributes of the unit's good images; features and thumbnails if asked
      sidecars/00000.json   says the part is complete: codes, rejects, seconds of each step, SHA-256 of the part, a hash
                         of the unit's entries
      rejects.parquet    id, uri, kind and reason of every image that could not be encoded
      stats.json         what the last run did, and how long each step took
      encoder/           a copy of the encoder

A corpus may change between two runs: units whose entries are all there and unchanged stay, and other images make new
units (`pipelines.encoding.plan`). The rows are then in another order than those of a new job.

The contents of the parts do not depend on actors, batches, faults or restarts: on machines of one kind, they depend
only on the corpus, the encoder and the limits of decoding, which decide which images are rejects. A GPU rounds
differently from a CPU, so a bit whose input is close to zero may differ. The folder may be in a bucket (`s3://...`).
"""

from __future__ import annotations

import functools
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.encoders.encoder import HashEncoder
from hashlight.engine.features import FLOAT16, FeatureKind
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import BUCKET_SCHEMES, is_local, normalise, without_credentials
from hashlight.engine.wording import counted
from hashlight.pipelines.codes.encoder import load_encoder, save_encoder
from hashlight.pipelines.codes.parts import (
    CODES,
    FEATURES_COLUMN,
    PLAN,
    STEPS,
    THUMBNAIL_COLUMN,
    features_kind,
    part_name,
)
from hashlight.pipelines.codes.summary import SUMMARY, EncodeSummary
from hashlight.pipelines.corpora.listing import EMBEDDINGS, SOURCE, told
from hashlight.pipelines.corpora.reasons import OF_THE_MOMENT, RETRIED
from hashlight.pipelines.corpora.work import UNIT_IMAGES, Units, WorkList, WorkSummary, list_work, read_work
from hashlight.pipelines.decoding.worker import DecodeLimits
from hashlight.pipelines.encoding.actors import BLOCKS_AT_ONCE, Stage, plan_actors
from hashlight.pipelines.encoding.blocks import cut_into_blocks
from hashlight.pipelines.encoding.embedding_units import EncodeEmbeddings
from hashlight.pipelines.encoding.plan import put_plan
from hashlight.pipelines.encoding.rejects import Gathered, RejectBudget, common_reasons, units_to_retry, write_rejects
from hashlight.pipelines.encoding.settling import settle_repeated
from hashlight.pipelines.encoding.units import EncodeUnits, UnitSettings, num_of_the_moment
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder
from hashlight.pipelines.jobs.nodes import look, refuse_unshared
from hashlight.pipelines.jobs.session import ray_session

logger = logging.getLogger(__name__)

# A short rest before what is of the moment is tried again.
_REST_S = 2.0


@dataclass(slots=True)
class EncodeProgress:
    """How far a job has got.

    Attributes
    ----------
    units, units_total, units_before : int
        Finished units, all units, and those that were finished when this run began.
    images : int
        Images of the finished units, good or not.
    images_total : int or None
        None for shards, whose images are known only once they are read.
    rejects : int
    of_the_moment : int
        Those of the rejects that are tried again when all units are finished; until then they do not count against the
        budget.
    images_per_s : float
        Of this run, from its first unit on; 0 until then.
    seconds : dict of str to float
        What each step took in this run, summed over actors; steps overlap.
    """

    units: int
    units_total: int
    units_before: int
    images: int
    images_total: int | None
    rejects: int
    of_the_moment: int = 0
    images_per_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    @property
    def eta_s(self) -> float | None:
        """Estimated seconds left at the rate of this run; None until there is a rate."""
        done = self.units - self.units_before
        if not self.images_per_s or not done:
            return None
        left = self.units_total - self.units
        mean = self.images / self.units
        return (self.images_total - self.images if self.images_total else left * mean) / self.images_per_s


Progress = Callable[[EncodeProgress], None]


@dataclass(frozen=True)
class _Job:
    """An encode job whose plan is written: its folder, what its codes depend on, and its work."""

    folder: JobFolder
    identity: dict[str, Any]
    work: WorkSummary
    units: Units

    @property
    def numbers(self) -> list[int]:
        """The numbers of its units, ascending: the order of their codes."""
        numbers: list[int] = self.units.numbers[self._order].tolist()
        return numbers

    def place_of(self, number: int) -> int:
        """Return the place in the plan of the unit with this number, or of another if there is none."""
        nearest = np.searchsorted(self.units.numbers, number, sorter=self._order)
        return int(self._order[min(int(nearest), len(self._order) - 1)])

    @functools.cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self.units.numbers)


def encode_corpus(
    corpus: str | Path,
    encoder: str | Path | HashEncoder,
    output: str | Path,
    *,
    batch_size: int = 256,
    actors: int | None = None,
    features: bool | FeatureKind = False,
    thumbnail: int = 0,
    unit_images: int = UNIT_IMAGES,
    max_rejects: str | int | None = None,
    limits: DecodeLimits | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EncodeSummary:
    """Encode every image of a corpus; those that a network kept from being read are tried again at the end.

    Parameters
    ----------
    corpus : str or Path
        A corpus, as in `pipelines.corpora.corpus`, or a work list by `pipelines.corpora.work.list_work`.
    encoder : str, Path or HashEncoder
        An encoder, or its folder, local or in a bucket.
    output : str or Path
        Folder for the codes, local or in a bucket. A job that is there resumes; of a corpus that changed, what is new.
    batch_size : int
        Images decoded at a time by an actor; it does not affect the codes.
    actors : int, optional
        Processes that run the model; by default one per GPU of the Ray cluster, or one per core without GPUs. If there
        is no room for all of them, the others start when nodes join.
    features : bool or {"float16", "bfloat16", "int8"}
        Keep the fine features too, for re-ranking, in 2 bytes per dimension and image, or 1. True: float16.
    thumbnail : int
        Longest side in pixels of a JPEG kept of each image, 0 for none.
    unit_images : int
        Images per unit, unless `corpus` is a work list already.
    max_rejects : str or int, optional
        Stop when more images than this were rejected: a number, or a share of all such as "1%".
    limits : DecodeLimits, optional
        What decoding one image may take. A resumed job may have other limits: finished units stay as they are.
    overwrite : bool
        Replace codes that are there.
    progress : callable, optional
        Called with an `EncodeProgress` at the start and after every unit.

    Raises
    ------
    PipelineError
        If the corpus is empty, `output` holds another job's codes, or too many images were rejected.
    """
    _check_sizes(batch_size, actors, thumbnail)
    budget = RejectBudget.parse(max_rejects)
    folder = JobFolder(output, CODES)
    folder.refuse_foreign()
    kept = {"features": _said(features), "thumbnail": thumbnail}
    loaded = encoder if isinstance(encoder, HashEncoder) else load_encoder(encoder)
    with folder.place.lock():
        job = _plan(str(corpus), loaded, folder, kept, unit_images=unit_images, overwrite=overwrite)
        settings = {"batch_size": batch_size, "limits": limits or DecodeLimits(), **_written(kept)}
        return _finish(job, actors, settings, budget, progress or (lambda _state: None))


def retry_rejects(
    corpus: str | Path,
    encoder: str | Path | HashEncoder,
    output: str | Path,
    *,
    batch_size: int = 256,
    actors: int | None = None,
    max_rejects: str | int | None = None,
    limits: DecodeLimits | None = None,
) -> EncodeSummary:
    """Try the rejects of a job again, whatever their kind; the codes that are there stay as they are.

    Parameters
    ----------
    corpus, encoder, output : str, Path or HashEncoder
        Those of the job, all of whose units are finished.
    batch_size, actors, max_rejects, limits
        As in `encode_corpus`.

    Raises
    ------
    PipelineError
        If `output` is another job's, its job is not finished, or too many images are still rejected.
    """
    _check_sizes(batch_size, actors, 0)
    budget = RejectBudget.parse(max_rejects)
    start = time.perf_counter()
    folder = JobFolder(output, CODES)
    folder.refuse_foreign()
    loaded = encoder if isinstance(encoder, HashEncoder) else load_encoder(encoder)
    with folder.place.lock():
        job = _finished_job(folder, corpus, loaded)
        kept = {name: job.identity[name] for name in ("features", "thumbnail")}
        settings = {"batch_size": batch_size, "limits": limits or DecodeLimits(), **_written(kept)}
        num_actors = _try_again(job, actors, settings, RETRIED)
        images = sum(said["codes"] + said["rejects"] for _, said in job.folder.done())
        state = _begun(job, units=job.work.units, images=images, rejects=0)
        return _commit(job, state, {"actors": num_actors, "total_s": round(time.perf_counter() - start, 3)}, budget)


def _finished_job(folder: JobFolder, corpus: str | Path, encoder: HashEncoder) -> _Job:
    """Return the job of a folder; PipelineError if it is another's, or some of its units are not finished."""
    identity = folder.identity()
    if identity is None:
        raise PipelineError(f"{folder} holds no codes whose rejects could be tried again: encode into it first")
    work = read_work(corpus)
    name = without_credentials(normalise(corpus)) if work is None else work.corpus
    folder.begin({**identity, "corpus": name, "encoder": encoder.fingerprint}, overwrite=False)
    with folder.place.open(PLAN) as raw:
        work_list = WorkList(raw, folder.place.path(PLAN))
        job = _Job(folder, identity, work_list.summary, work_list.units())
    if left := len(set(job.numbers) - set(folder.units())):
        raise PipelineError(
            f"{left} of {counted(job.work.units, 'unit')} of {folder} {'is' if left == 1 else 'are'} not finished: run "
            "the same command without --retry-rejects first"
        )
    return job


def _said(features: bool | FeatureKind) -> bool | FeatureKind:
    """Return what the identity of a job says of features; see `features_kind`."""
    kind = features_kind(features)
    return kind is not None if kind in (None, FLOAT16) else features


def _written(kept: dict[str, Any]) -> dict[str, Any]:
    """Return what units write, of what the identity of a job says."""
    return {**kept, "features": features_kind(kept["features"])}


def _check_sizes(batch_size: int, actors: int | None, thumbnail: int) -> None:
    if batch_size < 1 or (actors is not None and actors < 1) or thumbnail < 0:
        raise ValueError(
            f"`batch_size` and `actors` must be at least 1 and `thumbnail` at least 0, got {batch_size}, {actors} and "
            f"{thumbnail}"
        )


def _finish(
    job: _Job, actors: int | None, settings: dict[str, Any], budget: RejectBudget, progress: Progress
) -> EncodeSummary:
    """Encode what is left of a job, and commit it."""
    start = time.perf_counter()
    state, num_actors = _run(job, actors, settings, budget, progress)
    if not job.folder.place.exists(SUMMARY):
        _try_again(job, actors, settings, OF_THE_MOMENT)
    return _commit(job, state, {"actors": num_actors, "total_s": round(time.perf_counter() - start, 3)}, budget)


# 1. Plan.


def _plan(
    corpus: str, encoder: HashEncoder, folder: JobFolder, kept: dict[str, Any], *, unit_images: int, overwrite: bool
) -> _Job:
    """List the corpus and write the plan, as far as it is not there; nothing is removed before that."""
    output = folder.place
    with output.scratch(PLAN) as aside:
        work = read_work(corpus)
        if work is None:
            work = list_work(corpus, aside, unit_images=unit_images)
        else:
            open_place(corpus).download("", aside)
        _refuse_other_input(work, encoder)
        _refuse_taken_columns(work, kept)
        identity = {
            "corpus": work.corpus,
            "ids": work.ids,
            "name": work.name,
            "encoder": encoder.fingerprint,
            "bits": encoder.bits,
            **kept,
        }
        if overwrite:
            folder.clear()
        folder.begin(identity, overwrite=False)
        put_plan(output, aside, unit_images, without_credentials(corpus))
    save_encoder(encoder, output, "encoder")
    with output.open(PLAN) as raw:
        work_list = WorkList(raw, output.path(PLAN))
        return _Job(folder, identity, work_list.summary, work_list.units())


def _refuse_other_input(work: WorkSummary, encoder: HashEncoder) -> None:
    """Raise EncoderError if the encoder does not take what the corpus has."""
    expected = encoder.config.embeddings if work.kind == EMBEDDINGS else encoder.config.pictures
    assert expected == encoder.config.input


def _refuse_taken_columns(work: WorkSummary, kept: dict[str, Any]) -> None:
    written = {FEATURES_COLUMN: kept["features"], THUMBNAIL_COLUMN: kept["thumbnail"]}
    for name, option in written.items():
        if option and name in work.columns:
            raise PipelineError(
                f"{work.corpus} has a column `{name}` of its own: rename it, or encode without "
                f"--{name.removesuffix('s')}s"
            )


# 2. Run.


def _run(
    job: _Job, actors: int | None, settings: dict[str, Any], budget: RejectBudget, progress: Progress
) -> tuple[EncodeProgress, int]:
    """Encode the unfinished units; return what was done, and by how many actors."""
    state, waiting = _take_stock(job)
    _refuse_too_many_rejects(job, state, budget)
    progress(state)
    if not waiting:
        return state, 0
    job.folder.place.remove("attempts")
    with ray_session(num_cpus=max(actors or 0, usable_cores())):
        stage = plan_actors(actors, len(waiting))
        _refuse_unshared(job, waiting, stage)
        before, first, last = state.images, math.inf, 0.0
        for row in _encode_units(job, waiting, stage, UnitSettings(job=job.folder.name, **stage.settings, **settings)):
            # Rows do not come in the order in which units begin and end.
            first, last = min(first, row["started"]), max(last, row["ended"])
            _count(state, row)
            state.images_per_s = (state.images - before) / max(last - first, 1e-3)
            _refuse_too_many_rejects(job, state, budget)
            progress(state)
    return state, stage.actors


def _begun(job: _Job, *, units: int, images: int, rejects: int) -> EncodeProgress:
    """Return the state of a job when a run begins."""
    return EncodeProgress(
        units=units,
        units_total=job.work.units,
        units_before=units,
        images=images,
        images_total=job.work.images,
        rejects=rejects,
    )


def _count(state: EncodeProgress, row: dict[str, Any]) -> None:
    state.units += 1
    state.images += int(row["codes"] + row["rejects"])
    state.rejects += int(row["rejects"])
    state.of_the_moment += int(row["of_the_moment"])
    for step in STEPS:
        state.seconds[step] += float(row[f"{step}_s"])


def _refuse_too_many_rejects(job: _Job, state: EncodeProgress, budget: RejectBudget) -> None:
    total = state.images if state.units == state.units_total else state.images_total
    rejects = state.rejects - state.of_the_moment
    if budget.is_exceeded(rejects, state.images, total):
        reasons = write_rejects(job.folder, job.folder.units()).reasons
        raise PipelineError(
            f"{rejects:,} of {state.images:,} images were rejected so far, more than --max-rejects {budget} "
            f"allows: {common_reasons(reasons)}; they are in {job.folder}/rejects.parquet. What is finished "
            "is kept: run the same `hashlight encode` with a larger --max-rejects to resume"
        )


def _encode_units(job: _Job, units: list[int], stage: Stage, settings: UnitSettings) -> Iterator[dict[str, Any]]:
    import ray.data

    context = ray.data.DataContext.get_current()
    # The unit's own error says more than Ray's, which only says that there was one.
    context.raise_original_map_exception = True
    context.max_consecutive_actor_init_deaths = stage.failed_starts
    # Ray logs the traceback too; silence it, the caller prints one line.
    for name in ("execution.streaming_executor_state", "execution.operators.actor_pool_map_operator"):
        logging.getLogger(f"ray.data._internal.{name}").setLevel(logging.CRITICAL)
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)
    # An actor says that a unit is done when it is, not when its block is.
    context.target_max_block_size = 1
    places = np.array(units)
    blocks = cut_into_blocks(places, job.units.groups[places], stage.shares)
    results = ray.data.from_arrow([pa.table({"unit": block}) for block in blocks]).map_batches(
        EncodeEmbeddings if job.work.kind == EMBEDDINGS else EncodeUnits,
        fn_constructor_args=(job.folder.place.location, settings),
        batch_size=1,
        # Of two calls at once, one writes while the other encodes; see `EncodeUnits`.
        compute=ray.data.ActorPoolStrategy(
            min_size=stage.actors,
            max_size=stage.max_actors,
            max_concurrent_calls_per_actor=2,
            max_tasks_in_flight_per_actor=BLOCKS_AT_ONCE,
            enable_true_multi_threading=True,
        ),
        num_cpus=stage.num_cpus,
        num_gpus=stage.num_gpus or None,
    )
    try:
        for row in results.iter_rows():
            _refuse_other_plan(job, row)
            yield row
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise PipelineError(
            f"an encoding process failed ({type(cause).__name__}: {str(cause).strip().splitlines()[-1]}); what is "
            "finished is kept: run the same `hashlight encode` again"
        ) from error


def _refuse_other_plan(job: _Job, row: dict[str, Any]) -> None:
    """Raise PipelineError if a unit is not what the plan says of it."""
    place = int(row["unit"])
    planned = (int(job.units.numbers[place]), int(job.units.digests[place]))
    if planned != (int(row["number"]), int(row["entries"])):
        raise PipelineError(
            f"{job.folder.place.path(PLAN)} is damaged (unit {planned[0]} has other entries than it says): delete it "
            "and run the same command again, which keeps what is finished"
        )


def _refuse_unshared(job: _Job, units: list[int], stage: Stage) -> None:
    """Check that the nodes see the folder of codes, and the files of the first and the last image that are left."""
    with job.folder.place.open(PLAN) as raw:
        work = WorkList(raw, job.folder.place.path(PLAN))
        ends = [work.read(units[0])[SOURCE][0].as_py(), work.read(units[-1])[SOURCE][-1].as_py()]
    # Others are on no node's disk.
    files = [source for source in ends if is_local(source) or source.partition("://")[0] in BUCKET_SCHEMES]
    reads = [look("--input", job.work.corpus, files)]
    if (join := job.work.shard_join) is not None:
        reads.append(look("--join", without_credentials(join.uri), [join.uri]))
    refuse_unshared(reads, {"--output": job.folder.place.location}, stage.nodes)


def _take_stock(job: _Job) -> tuple[EncodeProgress, list[int]]:
    """Return what earlier runs did, and the places of the units that are left."""
    sizes = {f"parts/{entry.name}": entry.size for entry in job.folder.place.children("parts")}

    def is_whole(number: int, said: dict[str, Any]) -> bool:
        place = job.place_of(number)
        in_plan = (job.units.numbers[place], job.units.digests[place]) == (number, said["entries"])
        return in_plan and sizes.get(part_name(number, said["sha256"])) == said["bytes"]

    is_done = np.zeros(job.work.units, np.bool_)
    images = rejects = of_the_moment = 0
    for number, said in job.folder.done(is_whole):
        is_done[job.place_of(number)] = True
        images += said["codes"] + said["rejects"]
        rejects += said["rejects"]
        of_the_moment += num_of_the_moment(said)
    state = _begun(job, units=int(is_done.sum()), images=images, rejects=rejects)
    state.of_the_moment = of_the_moment
    return state, np.flatnonzero(~is_done).tolist()


def _try_again(job: _Job, actors: int | None, settings: dict[str, Any], kinds: frozenset[str]) -> int:
    """Encode the rejects of some kinds again, of all units; return by how many actors."""
    units = [job.place_of(number) for number in units_to_retry(job.folder, job.numbers, kinds)]
    if not units:
        return 0
    logger.info("trying the rejects of %d units again", len(units))
    time.sleep(_REST_S)
    # Until the end the folder is not complete.
    job.folder.place.remove(SUMMARY)
    job.folder.place.remove("attempts")
    with ray_session(num_cpus=max(actors or 0, usable_cores())):
        stage = plan_actors(actors, len(units))
        _refuse_unshared(job, units, stage)
        again = UnitSettings(job=job.folder.name, retry=kinds, **stage.settings, **settings)
        for _ in _encode_units(job, units, stage, again):
            pass
    return stage.actors


# 3. Gather the rejects, and 4. commit.


def _commit(job: _Job, state: EncodeProgress, run: dict[str, Any], budget: RejectBudget) -> EncodeSummary:
    output = job.folder.place
    if state.units != job.work.units:
        raise PipelineError(
            f"{job.work.units - state.units} of {counted(job.work.units, 'unit')} did not finish: run the job again"
        )
    if job.work.lists_ranges or job.work.id_rule.by_content:
        settle_repeated(job.folder, job.numbers, are_hashes=job.work.id_rule.column is None)
    gathered = write_rejects(job.folder, job.numbers)
    _refuse_too_many_rejects(job, replace(state, rejects=gathered.rejects, of_the_moment=0), budget)
    skipped = gathered.skipped + Counter(job.work.skipped)
    if not gathered.codes:
        raise PipelineError(
            f"none of {counted(gathered.rejects, 'image')} could be encoded: {common_reasons(gathered.reasons)}; all "
            f"reasons are in {output.path('rejects.parquet')}; left out {told(skipped)}"
        )
    if gathered.left_out:
        logger.warning(
            "the attributes %s are left out: the first samples of %s, which decide what is kept, do not have them",
            ", ".join(sorted(gathered.left_out)),
            job.work.corpus,
        )
    for name in gathered.orphans:
        output.remove(f"parts/{name}")
    output.remove("attempts")
    identity = job.identity
    summary = EncodeSummary(
        images=gathered.codes + gathered.rejects,
        codes=gathered.codes,
        rejects=gathered.rejects,
        bits=identity["bits"],
        encoder=identity["encoder"],
        corpus=identity["corpus"],
        reject_kinds=dict(gathered.kinds.most_common()),
        skipped=dict(skipped.most_common()),
    )
    output.put("stats.json", json.dumps(_stats(state, gathered, skipped, run), indent=1).encode())
    job.folder.finish(SUMMARY, asdict(summary))
    return summary


def _stats(state: EncodeProgress, gathered: Gathered, skipped: Counter[str], run: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": gathered.codes + gathered.rejects,
        "codes": gathered.codes,
        "rejects": gathered.rejects,
        "kinds": dict(gathered.kinds.most_common()),
        "reasons": dict(gathered.reasons.most_common()),
        "skipped": dict(skipped.most_common()),
        "attributes_left_out": sorted(gathered.left_out),
        "units": state.units,
        "units_of_this_run": state.units - state.units_before,
        "images_per_s": round(state.images_per_s, 1),
        "seconds": {step: round(spent, 3) for step, spent in state.seconds.items()},
        **run,
    }
