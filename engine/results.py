"""What a query answers. Every index, shard, router and client answers in these types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PAD_ID = -1
PAD_DISTANCE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which part of a collection an answer saw.

    Attributes
    ----------
    shards, answered : int
        Shards of the collection, and how many of them answered.
    codes, searched : int
        Codes of the collection, and how many stand in shards that answered.
    degraded : dict of str to str
        Name of each shard that did not answer -> the reason.
    version : int
        The collection version that answered.
    """

    shards: int
    answered: int
    codes: int
    searched: int
    version: int
    degraded: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every shard answered."""
        return self.answered == self.shards


@dataclass(frozen=True, slots=True)
class Explanation:
    """How each query of a batch was answered.

    Attributes
    ----------
    plans : tuple of str, length Q
        "scan" or "tables", or "tables, then scan" where the tables turned out too dear.
    probes : ndarray of int64, shape (Q,)
        Buckets looked up.
    candidates : ndarray of int64, shape (Q,)
        Codes compared with the query.
    seconds : ndarray of float64, shape (Q,)
        Time; queries that were answered together share theirs in equal parts.
    """

    plans: tuple[str, ...]
    probes: NDArray[np.int64]
    candidates: NDArray[np.int64]
    seconds: NDArray[np.float64]

    def take(self, chosen_Q: NDArray[Any]) -> Explanation:
        """Return what is said of some queries, given by a mask or by their numbers."""
        plans = tuple(np.array(self.plans, object)[chosen_Q])
        return Explanation(plans, self.probes[chosen_Q], self.candidates[chosen_Q], self.seconds[chosen_Q])


class SearchResult(NamedTuple):
    """The k nearest codes of each query, ascending by (distance, id).

    Attributes
    ----------
    distances : ndarray of int32, shape (Q, k)
        Hamming distances; rows with fewer than k answers are padded with 2**31 - 1.
    ids : ndarray of int64, shape (Q, k)
        Ids; padded with -1.
    coverage : Coverage or None
        What the answer saw; None from a bare index.
    explain : Explanation or None
        How it was found, where that was asked.
    """

    distances: NDArray[np.int32]
    ids: NDArray[np.int64]
    coverage: Coverage | None = None
    explain: Explanation | None = None


class RangeResult(NamedTuple):
    """The codes within a radius of each query, ascending by (distance, id).

    Attributes
    ----------
    lims : ndarray of int64, shape (Q + 1,)
        The answers of query q are `distances[lims[q]:lims[q + 1]]`, and `ids` likewise.
    distances : ndarray of int32, shape (lims[-1],)
        Hamming distances, each at most the radius.
    ids : ndarray of int64, shape (lims[-1],)
    truncated : ndarray of bool, shape (Q,)
        Whether `limit` cut the answers of a query; the nearest are kept.
    coverage : Coverage or None
        What the answer saw; None from a bare index.
    explain : Explanation or None
        How it was found, where that was asked.
    """

    lims: NDArray[np.int64]
    distances: NDArray[np.int32]
    ids: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    coverage: Coverage | None = None
    explain: Explanation | None = None
