"""One bounded pool of threads a process: however many requests come at once, no more kernels run than there are cores.

Kernels release the GIL. numba's own parallel loops are not used, because its default threading layer must not be
entered by several threads at once.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def usable_cores() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_threads(threads: object) -> int | None:
    """Return `threads` if it is None or a whole number of at least 1.

    Raises
    ------
    TypeError
        If it is something else.
    ValueError
        If it is below 1.
    """
    if threads is None:
        return None
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise TypeError(f"`threads` must be a whole number or None, got {threads!r} ({type(threads).__name__})")
    if threads < 1:
        raise ValueError(f"`threads` must be at least 1 or None, got {threads}")
    return threads


def cut(items: int, threads: int | None, *, least: int) -> list[slice]:
    """Cut `items` into at most `threads` parts (None: one a core) of at least `least` each; one part if there are few.

    Examples
    --------
    >>> cut(10, 2, least=2)
    [slice(0, 5, None), slice(5, 10, None)]
    >>> cut(3, 2, least=2)
    [slice(0, 3, None)]
    """
    if items < 2 * least or threads == 1:
        return [slice(0, items)]
    parts = min(threads or usable_cores(), items // least)
    edges = [items * part // parts for part in range(parts + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(edges)]


def no_larger(parts: list[slice], size: int) -> list[slice]:
    """Cut parts further, so that none exceeds `size`."""
    return [
        slice(begin, min(begin + size, part.stop))
        for part in parts
        for begin in range(part.start, max(part.stop, part.start + 1), size)
    ]


def run_parts(work: Callable[[slice], T], parts: list[slice]) -> list[T]:
    """Return `work(part)` of every part, in order; a single part runs in the calling thread.

    `work` must not call this function itself, or the pool could wait for itself.
    """
    if len(parts) == 1:
        return [work(parts[0])]
    return list(_shared_pool().map(work, parts))


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="hashlight-kernel")
        return _pool


def _forget_pool() -> None:
    """Drop the pool in a forked child, where its threads do not exist."""
    global _pool, _lock
    _pool = None
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
