# mypy: disable-error-code="no-untyped-def"
"""Masks: one bit for each of N rows, in V = ceil(N / 64) words; row n is bit `n % 64` of word `n // 64`.

`word_V` is uint64, with zeros beyond row N; no words at all mean that every row is allowed. L rows are allowed.
"""

from __future__ import annotations

import numpy as np

from hashlight.engine.kernels.compiling import kernel
from hashlight.engine.kernels.popcount import trailing_zeros

ONE = np.uint64(1)


@kernel
def allows(word_V, row):
    """Tell whether a row is allowed."""
    return len(word_V) == 0 or (word_V[row >> 6] >> np.uint64(row & 63)) & ONE != np.uint64(0)


@kernel
def list_rows(word_V, row_L):
    """Write the allowed rows, ascending."""
    size = 0
    for number in range(len(word_V)):
        word = word_V[number]
        while word != np.uint64(0):
            row_L[size] = (number << 6) + np.int64(trailing_zeros(word))
            word &= word - ONE
            size += 1
