"""Searches in threads: one that holds its thread until it ends, and single queries that ask alike in common batches."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from hashlight.engine.errors import HashlightError
from hashlight.engine.service.asking.batching import MicroBatcher
from hashlight.engine.service.asking.rendering import arrow_pieces, json_pieces
from hashlight.engine.service.asking.retrieval import Answer, Ask, Hold, answer_each
from hashlight.engine.service.asking.searcher import Searcher
from hashlight.engine.service.problems import named
from hashlight.engine.service.telemetry.metrics import Metrics
from hashlight.engine.service.telemetry.requests import Handled, carried, current, shared_span, working_for

T = TypeVar("T")

# Searches of one query that ask alike go out together: up to so many. A radius query of ten million codes takes a
# millisecond or two with all that is around it; what takes longer than the patience is slow by itself.
_TOGETHER = 64
_PATIENCE_S = 0.02
_MAX_KINDS = 256

# What more answers are wanted for goes out alone.
_FEW = 1000

# Queries of a slow request whose explanations are logged.
_EXPLAINED = 10

# An answer that is larger is sent in pieces of this size.
_PIECE_BYTES = 262_144


class Body(NamedTuple):
    """A body as far as it is made.

    Attributes
    ----------
    first : bytes
    rest : iterator of bytes or None
        None if there is no more.
    """

    first: bytes
    rest: Iterator[bytes] | None


def begin_body(pieces: Iterator[bytes]) -> Body:
    """Return a body of these pieces: whole if it is small, otherwise its beginning."""
    joined = _joined(pieces)
    first, second = next(joined), next(joined, None)
    return Body(first, None if second is None else itertools.chain([second], joined))


def _joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield pieces of at least `_PIECE_BYTES`, but for the last."""
    held = bytearray()
    for piece in pieces:
        held += piece
        if len(held) >= _PIECE_BYTES:
            yield bytes(held)
            held.clear()
    yield bytes(held)


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """A search that waits for a thread."""

    ask: Ask
    deadline_s: float  # on the clock of `time.monotonic`
    arrow: bool
    timing_ms: dict[str, float]
    hold: Hold
    submitted_s: float
    shows_explain: bool
    handled: tuple[Handled, ...]


