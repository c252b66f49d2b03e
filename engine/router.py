"""The query router: asks every shard and merges by (distance, id)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engine.codes import CodeArray
from engine.merge import merge_range, merge_search
from engine.results import Coverage, RangeResult, SearchResult


class SearchableShard(Protocol):
    """What the router asks: a shard here, or one behind a server."""

    name: str

    def __len__(self) -> int:
        """Return the number of codes."""
        ...

    def search(self, queries_QW: CodeArray, k: int) -> SearchResult:
        """Answer as `engine.indexes.base.Index.search`."""
        ...

    def range_search(self, queries_QW: CodeArray, radius: int, limit: int | None = None) -> RangeResult:
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

    def search(self, queries_QW: CodeArray, k: int) -> SearchResult:
        """Return the k nearest codes of each query over all shards."""
        merged = merge_search([shard.search(queries_QW, k) for shard in self._shards], k)
        return merged._replace(coverage=self._coverage)

    def range_search(self, queries_QW: CodeArray, radius: int, limit: int | None = None) -> RangeResult:
        """Return the codes within `radius` of each query over all shards."""
        parts = [shard.range_search(queries_QW, radius, limit) for shard in self._shards]
        return merge_range(parts, limit)._replace(coverage=self._coverage)
