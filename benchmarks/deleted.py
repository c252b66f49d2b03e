"""What do deleted rows cost a search? Tables and scans over the same codes, none and a share of them deleted.

python -m benchmarks.deleted --rows 5000000 --share 0.2
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from hashlight.engine.indexes.masks import RowMask
from hashlight.engine.indexes.multi_index.index import MultiIndex

ROUNDS = 15


def measure(ask) -> float:
    start = time.perf_counter()
    ask()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--bits", type=int, nargs="+", default=[64, 256])
    options = parser.parse_args()
    print(f"{options.rows:,} uniform codes, {options.share:.0%} deleted, one thread, medians of {ROUNDS} pairs\n")
    print("| bits | search | none deleted, ms | deleted, ms | ratio |\n|---|---|---|---|---|")
    for bits in options.bits:
        rng = np.random.default_rng(0)
        codes = rng.integers(2**64, size=(options.rows, bits // 64), dtype=np.uint64)
        index = MultiIndex.build(codes, np.arange(options.rows), bits=bits)
        alive = RowMask.of(rng.random(options.rows) >= options.share)
        distinct = codes[rng.integers(options.rows, size=2000)] ^ np.uint64(1)
        for name, count, ask in (
            ("radius 4, tables, 1,000 single queries", 1000, within(index, 4, "tables")),
            ("k 10, tables, 300 single queries", 300, nearest(index, "tables" if bits == 64 else "auto")),
            ("radius 4, scan, one query", 1, within(index, 4, "scan")),
            ("radius 4, scan, a batch of 2", 2, within(index, 4, "scan", batch=2)),
            ("radius 4, scan, a batch of 64", 64, within(index, 4, "scan", batch=64)),
            ("k 10, scan, one query", 1, nearest(index, "scan")),
            ("k 10, scan, a batch of 64", 64, nearest(index, "scan", batch=64)),
        ):
            times: dict[str, list[float]] = {"none": [], "deleted": []}
            for round_ in range(ROUNDS + 1):
                queries = distinct[(round_ * 61) % 900 :][:count].copy()
                for which, mask in (("none", None), ("deleted", alive)):
                    seconds = measure(lambda queries=queries, mask=mask, ask=ask: ask(queries, mask))
                    if round_:
                        times[which].append(seconds)
            none, deleted = (1e3 * statistics.median(times[which]) for which in ("none", "deleted"))
            ratio = statistics.median(b / a for a, b in zip(times["none"], times["deleted"], strict=True))
            print(f"| {bits} | {name} | {none:.2f} | {deleted:.2f} | {ratio:.2f} |", flush=True)


def within(index, radius, plan, batch=1):
    def ask(queries, mask):
        for start in range(0, len(queries), batch):
            part = queries[start : start + batch]
            index.range_search(part, radius, threads=1, plan=plan, mask=mask)

    return ask


def nearest(index, plan, batch=1):
    def ask(queries, mask):
        for start in range(0, len(queries), batch):
            index.search(queries[start : start + batch], 10, threads=1, plan=plan, mask=mask)

    return ask


if __name__ == "__main__":
    main()
