"""Several batches at once, each on one thread, so that numbers do not depend on how many threads there are."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def usable_threads() -> int:
    """Return how many threads may compute: `OMP_NUM_THREADS`, which Ray sets for its actors, or one per core."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) else len(os.sched_getaffinity(0))


def run_batches(
    run: Callable[[int], None], num_batches: int, num_threads: int, *, prepare: Callable[[], object] | None = None
) -> None:
    """Call `run(0)` to `run(num_batches - 1)`, as many at once as there are threads.

    Stops at the first exception and raises it.

    Parameters
    ----------
    run : callable
    num_batches, num_threads : int
    prepare : callable, optional
        Called in each thread, if there are several, before its first batch.
    """
    if min(num_threads, num_batches) <= 1:
        for index in range(num_batches):
            run(index)
        return
    with ThreadPoolExecutor(num_threads, "encode", initializer=prepare) as pool:
        futures = [pool.submit(run, index) for index in range(num_batches)]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
