"""The query router: asks every shard and merges by (distance, id)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray
from hashlight.engine.collection.merge import merge_range, merge_search
from hashlight.engine.indexes.threads import MIN_QUERIES_A_THREAD, cut, run_parts, usable_cores
from hashlight.engine.results import Coverage, RangeResult, SearchResult

R = TypeVar("R", SearchResult, RangeResult)

# Handing work to another thread costs some 50 microseconds, a search of one shard through its tables 5 to 50.
_WORTH_A_THREAD_S = 300e-6


class SearchableShard(Protocol):
    """What the router asks: a shard here, or one behind a server."""

    name: str

    def __len__(self) -> int:
        """Return the number of codes."""
        ...

    def search(
        self,
        queries_QW: CodeArray,
        k: int,
        *,
        farthest_Q: NDArray[np.int32] | None = None,
        filter: str | None = None,
        threads: int | None = None,
        explain: bool = False,
    ) -> SearchResult:
        """Answer as `engine.indexes.multi_index.index.MultiIndex.search`, from the rows that satisfy `filter`."""
        ...

    def range_search(
        self,
        queries_QW: CodeArray,
        radius: int,
        limit: int | None = None,
        *,
        filter: str | None = None,
        threads: int | None = None,
        explain: bool = False,
    ) -> RangeResult:
        """Answer as `engine.indexes.base.Index.range_search`, from the rows that satisfy `filter`."""
        ...


class Router:
    """Answers over all shards of one collection version. Several threads may use one router at once."""

    def __init__(self, shards: Sequence[SearchableShard], *, version: int) -> None:
        self._shards = tuple(shards)
        codes = sum(len(shard) for shard in self._shards)
        self._coverage = Coverage(
            shards=len(self._shards), answered=len(self._shards), codes=codes, searched=codes, version=version
        )

    def search(
        self,
        queries_QW: CodeArray,
        k: int,
        *,
        filter: str | None = None,
        threads: int | None = None,
        explain: bool = False,
    ) -> SearchResult:
        """Return the k nearest codes of each query over all shards, from the rows that satisfy `filter`.

        A shard looks no farther than the k-th answer of those before it.
        """

        def ask(
            shards: Sequence[SearchableShard], threads: int | None, first: list[SearchResult]
        ) -> list[SearchResult]:
            farthest_Q = first[0].distances[:, -1] if first else None
            answers: list[SearchResult] = []
            for shard in shards:
                answer = shard.search(
                    queries_QW, k, farthest_Q=farthest_Q, threads=threads, explain=explain, **_filtered(filter)
                )
                last_Q = answer.distances[:, -1]
                farthest_Q = last_Q if farthest_Q is None else np.minimum(farthest_Q, last_Q)
                answers.append(answer)
            return answers

        return merge_search(self._ask_all(ask, len(queries_QW), threads), k)._replace(coverage=self._coverage)

    def range_search(
        self,
        queries_QW: CodeArray,
        radius: int,
        limit: int | None = None,
        *,
        filter: str | None = None,
        threads: int | None = None,
        explain: bool = False,
    ) -> RangeResult:
        """Return the codes within `radius` of each query over all shards, from the rows that satisfy `filter`."""

        def ask(shards: Sequence[SearchableShard], threads: int | None, _: list[RangeResult]) -> list[RangeResult]:
            return [
                shard.range_search(queries_QW, radius, limit, threads=threads, explain=explain, **_filtered(filter))
                for shard in shards
            ]

        return merge_range(self._ask_all(ask, len(queries_QW), threads), limit)._replace(coverage=self._coverage)

    def _ask_all(
        self,
        ask: Callable[[Sequence[SearchableShard], int | None, list[R]], list[R]],
        num_queries: int,
        threads: int | None,
    ) -> list[R]:
        """Ask every shard: a batch spreads over threads within each shard, one too small for that over the shards.

        Whether it is worth the threads, the first shard tells by the time it takes.
        """
        wanted = min(threads or usable_cores(), len(self._shards))
        if wanted == 1 or len(cut(num_queries, threads, least=MIN_QUERIES_A_THREAD)) >= wanted:
            return ask(self._shards, threads, [])
        start = time.perf_counter()
        first, rest = ask(self._shards[:1], 1, []), self._shards[1:]
        if time.perf_counter() - start < _WORTH_A_THREAD_S:
            return first + ask(rest, 1, first)
        groups = run_parts(lambda part: ask(rest[part], 1, first), cut(len(rest), threads, least=1))
        return first + [answer for group in groups for answer in group]


def _filtered(filter: str | None) -> dict[str, str]:
    """Return the keyword of a filter; an index without attributes has none, and is asked without it."""
    return {} if filter is None else {"filter": filter}
