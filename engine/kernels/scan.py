# mypy: disable-error-code="no-untyped-def"
"""The scan: every code against every query, block by block.

Shapes: N codes, W words per code, V words of a mask, L listed rows, Q queries, B codes per block, K nearest, H slots
for hits; the named tuples are in `arguments`.

A block of codes stays in the L1 cache while all queries of the batch pass over it, two at a time. The first pass
computes only the block's minimum, which vectorises fully; only a block whose minimum is small enough is read again.
Of a mask, or a list of rows, only the rows that may be returned are put into blocks; but where a mask leaves out few
rows, all are compared, and only near ones are looked up in it. Measured with a fifth of a million 64-bit codes left out
(`benchmarks/deleted.py`): a single query takes 0.9 of the time it takes without a mask, and took twice that time.

The words of a block are first transposed into planes, `word_WB`, so that a vector holds the same word of several codes.
Measured on 256-bit codes, 64 queries: 3.9 G codes/s, against 0.64 row by row. For a single query the transposition does
not pay, so it reads the rows in place.
"""

from __future__ import annotations

import numpy as np

from hashlight.engine.kernels.arguments import Allowed, Block, Heaps, Hits, Rows
from hashlight.engine.kernels.compiling import kernel
from hashlight.engine.kernels.masks import allows
from hashlight.engine.kernels.popcount import (
    load_word,
    near_places,
    popcount,
    prefetch_word,
    store_eight_distances,
    trailing_zeros,
    use_wide_vectors,
)
from hashlight.engine.kernels.select import comes_before, keep_nearest

FAR = np.uint64(1 << 20)  # beyond any distance
AHEAD = 1024  # words: 8 KiB
LINE_WORDS = 8
EIGHT = 8
LISTED_AHEAD = 32  # listed rows
WORTH_READING = 4  # for one query, all rows are read if at least one in this many may be returned
MOST = 4  # where all rows but one in this many may be returned, only near ones are checked
STRIDE = 64  # codes of a block that are tested for hits together; the block size is a multiple of it


@kernel
def range_scan(rows_, allowed_, query_QW, radius, cursor_2, block_, hits_):
    """Collect the hits of all queries; return how many were written.

    `cursor_2` is the (place, query) to resume from, (0, 0) at first, a place being a row, or one of the list; on return
    it is their number when all is done, less when the hits of another block might not fit.
    """
    rows, allowed, block, hits = Rows(*rows_), Allowed(*allowed_), Block(*block_), Hits(*hits_)
    word_WB = block.word_WB
    dist_B = block.dist_B
    num_words = rows.num_words
    places = len(dist_B)
    excluded_V, checked_V = when_to_check(rows, allowed)
    num_hits = 0
    limit = np.uint64(radius)
    begin = cursor_2[0]
    first_query = cursor_2[1]
    alone = reads_in_place(rows, allowed, query_QW)
    last = len(allowed.row_L) if allowed.listed else rows.num_rows
    while begin < last:
        if block.stop_1[0]:
            begin = last
            break
        if alone:
            end = min(begin + places, last)
            size = end - begin
        else:
            end, size = load_block(rows, begin, allowed, block)
        for query in range(first_query, len(query_QW), 2):
            if num_hits + 2 * places > len(hits.row_H):
                cursor_2[0] = begin
                cursor_2[1] = query
                return num_hits
            second = min(query + 1, len(query_QW) - 1)
            if alone:
                least_a = row_distances(rows, begin, end, excluded_V, query_QW[0], dist_B)
                least_b = FAR
            else:
                least_a, least_b = block_minima(word_WB, num_words, size, query_QW[query], query_QW[second], dist_B)
            if least_a <= limit:
                if not alone:
                    block_distances(word_WB, num_words, size, query_QW[query], dist_B)
                num_hits = collect(block, size, checked_V, limit, begin, alone, query, num_hits, hits)
            if least_b <= limit and second != query:
                block_distances(word_WB, num_words, size, query_QW[second], dist_B)
                num_hits = collect(block, size, checked_V, limit, begin, alone, second, num_hits, hits)
        begin = end
        first_query = 0
    cursor_2[0] = begin
    cursor_2[1] = 0
    return num_hits


