"""Which units an actor encodes one after the other: those of one row group, as long as all actors have work."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashlight.pipelines.encoding import blocks
from hashlight.pipelines.encoding.blocks import cut_into_blocks


def cut(units, groups, actors):
    found = cut_into_blocks(np.array(units), np.array(groups), actors)
    return [block.tolist() for block in found]


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 50))
def test_every_unit_is_in_one_block_and_every_actor_has_one(groups, actors):
    units = [3 * place for place in range(len(groups))]
    found = cut(units, groups, actors)
    assert sorted(itertools.chain(*found)) == units
    assert all(block == sorted(block) for block in found), "what is read is read on"
    assert len(found) >= min(actors, len(units))
    group_of = dict(zip(units, groups, strict=True))
    assert all(len(block) == 1 or len({group_of[unit] for unit in block}) == 1 for block in found)
    whole = Counter(group_of[block[0]] for block in found)
    alone = groups.count(0)
    if alone + len(set(groups) - {0}) >= actors:
        assert all(count == 1 for group, count in whole.items() if group), "no group is read twice"
        assert whole[0] == alone


@pytest.mark.parametrize(
    ("actors", "expected"),
    [
        (1, [list(range(10))]),
        (2, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),
        (4, [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]),
        (20, [[unit] for unit in range(10)]),
    ],
)
def test_one_row_group_of_ten_units(actors, expected):
    assert cut(range(10), [7] * 10, actors) == expected


def test_units_that_have_no_group_have_a_block_each_until_there_are_too_many(monkeypatch):
    monkeypatch.setattr(blocks, "_MAX_BLOCKS", 8)
    assert cut(range(8), [0] * 8, 2) == [[unit] for unit in range(8)]
    assert cut(range(20), [0] * 20, 2) == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
        [9, 10, 11],
        [12, 13, 14],
        [15, 16, 17],
        [18, 19],
    ]
    assert cut(range(20), [1] * 15 + [0] * 5, 2) == [list(range(15)), [15], [16], [17], [18], [19]]
