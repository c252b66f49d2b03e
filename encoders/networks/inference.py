"""Inference whose numbers depend on neither the rest of the batch nor the number of threads.

Floating point sums depend on their order, and libraries choose the order by shape and thread count. Measured with
torch 2.13 (oneDNN convolutions, MKL products) on a 2-core Xeon with AVX-512, images shuffled through the batch:

- at one fixed batch shape and one thread, an image's outputs are bitwise the same at every position and with any
  neighbours (small-cnn, resnet18, mobilenet_v3_small, efficientnet_b0, vit_b_16);
- with two threads instead of one, the last digits of every image's outputs change in small-cnn, mobilenet_v3_small
  and efficientnet_b0, because products are split differently.

So the model always runs at one fixed shape, padded, on one thread; several cores run several batches in parallel.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

# torch's thread count (for MKL) is global to the process, so only one caller at a time may change it.
_one_thread_lock = threading.Lock()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[int]:
    """Run each torch operation on one thread; yields how many operations may run in parallel."""
    with _one_thread_lock:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield num_threads
        finally:
            torch.set_num_threads(num_threads)


def run_batches(run: Callable[[int], None], num_batches: int) -> None:
    """Call `run(0)` to `run(num_batches - 1)`, each on one thread, as many in parallel as torch has threads.

    Stops at the first exception and raises it.
    """
    with _one_thread_each() as num_threads:
        if min(num_threads, num_batches) <= 1:
            for index in range(num_batches):
                run(index)
            return
        # OpenMP's thread count is a setting of each thread, hence the initializer.
        with ThreadPoolExecutor(num_threads, "encode", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = [pool.submit(run, index) for index in range(num_batches)]
            try:
                for future in futures:
                    future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