class SearchThreads:
    """Searches and renders in threads. Belongs to one event loop.

    Parameters
    ----------
    searcher : Searcher
    threads : int
        Searches at work at once.
    metrics : Metrics
    """

    def __init__(self, searcher: Searcher, *, threads: int, metrics: Metrics) -> None:
        self._searcher = searcher
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(threads, "hashlight-search")
        self._batchers: dict[Hashable, MicroBatcher[_Job, Body]] = {}
        self._counting = threading.Lock()
        self.at_work = 0

    def close(self) -> None:
        """Release the threads; work that has not started is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread, which stays taken until it ends, also if nobody waits for it any more."""
        self._count(1)
        try:
            future = self._pool.submit(carried(work))
        except BaseException:
            self._count(-1)
            raise
        future.add_done_callback(self._ended)
        return await asyncio.wrap_future(future)

    async def run_named(self, work: Callable[[], T]) -> T:
        """Do as `run`; an argument that the searcher refuses is an error of the request, by its name."""
        try:
            return await self.run(work)
        except ValueError as error:
            if isinstance(error, HashlightError):
                raise
            raise named(error) from error

    async def search(
        self,
        ask: Ask,
        *,
        deadline_s: float,
        arrow: bool,
        timing_ms: dict[str, float],
        hold: Hold,
        shows_explain: bool = True,
    ) -> Body:
        """Return the body of an answer, in Arrow or JSON.

        `deadline_s` is on the clock of `time.monotonic`; `timing_ms` is told how long each stage took, and `hold` how
        many bytes the answer has. Without `shows_explain` an explanation is only for the log.
        """
        job = _Job(ask, deadline_s, arrow, timing_ms, hold, time.perf_counter(), shows_explain, current())
        few = max(ask.query.k or 0, ask.query.limit or 0) <= _FEW
        # Lists of ids, megabytes each, are rarely alike, and what goes together is remembered by kind.
        if len(ask.codes) == 1 and ask.rerank is None and ask.query.parameters is None and few:
            # What goes together has about the same time left: within a factor of two.
            _, time_left = math.frexp(deadline_s - time.monotonic())
            kind = (ask.query, ask.allow_partial, ask.include, ask.version, ask.sequence, time_left)
            return await self._batcher(kind).submit(job)
        [body] = await self.run(functools.partial(self._answer, [job]))
        if isinstance(body, Exception):
            raise body
        return body

    def _batcher(self, kind: Hashable) -> MicroBatcher[_Job, Body]:
        if kind not in self._batchers:
            if len(self._batchers) >= _MAX_KINDS:
                self._batchers = {known: batcher for known, batcher in self._batchers.items() if not batcher.idle}
            self._batchers[kind] = MicroBatcher(self._answer_batch, batch_size=_TOGETHER, patience_s=_PATIENCE_S)
        return self._batchers[kind]

    async def _answer_batch(self, jobs: Sequence[_Job]) -> list[Body | Exception]:
        self._metrics.search_batch.observe(len(jobs))
        with working_for([one for job in jobs for one in job.handled]):
            return await self.run(functools.partial(self._answer, jobs))

    def _answer(self, jobs: Sequence[_Job]) -> list[Body | Exception]:
        """Search for all at once and render for each; what fails for one of them is an error for it alone."""
        with shared_span("search", {"hashlight.requests": len(jobs)}):
            return self._answer_in_span(jobs)

    def _answer_in_span(self, jobs: Sequence[_Job]) -> list[Body | Exception]:
        begun_s = time.perf_counter()
        left_s = [job.deadline_s - time.monotonic() for job in jobs]
        # One whose time is over, and whose request has ended, must not end those of others.
        timeout_s = max(min(left_s), max(left_s) / 2)
        try:
            found = answer_each(
                self._searcher, [job.ask for job in jobs], [job.hold for job in jobs], timeout_s=timeout_s
            )
        except ValueError as error:
            raise named(error) from error
        return [self._body(job, one, begun_s) for job, one in zip(jobs, found, strict=True)]

    def _body(self, job: _Job, found: Answer | Exception, begun_s: float) -> Body | Exception:
        if isinstance(found, Exception):
            return found
        try:
            return self._render(job, found, begun_s)
        except Exception as error:
            return error

    def _render(self, job: _Job, found: Answer, begun_s: float) -> Body:
        for stage, seconds in {"wait": begun_s - job.submitted_s, **found.seconds}.items():
            job.timing_ms[stage] = round(1000 * seconds, 3)
            self._metrics.observe(stage, seconds)
        if not found.coverage.complete:
            self._metrics.partial.inc()
        _note(job, found)
        if not job.shows_explain:
            found = dataclasses.replace(found, explain=None)
        start = time.perf_counter()
        pieces = arrow_pieces if job.arrow else json_pieces
        body = begin_body(pieces(found, timing_ms=job.timing_ms))
        if body.rest is None:
            job.hold(len(body.first))
        self._metrics.observe("render", time.perf_counter() - start)
        return body

    def _ended(self, _: Future[Any]) -> None:
        self._count(-1)

    def _count(self, change: int) -> None:
        with self._counting:
            self.at_work += change


def _note(job: _Job, found: Answer) -> None:
    """Tell the log of a request how it was answered."""
    coverage, explain, query = found.coverage, found.explain, job.ask.query
    notes: dict[str, Any] = {
        "queries": len(job.ask.codes),
        "version": coverage.version,
        "coverage": coverage.share,
    }
    slow_notes: dict[str, Any] = {"timing_ms": dict(job.timing_ms)}
    if explain is not None:
        notes["plan"] = ", ".join(sorted(set(explain.plans)))
        slow_notes["explain"] = [
            {"plan": plan, "probes": int(probes), "candidates": int(candidates), "seconds": float(seconds)}
            for plan, probes, candidates, seconds in zip(
                explain.plans[:_EXPLAINED],
                explain.probes[:_EXPLAINED],
                explain.candidates[:_EXPLAINED],
                explain.seconds[:_EXPLAINED],
                strict=True,
            )
        ]
    wanted = {"k": query.k, "radius": query.radius, "limit": query.limit, "filter": query.filter}
    slow_notes |= {name: value for name, value in wanted.items() if value is not None}
    for one in job.handled:
        one.notes |= notes
        one.slow_notes |= slow_notes
