"""Masks of rows against plain arrays of bool."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashlight.engine.indexes.base import check_mask
from hashlight.engine.indexes.masks import LISTED_SHARE, RowMask

ROWS = st.sampled_from([1, 7, 8, 63, 64, 65, 128, 1000])


@given(st.data(), ROWS)
def test_a_mask_is_the_array_it_was_made_of(data, rows):
    seeds, shares = st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.5, 1.0])
    one, other = (
        np.random.default_rng(data.draw(seeds)).random(rows) < data.draw(shares, label="share") for _ in range(2)
    )
    mask, more = RowMask.of(one), RowMask.of(other)
    assert mask.bools().tolist() == one.tolist()
    assert (len(mask), mask.count) == (rows, one.sum())
    assert mask.listed_M.tolist() == np.flatnonzero(one).tolist()
    assert mask.is_listed == (one.sum() * LISTED_SHARE <= rows)
    some = np.random.default_rng(1).integers(rows, size=20)
    assert mask.allows(some).tolist() == one[some].tolist()
    assert (mask & more).bools().tolist() == (one & other).tolist()
    assert (~mask).bools().tolist() == (~one).tolist()
    assert (~mask).count == rows - mask.count
    assert RowMask(np.packbits(one, bitorder="little"), rows).bools().tolist() == one.tolist()


def test_a_mask_cannot_be_written_and_tells_its_size():
    mask = RowMask.of(np.arange(6400) < 100)
    with pytest.raises(ValueError, match="read-only"):
        mask.words[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        mask.listed_M[0] = 3
    assert mask.nbytes == 6400 // 8 + 100 * 4
    assert RowMask.of(np.arange(6400) < 1000).nbytes == 6400 // 8
    assert repr(mask) == "RowMask(100 of 6,400 rows)"


def test_masks_of_other_rows_are_refused():
    mask = RowMask.of(np.ones(20, np.bool_))
    assert check_mask(mask, rows=20) is mask
    with pytest.raises(ValueError, match=r"of 21 rows, got RowMask\(20 of 20 rows\)"):
        check_mask(mask, rows=21)
    with pytest.raises(ValueError, match="as many rows, got 20 and 19"):
        mask & RowMask.of(np.ones(19, np.bool_))
