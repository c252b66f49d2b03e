"""Ids of images: the checks that every batch passes, and the search for ids that occur more than once.

`find_repeated` compares ids that fit in memory; `RepeatedIds` compares a stream of them, however long.
"""

from __future__ import annotations

import contextlib
import tempfile
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import IdArray
from hashlight.engine.wording import counted

MAX_ID = 2**63 - 1

# A billion ids are 8 GB on disk, and 31 MB in memory while one of this many files is searched.
_FILES = 256
_BUFFER_IDS = 1 << 20
# Spreads ids of any pattern over the files (Knuth's multiplicative hashing, 2**64 over the golden ratio).
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(64 - 8)


ONE_EACH = "give each item an id of its own"


def check_ids(ids_N: object, *, rows: int, remedy: str = ONE_EACH) -> IdArray:
    """Return `ids_N` if it holds one distinct id of at least 0 for each of `rows` rows.

    `remedy` says what to do about ids that occur more than once.

    Raises
    ------
    TypeError
        If it is not an array of int64.
    ValueError
        If the length is wrong, or an id is negative or occurs more than once.
    """
    if not isinstance(ids_N, np.ndarray) or ids_N.dtype != np.int64:
        got = f"{ids_N.dtype} of shape {ids_N.shape}" if isinstance(ids_N, np.ndarray) else type(ids_N).__name__
        raise TypeError(f"`ids` must be an int64 array of shape ({rows},), got {got}")
    if ids_N.shape != (rows,):
        raise ValueError(f"`ids` must have shape ({rows},), one id per code, got {ids_N.shape}")
    if rows and ids_N.min() < 0:
        bad = int(ids_N.argmin())
        raise ValueError(f"`ids` must be 0 or more (-1 pads short answers), got {ids_N[bad]} in row {bad}")
    refuse_repeated(find_repeated(ids_N), where=counted(rows, "row"), remedy=remedy)
    return ids_N


def next_ids(highest: int, rows: int) -> IdArray:
    """Return the `rows` ids after the highest that is taken (-1: none is).

    Raises
    ------
    ValueError
        If they would exceed int64.
    """
    if highest > MAX_ID - rows:
        raise ValueError(
            f"there are no {rows} ids after the highest, {highest} (ids are at most {MAX_ID}): give `ids` of your own"
        )
    return np.arange(rows, dtype=np.int64) + (highest + 1)


def find_rows(ids_N: IdArray, rows_by_id_N: NDArray[np.uint32], ids_M: IdArray) -> NDArray[np.int64]:
    """Return the row of each of some ids, -1 for those that are not there.

    Parameters
    ----------
    ids_N : ndarray of int64, shape (N,)
        Of all rows, N at least 1.
    rows_by_id_N : ndarray of uint32, shape (N,)
        The rows in ascending order of their ids.
    ids_M : ndarray of int64, shape (M,)
    """
    # Not `searchsorted(sorter=...)`, which first makes an int64 copy of the whole permutation.
    low_M, high_M = np.zeros(len(ids_M), np.int64), np.full(len(ids_M), len(ids_N) - 1)
    for _ in range(len(ids_N).bit_length()):
        middle_M = (low_M + high_M) // 2
        below_M = ids_N[rows_by_id_N[middle_M]] < ids_M
        low_M = np.where(below_M, np.minimum(middle_M + 1, high_M), low_M)
        high_M = np.where(below_M, high_M, middle_M)
    row_M = rows_by_id_N[low_M].astype(np.int64)
    return np.where(ids_N[row_M] == ids_M, row_M, -1)


def spread_ids(ids_N: IdArray) -> NDArray[np.uint64]:
    """Return a number for each id that looks random and is that of no other id (the finaliser of splitmix64).

    The ids of the lowest numbers are a random sample that depends on nothing but which ids there are: the lowest of
    all are the lowest of those of each part.
    """
    mixed_N = np.asarray(ids_N).view(np.uint64) + _SPREAD
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed_N = (mixed_N ^ (mixed_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    spread_N: NDArray[np.uint64] = mixed_N ^ (mixed_N >> np.uint64(31))
    return spread_N


def find_repeated(ids_N: IdArray) -> IdArray:
    """Return the distinct ids that occur more than once, ascending."""
    if (ids_N[1:] > ids_N[:-1]).all():
        return np.empty(0, np.int64)  # a slice would keep all of `ids_N` in memory
    sorted_N = np.sort(ids_N)
    return np.unique(sorted_N[1:][sorted_N[1:] == sorted_N[:-1]])


def refuse_repeated(repeated: IdArray, *, where: str, remedy: str = ONE_EACH) -> None:
    """Raise ValueError, naming the first, if there are repeated ids.

    Parameters
    ----------
    repeated : ndarray of int64
        What `find_repeated` or `RepeatedIds.find` returned.
    where : str
        What was searched, for the message.
    remedy : str
        What to do about it.
    """
    if len(repeated):
        others = f" and {counted(len(repeated) - 1, 'other')}" if len(repeated) > 1 else ""
        raise ValueError(f"`ids` must be distinct, got {repeated[0]}{others} more than once in {where}: {remedy}")


class RepeatedIds:
    """Finds the ids of a stream that were added more than once, in memory that does not grow with the stream.

    Beyond a million ids it spills to temporary files, which the context manager removes.
    """

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._files: list[IO[bytes]] = []
        self._waiting: list[IdArray] = []
        self._count = 0

    def __enter__(self) -> RepeatedIds:
        """Start empty."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the files."""
        self._open.close()

    def add(self, ids_N: IdArray) -> None:
        """Add ids (N,)."""
        for start in range(0, len(ids_N), _BUFFER_IDS):
            # A copy, so that a few buffered ids do not keep a whole array alive.
            part = ids_N[start : start + _BUFFER_IDS].copy()
            self._waiting.append(part)
            self._count += len(part)
            if self._count >= _BUFFER_IDS:
                self._spill()

    def find(self) -> IdArray:
        """Return the distinct ids that were added more than once, ascending."""
        if not self._files:
            return find_repeated(self._gather())
        self._spill()
        found = []
        for file in self._files:
            file.seek(0)
            found.append(find_repeated(np.frombuffer(file.read(), np.int64)))
        return np.sort(np.concatenate(found))

    def _gather(self) -> IdArray:
        return np.concatenate([np.zeros(0, np.int64), *self._waiting])

    def _spill(self) -> None:
        ids_N = self._gather()
        self._waiting, self._count = [], 0
        if not self._files:
            self._files = [self._open.enter_context(_temporary_file()) for _ in range(_FILES)]
        # uint8 values: numpy sorts them with a radix sort.
        file_N = ((ids_N.view(np.uint64) * _SPREAD) >> _SHIFT).astype(np.uint8)
        order_N = np.argsort(file_N, kind="stable")
        ends = np.cumsum(np.bincount(file_N, minlength=_FILES))
        for file, part in zip(self._files, np.split(ids_N[order_N], ends[:-1]), strict=True):
            file.write(part.tobytes())


def _temporary_file() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="hashlight-ids-")
