"""Merging the answers of shards, exactly: ascending (distance, id), whatever the shards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hashlight.engine.results import PAD_DISTANCE, PAD_ID, Explanation, RangeResult, SearchResult


def merge_search(parts: Sequence[SearchResult], k: int) -> SearchResult:
    """Merge kNN answers of disjoint shards, each of k columns or of all it has, into the k nearest of all, (Q, k)."""
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
    """Merge answers to a single query, without the bookkeeping of many."""
    distances = np.concatenate([part.distances for part in parts])
    ids = np.concatenate([part.ids for part in parts])
    order = np.lexsort((ids, distances))[:limit]
    truncated = len(order) < len(ids) or any(part.truncated[0] for part in parts)
    lims = np.array([0, len(order)], np.int64)
    return RangeResult(lims, distances[order], ids[order], np.array([truncated]), explain=merge_explanations(parts))


def merge_explanations(parts: Sequence[SearchResult] | Sequence[RangeResult]) -> Explanation | None:
    """Add up what shards say of their work; the plans of a query are the different ones of its shards."""
    given = [part.explain for part in parts if part.explain is not None]
    if not given:
        return None
    return Explanation(
        plans=tuple(" + ".join(sorted(set(plans))) for plans in zip(*(one.plans for one in given), strict=True)),
        probes=np.sum([one.probes for one in given], axis=0),
        candidates=np.sum([one.candidates for one in given], axis=0),
        seconds=np.sum([one.seconds for one in given], axis=0),
    )
