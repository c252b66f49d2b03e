"""The same numbers for the same image, whatever stands beside it in the batch and however many threads there are.

Floating point sums depend on their order, and libraries choose the order by shape and thread count. Measured with
torch 2.13 (oneDNN convolutions, MKL products) on a 2-core Xeon with AVX-512, images shuffled through the batch:

- at one fixed batch shape and one thread, an image's outputs are bitwise the same at every position and beside
  any neighbours (small-cnn, resnet18, mobilenet_v3_small, efficientnet_b0, vit_b_16);
- from one thread to two, every image's outputs change in the last digits in small-cnn, mobilenet_v3_small and
  efficientnet_b0: the products are split differently.

So the model always runs one fixed shape, padded, on one thread, and several cores are used by running several
batches side by side.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

# torch's thread count is one number for the process (MKL's part of it), so one caller at a time may change it.
_one_thread_lock = threading.Lock()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[int]:
    """Run torch on one thread an operation, and say how many operations may run side by side."""
    with _one_thread_lock:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield num_threads
        finally:
            torch.set_num_threads(num_threads)


def run_batches(run: Callable[[int], None], num_batches: int) -> None:
    """Call `run(0)` to `run(num_batches - 1)`, each on one thread, as many at once as torch has threads.

    The first exception ends the work and is raised.
    """
    with _one_thread_each() as num_threads:
        if min(num_threads, num_batches) <= 1:
            for index in range(num_batches):
                run(index)
            return
        # OpenMP's part of the thread count belongs to each thread, hence the initializer.
        with ThreadPoolExecutor(num_threads, "encode", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = [pool.submit(run, index) for index in range(num_batches)]
            try:
                for future in futures:
                    future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
