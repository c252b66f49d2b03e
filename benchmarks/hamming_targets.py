"""One process, one thread: this engine's scan and multi-index against FAISS's on uniform codes, every answer checked.

    python -m benchmarks.hamming_targets [--rows 10000000] [--json FILE]

Prints one line for each target: both medians, their ratio and the target ratio. Both sides get the same batches; the
near queries are 3 bits from a stored code. Times are CPU times of this process, because other programs may share its
cores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np

from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.multi_index.planner import current_costs
from hashlight.engine.indexes.scan import ScanIndex
from hashlight.engine.indexes.warmup import warm

BATCH = 64
HASHES = {3: 21, 4: 16}  # nhash: bits of each, for IndexBinaryMultiHash


@dataclass(slots=True)
class Line:
    what: str
    peer_us: float
    ours_us: float
    wanted: float

    @property
    def ratio(self) -> float:
        return self.peer_us / self.ours_us

    def __str__(self) -> str:
        verdict = "ok" if self.ratio >= self.wanted else "BELOW"
        numbers = f"{self.peer_us:14,.1f} us {self.ours_us:12,.1f} us {self.ratio:9,.1f}x, wanted {self.wanted:7,.0f}x"
        return f"{self.what:46} {numbers}  {verdict}"


def median_us(run: Callable[[], object], queries: int, seconds: float = 3.0) -> float:
    """Return the median CPU time per query over 3 to 15 runs after a warm-up."""
    run()
    times: list[float] = []
    until = time.monotonic() + seconds
    while len(times) < 3 or (len(times) < 15 and time.monotonic() < until):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return float(np.median(times)) / queries * 1e6


def random_codes(rng: np.random.Generator, rows: int, bits: int) -> np.ndarray:
    return rng.integers(2**64, size=(rows, bits // 64), dtype=np.uint64)


def near_queries(rng: np.random.Generator, codes: np.ndarray, queries: int) -> np.ndarray:
    near = codes[rng.integers(len(codes), size=queries)].copy()
    bits = np.argsort(rng.random((queries, 64)), axis=1)[:, :3].astype(np.uint64)
    near[:, 0] ^= (np.uint64(1) << bits).sum(axis=1, dtype=np.uint64)
    return near


def check_range(peer, ours) -> None:
    """FAISS's answers are unordered, so compare distances and rows query by query."""
    np.testing.assert_array_equal(peer[0].astype(np.int64), ours.lims)
    for begin, end in zip(ours.lims, ours.lims[1:], strict=False):
        expected = sorted(zip(peer[1][begin:end].astype(int), peer[2][begin:end], strict=True))
        assert expected == list(zip(ours.distances[begin:end], ours.ids[begin:end], strict=True))


def scan_lines(rng: np.random.Generator, rows: int, bits: int, radius: int) -> list[Line]:
    codes = random_codes(rng, rows, bits)
    flat = faiss.IndexBinaryFlat(bits)
    flat.add(codes.view(np.uint8))
    scan = ScanIndex(codes_NW=codes, ids_N=np.arange(rows), bits=bits)
    lines = []
    for queries, wanted in ((BATCH, 5.0 if bits == 64 else 3.0), (1, 2.0 if bits == 64 else 0.8)):
        query = near_queries(rng, codes, queries)
        packed = query.view(np.uint8)
        check_range(flat.range_search(packed, radius + 1), scan.range_search(query, radius))
        np.testing.assert_array_equal(flat.search(packed, 10)[0], scan.search(query, 10).distances)
        peer = median_us(lambda p=packed: flat.range_search(p, radius + 1), queries)
        ours = median_us(lambda q=query: scan.range_search(q, radius, threads=1), queries)
        lines.append(Line(f"scan, {bits} bits, radius {radius}, batch {queries}, Flat", peer, ours, wanted))
        peer = median_us(lambda p=packed: flat.search(p, 10), queries)
        ours = median_us(lambda q=query: scan.search(q, 10, threads=1), queries)
        lines.append(Line(f"scan, {bits} bits, k 10, batch {queries}, Flat", peer, ours, wanted))
    return lines


def table_lines(rng: np.random.Generator, rows: int) -> list[Line]:
    codes = random_codes(rng, rows, 64)
    ids = np.arange(rows)
    build = median_us(lambda: MultiIndex.build(codes, ids, bits=64, threads=1), 1)
    index = MultiIndex.build(codes, ids, bits=64)
    per_code = (index.tables.nbytes + index.codes_NW.nbytes) / rows
    print(f"{index!r}: {per_code:.2f} bytes a code, ids aside (wanted at most 28)")
    query = near_queries(rng, codes, BATCH)
    packed = query.view(np.uint8)
    flat = faiss.IndexBinaryFlat(64)
    flat.add(codes.view(np.uint8))
    lines = []
    ours = {}
    for radius, wanted in ((4, 1000.0), (8, 80.0), (12, 7.0)):
        check_range(flat.range_search(packed, radius + 1), index.range_search(query, radius))
        ours[radius] = median_us(lambda r=radius: index.range_search(query, r, threads=1), BATCH)
        peer = median_us(lambda r=radius: flat.range_search(packed, r + 1), BATCH)
        lines.append(Line(f"tables, radius {radius}, batch {BATCH}, Flat", peer, ours[radius], wanted))
    for k, wanted in ((1, 500.0), (10, 10.0)):
        np.testing.assert_array_equal(flat.search(packed, k)[0], index.search(query, k).distances)
        peer = median_us(lambda k=k: flat.search(packed, k), BATCH)
        mine = median_us(lambda k=k: index.search(query, k, threads=1), BATCH)
        lines.append(Line(f"tables, k {k}, batch {BATCH}, Flat", peer, mine, wanted))
        peer = median_us(lambda k=k: flat.search(packed[:1], k), 1)
        mine = median_us(lambda k=k: [index.search(query[n : n + 1], k) for n in range(BATCH)], BATCH)
        lines.append(Line(f"tables, k {k}, batch 1, Flat", peer, mine, wanted))
    return lines + multi_hash_lines(codes, packed, ours, build)


def multi_hash_lines(codes: np.ndarray, packed: np.ndarray, ours: dict[int, float], build_us: float) -> list[Line]:
    best = dict.fromkeys(ours, np.inf)
    build = np.inf
    for nhash, bits in HASHES.items():
        start = time.process_time()
        peer = faiss.IndexBinaryMultiHash(64, nhash, bits)
        peer.add(codes.view(np.uint8))
        if nhash == min(HASHES):  # the setting that is best at most radii
            build = (time.process_time() - start) * 1e6
        for radius in ours:
            peer.nflip = radius // nhash
            few = packed[: BATCH if radius < 8 else 8 if radius < 12 else 2]
            best[radius] = min(
                best[radius], median_us(lambda p=peer, r=radius, f=few: p.range_search(f, r + 1), len(few))
            )
        del peer
    wanted = {4: 40.0, 8: 25.0, 12: 100.0}
    lines = [Line(f"tables, radius {r}, best MultiHash", best[r], ours[r], wanted[r]) for r in ours]
    return [*lines, Line("build, sorting included, MultiHash of 3", build, build_us, 10.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warm()
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    print(f"faiss {faiss.__version__}, {options.rows:,} codes, {current_costs(options.rows)}")
    lines = []
    for bits, radius in ((64, 8), (256, 60)):
        lines += scan_lines(rng, options.rows, bits, radius)
    lines += table_lines(rng, options.rows)
    print(*lines, sep="\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(line) | {"ratio": line.ratio} for line in lines], indent=1) + "\n")


if __name__ == "__main__":
    main()