@kernel
def knn_scan(rows_, allowed_, query_QW, bound_Q, after_2, block_, heaps_):
    """Put the nearest rows at distance `<= bound_Q` that come after `after_2` into the heaps (see `select`)."""
    rows, allowed, block, heaps = Rows(*rows_), Allowed(*allowed_), Block(*block_), Heaps(*heaps_)
    word_WB = block.word_WB
    dist_B = block.dist_B
    dist_QK = heaps.dist_QK
    id_QK = heaps.id_QK
    num_words = rows.num_words
    places = len(dist_B)
    excluded_V, checked_V = when_to_check(rows, allowed)
    alone = reads_in_place(rows, allowed, query_QW)
    last = len(allowed.row_L) if allowed.listed else rows.num_rows
    begin = 0
    while begin < last and block.stop_1[0] == 0:
        if alone:
            end = min(begin + places, last)
            least = row_distances(rows, begin, end, excluded_V, query_QW[0], dist_B)
            if least <= np.uint64(min(bound_Q[0], dist_QK[0, 0])):
                bound, size = bound_Q[0], end - begin
                improve(block, size, checked_V, begin, True, rows.id_N, bound, after_2, dist_QK[0], id_QK[0])
            begin = end
            continue
        end, size = load_block(rows, begin, allowed, block)
        for query in range(0, len(query_QW), 2):
            second = min(query + 1, len(query_QW) - 1)
            least_a, least_b = block_minima(word_WB, num_words, size, query_QW[query], query_QW[second], dist_B)
            if least_a <= np.uint64(min(bound_Q[query], dist_QK[query, 0])):
                block_distances(word_WB, num_words, size, query_QW[query], dist_B)
                bound = bound_Q[query]
                improve(block, size, checked_V, begin, False, rows.id_N, bound, after_2, dist_QK[query], id_QK[query])
            if second != query and least_b <= np.uint64(min(bound_Q[second], dist_QK[second, 0])):
                block_distances(word_WB, num_words, size, query_QW[second], dist_B)
                bound = bound_Q[second]
                improve(block, size, checked_V, begin, False, rows.id_N, bound, after_2, dist_QK[second], id_QK[second])
        begin = end


@kernel
def reads_in_place(rows, allowed, query_QW):
    """Tell whether rows are read where they are: for one query, if most of what is read is of use."""
    return len(query_QW) == 1 and not allowed.listed and allowed.num_allowed * WORTH_READING >= rows.num_rows


@kernel
def when_to_check(rows, allowed):
    """Return the mask for rows before they are compared, and that for rows that are near; one of them is empty.

    Where most rows may be returned, comparing the others costs less than leaving them out.
    """
    nothing_V = allowed.word_V[:0]
    if allowed.num_allowed * MOST >= rows.num_rows * (MOST - 1):
        return nothing_V, allowed.word_V
    return allowed.word_V, nothing_V


@kernel
def load_block(rows, begin, allowed, block):
    """Transpose rows that are to be compared, from `begin` on, into planes; return the next place and their number."""
    if allowed.listed:
        return load_listed(rows, begin, allowed.row_L, block)
    excluded_V, _ = when_to_check(rows, allowed)
    if len(excluded_V) > 0:
        return load_allowed(rows, begin, excluded_V, block)
    code_bytes = rows.code_bytes
    num_words = rows.num_words
    word_WB = block.word_WB
    row_B = block.row_B
    end = min(begin + len(row_B), rows.num_rows)
    for word in range(num_words):
        for row in range(begin, end):
            word_WB[word, row - begin] = load_word(code_bytes, row * num_words + word)
    for row in range(begin, end):
        row_B[row - begin] = row
    return end, end - begin


