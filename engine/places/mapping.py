"""How the kernel should read memory-mapped files."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray


def read_at_random(array: NDArray[np.generic]) -> None:
    """Advise the kernel that a memory map will be read at random; has no effect on an array in memory.

    By default a page fault also reads up to 128 KiB of neighbours, but probes of a table need one page each. On a
    billion codes, larger than memory, the neighbours evicted needed pages, and a warm query took 15 ms instead of
    under one.
    """
    backing = getattr(array, "_mmap", None)
    if backing is not None:
        backing.madvise(mmap.MADV_RANDOM)
