"""Compiling every kernel before it is needed, by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np

from hashlight.engine.indexes.answers import nearest_of
from hashlight.engine.indexes.histogram import (
    Countable,
    LabelSets,
    count_by_distance,
    distance_histogram,
    graded_histogram,
)
from hashlight.engine.indexes.masks import RowMask
from hashlight.engine.indexes.multi_index.checking import find_wrong
from hashlight.engine.indexes.multi_index.index import MultiIndex, Plan
from hashlight.engine.indexes.multi_index.planner import calibrate, has_stored_costs
from hashlight.engine.kernels.arguments import Prices
from hashlight.engine.kernels.compiling import cache_folder
from hashlight.engine.kernels.components import find_roots, join_edges

log = logging.getLogger(__name__)


def warm(*, costs: bool = True) -> None:
    """Compile all kernels into the cache on disk, and measure this machine's costs if they are not known yet.

    Takes about twenty seconds on a new machine and a fraction of a second afterwards. Several processes may call it at
    once: one compiles, the others wait and load what it wrote.

    Parameters
    ----------
    costs : bool
        Whether to measure the costs that the planner uses.
    """
    folder = cache_folder()
    with _one_process_at_a_time(folder):
        done = folder / ".compiled"
        if not done.exists():
            log.info("compiling the search kernels, once on this machine: takes about twenty seconds")
        _run_every_kernel()
        with contextlib.suppress(OSError):  # where nothing can be kept, each process says it again
            done.touch()
        if costs and not has_stored_costs():
            calibrate()


def _run_every_kernel() -> None:
    """Run each kernel once: numba compiles by argument types, and each kernel is only called with one set of types."""
    codes_NW = np.arange(64, dtype=np.uint64).reshape(32, 2)
    codes_NW[1] = codes_NW[0]
    index = MultiIndex.build(codes_NW, np.arange(32), bits=128, threads=1)
    for plan in get_args(Plan):
        index.search(codes_NW[:3], 2, plan=plan, threads=1)
        for explain in (False, True):  # with explain, hits are separate arrays, sorted by other kernels
            index.range_search(codes_NW[:3], 2, plan=plan, threads=1, explain=explain)
    RowMask.of(np.zeros(32, np.bool_))
    found = index.search(codes_NW[:3], 2, threads=1)
    nearest_of(found, found)
    find_wrong(index.tables, index.codes_NW)
    labels = np.zeros(3, np.int64)
    distance_histogram(codes_NW[:3], codes_NW[:3], query_labels=labels, code_labels=labels, bits=128)
    count_by_distance([Countable(codes_NW, np.arange(32), None)], codes_NW[:3], bits=128, threads=1)
    several = LabelSets(np.arange(4), np.zeros(3, np.int64))
    graded_histogram(codes_NW[:3], codes_NW[:3], query_labels=several, code_labels=several, bits=128)
    nodes = np.arange(3)
    join_edges(nodes, np.zeros_like(nodes), nodes[:1], nodes[1:2])
    find_roots(nodes)
    index.probe.price_radius(codes_NW[:3], 2, Prices(1.0, 1.0, 1.0, 1.0, 1e9, 1.0))


@contextlib.contextmanager
def _one_process_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a lock in `folder`; no lock if the folder cannot be written, where nothing will be cached either."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".warm").open("w")
    except OSError as error:
        log.warning("compiled kernels cannot be kept in %s (%s)", folder, error)
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
