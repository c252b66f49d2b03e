"""From the output of kernels to result types: growing buffers for hits, heaps, padding, order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import IdArray
from hashlight.engine.kernels.select import (
    FEW,
    arrange,
    count_hits,
    lay_out,
    merge_nearest,
    order_ids,
    place_hits,
    sort_heaps,
)
from hashlight.engine.results import PAD_DISTANCE, PAD_ID, RangeResult, SearchResult, join_ranges

MAX_HEAP_PLACES = 2**22  # per call: 48 MB
MAX_COUNTERS = 2**20  # per call, one for each query and distance: 8 MB
FIRST_LIMITED = 256  # initial room for the answers of a query with a limit
LIMITED_GROWTH = 8

# Plain tuples, as `engine.kernels.arguments` requires, in the order of its `Hits` and `Heaps`.
Hits = tuple[NDArray[np.int32], NDArray[np.uint32], NDArray[np.int32]]  # query, row, distance
Found = list[tuple[NDArray[np.intp], Hits]]  # hits number the queries of a group; the array has their batch indices
Heaps = tuple[NDArray[np.int32], IdArray]  # distances, ids


def gather_hits(numbers_G: NDArray[np.intp], fill: Callable[[Hits], tuple[int, int]], places: int) -> Found:
    """Call `fill(hits)` until it is done, with at least twice the room each time; return all hits.

    Parameters
    ----------
    numbers_G : ndarray of intp, shape (G,)
        Batch indices of the queries.
    fill : callable
        Writes hits into the arrays it is given; returns how many, and how much room it needs next, 0 when done.
    places : int
        Room for hits in the first call.
    """
    found = []
    while True:
        hits = (np.empty(places, np.int32), np.empty(places, np.uint32), np.empty(places, np.int32))
        count, wanted = fill(hits)
        found.append((numbers_G, (hits[0][:count], hits[1][:count], hits[2][:count])))
        if wanted == 0:
            return found
        places = max(2 * places, wanted)


def range_result(found: Found, ids_N: IdArray, num_queries: int, radius: int) -> RangeResult:
    """Sort hits: by query and distance with a counting sort, then by id within each distance."""
    num_hits = sum(len(hits[1]) for _, hits in found)
    lims = np.empty(num_queries + 1, np.int64)
    distances, ids = np.empty(num_hits, np.int32), np.empty(num_hits, np.int64)
    place_QR = np.zeros((num_queries, radius + 1), np.int64)
    unsorted_U2 = np.empty((min(place_QR.size, num_hits // FEW), 2), np.int64)
    if len(found) == 1:
        numbers_G, hits = found[0]
        num_unsorted = arrange(numbers_G, hits, ids_N, place_QR, lims, distances, ids, unsorted_U2)
    else:
        for numbers_G, hits in found:
            count_hits(numbers_G, hits, place_QR)
        lay_out(place_QR, lims)
        for numbers_G, hits in found:
            place_hits(numbers_G, hits, ids_N, place_QR, ids)
        num_unsorted = order_ids(place_QR, distances, ids, unsorted_U2)
    for begin, end in unsorted_U2[:num_unsorted].tolist():
        ids[begin:end].sort()
    return RangeResult(lims, distances, ids, np.zeros(num_queries, np.bool_))


def empty_heaps(num_queries: int, k: int) -> Heaps:
    """Return heaps of `k` free slots for each query."""
    return np.full((num_queries, k), PAD_DISTANCE, np.int32), np.full((num_queries, k), PAD_ID, np.int64)


def search_result(heaps: Heaps, k: int) -> SearchResult:
    """Sort heaps in place, and pad them to `k` columns."""
    distances_QK, ids_QK = heaps
    sort_heaps(distances_QK, ids_QK)
    if distances_QK.shape[1] == k:
        return SearchResult(distances_QK, ids_QK)
    padded_dist_QK, padded_id_QK = empty_heaps(len(distances_QK), k)
    padded_dist_QK[:, : distances_QK.shape[1]] = distances_QK
    padded_id_QK[:, : ids_QK.shape[1]] = ids_QK
    return SearchResult(padded_dist_QK, padded_id_QK)


def nearest_of(one: SearchResult, other: SearchResult) -> SearchResult:
    """Return the k nearest in two answers of disjoint codes, (Q, k) each, without coverage and explanation."""
    distances, ids = np.empty_like(one.distances), np.empty_like(one.ids)
    merge_nearest(one.distances, one.ids, other.distances, other.ids, distances, ids)
    return SearchResult(distances, ids)


def limited_search(ask: Callable[[NDArray[np.intp], int], SearchResult], num_queries: int, limit: int) -> RangeResult:
    """Answer a radius search with a `limit` by the nearest within the radius.

    Queries first get room for few answers, and only those that fill it are asked again with more, so that a generous
    limit costs as much as what is found, not as much as it allows.

    Parameters
    ----------
    ask : callable
        Returns the k nearest within the radius, given the indices of queries and k.
    """
    open_Q = np.arange(num_queries)
    k = min(limit + 1, FIRST_LIMITED)
    parts = []
    while True:
        nearest = ask(open_Q, k)
        full_Q = (nearest.ids[:, -1] != PAD_ID) & (k <= limit)
        parts.append((open_Q[~full_Q], _limited_part(nearest, ~full_Q, limit)))
        open_Q = open_Q[full_Q]
        if not len(open_Q):
            return parts[0][1] if len(parts) == 1 else _join_groups(parts, num_queries)
        k = min(limit + 1, k * LIMITED_GROWTH)


def _limited_part(nearest: SearchResult, chosen_Q: NDArray[np.bool_], limit: int) -> RangeResult:
    """Turn the nearest of the chosen queries into a radius answer cut at `limit`."""
    found_QK = nearest.ids[chosen_Q] != PAD_ID
    kept_QK = found_QK[:, :limit]
    lims = np.concatenate([[0], np.cumsum(kept_QK.sum(axis=1))]).astype(np.int64)
    distances, ids = (array[chosen_Q][:, :limit][kept_QK] for array in nearest[:2])
    truncated = found_QK[:, limit].copy() if found_QK.shape[1] > limit else np.zeros(len(found_QK), np.bool_)
    return RangeResult(lims, distances, ids, truncated, explain=nearest.explain and nearest.explain.take(chosen_Q))


def _join_groups(parts: list[tuple[NDArray[np.intp], RangeResult]], num_queries: int) -> RangeResult:
    """Join answers to groups of queries, given the indices of the queries."""
    joined = join_ranges([part for _, part in parts])
    number_Q = np.concatenate([numbers for numbers, _ in parts])
    place_Q = np.empty(num_queries, np.intp)
    place_Q[number_Q] = np.arange(num_queries)
    counts_Q = np.diff(joined.lims)[place_Q]
    lims = np.concatenate([[0], np.cumsum(counts_Q)]).astype(np.int64)
    taken = np.repeat(joined.lims[place_Q] - lims[:-1], counts_Q) + np.arange(lims[-1])
    explain = joined.explain and joined.explain.take(place_Q)
    return RangeResult(lims, joined.distances[taken], joined.ids[taken], joined.truncated[place_Q], explain=explain)
