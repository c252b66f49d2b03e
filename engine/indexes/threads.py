"""Limits running kernels to the number of cores, however many requests arrive at once.

A process has one pool of threads and a slot for each core, which a thread holds while it computes.

Kernels release the GIL. numba's own parallel loops are not used, because its default threading layer must not be
entered by several threads at once.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hashlight.engine.indexes.stopping import NEVER, Stop, current, stoppable
from hashlight.engine.machine import cpu_limit

T = TypeVar("T")

MIN_QUERIES_PER_THREAD = 2  # the scan takes queries in pairs

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_slots: queue.SimpleQueue[int] | None = None
_held = threading.local()


def usable_cores() -> int:
    """Return the number of cores this process may use: those it may run on, and no more than its container is given.

    A container with a limit sees all cores of its machine, and is stopped for the rest of each tenth of a second in
    which its threads have used up their time.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _cpu_limit()
    return cores if limit is None else max(1, min(cores, math.ceil(limit)))


@functools.cache
def _cpu_limit() -> float | None:
    return cpu_limit()


def cut(items: int, threads: int | None, *, least: int) -> list[slice]:
    """Cut `items` into at most `threads` parts (None: one per core) of at least `least` items; few stay one part.

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
    """Cut parts further, so that none has more than `size` items."""
    if len(parts) == 1 and parts[0].stop <= size:
        return parts
    return [
        slice(begin, min(begin + size, part.stop))
        for part in parts
        for begin in range(part.start, max(part.stop, part.start + 1), size)
    ]


def run_parts(work: Callable[[slice], T], parts: list[slice]) -> list[T]:
    """Return `work(part)` for every part, in order.

    A single part runs in the calling thread, and so do all parts if that thread already runs one: were parts of parts
    to wait for threads of the pool, those that they are parts of could hold all of them.
    """
    stop = current()
    if len(parts) == 1 or getattr(_held, "slot", False):
        return [_in_slot(work, part, stop) for part in parts]
    return list(_shared_pool().map(lambda part: _in_slot(work, part, stop), parts))


def run_cut(
    work: Callable[[slice], T], items: int, threads: int | None, *, least: int = MIN_QUERIES_PER_THREAD, most: int
) -> list[T]:
    """Return `work(part)` for the parts that `cut` makes of `items`, none with more than `most` items, in order."""
    if items == 1:  # a visible part of a search that takes microseconds
        return [_in_slot(work, slice(0, 1), current())]
    return run_parts(work, no_larger(cut(items, threads, least=least), max(1, most)))


@contextlib.contextmanager
def in_background() -> Iterator[None]:
    """Run all parts in the calling thread, which takes no slot, so that no search waits for them."""
    before = getattr(_held, "slot", False)
    _held.slot = True
    try:
        yield
    finally:
        _held.slot = before


def run_aside(work: Callable[[slice], T], parts: list[slice]) -> list[T]:
    """Return `work(part)` for every part, in order, in threads of its own: for what reads files, which may take long.

    In the pool it would hold up searches, and searches that wait for it would hold up the pool.
    """
    if len(parts) == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(len(parts), thread_name_prefix="hashlight-files") as pool:
        return list(pool.map(work, parts))


def _in_slot(work: Callable[[slice], T], part: slice, stop: Stop) -> T:
    """Wait for a free slot and run; a thread that already holds one keeps it."""
    if getattr(_held, "slot", False):
        return _run(work, part, stop)
    slots = _free_slots()
    token = slots.get()
    _held.slot = True
    try:
        return _run(work, part, stop)
    finally:
        _held.slot = False
        slots.put(token)


def _run(work: Callable[[slice], T], part: slice, stop: Stop) -> T:
    if stop is NEVER:
        return work(part)
    with stoppable(stop):
        return work(part)


def _free_slots() -> queue.SimpleQueue[int]:
    global _slots
    if _slots is None:
        with _lock:
            if _slots is None:
                slots: queue.SimpleQueue[int] = queue.SimpleQueue()
                for core in range(usable_cores()):
                    slots.put(core)
                _slots = slots
    return _slots


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="hashlight-kernel")
        return _pool


def _forget_pool() -> None:
    """Drop the pool in a forked child, which has neither the pool's threads nor those that hold slots."""
    global _pool, _slots, _lock, _held
    _pool = _slots = None
    _held = threading.local()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