@kernel
def load_allowed(rows, begin, word_V, block):
    """`load_block` for a mask; `begin` is a multiple of 64, as is the next place.

    The rows are listed first, so that they can be prefetched.
    """
    row_B = block.row_B
    first = begin
    size = 0
    while first < rows.num_rows and size + STRIDE <= len(row_B):
        may = word_V[first >> 6]
        while may != np.uint64(0):
            row_B[size] = first + np.int64(trailing_zeros(may))
            may &= may - np.uint64(1)
            size += 1
        first += STRIDE
    gather_codes(rows, row_B, 0, size, block)
    return first, size


@kernel
def load_listed(rows, begin, row_L, block):
    """`load_block` for a list of rows."""
    row_B = block.row_B
    end = min(begin + len(row_B), len(row_L))
    gather_codes(rows, row_L, begin, end - begin, block)
    for place in range(begin, end):
        row_B[place - begin] = row_L[place]
    return end, end - begin


@kernel
def gather_codes(rows, row_L, begin, size, block):
    """Transpose the codes of `size` listed rows into planes; a row is prefetched while those before it are read."""
    code_bytes = rows.code_bytes
    num_words = rows.num_words
    word_WB = block.word_WB
    last = begin + size - 1
    for place in range(size):
        ahead = np.int64(row_L[min(begin + place + LISTED_AHEAD, last)]) * num_words
        for word in range(0, num_words, LINE_WORDS):
            prefetch_word(code_bytes, ahead + word)
        row = np.int64(row_L[begin + place])
        for word in range(num_words):
            word_WB[word, place] = load_word(code_bytes, row * num_words + word)


@kernel
def block_minima(word_WB, num_words, size, query_a_W, query_b_W, dist_B):
    """Return the least distance of a block to each of two queries; `dist_B` is scratch."""
    if num_words == 1:
        return minima_of_1(word_WB, size, query_a_W, query_b_W)
    if num_words == 2:
        return minima_of_2(word_WB, size, query_a_W, query_b_W)
    if num_words == 4:
        return minima_of_4(word_WB, size, query_a_W, query_b_W)
    block_distances(word_WB, num_words, size, query_a_W, dist_B)
    least_a = minimum(dist_B, 0, size)
    block_distances(word_WB, num_words, size, query_b_W, dist_B)
    return least_a, minimum(dist_B, 0, size)


@kernel
def minima_of_1(word_WB, size, query_a_W, query_b_W):
    """`block_minima` for one word per code."""
    use_wide_vectors()
    a = query_a_W[0]
    b = query_b_W[0]
    least_a = FAR
    least_b = FAR
    for place in range(size):
        word = word_WB[0, place]
        least_a = min(least_a, popcount(word ^ a))
        least_b = min(least_b, popcount(word ^ b))
    return least_a, least_b


@kernel
def minima_of_2(word_WB, size, query_a_W, query_b_W):
    """`block_minima` for two words per code."""
    use_wide_vectors()
    a0, a1 = query_a_W[0], query_a_W[1]
    b0, b1 = query_b_W[0], query_b_W[1]
    least_a = FAR
    least_b = FAR
    for place in range(size):
        word_0 = word_WB[0, place]
        word_1 = word_WB[1, place]
        least_a = min(least_a, popcount(word_0 ^ a0) + popcount(word_1 ^ a1))
        least_b = min(least_b, popcount(word_0 ^ b0) + popcount(word_1 ^ b1))
    return least_a, least_b


