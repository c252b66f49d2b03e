"""The first pass of sorting rows: key and row number share a word, so that plain words can be sorted.

N rows, W words per code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.kernels.compiling import kernel


@kernel
def pack_rows(code_NW: NDArray[np.uint64], shift: int, row_bits: int, packed_N: NDArray[np.uint64]) -> None:
    """Write, for each row, the bits of its code's last word from `shift` up and, below them, the row number."""
    last = code_NW.shape[1] - 1
    for n in range(code_NW.shape[0]):
        packed_N[n] = ((code_NW[n, last] >> np.uint64(shift)) << np.uint64(row_bits)) | np.uint64(n)


@kernel
def unpack_rows(packed_N: NDArray[np.uint64], row_bits: int, order_N: NDArray[np.int64]) -> int:
    """Write the row of each sorted word; return how many words share their key with a neighbour."""
    mask = np.uint64((1 << row_bits) - 1)
    rows = packed_N.shape[0]
    tied = 0
    before = False
    for n in range(rows):
        order_N[n] = np.int64(packed_N[n] & mask)
        after = n + 1 < rows and packed_N[n] >> np.uint64(row_bits) == packed_N[n + 1] >> np.uint64(row_bits)
        tied += before or after
        before = after
    return tied


@kernel
def list_ties(
    packed_N: NDArray[np.uint64], row_bits: int, tied_T: NDArray[np.int64], group_T: NDArray[np.uint64]
) -> None:
    """Write the positions of tied words and, for each, the number of its group of ties."""
    rows = packed_N.shape[0]
    tied = 0
    group = np.uint64(0)
    before = False
    for n in range(rows):
        after = n + 1 < rows and packed_N[n] >> np.uint64(row_bits) == packed_N[n + 1] >> np.uint64(row_bits)
        if before or after:
            if not before:
                group += np.uint64(1)
            tied_T[tied] = n
            group_T[tied] = group
            tied += 1
        before = after
