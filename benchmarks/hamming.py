"""Hamming search against its peers: one process a peer, one thread, every answer checked.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.hamming --out benchmarks/results/hamming_NAME_DATE

measures every data set of `DATA_SETS` and writes `.json`, `.md` and a plot. A peer has `--seconds` for the queries of a
data set; cells that it does not reach are left empty. Cells are medians over calls; a cell of batch 1 covers up to 100
queries. The answers to 32 queries in each cell are checked, or to 4 beyond a million rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import CORE, PEERS, Peer

NUM_QUERIES = 1024
QUERY_FLIPS = 3
CHECKED_QUERIES = 32
RADII = (0, 2, 4, 6, 8, 10, 12, 16)
KS = (1, 10, 100)
BATCHES = (1, 64, 1024)
CELL_SECONDS = 0.2
LONGEST_CALL_S = 4.0  # a batch that would take longer is skipped; its cell repeats that of a smaller one, marked
MIN_CALLS = 3

# kind, bits, rows, peers
DATA_SETS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("learned", 64, 0, tuple(PEERS)),
    ("clustered", 64, 1_000_000, (*CORE, "usearch exact", "pynear mih")),
    ("learned", 128, 0, CORE),
    ("learned", 256, 0, CORE),
    ("clustered", 128, 1_000_000, CORE),
    ("clustered", 256, 1_000_000, CORE),
    ("uniform", 64, 1_000_000, tuple(PEERS)),
    ("uniform", 64, 10_000_000, (*CORE, "usearch exact", "pynear mih")),
    ("clustered", 64, 10_000_000, CORE),
    ("uniform", 128, 10_000_000, CORE[:4]),
    ("uniform", 256, 10_000_000, CORE[:4]),
    ("uniform", 64, 100_000_000, CORE[:3]),
)


def uniform(rng, rows, bits):
    return rng.integers(0, 256, (rows, bits // 8), np.uint8)


def clustered(rng, rows, bits, centres=4000, share=0.06):
    """A few thousand clusters of uneven size; each bit of a code differs from its centre with probability `share`."""
    weights = rng.pareto(1.2, centres) + 0.05
    centre = rng.integers(0, 256, (centres, bits // 8), np.uint8)[rng.choice(centres, rows, p=weights / weights.sum())]
    for start in range(0, rows, 1_000_000):
        part = centre[start : start + 1_000_000]
        part ^= np.packbits(rng.random((len(part), bits)) < share, axis=1, bitorder="little")
    return centre


def make_data(kind: str, bits: int, rows: int, folder: Path, learned: Path | None) -> int:
    """Write `codes.npy` and `queries.npy`: stored codes with three bits flipped (learned: codes of other images)."""
    rng = np.random.default_rng(bits + rows)
    if kind == "learned":
        assert learned is not None, "`--learned` names the folder"
        codes, queries = (np.load(learned / f"{name}-{bits}.npy") for name in ("database", "queries"))
        queries = queries[rng.permutation(len(queries))[:NUM_QUERIES]]
    else:
        codes = {"uniform": uniform, "clustered": clustered}[kind](rng, rows, bits)
        queries = codes[rng.choice(len(codes), NUM_QUERIES, replace=False)].copy()
        for _ in range(QUERY_FLIPS):
            bit = rng.integers(0, bits, NUM_QUERIES)
            queries[np.arange(NUM_QUERIES), bit // 8] ^= (1 << (bit % 8)).astype(np.uint8)
    np.save(folder / "codes.npy", codes)
    np.save(folder / "queries.npy", queries)
    return len(codes)


def distances_to_all(query_C: np.ndarray, codes_NC: np.ndarray) -> np.ndarray:
    """The oracle: (N,) uint16, by xor and numpy's own bit count."""
    words = codes_NC.view(np.uint64) ^ query_C.view(np.uint64)
    return np.bitwise_count(words).sum(axis=1, dtype=np.uint16)


def measure(peer_name: str, folder: Path, seconds: float) -> dict:
    """Runs in its own process: build, then measure every cell until the time is up."""
    codes, queries = np.load(folder / "codes.npy"), np.load(folder / "queries.npy")
    warm(peer_name, codes[:5000], queries)
    before = resident_bytes()
    start = time.perf_counter()
    peer = PEERS[peer_name](codes)
    result: dict[str, Any] = {"build_s": time.perf_counter() - start, "cells": [], "exact": PEERS[peer_name].exact}
    result["rows"] = len(codes)
    num_bytes = peer.num_bytes()
    result["bytes_a_code"] = None if num_bytes is None else num_bytes / len(codes)
    result["growth_bytes_a_code"] = (resident_bytes() - before) / len(codes)
    truth = Truth(codes, queries)
    deadline = time.perf_counter() + seconds
    for batch in BATCHES:
        for operation, values in (("radius", RADII), ("knn", KS)):
            for value in values:
                smaller = [cell for cell in result["cells"] if (cell["operation"], cell["value"]) == (operation, value)]
                if smaller and smaller[-1]["us_a_query"] * batch > 1e6 * LONGEST_CALL_S:
                    result["cells"].append({**smaller[-1], "batch": batch, "repeated": True})
                elif time.perf_counter() < deadline:
                    cell = measure_cell(peer, queries, operation, value, batch, truth)
                    if cell is not None:
                        result["cells"].append(cell)
    return result | measure_files(peer_name, peer, folder / "saved", queries)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_files(peer_name: str, peer: Peer, folder: Path, queries: np.ndarray) -> dict:
    """Save the peer, and time a fresh process from opening to first answer: mapped files are read lazily."""
    folder.mkdir()
    try:
        if not peer.save(folder):
            return {}
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        opened = [run_self("--open", peer_name, "--folder", str(folder.parent)) for _ in range(3)]
        return {"disk_bytes": size, "open_s": statistics.median(one["open_s"] for one in opened)}
    finally:
        shutil.rmtree(folder)


