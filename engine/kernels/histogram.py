# mypy: disable-error-code="no-untyped-def"
"""Counts of codes, and of relevant codes, at each distance from a query.

Q queries, N codes, W words per code, D = bits + 1 distances, C labels, E labels of all codes one code after the other,
L = 1 + the largest number of labels that two codes can share, S counters of each distance, B codes per block, V words
of a mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.kernels.arguments import Allowed, Block, Rows
from hashlight.engine.kernels.compiling import kernel
from hashlight.engine.kernels.popcount import popcount, trailing_zeros
from hashlight.engine.kernels.scan import (
    STRIDE,
    block_distances,
    load_block,
    reads_in_place,
    row_distance,
    row_distances,
    when_to_check,
)

COUNTERS = 4  # of each distance, used in turn: neighbours are often at the same one, and an addition waits for the last


@kernel
def histogram_scan(rows_, allowed_, query_QW, block_, count_QSD):
    """Count the rows that may be returned at each distance from each query, spread over S counters of each distance.

    Where a mask leaves out few rows, all are counted, and those are taken off again.
    """
    rows, allowed, block = Rows(*rows_), Allowed(*allowed_), Block(*block_)
    dist_B = block.dist_B
    excluded_V, checked_V = when_to_check(rows, allowed)
    in_place = reads_in_place(rows, allowed, query_QW) and len(excluded_V) == 0
    last = len(allowed.row_L) if allowed.listed else rows.num_rows
    begin = 0
    while begin < last and block.stop_1[0] == 0:
        if in_place:
            end = min(begin + len(dist_B), last)
            row_distances(rows, begin, end, excluded_V, query_QW[0], dist_B)
            add_distances(dist_B, end - begin, count_QSD[0])
        else:
            end, size = load_block(rows, begin, allowed, block)
            for query in range(len(query_QW)):
                block_distances(block.word_WB, rows.num_words, size, query_QW[query], dist_B)
                add_distances(dist_B, size, count_QSD[query])
        begin = end
    if len(checked_V) > 0 and block.stop_1[0] == 0:
        take_off(rows, checked_V, query_QW, count_QSD, block.stop_1)


@kernel
def add_distances(dist_B, size, count_SD):
    """Count the distances of a block."""
    place = 0
    while place + COUNTERS <= size:
        count_SD[0, dist_B[place]] += 1
        count_SD[1, dist_B[place + 1]] += 1
        count_SD[2, dist_B[place + 2]] += 1
        count_SD[3, dist_B[place + 3]] += 1
        place += COUNTERS
    while place < size:
        count_SD[0, dist_B[place]] += 1
        place += 1


@kernel
def take_off(rows, word_V, query_QW, count_QSD, stop_1):
    """Take the rows that are not in a mask off the counts."""
    for first in range(0, rows.num_rows, STRIDE):
        if stop_1[0]:
            return
        out = ~word_V[first >> 6]
        while out != np.uint64(0):
            row = first + np.int64(trailing_zeros(out))
            out &= out - np.uint64(1)
            if row < rows.num_rows:
                for query in range(len(query_QW)):
                    count_QSD[query, 0, row_distance(rows.code_bytes, rows.num_words, row, query_QW[query])] -= 1


@kernel
def count_distances(
    query_QW: NDArray[np.uint64],
    code_NW: NDArray[np.uint64],
    query_label_Q: NDArray[np.int64],
    code_label_N: NDArray[np.int64],
    total_QD: NDArray[np.int64],
    relevant_QD: NDArray[np.int64],
) -> None:
    """Count every code in `total_QD`, and those with the query's label in `relevant_QD`."""
    for q in range(query_QW.shape[0]):
        for n in range(code_NW.shape[0]):
            distance = np.int64(0)
            for w in range(query_QW.shape[1]):
                distance += np.int64(popcount(query_QW[q, w] ^ code_NW[n, w]))
            total_QD[q, distance] += 1
            if code_label_N[n] == query_label_Q[q]:
                relevant_QD[q, distance] += 1


@kernel
def count_shared(
    query_QW: NDArray[np.uint64],
    code_NW: NDArray[np.uint64],
    has_QC: NDArray[np.uint8],
    start_N1: NDArray[np.int64],
    label_E: NDArray[np.int64],
    count_QDL: NDArray[np.int64],
) -> None:
    """Count every code in `count_QDL`, by its distance and the number of labels that it shares with the query.

    `has_QC` is 1 where a query has a label; the labels of code n are `label_E[start_N1[n] : start_N1[n + 1]]`.
    """
    for q in range(query_QW.shape[0]):
        for n in range(code_NW.shape[0]):
            distance = np.int64(0)
            for w in range(query_QW.shape[1]):
                distance += np.int64(popcount(query_QW[q, w] ^ code_NW[n, w]))
            shared = np.int64(0)
            for e in range(start_N1[n], start_N1[n + 1]):
                shared += np.int64(has_QC[q, label_E[e]])
            count_QDL[q, distance, shared] += 1
