"""How good a retrieval is. Plain numpy on histograms of distances, which any search engine can count.

Shapes: Q queries, D = bits + 1 distances, N database items. `total_QD[q, d]` is the number of items at distance d
of query q, `relevant_QD` the number of relevant ones among them.

Codes give many items one distance, so the order of an answer is not unique. Average precision here is the expected
value over all orders of equal items, in closed form (McSherry & Najork, ECIR 2008): no sort can flatter it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from encoders.packing import CodeArray, unpack_bits

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.float64]

# Below this many items harmonic numbers are summed, above it their series is exact to the last digit.
_SERIES_FROM = 32
_HARMONIC = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, _SERIES_FROM + 1))])


class PrecisionRecall(NamedTuple):
    """Precision and recall within each radius 0 to bits, means over queries.

    Attributes
    ----------
    precision : ndarray of float64, shape (D,)
        Over the queries that have any item within the radius; nan where none has.
    recall : ndarray of float64, shape (D,)
        Over the queries that have any relevant item.
    """

    precision: FloatArray
    recall: FloatArray


def average_precision(total_QD: IntArray, relevant_QD: IntArray) -> FloatArray:
    """Return the expected average precision of each query over all orders of items at equal distance.

    A group of n items with r relevant ones, behind N items with R relevant ones, adds
    (r / n) * sum over i = 1..n of (R + 1 + (i - 1) (r - 1) / (n - 1)) / (N + i); the sum is a harmonic difference.

    Parameters
    ----------
    total_QD, relevant_QD : ndarray of int, shape (Q, D)
        Numbers of items, and of relevant ones, by distance.

    Returns
    -------
    ndarray of float64, shape (Q,)
        nan for a query with nothing relevant, whose average precision is not defined.

    Raises
    ------
    ValueError
        If the shapes differ or more items are relevant than there are.

    Notes
    -----
    McSherry & Najork, "Computing information retrieval performance measures efficiently in the presence of tied
    scores", ECIR 2008, section 4.
    """
    items_QD, hits_QD = _check_histograms(total_QD, relevant_QD)
    behind_QD = np.cumsum(items_QD, axis=1) - items_QD
    hits_behind_QD = np.cumsum(hits_QD, axis=1) - hits_QD
    size_QD = np.maximum(items_QD, 1.0)
    slope_QD = (hits_QD - 1.0) / np.maximum(size_QD - 1.0, 1.0)
    constant_QD = hits_behind_QD + 1.0 - slope_QD * (behind_QD + 1.0)
    sum_QD = slope_QD * size_QD + constant_QD * _harmonic_difference(behind_QD, size_QD)
    gain_Q = (hits_QD / size_QD * sum_QD).sum(axis=1)
    return _divide(gain_Q, hits_QD.sum(axis=1))


def mean_average_precision(total_QD: IntArray, relevant_QD: IntArray) -> float:
    """Mean of `average_precision` over the queries that have anything relevant; nan if none has."""
    return _mean_of_defined(average_precision(total_QD, relevant_QD))


def average_precision_of_scores(scores_QN: NDArray[np.floating[Any]], relevant_QN: NDArray[np.bool_]) -> FloatArray:
    """Return the expected average precision when real scores order the items, higher first, ties in any order.

    Parameters
    ----------
    scores_QN : ndarray of float, shape (Q, N)
        For relaxed codes: the inner products `query_QB @ item_NB.T`.
    relevant_QN : ndarray of bool, shape (Q, N)

    Returns
    -------
    ndarray of float64, shape (Q,)
        nan for a query with nothing relevant.

    Raises
    ------
    ValueError
        If the shapes differ or a score is nan.
    """
    if scores_QN.shape != relevant_QN.shape or scores_QN.ndim != 2:
        raise ValueError(
            f"`scores_QN` and `relevant_QN` must share one shape (Q, N), got {scores_QN.shape} and {relevant_QN.shape}"
        )
    if np.isnan(scores_QN).any():
        raise ValueError(f"`scores_QN` must be numbers, got {int(np.isnan(scores_QN).sum())} nan")
    rows = [_row_average_precision(*row) for row in zip(scores_QN, relevant_QN, strict=True)]
    return np.array(rows, np.float64)


def precision_within_radius(total_QD: IntArray, relevant_QD: IntArray, radius: int) -> FloatArray:
    """Share of relevant items within a radius (inclusive), of each query; 0 where nothing is within it.

    A query that finds nothing has failed, so it counts as 0 and is not left out.

    Raises
    ------
    ValueError
        If the shapes differ or the radius is not 0 to bits.
    """
    items_QD, hits_QD = _check_histograms(total_QD, relevant_QD)
    bits = items_QD.shape[1] - 1
    if not 0 <= radius <= bits:
        raise ValueError(f"`radius` must be 0 to {bits} (the histograms have {bits + 1} distances), got {radius}")
    within_Q = items_QD[:, : radius + 1].sum(axis=1)
    return np.asarray(hits_QD[:, : radius + 1].sum(axis=1) / np.maximum(within_Q, 1.0), np.float64)


def precision_recall_curve(total_QD: IntArray, relevant_QD: IntArray) -> PrecisionRecall:
    """Precision and recall of "all within radius r", for every r from 0 to bits."""
    items_QD, hits_QD = _check_histograms(total_QD, relevant_QD)
    within_QD = np.cumsum(items_QD, axis=1)
    found_QD = np.cumsum(hits_QD, axis=1)
    answered_D = (within_QD > 0).sum(axis=0)
    precision_D = (found_QD / np.maximum(within_QD, 1.0)).sum(axis=0)
    relevant_Q = hits_QD.sum(axis=1)
    recall_D = (found_QD / np.maximum(relevant_Q, 1.0)[:, None]).sum(axis=0)
    asked_D = np.full(len(recall_D), float((relevant_Q > 0).sum()))
    return PrecisionRecall(_divide(precision_D, answered_D), _divide(recall_D, asked_D))


def bit_balance(codes_NW: CodeArray, bits: int) -> FloatArray:
    """Share of codes in which each bit is set, shape (bits,); 0.5 is balanced."""
    return np.asarray(unpack_bits(codes_NW, bits).mean(axis=0), np.float64)


def distinct_codes(codes_NW: CodeArray) -> int:
    """Return the number of different codes."""
    return len(_bucket_sizes(codes_NW))


def largest_bucket(codes_NW: CodeArray) -> int:
    """Return the number of items that share the most common code; 0 for no codes."""
    return int(_bucket_sizes(codes_NW).max(initial=0))


def _bucket_sizes(codes_NW: CodeArray) -> NDArray[np.intp]:
    return np.unique(codes_NW, axis=0, return_counts=True)[1]


def _row_average_precision(score_N: NDArray[np.floating[Any]], relevant_N: NDArray[np.bool_]) -> float:
    """Group one query's items by score, best first, and take the groups as distances."""
    order_N = np.argsort(-score_N, kind="stable")
    sorted_N = score_N[order_N]
    if not len(sorted_N):
        return float("nan")
    starts_G = np.concatenate([[0], np.flatnonzero(sorted_N[1:] != sorted_N[:-1]) + 1])
    total_G = np.diff(np.append(starts_G, len(sorted_N)))
    relevant_G = np.add.reduceat(relevant_N[order_N].astype(np.int64), starts_G)
    return float(average_precision(total_G[None], relevant_G[None])[0])


