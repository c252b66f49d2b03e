"""What does a histogram of distances cost, beside a scan of the same codes? Every histogram is checked.

python -m benchmarks.distances --rows 10000000
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from hashlight.engine.indexes.histogram import Countable, count_by_distance
from hashlight.engine.indexes.masks import RowMask
from hashlight.engine.indexes.scan import ScanIndex

ROUNDS = 15


def measure(ask) -> float:
    """Return the processor seconds of this thread, which other programs on the machine change little."""
    start = time.thread_time()
    ask()
    return time.thread_time() - start


def check(counts, queries, codes) -> None:
    distances = np.bitwise_count(codes ^ queries[0]).sum(axis=1, dtype=np.int64)
    assert (counts[0] == np.bincount(distances, minlength=counts.shape[1])).all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, default=10_000_000, help="64-bit codes; of longer ones fewer, as many bytes"
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[64, 256])
    options = parser.parse_args()
    print(f"uniform codes, {8 * options.rows / 1e6:,.0f} MB, one thread, medians of {ROUNDS} pairs, processor time\n")
    print("| bits | codes | queries | scan, radius 8, ms | histogram, ms | ratio | 10 % deleted, ratio |")
    print("|---|---|---|---|---|---|---|")
    for bits in options.bits:
        rng = np.random.default_rng(0)
        rows = options.rows * 64 // bits
        codes = rng.integers(2**64, size=(rows, bits // 64), dtype=np.uint64)
        scan = ScanIndex(codes_NW=codes, ids_N=np.arange(rows), bits=bits)
        whole = [Countable(codes, scan.ids_N, None)]
        alive = [Countable(codes, scan.ids_N, RowMask.of(rng.random(rows) >= 0.1))]
        for count in (1, 16):
            queries = codes[:count].copy()
            check(count_by_distance(whole, queries, bits=bits, threads=1), queries, codes)
            asks = [
                lambda queries=queries, scan=scan: scan.range_search(queries, 8, threads=1),
                lambda queries=queries, whole=whole, bits=bits: count_by_distance(whole, queries, bits=bits, threads=1),
                lambda queries=queries, alive=alive, bits=bits: count_by_distance(alive, queries, bits=bits, threads=1),
            ]
            times = np.array([[measure(ask) for ask in asks] for _ in range(ROUNDS + 1)][1:])
            scanned, counted, _ = 1e3 * np.median(times, axis=0)
            ratio, deleted = (statistics.median(times[:, which] / times[:, 0]) for which in (1, 2))
            print(f"| {bits} | {rows:,} | {count} | {scanned:.2f} | {counted:.2f} | {ratio:.2f} | {deleted:.2f} |")


if __name__ == "__main__":
    main()
