"""Rows are sorted by (code, id), where the last word of a code is the most significant."""

import numpy as np
import pytest

from hashlight.engine.indexes.order import sort_rows
from tests import oracles


def as_numbers(codes):
    return [sum(int(word) << (64 * n) for n, word in enumerate(code)) for code in codes]


@pytest.mark.parametrize("bits", [16, 64, 72, 256])
@pytest.mark.parametrize("rows", [0, 1, 2, 1000])
def test_rows_ascend_by_code_then_id(bits, rows):
    rng = np.random.default_rng(rows)
    codes = oracles.clustered_codes(rng, rows, bits)
    ids = rng.permutation(rows).astype(np.int64)
    order = sort_rows(codes, ids)
    pairs = list(zip(as_numbers(codes), ids.tolist(), strict=True))
    assert [pairs[n] for n in order] == sorted(pairs)


@pytest.mark.parametrize("words", [1, 2])
def test_many_rows(words):
    rng = np.random.default_rng(0)
    codes = rng.integers(2**64, size=(200_000, words), dtype=np.uint64)
    codes[::3] = codes[0]
    codes[1::7] &= np.uint64(0xFF00000000000000)
    ids = rng.permutation(200_000).astype(np.int64) << np.int64(40)
    order = sort_rows(codes, ids)
    np.testing.assert_array_equal(order, np.lexsort((ids, *codes.T)))
