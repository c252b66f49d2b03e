# mypy: disable-error-code="no-untyped-def"
"""Keeping the nearest, and sorting answers by ascending (distance, id).

Shapes: K slots of a heap, H hits, Q queries, G queries of a group that was asked together, U runs of ids,
R = radius + 1 distances. A heap is two arrays, `dist_K` int32 and `id_K` int64, whose first slot holds the worst pair;
free slots hold (2**31 - 1, -1), which is farther than any answer.
"""

from __future__ import annotations

from hashlight.engine.kernels.arguments import Hits
from hashlight.engine.kernels.compiling import kernel

FEW = 32  # up to this many ids are sorted here, more by numpy, which sorts with vector instructions


@kernel
def comes_before(dist_a, id_a, dist_b, id_b):
    """Tell whether (dist_a, id_a) < (dist_b, id_b)."""
    return dist_a < dist_b or (dist_a == dist_b and id_a < id_b)


@kernel
def sift_down(dist_K, id_K, hole, size, dist, id_):
    """Replace the pair in slot `hole` by (dist, id_) and restore the heap of `size` slots below it."""
    child = 2 * hole + 1
    while child < size:
        other = child + 1
        if other < size and comes_before(dist_K[child], id_K[child], dist_K[other], id_K[other]):
            child = other
        if not comes_before(dist, id_, dist_K[child], id_K[child]):
            break
        dist_K[hole] = dist_K[child]
        id_K[hole] = id_K[child]
        hole = child
        child = 2 * hole + 1
    dist_K[hole] = dist
    id_K[hole] = id_


@kernel
def keep_nearest(dist_K, id_K, dist, id_):
    """Put (dist, id_) into the heap if it is better than the worst pair there."""
    if comes_before(dist, id_, dist_K[0], id_K[0]):
        sift_down(dist_K, id_K, 0, len(dist_K), dist, id_)


@kernel
def sort_heaps(dist_QK, id_QK):
    """Turn every heap into an ascending list, in place; free slots come last."""
    for query in range(len(dist_QK)):
        dist_K = dist_QK[query]
        id_K = id_QK[query]
        full = len(dist_K)
        if full and id_K[0] < 0:
            full = gather_full(dist_K, id_K)
        for size in range(full - 1, 0, -1):
            dist = dist_K[size]
            id_ = id_K[size]
            dist_K[size] = dist_K[0]
            id_K[size] = id_K[0]
            sift_down(dist_K, id_K, 0, size, dist, id_)


@kernel
def merge_nearest(dist_QK, id_QK, more_dist_QK, more_id_QK, both_dist_QK, both_id_QK):
    """Write the K nearest of two ascending lists of each query, (2**31 - 1, -1) in free places."""
    for query in range(len(dist_QK)):
        one = 0
        other = 0
        for place in range(dist_QK.shape[1]):
            dist = more_dist_QK[query, other]
            id_ = more_id_QK[query, other]
            if comes_before(dist, id_, dist_QK[query, one], id_QK[query, one]):
                other += 1
            else:
                dist = dist_QK[query, one]
                id_ = id_QK[query, one]
                one += 1
            both_dist_QK[query, place] = dist
            both_id_QK[query, place] = id_


@kernel
def gather_full(dist_K, id_K):
    """Move used slots before free ones and make a heap of them; return their number."""
    full = 0
    for place in range(len(dist_K)):
        dist = dist_K[place]
        id_ = id_K[place]
        if id_ >= 0:
            dist_K[place] = dist_K[full]
            id_K[place] = id_K[full]
            dist_K[full] = dist
            id_K[full] = id_
            full += 1
    for place in range(full // 2 - 1, -1, -1):
        sift_down(dist_K, id_K, place, full, dist_K[place], id_K[place])
    return full


@kernel
def count_hits(number_G, hits_, place_QR):
    """Count hits by query and distance in `place_QR`, initially zero; `number_G` is each query's row there."""
    hits = Hits(*hits_)
    for hit in range(len(hits.query_H)):
        place_QR[number_G[hits.query_H[hit]], hits.dist_H[hit]] += 1


@kernel
def lay_out(place_QR, lims_Q1):
    """Turn counts into the offset of each distance of each query, and write the offset of each query."""
    total = 0
    for query in range(len(place_QR)):
        lims_Q1[query] = total
        for dist in range(place_QR.shape[1]):
            count = place_QR[query, dist]
            place_QR[query, dist] = total
            total += count
    lims_Q1[len(place_QR)] = total


@kernel
def place_hits(number_G, hits_, id_N, place_QR, id_H):
    """Write the ids of hits at the offsets in `place_QR`, advancing them: each ends up where its distance ends."""
    hits = Hits(*hits_)
    for hit in range(len(hits.query_H)):
        query = number_G[hits.query_H[hit]]
        dist = hits.dist_H[hit]
        place = place_QR[query, dist]
        place_QR[query, dist] = place + 1
        id_H[place] = id_N[hits.row_H[hit]]


@kernel
def order_ids(place_QR, dist_H, id_H, unsorted_U2):
    """Write the distances, sort runs of few ids at the same distance, and return how many runs are left unsorted.

    Their bounds [begin, end) are written to `unsorted_U2`, which has room for every run of more than `FEW` hits.
    """
    begin = 0
    num_unsorted = 0
    for query in range(len(place_QR)):
        for dist in range(place_QR.shape[1]):
            end = place_QR[query, dist]
            dist_H[begin:end] = dist
            if end - begin <= FEW:
                insertion_sort(id_H, begin, end)
            elif not ascends(id_H, begin, end):
                unsorted_U2[num_unsorted, 0] = begin
                unsorted_U2[num_unsorted, 1] = end
                num_unsorted += 1
            begin = end
    return num_unsorted


@kernel
def arrange(number_G, hits_, id_N, place_QR, lims_Q1, dist_H, id_H, unsorted_U2):
    """Run the four steps above in one call: for a small answer, four calls would take most of the time."""
    count_hits(number_G, hits_, place_QR)
    lay_out(place_QR, lims_Q1)
    place_hits(number_G, hits_, id_N, place_QR, id_H)
    return order_ids(place_QR, dist_H, id_H, unsorted_U2)


@kernel
def ascends(id_H, begin, end):
    """Tell whether the ids [begin, end) ascend."""
    place = begin + 1
    while place < end and id_H[place] > id_H[place - 1]:
        place += 1
    return place >= end


@kernel
def insertion_sort(id_H, begin, end):
    """Sort the ids [begin, end) in place."""
    for place in range(begin + 1, end):
        id_ = id_H[place]
        while place > begin and id_ < id_H[place - 1]:
            id_H[place] = id_H[place - 1]
            place -= 1
        id_H[place] = id_
