"""From what kernels write to the result types: places for hits that grow, heaps, padding, order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.codes import IdArray
from engine.kernels.select import group_hits, sort_groups, sort_heaps
from engine.results import PAD_DISTANCE, PAD_ID, Explanation, RangeResult, SearchResult

MAX_HEAP_PLACES = 2**22  # of one call: 48 MB
MANY_HITS = 256  # a query on average, from which sorting packed words is the quicker way
PACKED_ID_BITS = 52  # beside the 11 of a distance of up to 1,024 and the sign

Hits = tuple[NDArray[np.int32], NDArray[np.uint32], NDArray[np.int32]]  # query, row, distance
Heaps = tuple[NDArray[np.int32], IdArray]  # distances, ids


def gather_hits(fill: Callable[[Hits], tuple[int, int]], places: int) -> Hits:
    """Call `fill(hits)` until it is done, with at least twice the places each time; return all hits.

    Parameters
    ----------
    fill : callable
        Writes hits into the arrays it is given, returns how many and how many places it wants next, 0 when done.
    places : int
        How many to begin with.
    """
    full: list[Hits] = []
    while True:
        hits = (np.empty(places, np.int32), np.empty(places, np.uint32), np.empty(places, np.int32))
        count, wanted = fill(hits)
        full.append((hits[0][:count], hits[1][:count], hits[2][:count]))
        if wanted == 0:
            break
        places = max(2 * places, wanted)
    if len(full) == 1:
        return full[0]
    return (
        np.concatenate([hits[0] for hits in full]),
        np.concatenate([hits[1] for hits in full]),
        np.concatenate([hits[2] for hits in full]),
    )


def range_result(hits: Hits, ids_N: IdArray, num_queries: int) -> RangeResult:
    """Group hits by query and order them."""
    query_H, row_H, hit_dist_H = hits
    lims = np.empty(num_queries + 1, np.int64)
    distances = np.empty(len(row_H), np.int32)
    ids = np.empty(len(row_H), np.int64)
    group_hits(query_H, row_H, hit_dist_H, len(row_H), ids_N, lims, distances, ids)
    # Hits at distance 0 come in order already, and merging sees that at once.
    if len(ids) >= MANY_HITS * num_queries and distances.any() and int(ids.max()) >> PACKED_ID_BITS == 0:
        distances, ids = _sort_packed(lims, distances, ids)
    else:
        sort_groups(lims, distances, ids, np.empty_like(distances), np.empty_like(ids))
    return RangeResult(lims, distances, ids, np.zeros(num_queries, np.bool_))


def _sort_packed(
    lims: NDArray[np.int64], distances: NDArray[np.int32], ids: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Sort every group of many as plain words, which numpy does with vector instructions."""
    packed = (distances.astype(np.int64) << PACKED_ID_BITS) | ids
    for begin, end in itertools.pairwise(lims.tolist()):
        packed[begin:end].sort()
    return (packed >> PACKED_ID_BITS).astype(np.int32), packed & (2**PACKED_ID_BITS - 1)


def empty_heaps(num_queries: int, k: int) -> Heaps:
    """Return heaps of `k` free places for each query."""
    return np.full((num_queries, k), PAD_DISTANCE, np.int32), np.full((num_queries, k), PAD_ID, np.int64)


def search_result(heaps: Heaps, k: int) -> SearchResult:
    """Order heaps, which are spent by it, and pad them to `k` places."""
    distances_QK, ids_QK = heaps
    sort_heaps(distances_QK, ids_QK)
    if distances_QK.shape[1] == k:
        return SearchResult(distances_QK, ids_QK)
    padded_dist_QK, padded_id_QK = empty_heaps(len(distances_QK), k)
    padded_dist_QK[:, : distances_QK.shape[1]] = distances_QK
    padded_id_QK[:, : ids_QK.shape[1]] = ids_QK
    return SearchResult(padded_dist_QK, padded_id_QK)


def limited_result(nearest: SearchResult, limit: int) -> RangeResult:
    """Turn the `limit + 1` nearest within the radius into a radius answer cut at `limit`."""
    found_QK = nearest.ids != PAD_ID
    truncated = found_QK[:, limit].copy()
    kept_QK = found_QK[:, :limit]
    lims = np.concatenate([[0], np.cumsum(kept_QK.sum(axis=1))]).astype(np.int64)
    distances, ids = nearest.distances[:, :limit][kept_QK], nearest.ids[:, :limit][kept_QK]
    return RangeResult(lims, distances, ids, truncated, explain=nearest.explain)


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
