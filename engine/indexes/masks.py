"""Which rows of an index may answer."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.indexes.arrays import read_only
from hashlight.engine.kernels.arguments import Allowed
from hashlight.engine.kernels.masks import list_rows

LISTED_SHARE = 32  # a mask that allows at most one row in this many is also kept as a list, which is no larger

_NO_WORDS = read_only(np.empty(0, np.uint64))
_NO_ROWS = read_only(np.empty(0, np.uint32))


class RowMask:
    """A bit for each row, and the rows themselves if they are few. Immutable.

    Bits take an eighth of the memory of bytes, and a scan skips 64 rows at a time where none is allowed. Measured on 5
    million 64-bit codes, 64 queries: see `benchmarks/filters.py`.

    Parameters
    ----------
    bits : ndarray of uint8, shape (ceil(N / 8),)
        Row n is bit `n % 8` of byte `n // 8`; 1 if it may answer. Bits beyond row N are 0.
    rows : int
        N.

    Attributes
    ----------
    rows : int
    count : int
        Rows that may answer.
    words : ndarray of uint64, shape (ceil(N / 64),)
        The bits.
    """

    def __init__(self, bits: NDArray[np.uint8], rows: int) -> None:
        words = np.zeros((rows + 63) // 64, "<u8")
        words.view(np.uint8)[: len(bits)] = bits
        self.rows = rows
        self.words: NDArray[np.uint64] = read_only(words)
        self.count = int(np.bitwise_count(words).sum())
        self._listed_M = self._list() if self.is_listed else None

    @classmethod
    def of(cls, may_N: NDArray[np.bool_]) -> Self:
        """Return the mask of the rows where `may_N` is True."""
        return cls(np.packbits(may_N, bitorder="little"), len(may_N))

    def __len__(self) -> int:
        """Return the number of rows, allowed or not."""
        return self.rows

    def __repr__(self) -> str:
        """Tell how many rows may answer."""
        return f"RowMask({self.count:,} of {self.rows:,} rows)"

    def __and__(self, other: RowMask) -> RowMask:
        """Return the rows that both masks allow."""
        if len(other) != len(self):
            raise ValueError(f"masks must be of as many rows, got {len(self)} and {len(other)}")
        return RowMask((self.words & other.words).view(np.uint8), self.rows)

    def __invert__(self) -> RowMask:
        """Return the rows that this mask does not allow."""
        bits = (~self.words).view(np.uint8)[: (self.rows + 7) // 8]
        if self.rows % 8:
            bits[-1] &= (1 << self.rows % 8) - 1
        return RowMask(bits, self.rows)

    @property
    def is_listed(self) -> bool:
        """Whether so few rows are allowed that going to each is cheaper than passing over the mask."""
        return self.count * LISTED_SHARE <= self.rows

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.words.nbytes + (0 if self._listed_M is None else self._listed_M.nbytes)

    @property
    def listed_M(self) -> NDArray[np.uint32]:  # noqa: N802 - the shape is part of the name
        """The allowed rows (M,), ascending."""
        return self._list() if self._listed_M is None else self._listed_M

    @classmethod
    def without(cls, mask: RowMask | None, rows_M: NDArray[np.integer[Any]], rows: int) -> RowMask:
        """Return the rows that `mask` (None: all of `rows`) allows, but some (M,)."""
        words = np.full((rows + 63) // 64, -1, np.int64).view(np.uint64) if mask is None else mask.words.copy()
        place_M = np.asarray(rows_M, np.int64)
        np.bitwise_and.at(words, place_M >> 6, ~(np.uint64(1) << (place_M & 63).astype(np.uint64)))
        if rows % 64:
            words[-1] &= np.uint64((1 << rows % 64) - 1)
        return RowMask(words.view(np.uint8), rows)

    def bools(self) -> NDArray[np.bool_]:
        """Return whether each row (N,) may answer."""
        return np.unpackbits(self.words.view(np.uint8), count=self.rows, bitorder="little").view(np.bool_)

    def allows(self, rows_M: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Return whether each of some rows (M,) may answer."""
        place_M = np.asarray(rows_M, np.int64)
        shifted_M = self.words[place_M >> 6] >> (place_M & 63).astype(np.uint64)
        return np.asarray(shifted_M & np.uint64(1), np.bool_)

    def _list(self) -> NDArray[np.uint32]:
        listed_M = np.empty(self.count, np.uint32)
        list_rows(self.words, listed_M)
        return read_only(listed_M)


def is_listed(mask: RowMask | None) -> bool:
    """Return whether a mask is also a list."""
    return mask is not None and mask.is_listed


def mask_words(mask: RowMask | None) -> NDArray[np.uint64]:
    """Return the words of a mask as kernels take them; none if every row is allowed."""
    return _NO_WORDS if mask is None else mask.words


def allowed_rows(mask: RowMask | None, rows: int, *, listed: bool) -> tuple[Any, ...]:
    """Return an `engine.kernels.arguments.Allowed` over `rows` rows: as a list, or as a mask."""
    if mask is None:
        return tuple(Allowed(_NO_WORDS, _NO_ROWS, False, rows))
    if listed:
        return tuple(Allowed(_NO_WORDS, mask.listed_M, True, mask.count))
    return tuple(Allowed(mask.words, _NO_ROWS, False, mask.count))