def open_peer(peer_name: str, folder: Path) -> dict:
    """Runs in its own process: open the saved files, once to warm up imports and once timed, and answer one query."""
    query = np.load(folder / "queries.npy")[:1]
    for _ in range(2):
        start = time.perf_counter()
        peer = PEERS[peer_name].open(folder / "saved")
        answer = peer.within(query, 0) or peer.nearest(query, 1)
        seconds = time.perf_counter() - start
    assert answer is not None
    return {"open_s": seconds}


def warm(peer_name: str, codes: np.ndarray, queries: np.ndarray) -> None:
    """Compile and import with a small index, so that neither counts as build time."""
    peer: Peer = PEERS[peer_name](codes)
    for batch in BATCHES:
        peer.within(queries[:batch], 2)
        peer.nearest(queries[:batch], 3)


def measure_cell(peer, queries, operation, value, batch, truth) -> dict | None:
    ask = peer.within if operation == "radius" else peer.nearest
    times: list[float] = []
    kept: list[Any] = []  # answers are checked after the last call: checking empties the caches
    stop = time.perf_counter() + CELL_SECONDS
    most = max(1, min(100, len(queries) // batch)) if batch < 1024 else 5
    for call in range(most):
        part = queries[call * batch % len(queries) :][:batch]
        start = time.perf_counter()
        answer = ask(part, value)
        times.append(time.perf_counter() - start)
        if answer is None:
            return None
        if len(kept) * batch < truth.checked:
            kept.append(answer)
        if time.perf_counter() > stop and (len(times) >= MIN_CALLS or times[0] > 3):
            break
    recalls = [
        truth.recall(operation, value, answer, call * batch, min(batch, truth.checked))
        for call, answer in enumerate(kept)
    ]
    return {
        "operation": operation, "value": value, "batch": batch, "calls": len(times),
        "us_a_query": 1e6 * statistics.median(times) / batch, "recall": statistics.mean(recalls),
    }  # fmt: skip


class Truth:
    """Return the recall of an answer; it is 1 only if the answer is complete and has nothing else."""

    def __init__(self, codes, queries) -> None:
        self.codes, self.queries = codes, queries
        self.checked = CHECKED_QUERIES if len(codes) <= 10**6 else 4
        self.rows: dict[int, np.ndarray] = {}

    def distances(self, query: int) -> np.ndarray:
        if query not in self.rows:
            self.rows[query] = distances_to_all(self.queries[query], self.codes)
        return self.rows[query]

    def recall(self, operation, value, answer, begin, num_queries) -> float:
        """Mean over the queries in `answer`, which start at number `begin`."""
        shares = []
        for query in range(num_queries):
            distance = self.distances(begin + query)
            if operation == "radius":
                lims, rows = answer
                expected = np.flatnonzero(distance <= value)
                got = np.asarray(rows)[int(lims[query]) : int(lims[query + 1])]
                assert (distance[got] <= value).all(), "an answer outside the radius"
                shares.append(1.0 if not len(expected) else len(np.intersect1d(expected, got)) / len(expected))
            else:
                k = min(value, len(distance))
                expected = np.sort(np.partition(distance, k - 1)[:k])
                rows = np.asarray(answer[0][query], np.int64)[:k]
                got = np.sort(distance[rows[(rows >= 0) & (rows < len(distance))]])
                # Ties may be broken differently; what counts is that no distance is larger.
                shares.append(float((got <= expected[-1]).sum()) / k)
        return float(np.mean(shares))


def run_peer(peer: str, folder: Path, seconds: float) -> dict:
    """Measure in a fresh process; if it fails, its message is recorded."""
    try:
        return run_self("--measure", peer, "--folder", str(folder), "--seconds", str(seconds))
    except subprocess.CalledProcessError as failure:
        return {"error": failure.stderr.strip().splitlines()[-1:] or [f"exit code {failure.returncode}"], "cells": []}


def run_self(*arguments: str) -> dict:
    """Run this script in its own process, on one thread, and return the last line it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LANCE_CPU_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.hamming", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=2400)
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict:
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name"))
    packages = {}
    for name in ("faiss-cpu", "numba", "numpy", "usearch", "pynear", "lancedb", "milvus-lite"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "packages": packages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=40, help="for the queries of one peer on one data set")
    parser.add_argument("--learned", type=Path, help="folder with database-BITS.npy and queries-BITS.npy")
    parser.add_argument("--only", help="measure the data sets whose names contain this")
    parser.add_argument("--peers", nargs="*", help="measure these again and keep the other results")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--open", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(open_peer(options.open, options.folder)))
        return
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder, options.seconds)))
        return
    path = options.out.with_suffix(".json")
    results = json.loads(path.read_bytes()) if path.is_file() else {"machine": machine(), "data_sets": {}}
    for kind, bits, rows, peers in DATA_SETS:
        name = f"{kind}, {bits} bits, {rows:,} rows" if rows else f"{kind}, {bits} bits"
        if (options.only and options.only not in name) or (kind == "learned" and options.learned is None):
            continue
        with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
            rows = make_data(kind, bits, rows, Path(folder), options.learned)
            measured = results["data_sets"].setdefault(name, {"kind": kind, "bits": bits, "rows": rows, "peers": {}})
            for peer in peers:
                if rows <= PEERS[peer].max_rows and (options.peers is None or peer in options.peers):
                    measured["peers"][peer] = run_peer(peer, Path(folder), options.seconds)
                    print(name, peer, measured["peers"][peer].get("error", "ok"), flush=True)
                    path.write_text(json.dumps(results, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
