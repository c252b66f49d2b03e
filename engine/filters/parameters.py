"""Lists of ids that a filter names instead of writing them out: `id not in :seen`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_LISTS = 16
MAX_VALUES = 250_000  # of all lists: 2 MB on their way to each shard server
NAME = r"[A-Za-z_][A-Za-z0-9_]{0,63}"


class Parameters(Mapping[str, NDArray[np.int64]]):
    """Lists of whole numbers by name, distinct and ascending. Immutable and hashable.

    Parameters
    ----------
    lists : mapping of str to sequence of int, shape (M,)
        In any order. A name is what `filter` has after the colon.

    Raises
    ------
    TypeError
        If it is not a mapping, or a list does not hold whole numbers.
    ValueError
        If a name is not a word, a number is beyond 64 bits, or there are too many lists or numbers.
    """

    def __init__(self, lists: Mapping[str, ArrayLike]) -> None:
        if not isinstance(lists, Mapping):
            raise TypeError(
                f'`parameters` must map names to lists of ids, such as {{"seen": [7, 8]}}, got {type(lists).__name__}'
            )
        if len(lists) > MAX_LISTS:
            raise ValueError(f"`parameters` must be at most {MAX_LISTS} lists, got {len(lists)}")
        self._lists = {name: _as_list(name, lists[name]) for name in sorted(map(_check_name, lists))}
        values = sum(len(values) for values in self._lists.values())
        if values > MAX_VALUES:
            raise ValueError(f"`parameters` must have at most {MAX_VALUES} numbers in all, got {values}")
        digest = hashlib.blake2b(digest_size=16)
        for name, values_M in self._lists.items():
            digest.update(f"{name} {len(values_M)} ".encode())
            digest.update(values_M.astype("<i8", copy=False).tobytes())
        self.digest = digest.hexdigest()

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        """Return the numbers of a list (M,), distinct and ascending."""
        return self._lists[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names, in order."""
        return iter(self._lists)

    def __len__(self) -> int:
        """Return the number of lists."""
        return len(self._lists)

    def __eq__(self, other: object) -> bool:
        """Whether both have the same numbers under the same names."""
        return isinstance(other, Parameters) and self.digest == other.digest

    def __hash__(self) -> int:
        """Return a hash of names and numbers."""
        return hash(self.digest)

    def __repr__(self) -> str:
        """Name the lists, with their lengths."""
        return f"Parameters({', '.join(f'{name}: {len(values)} numbers' for name, values in self._lists.items())})"

    @classmethod
    def of(cls, lists: Mapping[str, ArrayLike] | None) -> Parameters | None:
        """Return the parameters of a query as its caller gives them; None for none."""
        return lists if lists is None or isinstance(lists, Parameters) else cls(lists)


def check_named(filter: str | None, parameters: Parameters | None) -> None:
    """Raise ValueError if there are lists but no filter that could name them."""
    if parameters is not None and filter is None:
        raise ValueError("`parameters` are named by `filter`, got none: write `id in :name` or `id not in :name`")


def _check_name(name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ValueError(f"`parameters` must be named by words of at most 64 of a-z, A-Z, 0-9 and _, got {name!r}")
    return name


def _as_list(name: str, values: ArrayLike) -> NDArray[np.int64]:
    numbers = np.asarray(values)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        kind = f"{numbers.dtype} of shape {numbers.shape}"
        raise TypeError(f"`parameters.{name}` must be a list of whole numbers within 64 bits, got {kind}")
    if numbers.dtype.kind == "u" and numbers.size and numbers.max() > np.iinfo(np.int64).max:
        raise ValueError(f"`parameters.{name}` must have numbers below 2**63, got {numbers.max()}")
    distinct_M = numbers.astype(np.int64)  # a copy
    if (distinct_M[1:] <= distinct_M[:-1]).any():
        distinct_M = np.unique(distinct_M)
    distinct_M.setflags(write=False)
    return distinct_M
