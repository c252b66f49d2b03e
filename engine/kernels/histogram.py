"""Counts of all codes and of relevant codes at each distance from a query.

Q queries, N codes, W words per code, D = bits + 1 distances, C labels, E labels of all codes one code after the other,
L = 1 + the largest number of labels that two codes can share.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.kernels.compiling import kernel
from hashlight.engine.kernels.popcount import popcount


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
