"""Distance histograms: all that retrieval metrics need to know of a Hamming ranking."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.codes import CodeArray, check_codes
from engine.kernels.histogram import count_distances


class DistanceHistogram(NamedTuple):
    """Counts of codes by distance, for each query.

    Attributes
    ----------
    total, relevant : ndarray of int64, shape (Q, bits + 1)
        Codes at each distance, and those of them that are relevant to the query.
    """

    total: NDArray[np.int64]
    relevant: NDArray[np.int64]


def distance_histogram(
    queries: CodeArray,
    codes: CodeArray,
    *,
    query_labels: NDArray[np.int64],
    code_labels: NDArray[np.int64],
    bits: int,
) -> DistanceHistogram:
    """Count codes by their distance from each query; a code is relevant to a query if their labels are equal.

    Parameters
    ----------
    queries, codes : ndarray of uint64, shapes (Q, W) and (N, W)
    query_labels, code_labels : ndarray of int64, shapes (Q,) and (N,)
    bits : int
    """
    check_codes(queries, bits=bits, name="queries")
    check_codes(codes, bits=bits, name="codes")
    if len(query_labels) != len(queries) or len(code_labels) != len(codes):
        raise ValueError(
            f"one label a code is needed: got {len(query_labels)} for {len(queries)} queries and {len(code_labels)} "
            f"for {len(codes)} codes"
        )
    total = np.zeros((len(queries), bits + 1), np.int64)
    relevant = np.zeros_like(total)
    count_distances(queries, codes, query_labels, code_labels, total, relevant)
    return DistanceHistogram(total, relevant)
