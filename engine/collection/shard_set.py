"""The open shards of this process, searched as one: one after another or in threads, merged by (distance, id)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray
from hashlight.engine.indexes.threads import MIN_QUERIES_PER_THREAD, cut, run_parts, usable_cores
from hashlight.engine.query import Query
from hashlight.engine.results import Coverage, RangeResult, Result, merge, no_answers

# Handing work to another thread costs some 50 microseconds, a search of one shard through its tables 5 to 50.
_WORTH_A_THREAD_S = 300e-6


class SearchableShard(Protocol):
    """A shard or a bare index."""

    def __len__(self) -> int:
        """Return the number of codes that may answer."""
        ...

    def answer(self, queries_QW: CodeArray, query: Query, *, farthest_Q: NDArray[np.int32] | None = None) -> Result:
        """Like `engine.indexes.base.Index.answer`, from the rows that match `query.filter`."""
        ...


class ShardSet:
    """Answers over all shards of one collection version. Thread-safe."""

    def __init__(self, shards: Sequence[SearchableShard], *, version: int) -> None:
        self._shards = tuple(shard for shard in shards if len(shard))  # others have no answers
        codes = sum(len(shard) for shard in self._shards)
        self.coverage = Coverage(shards=len(shards), answered=len(shards), codes=codes, searched=codes, version=version)

    def __len__(self) -> int:
        """Return the number of codes of all shards that may answer."""
        return self.coverage.codes

    def answer(self, queries_QW: CodeArray, query: Query) -> Result:
        """Answer the same query, checked, for each of several codes (Q, W), over all shards.

        With `query.k`, a shard searches no farther than the k-th answer of earlier shards.
        """
        if not self._shards:
            return no_answers(len(queries_QW), query)._replace(coverage=self.coverage)

        def ask(shards: Sequence[SearchableShard], threads: int | None, first: list[Result]) -> list[Result]:
            asked = query if threads == query.threads else query._replace(threads=threads)
            answers: list[Result] = []
            farthest_Q = _nearer(None, first[0]) if first else None
            for shard in shards:
                answers.append(shard.answer(queries_QW, asked, farthest_Q=farthest_Q))
                farthest_Q = _nearer(farthest_Q, answers[-1])
            return answers

        return merge(self._ask_all(ask, len(queries_QW), query.threads), query)._replace(coverage=self.coverage)

    def _ask_all(
        self,
        ask: Callable[[Sequence[SearchableShard], int | None, list[Result]], list[Result]],
        num_queries: int,
        threads: int | None,
    ) -> list[Result]:
        """Search every shard: large batches spread over threads inside each shard, small ones over the shards.

        The time that the first shard takes decides whether threads are worth their cost.
        """
        if len(self._shards) == 1:
            return ask(self._shards, threads, [])
        wanted = min(threads or usable_cores(), len(self._shards))
        if wanted == 1 or len(cut(num_queries, threads, least=MIN_QUERIES_PER_THREAD)) >= wanted:
            return ask(self._shards, threads, [])
        start = time.perf_counter()
        first, rest = ask(self._shards[:1], 1, []), self._shards[1:]
        if time.perf_counter() - start < _WORTH_A_THREAD_S:
            return first + ask(rest, 1, first)
        groups = run_parts(lambda part: ask(rest[part], 1, first), cut(len(rest), threads, least=1))
        return first + [answer for group in groups for answer in group]


def _nearer(farthest_Q: NDArray[np.int32] | None, answer: Result) -> NDArray[np.int32] | None:
    """Return the distance bound (Q,) that this answer gives for further shards; None for a radius search."""
    if isinstance(answer, RangeResult):
        return None
    last_Q = answer.distances[:, -1]
    return last_Q if farthest_Q is None else np.minimum(farthest_Q, last_Q)
