"""Merging, joining and cutting answers, compared with lists that are sorted one query at a time."""

import itertools

import numpy as np
import pytest

from hashlight.engine.query import Query
from hashlight.engine.results import (
    Explanation,
    RangeResult,
    SearchResult,
    as_range,
    cut_range,
    join_ranges,
    join_searches,
    merge,
    merge_range,
)

QUERIES = 5
PAD = (2**31 - 1, -1)


def together(lists):
    return list(itertools.chain.from_iterable(lists))


def answers(rng, queries, most):
    """Return sorted (distance, id) of each query, with few distances, so that ties are common; some have no answer."""
    drawn = [rng.choice(1000, rng.integers(0, most + 1), replace=False) for _ in range(queries)]
    return [sorted((int(rng.integers(4)), int(id_)) for id_ in ids) for ids in drawn]


def disjoint(rng, parts, queries=QUERIES, most=6):
    """Return answers by part and query; no id is in two parts."""
    return [
        [[(distance, id_ * parts + part) for distance, id_ in row] for row in answers(rng, queries, most)]
        for part in range(parts)
    ]


def as_search(rows, k):
    padded = np.array([(row + [PAD] * k)[:k] for row in rows]).reshape(len(rows), k, 2)
    return SearchResult(padded[:, :, 0].astype(np.int32), padded[:, :, 1])


def as_radius(rows, truncated):
    pairs = np.array([pair for row in rows for pair in row]).reshape(-1, 2)
    lims = np.array([0, *np.cumsum([len(row) for row in rows])])
    return RangeResult(lims, pairs[:, 0].astype(np.int32), pairs[:, 1], np.array(truncated, np.bool_))


def rows_of(result):
    pairs = list(zip(result.distances.tolist(), result.ids.tolist(), strict=True))
    return [pairs[start:stop] for start, stop in zip(result.lims[:-1], result.lims[1:], strict=True)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("columns", ["k", "fewer"])
def test_merged_nearest_equal_the_sorted_lists(seed, parts, k, columns):
    given = disjoint(np.random.default_rng(seed), parts)
    width = k if columns == "k" else min(k, 6)
    found = merge([as_search(rows, width) for rows in given], Query(k=k))
    expected = [sorted(together(part[query] for part in given))[:k] for query in range(QUERIES)]
    assert found.ids.shape == (QUERIES, k)
    for distances, ids, row in zip(found.distances.tolist(), found.ids.tolist(), expected, strict=True):
        assert list(zip(distances, ids, strict=True)) == row + [PAD] * (k - len(row))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize("queries", [1, QUERIES])
@pytest.mark.parametrize("limit", [None, 1, 4, 9, 30])
def test_merged_radius_answers_equal_the_sorted_lists(seed, parts, queries, limit):
    rng = np.random.default_rng(seed)
    given = disjoint(rng, parts, queries)
    cut = rng.random((parts, queries)) < 0.2
    found = merge([as_radius(rows, cut[part]) for part, rows in enumerate(given)], Query(radius=3, limit=limit))
    everything = [sorted(together(part[query] for part in given)) for query in range(queries)]
    assert rows_of(found) == [row[:limit] for row in everything]
    longer = [limit is not None and len(row) > limit for row in everything]
    assert found.truncated.tolist() == (cut.any(axis=0) | longer).tolist()
    assert found.lims.dtype == np.int64


@pytest.mark.parametrize("seed", range(4))
def test_a_limit_that_is_just_reached_does_not_truncate(seed):
    rng = np.random.default_rng(seed)
    rows = answers(rng, QUERIES, 6)
    earlier = rng.random(QUERIES) < 0.3
    for limit in range(1, 8):
        found = cut_range(as_radius(rows, earlier), limit)
        assert rows_of(found) == [row[:limit] for row in rows]
        assert found.truncated.tolist() == [was or len(row) > limit for was, row in zip(earlier, rows, strict=True)]
    halves = [[row[::2] for row in rows], [row[1::2] for row in rows]]
    for limit in range(1, 8):
        found = merge_range([as_radius(half, [False] * QUERIES) for half in halves], limit)
        assert found.truncated.tolist() == [len(row) > limit for row in rows]


def test_as_range_drops_padding():
    rows = [[(0, 4), (2, 1)], [], [(1, 7)]]
    found = as_range(as_search(rows, 3))
    assert rows_of(found) == rows
    assert found.truncated.tolist() == [False] * 3


@pytest.mark.parametrize("sizes", [(3,), (2, 1, 4), (0, 2)])
def test_parts_of_a_batch_are_joined_in_their_order(sizes):
    rng = np.random.default_rng(1)
    given = [answers(rng, size, 4) for size in sizes]
    everything = together(given)
    found = join_searches([as_search(rows, 3) for rows in given])
    expected = as_search(everything, 3)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.distances.tolist() == expected.distances.tolist()
    cut = [[bool(number % 2) for number in range(size)] for size in sizes]
    joined = join_ranges([as_radius(rows, mark) for rows, mark in zip(given, cut, strict=True)])
    assert rows_of(joined) == everything
    assert joined.truncated.tolist() == together(cut)


def test_joined_explanations_are_concatenated():
    def part(*numbers):
        numbers_Q = np.array(numbers)
        explain = Explanation(tuple(map(str, numbers)), numbers_Q, 10 * numbers_Q, 0.5 * numbers_Q)
        return as_search([[(0, number)] for number in numbers], 1)._replace(explain=explain)

    explain = join_searches([part(3, 1), part(2)]).explain
    assert explain.plans == ("3", "1", "2")
    assert explain.probes.tolist() == [3, 1, 2]
    assert explain.candidates.tolist() == [30, 10, 20]
    assert explain.seconds.tolist() == [1.5, 0.5, 1.0]
    assert explain.take(np.array([True, False, True])).plans == ("3", "2")
    assert join_searches([as_search([[]], 1)] * 2).explain is None
