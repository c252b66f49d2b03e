from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashlight.encoders.metrics import (
    average_precision,
    average_precision_of_scores,
    bit_balance,
    bit_correlation,
    distinct_codes,
    largest_bucket,
    mean_average_precision,
    ndcg,
    precision_at,
    precision_recall_curve,
    precision_within_radius,
)
from hashlight.encoders.packing import pack_bits, unpack_bits


def plain_average_precision(relevant_in_order):
    found, total = 0, 0.0
    for rank, relevant in enumerate(relevant_in_order, 1):
        found += relevant
        total += found / rank if relevant else 0.0
    return total / found


def orders(distances):
    """Every order of all items that respects the distances."""
    return [
        order
        for order in permutations(range(len(distances)))
        if all(distances[a] <= distances[b] for a, b in pairwise(order))
    ]


def brute_force(distances, relevant):
    """Mean over every order of all items that respects the distances."""
    values = [plain_average_precision([relevant[i] for i in order]) for order in orders(distances)]
    return sum(values) / len(values)


def brute_force_at(distances, relevant, k, normalisation):
    values = []
    for order in orders(distances):
        shown = [relevant[i] for i in order][:k]
        divisor = sum(shown) if normalisation == "found" else min(sum(relevant), k)
        values.append(plain_average_precision(shown) * sum(shown) / divisor if sum(shown) else 0.0)
    return sum(values) / len(values)


def histograms(distances, relevant, bits):
    distances, relevant = np.array(distances), np.array(relevant, bool)
    counts = [np.bincount(d, minlength=bits + 1) for d in (distances, distances[relevant])]
    return counts[0][None], counts[1][None]


items = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6).filter(
    lambda rows: any(relevant for _, relevant in rows)
)


@settings(deadline=None, max_examples=60)
@given(items)
def test_average_precision_is_the_mean_over_all_orders_of_ties(rows):
    distances, relevant = zip(*rows, strict=True)
    expected = brute_force(distances, relevant)
    assert average_precision(*histograms(distances, relevant, 3))[0] == pytest.approx(expected, abs=1e-12)
    scores = -np.array([distances], float)
    assert average_precision_of_scores(scores, np.array([relevant]))[0] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(items, st.integers(1, 7), st.sampled_from(["possible", "found"]))
def test_cut_average_precision_is_the_mean_over_all_orders_of_ties(rows, k, normalisation):
    distances, relevant = zip(*rows, strict=True)
    expected = brute_force_at(distances, relevant, k, normalisation)
    got = average_precision(*histograms(distances, relevant, 3), k, normalisation=normalisation)[0]
    assert got == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(items, st.integers(1, 8))
def test_precision_at_is_the_mean_over_all_orders_of_ties(rows, n):
    distances, relevant = zip(*rows, strict=True)
    expected = np.mean([sum([relevant[i] for i in order][:n]) / n for order in orders(distances)])
    assert precision_at(*histograms(distances, relevant, 3), n)[0] == pytest.approx(expected, abs=1e-12)


def plain_dcg(gains):
    return sum(gain / np.log2(rank + 1) for rank, gain in enumerate(gains, 1))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=6).filter(
        lambda rows: any(level for _, level in rows)
    ),
    st.one_of(st.none(), st.integers(1, 7)),
)
def test_ndcg_is_the_mean_over_all_orders_of_ties(rows, k):
    distances, levels = zip(*rows, strict=True)
    gains = [2**level - 1 for level in levels]
    best = plain_dcg(sorted(gains, reverse=True)[:k])
    expected = np.mean([plain_dcg([gains[i] for i in order][:k]) for order in orders(distances)]) / best
    counts = np.zeros((1, 4, 3), int)
    np.add.at(counts[0], (distances, levels), 1)
    assert ndcg(counts, np.array([0.0, 1.0, 3.0]), k)[0] == pytest.approx(expected, abs=1e-12)


def test_cut_off_measures_of_many_items_by_sampled_orders():
    rng = np.random.default_rng(1)
    total, hits = np.array([[30, 400, 1000]]), np.array([[10, 80, 30]])
    sampled = {"possible": [], "found": []}
    for _ in range(3_000):
        order = np.concatenate([rng.permutation(np.arange(n) < r) for n, r in zip(total[0], hits[0], strict=True)])
        shown = order[:100]
        value = plain_average_precision(shown) * shown.sum()
        sampled["possible"].append(value / 100)
        sampled["found"].append(value / shown.sum())
    for normalisation, values in sampled.items():
        got = average_precision(total, hits, 100, normalisation=normalisation)[0]
        assert got == pytest.approx(np.mean(values), abs=4 * np.std(values) / 3_000**0.5)


def test_a_cut_off_beyond_the_last_item_changes_nothing():
    total, hits = np.array([[3, 4, 5]]), np.array([[1, 0, 2]])
    for normalisation in ("possible", "found"):
        assert average_precision(total, hits, 12, normalisation=normalisation)[0] == pytest.approx(
            average_precision(total, hits)[0]
        )
    assert mean_average_precision(total, hits, 12) == pytest.approx(mean_average_precision(total, hits))
    assert np.isnan(average_precision(total, 0 * hits, 5, normalisation="found"))


