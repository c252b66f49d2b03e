"""Distance histograms, from which retrieval metrics of a Hamming ranking are computed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, check_codes
from hashlight.engine.indexes.arrays import read_only
from hashlight.engine.kernels.histogram import count_distances, count_shared


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


def graded_histogram(
    queries: CodeArray,
    codes: CodeArray,
    *,
    query_labels: NDArray[np.bool_],
    code_labels: NDArray[np.bool_],
    bits: int,
) -> NDArray[np.int64]:
    """Count codes by their distance from each query and by how many labels they share with it.

    Parameters
    ----------
    queries, codes : ndarray of uint64, shapes (Q, W) and (N, W)
    query_labels, code_labels : ndarray of bool, shapes (Q, C) and (N, C)
        Which of C labels each has.
    bits : int

    Returns
    -------
    ndarray of int64, shape (Q, bits + 1, L)
        L is 1 + the largest number of labels that a query and a code could share.
    """
    check_codes(queries, bits=bits, name="queries")
    check_codes(codes, bits=bits, name="codes")
    _check_label_sets(query_labels, (len(queries), code_labels.shape[-1]), "query_labels")
    _check_label_sets(code_labels, (len(codes), code_labels.shape[-1]), "code_labels")
    max_shared = min(int(labels.sum(axis=1).max(initial=0)) for labels in (query_labels, code_labels))
    count = np.zeros((len(queries), bits + 1, max_shared + 1), np.int64)
    labels = read_only(_packed(query_labels)), read_only(_packed(code_labels))
    count_shared(read_only(queries), read_only(codes), *labels, count)
    return count


def _packed(labels: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Pack labels into one bit each, in whole words."""
    words = max(1, -(-labels.shape[1] // 64))
    packed = np.zeros((len(labels), 8 * words), np.uint8)
    packed[:, : -(-labels.shape[1] // 8)] = np.packbits(labels, axis=1)
    return packed.view(np.uint64)


def _check_label_sets(labels: NDArray[np.bool_], shape: tuple[int, int], name: str) -> None:
    if labels.dtype != np.bool_ or labels.shape != shape:
        raise ValueError(f"`{name}` must be bool of shape {shape}, got {labels.dtype} of shape {labels.shape}")


def _check_labels(labels: object, *, rows: int, name: str) -> None:
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int64:
        got = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise TypeError(f"`{name}` must be an int64 array of shape ({rows},), got {got}")
    if labels.shape != (rows,) or not labels.flags.c_contiguous:
        raise ValueError(
            f"`{name}` must be contiguous of shape ({rows},), one label per code, got shape {labels.shape} with "
            f"strides {labels.strides}"
        )
