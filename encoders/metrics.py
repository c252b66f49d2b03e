"""How good retrieval is: plain numpy on histograms of distances, which any search engine can produce.

Shapes: Q queries, D = bits + 1 distances, N database items, L levels of gain. `total_QD[q, d]` is the number of items
at distance d from query q, `relevant_QD` the number of relevant ones among them, `count_QDL` the number at each gain.

With codes, many items are at the same distance, so the ranking is not unique. Every measure of a ranking here is the
expected value over all orders of tied items, in closed form (McSherry & Najork, ECIR 2008), so no tie-breaking can
flatter it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.packing import CodeArray, unpack_bits

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.float64]

NORMALISATIONS = ("possible", "found")

# Harmonic numbers are summed up to here; beyond, their series is exact to the last digit.
_SERIES_FROM = 32
_HARMONIC = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, _SERIES_FROM + 1))])


class PrecisionRecall(NamedTuple):
    """Precision and recall within each radius 0 to bits, means over queries.

    Attributes
    ----------
    precision : ndarray of float64, shape (D,)
        Over the queries that have any item within the radius; nan if none has.
    recall : ndarray of float64, shape (D,)
        Over the queries that have any relevant item.
    """

    precision: FloatArray
    recall: FloatArray


def average_precision(
    total_QD: IntArray, relevant_QD: IntArray, k: int | None = None, *, normalisation: str = "possible"
) -> FloatArray:
    """Return the expected average precision of each query over all orders of items at equal distance.

    A group of n items with r relevant ones, behind N items with R relevant ones, of which the first m are within the
    cut-off, adds (r / n) * sum over i = 1..m of (R + 1 + (i - 1) (r - 1) / (n - 1)) / (N + i); the sum is a harmonic
    difference.

    Parameters
    ----------
    total_QD, relevant_QD : ndarray of int, shape (Q, D)
        Numbers of items, and of relevant ones, by distance.
    k : int, optional
        Count the first k items only; all by default.
    normalisation : {"possible", "found"}
        What the sum of precisions at the relevant items is divided by. "possible" is the largest possible number of
        relevant items, min(R, k) for R relevant ones in the database, so that 1 is a perfect ranking. "found" is the
        number among the first k of the ranking itself, as in HashNet's code and most deep hashing tables: it gives
        full marks to an answer whose only relevant item comes first. Without a cut-off both are the same.

    Returns
    -------
    ndarray of float64, shape (Q,)
        nan for a query with no relevant item, whose average precision is undefined; 0 for a ranking with no relevant
        item within the cut-off.

    Raises
    ------
    ValueError
        If the shapes differ, there are more relevant items than items, or `k` or `normalisation` is invalid.

    Notes
    -----
    McSherry & Najork, "Computing information retrieval performance measures efficiently in the presence of tied
    scores", ECIR 2008, section 4. For "found", the one group that the cut-off splits is summed over the possible
    numbers of relevant items inside it, which are hypergeometric; given that number, the group ends at the cut-off.
    """
    items_QD, hits_QD = _check_histograms(total_QD, relevant_QD)
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"`normalisation` must be one of {', '.join(NORMALISATIONS)}, got {normalisation!r}")
    behind_QD = np.cumsum(items_QD, axis=1) - items_QD
    hits_behind_QD = np.cumsum(hits_QD, axis=1) - hits_QD
    relevant_Q = hits_QD.sum(axis=1)
    if k is None:
        gain_QD = _group_gain(items_QD, hits_QD, behind_QD, hits_behind_QD, items_QD)
        return _divide(gain_QD.sum(axis=1), relevant_Q)
    _check_cut_off(k)
    taken_QD = np.clip(k - behind_QD, 0.0, items_QD)
    gain_QD = _group_gain(items_QD, hits_QD, behind_QD, hits_behind_QD, taken_QD)
    if normalisation == "possible":
        return _divide(gain_QD.sum(axis=1), np.minimum(relevant_Q, k))
    expected = [
        _expected_over_found(*row) for row in zip(items_QD, hits_QD, behind_QD, hits_behind_QD, taken_QD, strict=True)
    ]
    return np.where(relevant_Q > 0, np.array(expected, np.float64), np.nan)


def mean_average_precision(
    total_QD: IntArray, relevant_QD: IntArray, k: int | None = None, *, normalisation: str = "possible"
) -> float:
    """Mean of `average_precision` over the queries that have a relevant item; nan if none has."""
    return _mean_of_defined(average_precision(total_QD, relevant_QD, k, normalisation=normalisation))


def precision_at(total_QD: IntArray, relevant_QD: IntArray, n: int) -> FloatArray:
    """Return the expected share of relevant items among the first n of each query, over all orders of tied items.

    Parameters
    ----------
    total_QD, relevant_QD : ndarray of int, shape (Q, D)
    n : int
        Also the divisor if there are fewer items.

    Returns
    -------
    ndarray of float64, shape (Q,)

    Raises
    ------
    ValueError
        If the shapes differ or `n` is below 1.
    """
    items_QD, hits_QD = _check_histograms(total_QD, relevant_QD)
    _check_cut_off(n)
    taken_QD = np.clip(n - (np.cumsum(items_QD, axis=1) - items_QD), 0.0, items_QD)
    return np.asarray((hits_QD / np.maximum(items_QD, 1.0) * taken_QD).sum(axis=1) / n, np.float64)


def ndcg(count_QDL: IntArray, gain_L: NDArray[np.floating[Any]], k: int | None = None) -> FloatArray:
    """Return the expected normalised discounted cumulative gain of each query, over all orders of tied items.

    The item at rank i adds gain / log2(1 + i). The best possible order of the same items scores 1.

    Parameters
    ----------
    count_QDL : ndarray of int, shape (Q, D, L)
        Number of items by distance and level of gain; with several labels an image, by the number of shared labels.
    gain_L : ndarray of float, shape (L,)
        Gain of each level, at least 0; 2**level - 1 is usual.
    k : int, optional
        Count the first k items only; all by default.

    Returns
    -------
    ndarray of float64, shape (Q,)
        nan for a query for which no item has a gain.

    Raises
    ------
    ValueError
        If the shapes do not fit, or a gain is below 0.

    Notes
    -----
    Jarvelin & Kekalainen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002; ties as in McSherry & Najork.
    """
    value_L: FloatArray = np.asarray(gain_L, np.float64)
    if count_QDL.ndim != 3 or value_L.shape != count_QDL.shape[2:] or (value_L < 0).any() or (count_QDL < 0).any():
        raise ValueError(
            "`count_QDL` must have shape (Q, D, L) and `gain_L` a gain of at least 0 for each of the L levels, got "
            f"{count_QDL.shape} and {value_L.tolist()}"
        )
    max_items = int(count_QDL.sum(axis=(1, 2)).max(initial=0))
    _check_cut_off(k if k is not None else 1)
    discount_N = _cumulative_discount(max_items, max_items if k is None else k)
    items_QD = count_QDL.sum(axis=2)
    mean_QD = np.asarray(count_QDL @ value_L / np.maximum(items_QD, 1), np.float64)
    best_L = np.argsort(-value_L)
    ideal_Q = _discounted(count_QDL.sum(axis=1)[:, best_L], value_L[best_L][None, :], discount_N)
    return _divide(_discounted(items_QD, mean_QD, discount_N), ideal_Q)


def average_precision_of_scores(scores_QN: NDArray[np.floating[Any]], relevant_QN: NDArray[np.bool_]) -> FloatArray:
    """Return the expected average precision when items are ranked by real scores, highest first, ties in any order.

    Parameters
    ----------
    scores_QN : ndarray of float, shape (Q, N)
        For relaxed codes: the inner products `query_QB @ item_NB.T`.
    relevant_QN : ndarray of bool, shape (Q, N)

    Returns
    -------
    ndarray of float64, shape (Q,)
        nan for a query with no relevant item.

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
    """Share of relevant items within a radius (inclusive) for each query; 0 if nothing is within it.

    A query that finds nothing has failed, so it counts as 0 instead of being left out.

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


def bit_correlation(codes_NW: CodeArray, bits: int) -> float:
    """Mean absolute correlation between two bits over the codes: 0 if all bits are independent.

    Constant bits have no correlation and are left out; nan if fewer than two bits are left.
    """
    bit_NB = unpack_bits(codes_NW, bits).astype(np.float64)
    bit_NB = bit_NB[:, bit_NB.std(axis=0) > 0] if len(bit_NB) else bit_NB[:, :0]
    if bit_NB.shape[1] < 2:
        return float("nan")
    correlation_BB = np.asarray(np.corrcoef(bit_NB, rowvar=False), np.float64)
    return float(np.abs(correlation_BB[~np.eye(len(correlation_BB), dtype=np.bool_)]).mean())


def distinct_codes(codes_NW: CodeArray) -> int:
    """Return the number of different codes."""
    return len(_bucket_sizes(codes_NW))


def largest_bucket(codes_NW: CodeArray) -> int:
    """Return the number of items that share the most common code; 0 for no codes."""
    return int(_bucket_sizes(codes_NW).max(initial=0))


def _group_gain(
    size: FloatArray, hits: FloatArray, behind: FloatArray, hits_behind: FloatArray, taken: FloatArray
) -> FloatArray:
    """Return what the first `taken` items of each group add to the sum of precisions; see `average_precision`."""
    size = np.maximum(size, 1.0)
    slope = (hits - 1.0) / np.maximum(size - 1.0, 1.0)
    constant = hits_behind + 1.0 - slope * (behind + 1.0)
    return hits / size * (slope * taken + constant * _harmonic_difference(behind, taken))


def _expected_over_found(
    items_D: FloatArray, hits_D: FloatArray, behind_D: FloatArray, hits_behind_D: FloatArray, taken_D: FloatArray
) -> float:
    """Return one query's expected sum of precisions over the number of relevant items within the cut-off."""
    groups = (items_D, hits_D, behind_D, hits_behind_D, taken_D)
    divided_D = (taken_D > 0) & (taken_D < items_D)
    whole_D = (taken_D > 0) & ~divided_D
    gain, found = float(_group_gain(*(part[whole_D] for part in groups)).sum()), float(hits_D[whole_D].sum())
    if not divided_D.any():
        return gain / found if found else 0.0
    size, hits, behind, hits_behind, taken = (float(part[divided_D][0]) for part in groups)
    inside_X = np.arange(max(0.0, taken - (size - hits)), min(hits, taken) + 1)
    chance_X = _hypergeometric(inside_X, size, hits, taken)
    same = np.ones_like(inside_X)
    added_X = _group_gain(taken * same, inside_X, behind * same, hits_behind * same, taken * same)
    return float((chance_X * (gain + added_X) / np.maximum(found + inside_X, 1.0)).sum())