def test_a_cut_off_within_a_million_ties():
    total, hits = np.array([[10**6]]), np.array([[10**5]])
    for normalisation in ("possible", "found"):
        value = average_precision(total, hits, 1000, normalisation=normalisation)[0]
        assert 0.01 * (normalisation == "possible") < value < 0.2


def test_average_precision_without_ties_is_the_plain_one_over_many_items():
    rng = np.random.default_rng(0)
    relevant = rng.random(5_000) < 0.1
    total = np.ones((1, 5_000), int)
    assert average_precision(total, relevant[None].astype(int))[0] == pytest.approx(
        plain_average_precision(relevant), rel=1e-12
    )


def test_one_big_tie_by_sampled_orders():
    # 40 of 200 items relevant, all at one distance: above the summed part of the harmonic numbers.
    rng = np.random.default_rng(0)
    relevant = np.arange(200) < 40
    sampled = np.mean([plain_average_precision(rng.permutation(relevant)) for _ in range(4_000)])
    assert average_precision(np.array([[200]]), np.array([[40]]))[0] == pytest.approx(sampled, abs=2e-3)


def test_a_billion_items_do_not_lose_digits():
    total = np.array([[10**9, 1, 10**9]])
    relevant = np.array([[0, 1, 0]])
    assert average_precision(total, relevant)[0] == pytest.approx(1 / (10**9 + 1), rel=1e-9)


def test_queries_without_anything_relevant_are_not_averaged():
    total = np.array([[1, 1], [1, 1]])
    relevant = np.array([[1, 0], [0, 0]])
    assert np.isnan(average_precision(total, relevant)[1])
    assert mean_average_precision(total, relevant) == 1.0
    assert np.isnan(mean_average_precision(total[1:], relevant[1:]))
    assert np.isnan(average_precision_of_scores(np.zeros((1, 0)), np.zeros((1, 0), bool))[0])


def test_precision_within_radius_counts_empty_answers_as_zero():
    total = np.array([[2, 2, 1], [0, 0, 5]])
    relevant = np.array([[2, 1, 0], [0, 0, 5]])
    assert precision_within_radius(total, relevant, 0).tolist() == [1.0, 0.0]
    assert precision_within_radius(total, relevant, 1).tolist() == [0.75, 0.0]
    assert precision_within_radius(total, relevant, 2).tolist() == [0.6, 1.0]
    with pytest.raises(ValueError, match=r"0 to 2 .* got 3"):
        precision_within_radius(total, relevant, 3)


def test_precision_recall_curve_by_hand():
    curve = precision_recall_curve(np.array([[0, 2, 2], [0, 0, 4]]), np.array([[0, 1, 1], [0, 0, 1]]))
    assert np.isnan(curve.precision[0])
    assert curve.precision[1:].tolist() == [0.5, 0.375]
    assert curve.recall.tolist() == [0.0, 0.25, 1.0]


def test_code_statistics():
    bits = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 0], [1, 1, 0]], bool)
    codes = pack_bits(bits)
    assert bit_balance(codes, 3).tolist() == [1.0, 0.25, 0.25]
    assert distinct_codes(codes) == 3
    assert largest_bucket(codes) == 2
    assert largest_bucket(codes[:0]) == 0


def test_correlation_of_bits():
    rows = np.array([[0, 0, 1, 1], [1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 0, 1]], bool)
    assert bit_correlation(pack_bits(rows), 4) == pytest.approx(1.0)
    apart = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], bool)
    assert bit_correlation(pack_bits(apart), 2) == pytest.approx(0.0)
    assert np.isnan(bit_correlation(pack_bits(rows[:, 3:]), 1))
    assert np.isnan(bit_correlation(pack_bits(rows[:0]), 4))


@pytest.mark.parametrize("bits", [1, 8, 48, 64, 65, 130])
def test_bits_are_packed_little_endian_and_padded_with_zeros(bits):
    rows = np.random.default_rng(bits).random((5, bits)) < 0.5
    codes = pack_bits(rows)
    expected = [sum(int(bit) << i for i, bit in enumerate(row)) for row in rows]
    assert [sum(int(word) << 64 * i for i, word in enumerate(row)) for row in codes] == expected
    assert codes.dtype == np.uint64
    assert (unpack_bits(codes, bits) == rows).all()


def test_bad_histograms_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(1, 3\)"):
        average_precision(np.ones((1, 2), int), np.ones((1, 3), int))
    with pytest.raises(ValueError, match="not for query 1"):
        average_precision(np.ones((2, 2), int), np.array([[1, 1], [2, 0]]))
    with pytest.raises(ValueError, match="at least 1 item, got 0"):
        average_precision(np.ones((1, 2), int), np.ones((1, 2), int), 0)
    with pytest.raises(ValueError, match="one of possible, found, got 'kind'"):
        average_precision(np.ones((1, 2), int), np.ones((1, 2), int), 3, normalisation="kind")
    with pytest.raises(ValueError, match=r"got \(1, 2, 3\) and \[0.0, 1.0\]"):
        ndcg(np.ones((1, 2, 3), int), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="1 nan"):
        average_precision_of_scores(np.array([[np.nan, 1.0]]), np.ones((1, 2), bool))
