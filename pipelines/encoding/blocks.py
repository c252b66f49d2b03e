"""Which units an actor encodes one after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Ray schedules blocks of units; a larger job has larger blocks rather than more of them.
_MAX_BLOCKS = 10_000


def cut_into_blocks(units: NDArray[np.int64], groups: NDArray[np.int64], shares: int) -> list[NDArray[np.int64]]:
    """Divide units among blocks, each of which one actor encodes in order.

    Units of one group stay together, so that the group is read once, unless actors would have nothing to do: then the
    longest blocks are halved, and a group is read once for each of its blocks, up to where that ends.

    Parameters
    ----------
    units : ndarray of int64, shape (N,)
        The units that are left, N > 0.
    groups : ndarray of int64, shape (N,)
        What they are read from: equal numbers mean one group, 0 means none.
    shares : int
        How many blocks there must be at least, if there are so many units.
    """
    keys = np.where(groups == 0, -1 - np.arange(len(units)), groups)
    _, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
    place = firsts[inverse]
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    starts = starts[:: -(-len(starts) // _MAX_BLOCKS)]
    blocks = np.split(units[order], starts[1:])
    while len(blocks) < min(shares, len(units)):
        longest = max(range(len(blocks)), key=lambda block: len(blocks[block]))
        blocks[longest : longest + 1] = np.array_split(blocks[longest], 2)
    return blocks