def _harmonic_difference(start: FloatArray, count: FloatArray) -> FloatArray:
    """H(start + count) - H(start), without the loss of digits of two large harmonic numbers."""
    end = start + count
    low_start, low_end = np.minimum(start, _SERIES_FROM), np.minimum(end, _SERIES_FROM)
    summed = _HARMONIC[low_end.astype(np.int64)] - _HARMONIC[low_start.astype(np.int64)]
    high_start, high_end = np.maximum(start, _SERIES_FROM), np.maximum(end, _SERIES_FROM)
    grown = np.log1p((high_end - high_start) / high_start)
    return np.asarray(summed + grown + _harmonic_tail(high_end) - _harmonic_tail(high_start), np.float64)


def _harmonic_tail(number: FloatArray) -> FloatArray:
    """H(n) - ln n - gamma, by the Euler-Maclaurin series."""
    inverse = 1.0 / number
    square = inverse * inverse
    return inverse / 2 - square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))


def _check_histograms(total_QD: IntArray, relevant_QD: IntArray) -> tuple[FloatArray, FloatArray]:
    if total_QD.ndim != 2 or total_QD.shape != relevant_QD.shape:
        raise ValueError(
            f"`total_QD` and `relevant_QD` must share one shape (queries, bits + 1), got {total_QD.shape} and "
            f"{relevant_QD.shape}"
        )
    if (relevant_QD < 0).any() or (relevant_QD > total_QD).any():
        row = int(np.argmax(((relevant_QD < 0) | (relevant_QD > total_QD)).any(axis=1)))
        raise ValueError(f"`relevant_QD` must be 0 to `total_QD` everywhere, it is not for query {row}")
    return total_QD.astype(np.float64), relevant_QD.astype(np.float64)


def _divide(numerator: FloatArray, denominator: NDArray[Any]) -> FloatArray:
    """Divide, giving nan where there is nothing to divide by."""
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def _mean_of_defined(values: FloatArray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