@kernel
def minima_of_4(word_WB, size, query_a_W, query_b_W):
    """`block_minima` for four words per code."""
    use_wide_vectors()
    a0, a1, a2, a3 = query_a_W[0], query_a_W[1], query_a_W[2], query_a_W[3]
    b0, b1, b2, b3 = query_b_W[0], query_b_W[1], query_b_W[2], query_b_W[3]
    least_a = FAR
    least_b = FAR
    for place in range(size):
        word_0 = word_WB[0, place]
        word_1 = word_WB[1, place]
        word_2 = word_WB[2, place]
        word_3 = word_WB[3, place]
        half_a = popcount(word_0 ^ a0) + popcount(word_1 ^ a1)
        half_b = popcount(word_0 ^ b0) + popcount(word_1 ^ b1)
        least_a = min(least_a, half_a + popcount(word_2 ^ a2) + popcount(word_3 ^ a3))
        least_b = min(least_b, half_b + popcount(word_2 ^ b2) + popcount(word_3 ^ b3))
    return least_a, least_b


@kernel
def block_distances(word_WB, num_words, size, query_W, dist_B):
    """Write the distance of every code of a block to one query, four planes per pass."""
    use_wide_vectors()
    for place in range(size):
        dist_B[place] = popcount(word_WB[0, place] ^ query_W[0])
    word = 1
    while word + 4 <= num_words:
        a, b, c, d = query_W[word], query_W[word + 1], query_W[word + 2], query_W[word + 3]
        for place in range(size):
            first = popcount(word_WB[word, place] ^ a) + popcount(word_WB[word + 1, place] ^ b)
            second = popcount(word_WB[word + 2, place] ^ c) + popcount(word_WB[word + 3, place] ^ d)
            dist_B[place] += first + second
        word += 4
    while word < num_words:
        a = query_W[word]
        for place in range(size):
            dist_B[place] += popcount(word_WB[word, place] ^ a)
        word += 1


@kernel
def row_distances(rows, begin, end, word_V, query_W, dist_B):
    """Write the distances of rows [begin, end), read in place, and return the least; rows not in the mask get `FAR`.

    Rows 8 KiB ahead are prefetched, because a single query waits for memory most of the time. Measured on 10 million
    64-bit codes: 3.3 G codes/s instead of 2.2, both with blocks of 256 rows, which beat larger ones.
    """
    code_bytes = rows.code_bytes
    num_words = rows.num_words
    last = rows.num_rows * num_words - 1
    for word in range(begin * num_words + AHEAD, end * num_words + AHEAD, LINE_WORDS):
        prefetch_word(code_bytes, min(word, last))
    row = begin
    if num_words == 1:
        row = rows_of_1(code_bytes, begin, end, query_W, dist_B)
    elif num_words == 2:
        row = rows_of_2(code_bytes, begin, end, query_W, dist_B)
    elif num_words == 4:
        row = rows_of_4(code_bytes, begin, end, query_W, dist_B)
    elif num_words == 8:
        row = rows_of_8(code_bytes, begin, end, query_W, dist_B)
    elif num_words == 16:
        row = rows_of_16(code_bytes, begin, end, query_W, dist_B)
    while row < end:
        dist_B[row - begin] = row_distance(code_bytes, num_words, row, query_W)
        row += 1
    if len(word_V) > 0:
        exclude(begin, end, word_V, dist_B)
    return minimum(dist_B, 0, end - begin)


@kernel
def exclude(begin, end, word_V, dist_B):
    """Add `FAR` to the distances of rows [begin, end) that are not in the mask; `begin` is a multiple of 64."""
    use_wide_vectors()
    for first in range(begin, end, STRIDE):
        not_may = ~word_V[first >> 6]
        for place in range(STRIDE):
            dist_B[first - begin + place] |= ((not_may >> np.uint64(place)) & np.uint64(1)) * FAR


@kernel
def rows_of_1(code_bytes, begin, end, query_W, dist_B):
    """Write the distances of one-word rows; return `end`."""
    use_wide_vectors()
    a = query_W[0]
    for row in range(begin, end):
        dist_B[row - begin] = popcount(load_word(code_bytes, row) ^ a)
    return end


@kernel
def rows_of_2(code_bytes, begin, end, query_W, dist_B):
    """Write the distances of 2-word rows, eight at a time; return the first row left over."""
    use_wide_vectors()
    row = begin
    while row + EIGHT <= end:
        store_eight_distances(code_bytes, row, query_W, 2, dist_B, row - begin)
        row += EIGHT
    return row


