"""The protocol of every index over one shard's codes."""

from __future__ import annotations

from typing import Protocol, Self, runtime_checkable

from engine.codes import CodeArray, IdArray
from engine.results import RangeResult, SearchResult


@runtime_checkable
class Index(Protocol):
    """Exact Hamming search over fixed codes. Several threads may search one index at once."""

    bits: int

    @classmethod
    def build(cls, codes_NW: CodeArray, ids_N: IdArray, *, bits: int) -> Self:
        """Index `codes_NW` (uint64, shape (N, W)) under `ids_N` (distinct int64 of 0 or more, shape (N,))."""
        ...

    def __len__(self) -> int:
        """Return the number of codes."""
        ...

    def search(self, queries_QW: CodeArray, k: int) -> SearchResult:
        """Return the `k` nearest codes of each query (uint64, shape (Q, W)), ascending by (distance, id)."""
        ...

    def range_search(self, queries_QW: CodeArray, radius: int, limit: int | None = None) -> RangeResult:
        """Return the codes at distance `<= radius`; with `limit`, the nearest `limit` of each query."""
        ...
