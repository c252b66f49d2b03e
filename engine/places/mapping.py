"""How the kernel should read memory-mapped files."""

from __future__ import annotations

import mmap

import numpy as np
from numpy.typing import NDArray


def read_at_random(array: NDArray[np.generic]) -> None:
    """Tell the kernel that a memory map will be read here and there; an array in memory is left as it is.

    By default every page that is missing brings its neighbours, up to 128 KiB. Probes of a table want one page each;
    measured on a billion codes, larger than memory, the neighbours drove out what was needed and a warm query took 15
    ms instead of under one.
    """
    backing = getattr(array, "_mmap", None)
    if backing is not None:
        backing.madvise(mmap.MADV_RANDOM)
