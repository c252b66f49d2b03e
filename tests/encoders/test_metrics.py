from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.metrics import (
    average_precision,
    average_precision_of_scores,
    bit_balance,
    distinct_codes,
    largest_bucket,
    mean_average_precision,
    precision_recall_curve,
    precision_within_radius,
)
from encoders.packing import pack_bits, unpack_bits


def plain_average_precision(relevant_in_order):
    found, total = 0, 0.0
    for rank, relevant in enumerate(relevant_in_order, 1):
        found += relevant
        total += found / rank if relevant else 0.0
    return total / found


def brute_force(distances, relevant):
    """Mean over every order of all items that respects the distances."""
    values = [
        plain_average_precision([relevant[i] for i in order])
        for order in permutations(range(len(distances)))
        if all(distances[a] <= distances[b] for a, b in pairwise(order))
    ]
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


def test_a_billion_items_lose_no_digits():
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


def test_codes_are_described():
    bits = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 0], [1, 1, 0]], bool)
    codes = pack_bits(bits)
    assert bit_balance(codes, 3).tolist() == [1.0, 0.25, 0.25]
    assert distinct_codes(codes) == 3
    assert largest_bucket(codes) == 2
    assert largest_bucket(codes[:0]) == 0


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
    with pytest.raises(ValueError, match="1 nan"):
        average_precision_of_scores(np.array([[np.nan, 1.0]]), np.ones((1, 2), bool))
