"""Between Arrow's arrays and numpy's, without copying more than bits: what a condition came to, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def matches(outcome: pa.Array) -> NDArray[np.bool_]:
    """Return which rows are true, and not false or null."""
    return np.asarray(pc.fill_null(outcome, False).to_numpy(zero_copy_only=False), np.bool_)


def matching_bits(outcome: pa.Array) -> NDArray[np.uint8]:
    """Return which rows are true, and not false or null, as bits: row n is bit `n % 8` of byte `n // 8`."""
    outcome = pc.fill_null(outcome, False)
    if outcome.offset % 8 or not len(outcome):
        return np.packbits(matches(outcome), bitorder="little")
    first, length = outcome.offset // 8, (len(outcome) + 7) // 8
    bits = np.frombuffer(outcome.buffers()[1], np.uint8, length, first)
    if len(outcome) % 8:
        bits = bits.copy()
        bits[-1] &= (1 << len(outcome) % 8) - 1
    return bits


def as_outcome(true_N: NDArray[np.bool_], of: pa.Array | None = None) -> pa.BooleanArray:
    """Return bools as an Arrow array, null where `of` is. Takes a fiftieth of the time of `pyarrow.array`."""
    if of is not None and of.null_count and of.offset:
        return pa.array(true_N, mask=of.is_null().to_numpy(zero_copy_only=False))
    valid = None if of is None or not of.null_count else of.buffers()[0]
    bits = pa.py_buffer(np.packbits(true_N, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(true_N), [valid, bits])


def numbers_of(stored: pa.Array) -> NDArray[Any]:
    """Return the values of an array of numbers, anything where they are null."""
    dtype = np.dtype(stored.type.to_pandas_dtype())
    if not len(stored):
        return np.zeros(0, dtype)
    return np.frombuffer(stored.buffers()[1], dtype, len(stored), stored.offset * dtype.itemsize)
