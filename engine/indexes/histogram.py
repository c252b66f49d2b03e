"""Histograms of distances: of what may answer a query, and of what is relevant to it, for retrieval metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray, check_codes
from hashlight.engine.indexes.arrays import bytes_of, read_only
from hashlight.engine.indexes.masks import RowMask, allowed_rows, is_listed
from hashlight.engine.indexes.scan import empty_block
from hashlight.engine.indexes.threads import cut, run_parts, usable_cores
from hashlight.engine.kernels.arguments import Allowed, Rows
from hashlight.engine.kernels.histogram import COUNTERS, count_distances, count_shared, histogram_scan
from hashlight.engine.kernels.scan import STRIDE

# A thread is worth its cost if it has so many rows to count, which takes it some hundred microseconds.
_ROWS_A_THREAD = 2**18
# Counters of the queries that pass over the codes together; more would not stay in the L2 cache.
_COUNTER_BYTES = 2**20
# Flags of so many labels of queries are in memory at a time.
_FLAGS_AT_ONCE = 1 << 26
_NO_IDS = read_only(np.empty(0, np.int64))


class Countable(NamedTuple):
    """Rows that may answer.

    Attributes
    ----------
    codes : ndarray of uint64, shape (N, W)
        May be a read-only memory map at any address.
    ids : ndarray of int64, shape (N,)
    mask : RowMask or None
        Which of the N rows may answer; None if all may.
    """

    codes: CodeArray
    ids: IdArray
    mask: RowMask | None


def count_by_distance(
    parts: Sequence[Countable], queries_QW: CodeArray, *, bits: int, threads: int | None = None
) -> NDArray[np.int64]:
    """Return how many rows are at each Hamming distance from each query, in one pass over their codes.

    It ends early, with an error, when what it is computed for is stopped (`engine.indexes.stopping`).

    Parameters
    ----------
    parts : sequence of Countable
    queries_QW : ndarray of uint64, shape (Q, W)
        Checked to have `bits` bits, as the codes are.
    bits : int
    threads : int, optional
        Maximum; by default one for each core.

    Returns
    -------
    ndarray of int64, shape (Q, bits + 1)
    """
    total_QD = np.zeros((len(queries_QW), bits + 1), np.int64)
    if not len(queries_QW) or not parts:
        return total_QD
    queries_QW, most = read_only(queries_QW), threads or usable_cores()
    if len(parts) < 2 * most:
        return sum((_count_part(one, queries_QW, bits, threads) for one in parts), total_QD)

    def work(part: slice) -> NDArray[np.int64]:
        return sum((_count_part(one, queries_QW, bits, 1) for one in parts[part]), np.zeros_like(total_QD))

    return sum(run_parts(work, [slice(first, None, most) for first in range(most)]), total_QD)


def _count_part(part: Countable, queries_QW: CodeArray, bits: int, threads: int | None) -> NDArray[np.int64]:
    """Count some rows, cut into runs of rows for several threads."""
    codes_NW, _, mask = part
    rows = Rows(bytes_of(codes_NW), _NO_IDS, codes_NW.shape[1], len(codes_NW))
    if is_listed(mask):
        allowed = Allowed(*allowed_rows(mask, len(codes_NW), listed=True))
        places = len(allowed.row_L)
    else:
        allowed = Allowed(*allowed_rows(mask, len(codes_NW), listed=False))
        places = len(codes_NW)

    def work(run: slice) -> NDArray[np.int64]:
        begin, end = run.start * STRIDE, min(run.stop * STRIDE, places)
        if allowed.listed:
            return _count_run(rows, allowed._replace(row_L=allowed.row_L[begin:end]), queries_QW, bits)
        code_bytes = rows.code_bytes[begin * 8 * rows.num_words : end * 8 * rows.num_words]
        word_V = allowed.word_V[run]
        count = end - begin if mask is None else int(np.bitwise_count(word_V).sum())
        some = rows._replace(code_bytes=code_bytes, num_rows=end - begin)
        return _count_run(some, Allowed(word_V, allowed.row_L, False, count), queries_QW, bits)

    runs = cut(-(-places // STRIDE), threads, least=_ROWS_A_THREAD // STRIDE)
    return sum(run_parts(work, runs), np.zeros((len(queries_QW), bits + 1), np.int64))


def _count_run(rows: Rows, allowed: Allowed, queries_QW: CodeArray, bits: int) -> NDArray[np.int64]:
    """Count a run of rows in this thread, as many queries at once as their counters stay in the cache."""
    at_once = max(1, _COUNTER_BYTES // (8 * COUNTERS * (bits + 1)))
    found = []
    for begin in range(0, len(queries_QW), at_once):
        some_QW = queries_QW[begin : begin + at_once]
        count_QSD = np.zeros((len(some_QW), COUNTERS, bits + 1), np.int64)
        histogram_scan(tuple(rows), tuple(allowed), some_QW, empty_block(queries_QW.shape[1], len(some_QW)), count_QSD)
        found.append(count_QSD.sum(axis=1))
    return np.concatenate(found)


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


class LabelSets(NamedTuple):
    """Several labels for each of N codes.

    Attributes
    ----------
    starts : ndarray of int64, shape (N + 1,)
        The labels of code n are `labels[starts[n] : starts[n + 1]]`.
    labels : ndarray of int64, shape (E,)
        Numbers of 0 or more; those of one code ascend.
    """

    starts: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def most(self) -> int:
        """The labels of the code that has the most."""
        return int(np.diff(self.starts).max(initial=0))


def graded_histogram(
    queries: CodeArray, codes: CodeArray, *, query_labels: LabelSets, code_labels: LabelSets, bits: int
) -> NDArray[np.int64]:
    """Count codes by their distance from each query and by how many labels they share with it.

    Memory grows with the labels that codes have, not with how many there are.

    Parameters
    ----------
    queries, codes : ndarray of uint64, shapes (Q, W) and (N, W)
    query_labels, code_labels : LabelSets
        Of Q queries and N codes.
    bits : int

    Returns
    -------
    ndarray of int64, shape (Q, bits + 1, L)
        L is 1 + the largest number of labels that a query and a code could share.
    """
    check_codes(queries, bits=bits, name="queries")
    check_codes(codes, bits=bits, name="codes")
    _check_label_sets(query_labels, len(queries), "query_labels")
    _check_label_sets(code_labels, len(codes), "code_labels")
    count = np.zeros((len(queries), bits + 1, min(query_labels.most, code_labels.most) + 1), np.int64)
    num_labels = 1 + max(int(sets.labels.max(initial=0)) for sets in (query_labels, code_labels))
    at_once = max(1, _FLAGS_AT_ONCE // num_labels)
    codes, starts_N1, label_E = (read_only(array) for array in (codes, *code_labels))
    for begin in range(0, len(queries), at_once):
        some = slice(begin, min(begin + at_once, len(queries)))
        has_QC = _flags(query_labels, some, num_labels)
        count_shared(read_only(queries[some]), codes, read_only(has_QC), starts_N1, label_E, count[some])
    return count


def _flags(sets: LabelSets, some: slice, num_labels: int) -> NDArray[np.uint8]:
    """Return which labels some queries have, (Q, C)."""
    starts_Q1 = sets.starts[some.start : some.stop + 1]
    row_E = np.repeat(np.arange(len(starts_Q1) - 1), np.diff(starts_Q1))
    has_QC = np.zeros((len(starts_Q1) - 1, num_labels), np.uint8)
    has_QC[row_E, sets.labels[starts_Q1[0] : starts_Q1[-1]]] = 1
    return has_QC


def _check_label_sets(sets: LabelSets, rows: int, name: str) -> None:
    starts, labels = sets
    if any(array.dtype != np.int64 or array.ndim != 1 for array in sets):
        raise TypeError(f"`{name}` must be two int64 arrays, got {starts.dtype} and {labels.dtype}")
    if len(starts) != rows + 1 or starts[0] != 0 or starts[-1] != len(labels) or (np.diff(starts) < 0).any():
        raise ValueError(f"`{name}` must have {rows + 1} ascending starts, from 0 to its {len(labels)} labels")
    ascend_E = np.diff(labels, prepend=-1) > 0
    ascend_E[starts[:-1][np.diff(starts) > 0]] = True
    if labels.min(initial=0) < 0 or not ascend_E.all():
        raise ValueError(f"`{name}` must have labels of 0 or more, which ascend for each code")


def _check_labels(labels: object, *, rows: int, name: str) -> None:
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int64:
        got = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise TypeError(f"`{name}` must be an int64 array of shape ({rows},), got {got}")
    if labels.shape != (rows,) or not labels.flags.c_contiguous:
        raise ValueError(
            f"`{name}` must be contiguous of shape ({rows},), one label per code, got shape {labels.shape} with "
            f"strides {labels.strides}"
        )
