"""Distance histograms: all that retrieval metrics need to know of a Hamming ranking."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.codes import CodeArray, check_codes
from engine.indexes.arrays import read_only
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
    _check_labels(query_labels, rows=len(queries), name="query_labels")
    _check_labels(code_labels, rows=len(codes), name="code_labels")
    total = np.zeros((len(queries), bits + 1), np.int64)
    relevant = np.zeros_like(total)
    labels = read_only(query_labels), read_only(code_labels)
    count_distances(read_only(queries), read_only(codes), *labels, total, relevant)
    return DistanceHistogram(total, relevant)


def _check_labels(labels: object, *, rows: int, name: str) -> None:
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int64:
        got = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise TypeError(f"`{name}` must be an int64 array of shape ({rows},), got {got}")
    if labels.shape != (rows,) or not labels.flags.c_contiguous:
        raise ValueError(
            f"`{name}` must be contiguous of shape ({rows},), one label a code, got shape {labels.shape} with strides "
            f"{labels.strides}"
        )
