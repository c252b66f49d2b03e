"""The types of answers, and how answers are combined. Every index, shard, router and client answers in these types.

Answers of consecutive parts of a batch are *joined*, answers of disjoint sets of codes are *merged*: exactly, ascending
by (distance, id), however the codes are spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.query import Query

PAD_ID = -1
PAD_DISTANCE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which part of a collection an answer covers.

    Attributes
    ----------
    shards, answered : int
        Shards of the collection, and how many of them answered.
    codes, searched : int
        Codes of the collection, and how many are in shards that answered.
    degraded : dict of str to str
        Name of each shard that did not answer -> the reason.
    version : int
        The collection version that answered.
    sequence : int
        Number of the last write of the server's log that was made on top of it, in memory; 0 if none was.
    """

    shards: int
    answered: int
    codes: int
    searched: int
    version: int
    degraded: dict[str, str] = field(default_factory=dict)
    sequence: int = 0

    @property
    def complete(self) -> bool:
        """Whether every shard answered."""
        return self.answered == self.shards

    @property
    def share(self) -> float:
        """Share of the codes that was searched, 0 to 1."""
        return round(self.searched / self.codes, 6) if self.codes else 1.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """How each query of a batch was answered.

    Attributes
    ----------
    plans : tuple of str, length Q
        "scan" or "tables", or "tables, then scan" if the tables turned out too expensive; "gather" in place of "scan"
        where a filter leaves few rows, each of which is gone to; "faiss-flat" or "faiss-multi-hash" if the collection
        was opened with that index; joined by " + " if shards differ.
    probes : ndarray of int64, shape (Q,)
        Buckets looked up; 0 from FAISS, which does not count.
    candidates : ndarray of int64, shape (Q,)
        Codes compared with the query; 0 from FAISS.
    seconds : ndarray of float64, shape (Q,)
        Time; queries that were answered together share it in equal parts.
    """

    plans: tuple[str, ...]
    probes: NDArray[np.int64]
    candidates: NDArray[np.int64]
    seconds: NDArray[np.float64]

    def take(self, chosen_Q: NDArray[Any]) -> Explanation:
        """Return the explanations of some queries, given by a mask or by indices."""
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
        Which part of the collection was searched; None from a bare index.
    explain : Explanation or None
        How the query was answered, if requested.
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
        Which part of the collection was searched; None from a bare index.
    explain : Explanation or None
        How the query was answered, if requested.
    """

    lims: NDArray[np.int64]
    distances: NDArray[np.int32]
    ids: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    coverage: Coverage | None = None
    explain: Explanation | None = None


class RerankResult(NamedTuple):
    """The first of each query's pool in another order than that of Hamming distance.

    Attributes
    ----------
    distances : ndarray of float32 or int32, shape (Q, k)
        Of fine features: float32, ascending; inf where the pool had fewer than k items. In asymmetric order: int32, the
        Hamming distances, which need not ascend; 2**31 - 1 where the pool had fewer.
    ids : ndarray of int64, shape (Q, k)
        Ordered by id at equal distance; -1 where the pool had fewer.
    coverage : Coverage or None
        Which part of the collection the search for the pool covered; None from `engine.collection.rerank.rerank_pool`.
    explain : Explanation or None
        How the pool was found, if requested.
    """

    distances: NDArray[np.float32] | NDArray[np.int32]
    ids: NDArray[np.int64]
    coverage: Coverage | None = None
    explain: Explanation | None = None


Result = SearchResult | RangeResult


def as_range(nearest: SearchResult | RerankResult) -> RangeResult:
    """Return k-nearest answers without their padding, in the form of a radius search; none is truncated.

    The distances of re-ranked answers stay float32.
    """
    found_QK = nearest.ids != PAD_ID
    lims = np.concatenate([[0], np.cumsum(found_QK.sum(axis=1))]).astype(np.int64)
    truncated_Q = np.zeros(len(found_QK), np.bool_)
    distances: NDArray[Any] = nearest.distances[found_QK]
    return RangeResult(lims, distances, nearest.ids[found_QK], truncated_Q, nearest.coverage, nearest.explain)


def cut_range(found: RangeResult, limit: int) -> RangeResult:
    """Keep the nearest `limit` answers of each query; `truncated` says which had more."""
    counts_Q = np.diff(found.lims)
    rank_H = np.arange(found.lims[-1]) - np.repeat(found.lims[:-1], counts_Q)
    kept_H = rank_H < limit
    lims = np.concatenate([[0], np.cumsum(np.minimum(counts_Q, limit))]).astype(np.int64)
    truncated_Q = found.truncated | (counts_Q > limit)
    return found._replace(lims=lims, distances=found.distances[kept_H], ids=found.ids[kept_H], truncated=truncated_Q)


def take_after(found: RangeResult, after: tuple[int, int]) -> RangeResult:
    """Keep the answers that come after a (distance, id) in their order."""
    distance, id = after
    kept_H = (found.distances > distance) | ((found.distances == distance) & (found.ids > id))
    counts_Q = np.diff(np.concatenate([[0], np.cumsum(kept_H)])[found.lims])
    lims = np.concatenate([[0], np.cumsum(counts_Q)]).astype(np.int64)
    return found._replace(lims=lims, distances=found.distances[kept_H], ids=found.ids[kept_H])


def no_answers(num_queries: int, query: Query) -> Result:
    """Return the answer to a query of no codes."""
    nothing_Q = np.zeros(num_queries, np.int64)
    explain = None
    if query.explain:
        explain = Explanation(("scan",) * num_queries, nothing_Q, nothing_Q.copy(), np.zeros(num_queries))
    if query.k is not None:
        shape = num_queries, query.k
        return SearchResult(np.full(shape, PAD_DISTANCE, np.int32), np.full(shape, PAD_ID, np.int64), explain=explain)
    lims, truncated_Q = np.zeros(num_queries + 1, np.int64), nothing_Q.astype(np.bool_)
    return RangeResult(lims, np.zeros(0, np.int32), np.zeros(0, np.int64), truncated_Q, explain=explain)


def merge(parts: Sequence[Result], query: Query) -> Result:
    """Merge the answers of disjoint sets of codes to one query; see `merge_search` and `merge_range`."""
    if query.k is not None:
        return merge_search(cast(Sequence[SearchResult], parts), query.k)
    return merge_range(cast(Sequence[RangeResult], parts), query.limit)


def merge_search(parts: Sequence[SearchResult], k: int) -> SearchResult:
    """Merge kNN answers of disjoint shards, each with k columns or all it has, into the k nearest overall, (Q, k)."""
    if len(parts) == 1 and parts[0].ids.shape[1] == k:
        return parts[0]
    distances = np.concatenate([part.distances for part in parts], axis=1)
    ids = np.concatenate([part.ids for part in parts], axis=1)
    order = np.lexsort((ids, distances), axis=1)[:, :k]
    distances, ids = np.take_along_axis(distances, order, axis=1), np.take_along_axis(ids, order, axis=1)
    if order.shape[1] < k:
        missing = ((0, 0), (0, k - order.shape[1]))
        distances = np.pad(distances, missing, constant_values=PAD_DISTANCE)
        ids = np.pad(ids, missing, constant_values=PAD_ID)
    return SearchResult(distances, ids, explain=merge_explanations(parts))


def merge_range(parts: Sequence[RangeResult], limit: int | None) -> RangeResult:
    """Merge radius answers of disjoint shards to the same Q queries; with `limit`, keep the nearest of each query."""
    if len(parts) == 1:
        return parts[0]
    num_queries = len(parts[0].truncated)
    if num_queries == 1:
        return _merge_one(parts, limit)
    query = np.concatenate([np.repeat(np.arange(num_queries), np.diff(part.lims)) for part in parts])
    distances = np.concatenate([part.distances for part in parts])
    ids = np.concatenate([part.ids for part in parts])
    order = np.lexsort((ids, distances, query))
    counts_Q = np.bincount(query, minlength=num_queries)
    truncated_Q = np.any([part.truncated for part in parts], axis=0)
    if limit is not None:
        rank = np.arange(len(order)) - np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
        order = order[rank < limit]
        truncated_Q = truncated_Q | (counts_Q > limit)
        counts_Q = np.minimum(counts_Q, limit)
    lims = np.concatenate([[0], np.cumsum(counts_Q)]).astype(np.int64)
    return RangeResult(lims, distances[order], ids[order], truncated_Q, explain=merge_explanations(parts))


def _merge_one(parts: Sequence[RangeResult], limit: int | None) -> RangeResult:
    """Merge answers to a single query, without the bookkeeping for many."""
    distances = np.concatenate([part.distances for part in parts])
    ids = np.concatenate([part.ids for part in parts])
    order = np.lexsort((ids, distances))[:limit]
    truncated = len(order) < len(ids) or any(part.truncated[0] for part in parts)
    lims = np.array([0, len(order)], np.int64)
    return RangeResult(lims, distances[order], ids[order], np.array([truncated]), explain=merge_explanations(parts))


def merge_explanations(parts: Sequence[SearchResult] | Sequence[RangeResult]) -> Explanation | None:
    """Sum the work of the shards; a query's plan lists the different plans of its shards."""
    given = [part.explain for part in parts if part.explain is not None]
    if not given:
        return None
    return Explanation(
        plans=tuple(" + ".join(sorted(set(plans))) for plans in zip(*(one.plans for one in given), strict=True)),
        probes=np.sum([one.probes for one in given], axis=0),
        candidates=np.sum([one.candidates for one in given], axis=0),
        seconds=np.sum([one.seconds for one in given], axis=0),
    )


def join_searches(parts: Sequence[SearchResult]) -> SearchResult:
    """Join the answers to consecutive parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    return SearchResult(
        np.concatenate([part.distances for part in parts]),
        np.concatenate([part.ids for part in parts]),
        explain=join_explanations([part.explain for part in parts]),
    )


def join_ranges(parts: Sequence[RangeResult]) -> RangeResult:
    """Join the answers to consecutive parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    counts = np.concatenate([np.diff(part.lims) for part in parts])
    return RangeResult(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([part.distances for part in parts]),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.truncated for part in parts]),
        explain=join_explanations([part.explain for part in parts]),
    )


def join_explanations(parts: Sequence[Explanation | None]) -> Explanation | None:
    """Join the explanations of consecutive parts of a batch; None if there are none."""
    given = [part for part in parts if part is not None]
    if not given:
        return None
    return Explanation(
        plans=tuple(plan for part in given for plan in part.plans),
        probes=np.concatenate([part.probes for part in given]),
        candidates=np.concatenate([part.candidates for part in given]),
        seconds=np.concatenate([part.seconds for part in given]),
    )
