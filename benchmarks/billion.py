"""A billion 64-bit codes on one small machine: build, open and query a collection of 16 shards on disk.

    python benchmarks/billion.py --folder /a/disk/with/45/GB --out benchmarks/results/billion_NAME_DATE

The codes are uniform, with neighbours planted at known distances from 1,000 queries, each in one shard. Every answer is
checked to contain the planted ones; a few queries are checked against all codes, read from the files by numpy. Queries
run one at a time on one thread: *cold*, after the files were dropped from the page cache; *warm*, the same queries
again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.storage.shard import write_shard

BYTES_A_CODE = 40  # codes 8, ids 8, rows by id 4, tables about 17, and room for files being written
QUERIES = 1000
PLANTED_DISTANCES = (0, 1, 2, 3, 4, 6, 8)
RADII = (2, 4, 6, 8)
KS = (1, 10, 100)
CHECKED_AGAINST_ALL = 3
QUERIES_MEASURED = {"radius": 200, "knn": 20}


def make_queries() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2**64, (QUERIES, 1), np.uint64)


def planted(query: int) -> list[np.uint64]:
    """Return the bit masks between a query and its planted neighbours, one for each distance."""
    rng = np.random.default_rng(10_000 + query)
    return [
        np.bitwise_or.reduce(
            np.uint64(1) << rng.choice(64, distance, replace=False).astype(np.uint64), initial=np.uint64(0)
        )
        for distance in PLANTED_DISTANCES
    ]


def make_shard(shard: int, shards: int, rows: int, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return codes (rows, 1) and ids of one shard; the planted codes are in its first rows."""
    codes = np.random.default_rng(1000 + shard).integers(0, 2**64, (rows, 1), np.uint64)
    row = 0
    for query in range(shard, QUERIES, shards):
        for mask in planted(query):
            codes[row] = queries[query] ^ mask
            row += 1
    return codes, np.arange(shard * rows, (shard + 1) * rows)


def fitting(wanted: int, folder: Path) -> int:
    """Scale down, with a message, if the disk is too small."""
    free = shutil.disk_usage(folder).free
    fits = int(free * 0.95) // BYTES_A_CODE
    if fits >= wanted:
        return wanted
    needed = wanted * BYTES_A_CODE
    print(f"{wanted:,} codes need {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free: taking {fits:,} codes")
    return fits