@kernel
def rows_of_4(code_bytes, begin, end, query_W, dist_B):
    """Write the distances of 4-word rows, eight at a time; return the first row left over."""
    use_wide_vectors()
    row = begin
    while row + EIGHT <= end:
        store_eight_distances(code_bytes, row, query_W, 4, dist_B, row - begin)
        row += EIGHT
    return row


@kernel
def rows_of_8(code_bytes, begin, end, query_W, dist_B):
    """Write the distances of 8-word rows, eight at a time; return the first row left over."""
    use_wide_vectors()
    row = begin
    while row + EIGHT <= end:
        store_eight_distances(code_bytes, row, query_W, 8, dist_B, row - begin)
        row += EIGHT
    return row


@kernel
def rows_of_16(code_bytes, begin, end, query_W, dist_B):
    """Write the distances of 16-word rows, eight at a time; return the first row left over."""
    use_wide_vectors()
    row = begin
    while row + EIGHT <= end:
        store_eight_distances(code_bytes, row, query_W, 16, dist_B, row - begin)
        row += EIGHT
    return row


@kernel
def row_distance(code_bytes, num_words, row, query_W):
    """Return the distance of one row from the query."""
    total = np.uint64(0)
    for word in range(num_words):
        total += popcount(load_word(code_bytes, row * num_words + word) ^ query_W[word])
    return total


@kernel
def minimum(dist_B, begin, end):
    """Return the smallest distance in [begin, end), `FAR` if the range is empty."""
    use_wide_vectors()
    least = FAR
    for place in range(begin, end):
        least = min(least, dist_B[place])
    return least


@kernel
def places_within(dist_B, start, size, limit):
    """Return which codes [start, start + STRIDE) of a block of `size` are within `limit`, one bit per code."""
    near = np.uint64(0)
    for part in range(0, STRIDE, EIGHT):
        near |= near_places(dist_B, start + part, limit) << np.uint64(part)
    if size - start < STRIDE:
        near &= (np.uint64(1) << np.uint64(size - start)) - np.uint64(1)
    return near


@kernel
def collect(block, size, checked_V, limit, begin, in_place, query, num_hits, hits):
    """Write the codes of a block within `limit` that `checked_V` allows as hits of `query`; return the number of hits.

    Hits come from a bit mask of a whole stride, because a branch per code would be mispredicted at nearly every hit.
    Measured with 6,000 hits among 60,000 codes, batches of 64: 22 us per query instead of 39.
    """
    for start in range(0, size, STRIDE):
        near = places_within(block.dist_B, start, size, limit)
        while near != np.uint64(0):
            place = start + np.int64(trailing_zeros(near))
            near &= near - np.uint64(1)
            row = begin + place if in_place else np.int64(block.row_B[place])
            hits.query_H[num_hits] = query
            hits.row_H[num_hits] = row
            hits.dist_H[num_hits] = block.dist_B[place]
            num_hits += np.int64(allows(checked_V, row))
    return num_hits


@kernel
def improve(block, size, checked_V, begin, in_place, id_N, bound, after_2, dist_K, id_K):
    """Offer the codes of a block within `bound` that `checked_V` allows and come after `after_2` to a heap."""
    dist_B = block.dist_B
    for start in range(0, size, STRIDE):
        near = places_within(dist_B, start, size, np.uint64(min(bound, dist_K[0])))
        while near != np.uint64(0):
            place = start + np.int64(trailing_zeros(near))
            near &= near - np.uint64(1)
            if dist_B[place] <= np.uint64(min(bound, dist_K[0])):
                row = begin + place if in_place else np.int64(block.row_B[place])
                dist = np.int32(dist_B[place])
                if allows(checked_V, row) and comes_before(after_2[0], after_2[1], dist, id_N[row]):
                    keep_nearest(dist_K, id_K, dist, id_N[row])
