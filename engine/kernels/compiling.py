"""How kernels are compiled: on first use, to run without the GIL, and cached on disk.

The cache folder's name contains a hash of all kernel sources, wherever the folder is, because numba checks only the
file of the function it loads, not the files of functions inlined into it. numba itself recompiles for another CPU or
another version of numba.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import platformdirs


@cache
def kernels_digest() -> str:
    """Return a short hash of all kernel sources: kernels are in this folder alone, and inline nothing else."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()[:12]


@cache
def cache_folder() -> Path:
    """Return the folder of the kernels of these sources, in `NUMBA_CACHE_DIR` or else in the user's cache folder."""
    parent = os.environ.get("NUMBA_CACHE_DIR") or platformdirs.user_cache_dir("hashlight")
    return Path(parent) / f"numba-{kernels_digest()}"


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` on its first call, without reference counts, and keep the result on disk.

    A kernel allocates nothing, so numba need not count references (`_nrt=False`). Counting costs two atomic additions
    for each array passed to a small function: measured, 80 ns instead of 1 for two loads and a few shifts.

    numba reads its cache folder setting while it decorates a function, so the setting is changed only for that
    moment: other users of numba in this process keep theirs.
    """
    return _compiled(function)


def inlined_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` like `kernel`, into its callers.

    For steps of a kernel that take named tuples: a call copies every pointer, length and stride in them.
    """
    return _compiled(function, forceinline=True)


def _compiled(function: Callable[..., Any], **options: bool) -> Callable[..., Any]:
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(cache_folder())
    try:
        compiled: Callable[..., Any] = numba.njit(nogil=True, cache=True, _nrt=False, **options)(function)
    finally:
        numba.config.CACHE_DIR = before
    return compiled
