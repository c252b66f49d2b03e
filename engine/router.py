"""The query router: asks every shard and merges by (distance, id)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from engine.codes import CodeArray
from engine.indexes.threads import cut, run_parts
from engine.merge import merge_range, merge_search
from engine.results import Coverage, RangeResult, SearchResult

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
        self, queries_QW: CodeArray, k: int, *, threads: int | None = None, explain: bool = False
    ) -> SearchResult:
        """Answer as `engine.indexes.base.Index.search`."""
        ...

    def range_search(
        self,
        queries_QW: CodeArray,
        radius: int,
        limit: int | None = None,
        *,
        threads: int | None = None,
        explain: bool = False,
    ) -> RangeResult:
        """Answer as `engine.indexes.base.Index.range_search`."""
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
        self, queries_QW: CodeArray, k: int, *, threads: int | None = None, explain: bool = False
    ) -> SearchResult:
        """Return the k nearest codes of each query over all shards."""

        def ask(shard: SearchableShard, threads: int | None) -> SearchResult:
            return shard.search(queries_QW, k, threads=threads, explain=explain)

        return merge_search(self._ask_all(ask, len(queries_QW), threads), k)._replace(coverage=self._coverage)

    def range_search(
        self,
        queries_QW: CodeArray,
        radius: int,
        limit: int | None = None,
        *,
        threads: int | None = None,
        explain: bool = False,
    ) -> RangeResult:
        """Return the codes within `radius` of each query over all shards."""

        def ask(shard: SearchableShard, threads: int | None) -> RangeResult:
            return shard.range_search(queries_QW, radius, limit, threads=threads, explain=explain)

        return merge_range(self._ask_all(ask, len(queries_QW), threads), limit)._replace(coverage=self._coverage)

    def _ask_all(
        self, ask: Callable[[SearchableShard, int | None], R], num_queries: int, threads: int | None
    ) -> list[R]:
        """Ask every shard: a batch spreads over threads within each shard, a single query over the shards.

        Whether one query is worth the threads, the first shard tells by the time it takes.
        """
        if num_queries != 1:
            return [ask(shard, threads) for shard in self._shards]
        start = time.perf_counter()
        answers = [ask(self._shards[0], 1)]
        rest = self._shards[1:]
        if threads == 1 or time.perf_counter() - start < _WORTH_A_THREAD_S:
            return answers + [ask(shard, 1) for shard in rest]
        groups = run_parts(lambda part: [ask(shard, 1) for shard in rest[part]], cut(len(rest), threads, least=1))
        return answers + [answer for group in groups for answer in group]
