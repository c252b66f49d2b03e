"""How many times faster than FAISS? Both in one process, on one thread, taking turns; medians of several turns.

    python benchmarks/hamming_ratios.py --rows 10000000 --out benchmarks/results/hamming_ratios_NAME_DATE.md

Queries are uniform for the scans, and stored codes with three bits flipped for the multi-index. The answers of both are
compared before anything is timed. `IndexBinaryMultiHash` is shown at the best of its numbers of tables.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np

from engine.indexes.multi import MultiIndex
from engine.indexes.scan import ScanIndex

TURNS = 5
SECONDS_A_TURN = 1.0
LINES: list[str] = []


def say(line: str) -> None:
    print(line, flush=True)
    LINES.append(line)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def timed(run: Callable[[], object]) -> float:
    """Seconds a call, over as many calls as fit a turn."""
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < SECONDS_A_TURN / 4:
        run()
        calls += 1
    return (time.perf_counter() - start) / calls


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], queries: int, wanted: float) -> None:
    """Take turns, and say both medians and the median of the ratios."""
    ours()
    pairs = [(timed(ours), timed(theirs)) for _ in range(TURNS)]
    our_us, their_us = (1e6 * statistics.median(times) / queries for times in zip(*pairs, strict=True))
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    say(f"| {name} | {their_us:,.1f} | {our_us:,.1f} | {ratio:,.1f} | {wanted:g} |")


def check_range(ours, theirs) -> None:
    lims, _, rows = theirs
    np.testing.assert_array_equal(lims.astype(np.int64), ours.lims)
    for begin, end in pairwise(lims):
        np.testing.assert_array_equal(np.sort(rows[begin:end]), np.sort(ours.ids[begin:end]))


def flipped(rng, codes: np.ndarray, queries: int, bits: int, flips: int = 3) -> np.ndarray:
    chosen = codes[rng.choice(len(codes), queries, replace=False)].copy()
    for query in range(queries):
        for bit in rng.choice(bits, flips, replace=False):
            chosen[query, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return chosen


def best_multi_hash(
    codes: np.ndarray, queries: np.ndarray, radii: list[int]
) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds a query at each radius, at the best number of tables, and seconds to build by number of tables."""
    best, build_s = dict.fromkeys(radii, float("inf")), {}
    for tables, width in ((3, 21), (4, 16)):
        index = faiss.IndexBinaryMultiHash(64, tables, width)
        start = time.perf_counter()
        index.add(codes.view(np.uint8))
        build_s[tables] = time.perf_counter() - start
        for radius in radii:
            best[radius] = min(best[radius], multi_hash_s(index, queries[: 64 if radius <= 8 else 4], radius))
    return best, build_s


def multi_hash_s(index, queries: np.ndarray, radius: int) -> float:
    index.nflip = radius // index.nhash
    run = partial(index.range_search, queries.view(np.uint8), radius + 1)
    return statistics.median(timed(run) for _ in range(3)) / len(queries)


def scans(rng, rows: int, bits: int) -> None:
    codes = rng.integers(0, 2**64, (rows, bits // 64), np.uint64)
    ours = ScanIndex.build(codes, np.arange(rows), bits=bits)
    theirs = faiss.IndexBinaryFlat(bits)
    theirs.add(codes.view(np.uint8))
    batch = rng.integers(0, 2**64, (64, bits // 64), np.uint64)
    radius = {64: 10, 256: 70}[bits]
    one, raw = batch[:1], batch.view(np.uint8)
    check_range(ours.range_search(batch, radius, threads=1), theirs.range_search(raw, radius + 1))
    np.testing.assert_array_equal(ours.search(batch, 10, threads=1).distances, theirs.search(raw, 10)[0])
    least = 5 if bits == 64 else 3
    compare(
        f"scan, {bits} bits, radius {radius}, batch of 64",
        lambda: ours.range_search(batch, radius, threads=1),
        lambda: theirs.range_search(raw, radius + 1),
        64,
        least,
    )
    compare(
        f"scan, {bits} bits, 10 nearest, batch of 64",
        lambda: ours.search(batch, 10, threads=1),
        lambda: theirs.search(raw, 10),
        64,
        least,
    )
    if bits == 64:
        compare(
            "scan, 64 bits, radius 10, one query",
            lambda: ours.range_search(one, radius, threads=1),
            lambda: theirs.range_search(raw[:1], radius + 1),
            1,
            2,
        )


def tables(rng, rows: int) -> None:
    codes = rng.integers(0, 2**64, (rows, 1), np.uint64)
    alone_s, build_s = (
        statistics.median(
            seconds(partial(MultiIndex.build, codes, np.arange(rows), bits=64, threads=threads)) for _ in range(3)
        )
        for threads in (1, None)
    )
    ours = MultiIndex.build(codes, np.arange(rows), bits=64)
    flat = faiss.IndexBinaryFlat(64)
    flat.add(codes.view(np.uint8))
    queries = flipped(rng, codes, 64, 64)
    raw = queries.view(np.uint8)
    radii = {4: (40, 1000), 8: (25, 80), 12: (100, 7)}
    for radius in radii:
        check_range(ours.range_search(queries, radius, threads=1), flat.range_search(raw, radius + 1))
    best, hash_build_s = best_multi_hash(codes, queries, list(radii))
    for radius, (over_hash, over_flat) in radii.items():
        within = partial(ours.range_search, queries, radius, threads=1)
        compare(
            f"multi-index against flat, radius {radius}, batch of 64",
            within,
            partial(flat.range_search, raw, radius + 1),
            64,
            over_flat,
        )
        our_s = statistics.median(timed(within) for _ in range(TURNS)) / 64
        name = f"multi-index against multi-hash, radius {radius}, batch of 64"
        say(f"| {name} | {1e6 * best[radius]:,.1f} | {1e6 * our_s:,.1f} | {best[radius] / our_s:,.1f} | {over_hash} |")
    for k, wanted in ((1, 500), (10, 10)):
        np.testing.assert_array_equal(ours.search(queries, k, threads=1).distances, flat.search(raw, k)[0])
        compare(
            f"multi-index against flat, {k} nearest, batch of 64",
            partial(ours.search, queries, k, threads=1),
            partial(flat.search, raw, k),
            64,
            wanted,
        )
    for name, our_build_s in (("one thread", alone_s), ("all cores", build_s)):
        for count, seconds in hash_build_s.items():
            label = f"build in s, sorting included, {name}; multi-hash of {count} tables"
            say(f"| {label} | {seconds:.1f} | {our_build_s:.2f} | {seconds / our_build_s:.1f} | 10 |")
    say(f"\nCodes and tables take {(ours.nbytes - ours.ids_N.nbytes) / rows:.1f} bytes a code (at most 28 wanted).")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    say(f"# Ratios to FAISS {faiss.__version__}, {options.rows:,} uniform codes\n")
    say(
        f"`python benchmarks/hamming_ratios.py --rows {options.rows}`, {time.strftime('%Y-%m-%d')}, "
        f"{model.split(':')[1].strip()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy "
        f"{np.__version__}. One thread each, medians of {TURNS} turns.\n"
    )
    say("| | FAISS, us a query | Hashlight, us a query | ratio | wanted |\n|---|---|---|---|---|")
    scans(rng, options.rows, 64)
    tables(rng, options.rows)
    scans(rng, options.rows, 256)
    if options.out:
        options.out.write_text("\n".join(LINES) + "\n")


if __name__ == "__main__":
    main()
