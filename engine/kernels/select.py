# mypy: disable-error-code="no-untyped-def"
"""Keeping the nearest, and putting answers in order: ascending (distance, id).

Shapes: K places of a heap, H hits, Q queries. A heap is two arrays, `dist_K` int32 and `id_K` int64, whose first place
holds the worst pair; free places hold (2**31 - 1, -1), which is worse than any answer because of its distance.
"""

from __future__ import annotations

from engine.kernels.compiling import kernel

RUN = 16  # insertion sort up to here, merging beyond


@kernel
def comes_before(dist_a, id_a, dist_b, id_b):
    """Tell whether (dist_a, id_a) < (dist_b, id_b)."""
    return dist_a < dist_b or (dist_a == dist_b and id_a < id_b)


@kernel
def sift_down(dist_K, id_K, size, dist, id_):
    """Drop the pair of place 0, put (dist, id_) in, and restore the heap of `size` places."""
    hole = 0
    child = 1
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
    """Put (dist, id_) into the heap if it is better than the worst there."""
    if comes_before(dist, id_, dist_K[0], id_K[0]):
        sift_down(dist_K, id_K, len(dist_K), dist, id_)


@kernel
def sort_heaps(dist_QK, id_QK):
    """Turn every heap into an ascending list, in place."""
    for query in range(len(dist_QK)):
        dist_K = dist_QK[query]
        id_K = id_QK[query]
        for size in range(len(dist_K) - 1, 0, -1):
            dist = dist_K[size]
            id_ = id_K[size]
            dist_K[size] = dist_K[0]
            id_K[size] = id_K[0]
            sift_down(dist_K, id_K, size, dist, id_)


@kernel
def group_hits(hit_query_H, hit_row_H, hit_dist_H, num_hits, id_N, lims_Q1, dist_H, id_H):
    """Write hits (query, row, distance), in any order, as `lims_Q1`, `dist_H`, `id_H` grouped by query."""
    for query in range(len(lims_Q1)):
        lims_Q1[query] = 0
    for hit in range(num_hits):
        lims_Q1[hit_query_H[hit]] += 1
    total = 0
    for query in range(len(lims_Q1)):
        count = lims_Q1[query]
        lims_Q1[query] = total
        total += count
    # Each group's start moves to its end while it fills, which is the next one's start: shift back afterwards.
    for hit in range(num_hits):
        place = lims_Q1[hit_query_H[hit]]
        lims_Q1[hit_query_H[hit]] = place + 1
        dist_H[place] = hit_dist_H[hit]
        id_H[place] = id_N[hit_row_H[hit]]
    for query in range(len(lims_Q1) - 1, 0, -1):
        lims_Q1[query] = lims_Q1[query - 1]
    lims_Q1[0] = 0


@kernel
def sort_groups(lims_Q1, dist_H, id_H, spare_dist_H, spare_id_H):
    """Sort the pairs of every group, ascending, by merging; the spare arrays are scratch."""
    for query in range(len(lims_Q1) - 1):
        begin = lims_Q1[query]
        end = lims_Q1[query + 1]
        for start in range(begin, end, RUN):
            insertion_sort(dist_H, id_H, start, min(start + RUN, end))
        width = RUN
        while width < end - begin:
            for start in range(begin, end - width, 2 * width):
                middle = start + width
                merge(dist_H, id_H, start, middle, min(middle + width, end), spare_dist_H, spare_id_H)
            width *= 2


@kernel
def insertion_sort(dist_H, id_H, begin, end):
    """Sort the pairs [begin, end) in place."""
    for place in range(begin + 1, end):
        dist = dist_H[place]
        id_ = id_H[place]
        while place > begin and comes_before(dist, id_, dist_H[place - 1], id_H[place - 1]):
            dist_H[place] = dist_H[place - 1]
            id_H[place] = id_H[place - 1]
            place -= 1
        dist_H[place] = dist
        id_H[place] = id_


@kernel
def merge(dist_H, id_H, begin, middle, end, spare_dist_H, spare_id_H):
    """Merge the sorted pairs [begin, middle) and [middle, end) in place."""
    if not comes_before(dist_H[middle], id_H[middle], dist_H[middle - 1], id_H[middle - 1]):
        return
    size = middle - begin
    for place in range(size):
        spare_dist_H[place] = dist_H[begin + place]
        spare_id_H[place] = id_H[begin + place]
    left = 0
    right = middle
    for place in range(begin, end):
        if left == size:
            return
        if right < end and comes_before(dist_H[right], id_H[right], spare_dist_H[left], spare_id_H[left]):
            dist_H[place] = dist_H[right]
            id_H[place] = id_H[right]
            right += 1
        else:
            dist_H[place] = spare_dist_H[left]
            id_H[place] = spare_id_H[left]
            left += 1
