"""The shards of this process, searched as one: one after another or in threads, merged by (distance, id)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray
from hashlight.engine.indexes.answers import nearest_of
from hashlight.engine.indexes.histogram import Countable
from hashlight.engine.indexes.threads import MIN_QUERIES_PER_THREAD, cut, run_parts, usable_cores
from hashlight.engine.query import Query
from hashlight.engine.results import (
    Coverage,
    RangeResult,
    Result,
    SearchResult,
    merge,
    merge_explanations,
    merge_range,
    no_answers,
)
from hashlight.engine.tracing import span

# Handing work to another thread costs some 50 microseconds, a search of one shard through its tables 5 to 50.
_WORTH_A_THREAD_S = 300e-6
# A batch is cut over shards if each thread gets so many of similar size, or else over threads inside each shard.
_SHARDS_A_THREAD = 4


class SearchableShard(Protocol):
    """A shard, several gathered ones, or a bare index."""

    def __len__(self) -> int:
        """Return the number of codes that may answer."""
        ...

    def answer(self, queries_QW: CodeArray, query: Query, *, farthest_Q: NDArray[np.int32] | None = None) -> Result:
        """Like `engine.indexes.base.Index.answer`, from the rows that match `query.filter`."""
        ...


class CountableShard(SearchableShard, Protocol):
    """A shard, or several gathered ones."""

    def countable(self, query: Query) -> Countable:
        """Return the rows, and which of them match `query.filter`."""
        ...


class ShardSet:
    """Answers over all shards of one collection version. Thread-safe.

    Parameters
    ----------
    asked : callable
        Returns the shards in which a query may have answers, disjoint, and only those.
    coverage : Coverage
        Of every answer.
    """

    def __init__(self, asked: Callable[[Query], Iterable[SearchableShard]], coverage: Coverage) -> None:
        self._asked = asked
        self.coverage = coverage

    @classmethod
    def of(cls, shards: Sequence[SearchableShard], *, version: int) -> ShardSet:
        """Search these shards, each of which counts as one, as a version."""
        codes = sum(len(shard) for shard in shards)
        coverage = Coverage(shards=len(shards), answered=len(shards), codes=codes, searched=codes, version=version)
        return cls(lambda query: shards, coverage)

    def __len__(self) -> int:
        """Return the number of codes of all shards that may answer."""
        return self.coverage.codes

    def answer(self, queries_QW: CodeArray, query: Query) -> Result:
        """Answer the same query, checked, for each of several codes (Q, W), over all shards.

        With `query.k`, a shard searches no farther than the k-th answer of all shards before it.
        """
        about = {"hashlight.queries": len(queries_QW), "hashlight.shards": self.coverage.shards}
        with span("kernels", about):
            return self._ask_all(queries_QW, query)._replace(coverage=self.coverage)

    def _ask_all(self, queries_QW: CodeArray, query: Query) -> Result:
        """Search every shard: threads share the queries inside each shard, or the shards.

        The shards are shared if there are too few queries for all threads and the time that the first shard takes says
        that threads are worth their cost, or if there are many shards for each thread.
        """
        # Large ones first: they are likely to have near codes, which bound the search of others.
        shards = sorted((shard for shard in self._asked(query) if len(shard)), key=len, reverse=True)
        threads = min(query.threads or usable_cores(), len(shards))
        if threads <= 1:
            return _ask(shards, queries_QW, query)
        if len(cut(len(queries_QW), query.threads, least=MIN_QUERIES_PER_THREAD)) >= threads:
            heads = _num_heads(shards, threads)
            first, rest = _ask(shards[:heads], queries_QW, query), shards[heads:]
        else:
            start = time.perf_counter()
            first, rest = _ask(shards[:1], queries_QW, query._replace(threads=1)), shards[1:]
            if time.perf_counter() - start < _WORTH_A_THREAD_S:
                return _ask(rest, queries_QW, query._replace(threads=1), first)
        if not rest:
            return first
        alone, farthest_Q = query._replace(threads=1), _farthest(first)
        parts = [slice(part, None, threads) for part in range(min(threads, len(rest)))]
        found = run_parts(lambda part: _ask(rest[part], queries_QW, alone, farthest_Q=farthest_Q), parts)
        return merge([first, *found], query)


def _num_heads(shards: Sequence[SearchableShard], threads: int) -> int:
    """Return how many of the shards, large ones first, are too large a part of the rest for a thread of their own."""
    left = sum(len(shard) for shard in shards)
    for number, shard in enumerate(shards):
        if number and len(shard) * threads * _SHARDS_A_THREAD <= left:
            return number
        left -= len(shard)
    return len(shards)


def _ask(
    shards: Sequence[SearchableShard],
    queries_QW: CodeArray,
    query: Query,
    first: Result | None = None,
    *,
    farthest_Q: NDArray[np.int32] | None = None,
) -> Result:
    """Search shards one after another, for what is nearer than `first` and within `farthest_Q`; merge with `first`."""
    nearest = cast(SearchResult | None, first) if query.k is not None else None
    answers = [] if first is None else [first]
    for shard in shards:
        bound_Q = farthest_Q if nearest is None else _farthest(nearest, farthest_Q)
        answer = shard.answer(queries_QW, query, farthest_Q=bound_Q)
        answers.append(answer)
        if isinstance(answer, SearchResult):
            nearest = answer if nearest is None else nearest_of(nearest, answer)
    if not answers:
        return no_answers(len(queries_QW), query)
    if len(answers) == 1:
        return answers[0]
    if nearest is None:
        return merge_range(cast(list[RangeResult], answers), query.limit)
    return nearest._replace(explain=merge_explanations(cast(list[SearchResult], answers)))


def _farthest(found: Result, farthest_Q: NDArray[np.int32] | None = None) -> NDArray[np.int32] | None:
    """Return the maximum distance (Q,) of an answer that is worth adding to `found`; None for a radius search."""
    if isinstance(found, RangeResult):
        return None
    last_Q = found.distances[:, -1]
    return last_Q if farthest_Q is None else np.minimum(farthest_Q, last_Q)