def build(path: Path, codes: int, shards: int) -> dict:
    queries, rows = make_queries(), codes // shards
    seconds = {"make codes": 0.0, "write shards and tables": 0.0}
    with Transaction(path, fresh=Fresh(bits=64, encoder=None)) as writer:
        for shard in range(shards):
            start = time.perf_counter()
            shard_codes, ids = make_shard(shard, shards, rows, queries)
            middle = time.perf_counter()
            with writer.new_shard() as folder:
                spec = write_shard(folder, shard_codes, ids, None, bits=64)
            writer.check_shard(spec)
            writer.adopt([spec])
            seconds["make codes"] += middle - start
            seconds["write shards and tables"] += time.perf_counter() - middle
            print(f"shard {shard + 1} of {shards}: {time.perf_counter() - middle:.1f} s", flush=True)
        writer.commit()
    files: dict[str, int] = {}
    for file in path.glob("shards/*/**/*"):
        if file.is_file():
            files[file.name] = files.get(file.name, 0) + file.stat().st_size
    return {"codes": rows * shards, "shards": shards, "seconds": seconds, "bytes": files, "peak_rss_bytes": peak_rss()}


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory() -> dict[str, int]:
    """Return resident bytes: private ones, and those mapped from files (page cache that the kernel can reclaim)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")}


def drop_from_cache(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def ask(collection: Collection, operation: str, value: int, query: np.ndarray):
    if operation == "radius":
        return collection.range_search(query, value, threads=1)
    return collection.search(query, value, threads=1)


def one_pass(collection: Collection, operation: str, value: int, queries: np.ndarray) -> dict:
    times = []
    for number in range(QUERIES_MEASURED[operation]):
        start = time.perf_counter()
        answer = ask(collection, operation, value, queries[number : number + 1])
        times.append(time.perf_counter() - start)
        check_planted(collection, number, answer, value if operation == "radius" else int(answer.distances[0, -1]) - 1)
    ordered = sorted(times)
    return {
        "queries": len(times),
        "p50_ms": 1e3 * statistics.median(times),
        "p99_ms": 1e3 * ordered[int(0.99 * (len(ordered) - 1))],
    }


def check_planted(collection: Collection, number: int, answer, radius: int) -> None:
    """Check that every planted code within `radius` is in the answer; it may contain uniform codes as well."""
    shards = len(collection.shards)
    first_row = number // shards * len(PLANTED_DISTANCES)
    first_id = number % shards * (len(collection) // shards) + first_row
    expected = {(distance, first_id + n) for n, distance in enumerate(PLANTED_DISTANCES) if distance <= radius}
    found = set(zip(answer.distances.reshape(-1).tolist(), answer.ids.reshape(-1).tolist(), strict=True))
    assert expected <= found, (number, radius, expected - found)


def query(path: Path, results: Path) -> None:
    """In a fresh process: open, then run each operation cold and warm, skipping those that already have results."""
    document = json.loads(results.read_bytes())
    queries = make_queries()
    Collection.open(path).range_search(queries[:1] ^ np.uint64(2**63), 8, threads=1)  # compiled kernels are loaded
    ask(Collection.open(path), "knn", 10, queries[-1:])
    start = time.perf_counter()
    collection = Collection.open(path)
    result = document.setdefault("query", {"cells": []})
    result["open_ms"] = 1e3 * (time.perf_counter() - start)
    done = {(cell["operation"], cell["value"]) for cell in result["cells"]}
    for operation, values in (("radius", RADII), ("knn", KS)):
        for value in values:
            if (operation, value) in done:
                continue
            del collection  # its maps keep the pages resident
            drop_from_cache(path)
            collection = Collection.open(path)
            cold = one_pass(collection, operation, value, queries)
            warm = one_pass(collection, operation, value, queries)
            result["cells"].append({"operation": operation, "value": value, "cold": cold, "warm": warm})
            print(operation, value, "cold", cold, "warm", warm, flush=True)
            result["memory"] = memory()
            result["peak_rss_bytes"] = max(peak_rss(), result.get("peak_rss_bytes", 0))
            results.write_text(json.dumps(document, indent=1))
    check_against_all(collection, queries)


def check_against_all(collection: Collection, queries: np.ndarray) -> None:
    """Read every code of every shard and compare radius and kNN answers."""
    for number in range(CHECKED_AGAINST_ALL):
        query = queries[number : number + 1]
        nearest = collection.search(query, 10)
        farthest = max(8, int(nearest.distances[0, -1]))
        pairs: list[tuple[int, int]] = []
        for shard in collection.shards:
            for start in range(0, shard.rows, 1 << 24):
                distance = np.bitwise_count(shard.codes_NW[start : start + (1 << 24), 0] ^ query[0, 0])
                near = np.flatnonzero(distance <= farthest)
                pairs += zip(distance[near].tolist(), shard.ids_N[start + near].tolist(), strict=True)
        pairs.sort()
        within = collection.range_search(query, 8)
        assert [pair for pair in pairs if pair[0] <= 8] == list(
            zip(within.distances.tolist(), within.ids.tolist(), strict=True)
        )
        assert pairs[:10] == list(zip(nearest.distances[0].tolist(), nearest.ids[0].tolist(), strict=True))
    print(f"{CHECKED_AGAINST_ALL} queries equal a comparison with all codes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--codes", type=float, default=1e9)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--query", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    path, results = options.folder / "collection", options.out.with_suffix(".json")
    if options.query:
        query(path, results)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    codes = fitting(int(options.codes), options.folder)
    results.write_text(json.dumps({"build": build(path, codes, options.shards)}, indent=1))
    subprocess.run([sys.executable, *sys.argv, "--query"], check=True)
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