def _hypergeometric(inside_X: FloatArray, size: float, hits: float, taken: float) -> FloatArray:
    """Return the probabilities that `taken` of `size` items include `inside_X` of the `hits` relevant ones.

    Ratios of neighbouring probabilities are simple; summing their logarithms and normalising cannot overflow.
    """
    rising = inside_X[1:]
    ratio = (hits - rising + 1) * (taken - rising + 1) / (rising * (size - hits - taken + rising))
    log_X = np.concatenate([[0.0], np.cumsum(np.log(ratio))])
    chance_X = np.exp(log_X - log_X.max())
    return np.asarray(chance_X / chance_X.sum(), np.float64)


def _cumulative_discount(num_items: int, k: int) -> FloatArray:
    """Return the sum of 1 / log2(1 + i) over the first 0, 1, ... `num_items` ranks, ranks beyond k add nothing."""
    discount_N = 1.0 / np.log2(np.arange(2, num_items + 2, dtype=np.float64))
    discount_N[k:] = 0.0
    return np.concatenate([[0.0], np.cumsum(discount_N)])


def _discounted(items_QG: IntArray, gain_QG: FloatArray, discount_N: FloatArray) -> FloatArray:
    """Return the discounted gain of consecutive groups; within a group every rank has the same mean gain."""
    end_QG = np.cumsum(items_QG, axis=1)
    return np.asarray((gain_QG * (discount_N[end_QG] - discount_N[end_QG - items_QG])).sum(axis=1), np.float64)


def _check_cut_off(k: int) -> None:
    if k < 1:
        raise ValueError(f"the cut-off must be at least 1 item, got {k}")


def _bucket_sizes(codes_NW: CodeArray) -> NDArray[np.intp]:
    return np.unique(codes_NW, axis=0, return_counts=True)[1]


def _row_average_precision(score_N: NDArray[np.floating[Any]], relevant_N: NDArray[np.bool_]) -> float:
    """Group one query's items by score, best first, and treat the groups as distances."""
    order_N = np.argsort(-score_N, kind="stable")
    sorted_N = score_N[order_N]
    if not len(sorted_N):
        return float("nan")
    starts_G = np.concatenate([[0], np.flatnonzero(sorted_N[1:] != sorted_N[:-1]) + 1])
    total_G = np.diff(np.append(starts_G, len(sorted_N)))
    relevant_G = np.add.reduceat(relevant_N[order_N].astype(np.int64), starts_G)
    return float(average_precision(total_G[None], relevant_G[None])[0])


def _harmonic_difference(start: FloatArray, count: FloatArray) -> FloatArray:
    """H(start + count) - H(start), without the cancellation of two large harmonic numbers."""
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
    """Divide; nan where the denominator is 0."""
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def _mean_of_defined(values: FloatArray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
