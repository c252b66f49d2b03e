"""Fitting to more features than fit in memory: what is learned from one pass over batches of them.

Shapes: N rows in all, R of them in a batch, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.fits.hashers import Features, FloatArray

# Rows that are in memory in double precision at a time.
_BATCH_ROWS = 4096


class Stream(Protocol):
    """Finite features in batches (R, D), the same at every pass."""

    @property
    def dims(self) -> int:
        """Number of dimensions D."""
        ...

    def __iter__(self) -> Iterator[Features]:
        """Start a pass."""
        ...


def count_up_to(stream: Stream, rows: int) -> int:
    """Return the number of rows, or `rows` if there are at least so many; no more of them are read."""
    count = 0
    for batch_RD in stream:
        count += len(batch_RD)
        if count >= rows:
            return rows
    return count


class ArrayStream:
    """The rows of an array, which may be mapped from a file, as a stream."""

    def __init__(self, feature_ND: Features) -> None:
        self._feature_ND = feature_ND

    @property
    def dims(self) -> int:
        """Number of dimensions."""
        return int(self._feature_ND.shape[1])

    def __iter__(self) -> Iterator[Features]:
        """Start a pass."""
        for start in range(0, len(self._feature_ND), _BATCH_ROWS):
            yield self._feature_ND[start : start + _BATCH_ROWS]


class Mean:
    """Number and mean of rows, summed in double precision.

    Rows are shifted by the mean of the first batch, so that a large mean does not cost digits.

    Attributes
    ----------
    rows : int
        So far.
    """

    def __init__(self, dims: int) -> None:
        self.rows = 0
        self._shift_D = np.zeros(dims)
        self._sum_D = np.zeros(dims)

    def add(self, feature_RD: Features) -> None:
        """Add rows."""
        for start in range(0, len(feature_RD), _BATCH_ROWS):
            self._add(feature_RD[start : start + _BATCH_ROWS].astype(np.float64))

    def _add(self, feature_RD: FloatArray) -> None:
        if not self.rows:
            self._shift_D = feature_RD.mean(axis=0)
        feature_RD -= self._shift_D
        self.rows += len(feature_RD)
        self._sum_D += feature_RD.sum(axis=0)

    @property
    def mean(self) -> FloatArray:
        """The mean (D,).

        Raises
        ------
        ValueError
            If there are no rows.
        """
        if not self.rows:
            raise ValueError("`features` must have at least one row to fit, got none")
        return np.asarray(self._shift_D + self._sum_D / self.rows, np.float64)


class Moments(Mean):
    """Number, mean and covariance of rows; see `Mean`."""

    def __init__(self, dims: int) -> None:
        super().__init__(dims)
        self._product_DD = np.zeros((dims, dims))

    def _add(self, feature_RD: FloatArray) -> None:
        super()._add(feature_RD)
        self._product_DD += feature_RD.T @ feature_RD

    @property
    def covariance(self) -> FloatArray:
        """The covariance (D, D); ValueError if there are no rows."""
        shifted_D = self.mean - self._shift_D
        return np.asarray(self._product_DD / self.rows - np.outer(shifted_D, shifted_D), np.float64)


class Sample:
    """Up to `size` rows, drawn without replacement, of a stream of any length; all of them if there are fewer.

    Which rows are drawn depends on the seed and on their order, not on how they are divided into batches.

    Parameters
    ----------
    size : int
    dims : int
    seed : int
    """

    def __init__(self, size: int, dims: int, seed: int) -> None:
        self._size = size
        self._rng = np.random.default_rng(seed)
        self._keys: list[FloatArray] = [np.empty(0)]
        self._rows: list[NDArray[np.float32]] = [np.empty((0, dims), np.float32)]
        self._held = 0
        # A row whose random number is not below this is not among the smallest.
        self._below = np.inf

    def add(self, feature_RD: Features) -> None:
        """Add rows: those with the smallest random numbers stay."""
        key_R = self._rng.random(len(feature_RD))
        chosen_R = np.flatnonzero(key_R < self._below)
        self._keys.append(key_R[chosen_R])
        self._rows.append(feature_RD[chosen_R].astype(np.float32))
        self._held += len(chosen_R)
        if self._held > 2 * self._size:
            self._prune()

    @property
    def rows(self) -> FloatArray:
        """The rows (N, D), in their order."""
        self._prune()
        return self._rows[0].astype(np.float64)

    def _prune(self) -> None:
        keys_N = np.concatenate(self._keys)
        kept_N = np.sort(np.argsort(keys_N, kind="stable")[: self._size])
        self._rows = [np.concatenate(self._rows)[kept_N]]
        self._keys = [keys_N[kept_N]]
        self._held = len(kept_N)
        if self._held == self._size:
            self._below = float(self._keys[0].max())
