"""Batch search: queries a second over a whole collection, on Ray, from a file of codes to a file of answers.

    python -m benchmarks.batch_search --out benchmarks/results/batch_search_NAME_DATE

builds a collection of uniform 64-bit codes, writes queries three bits away from stored codes, and answers them. The
timed part is the whole command except Ray's start-up: reading, searching, merging, writing and publishing. The answers
of a sample of queries are checked against a plain scan.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.reporting import environment, save_report
from hashlight.engine.collection.collection import Collection
from hashlight.pipelines.jobs.session import ray_session
from hashlight.pipelines.searching.batch import search_codes

FLIPS = 3
CHECKED = 50


def write_queries(path: Path, codes: np.ndarray, queries: int, rng: np.random.Generator) -> np.ndarray:
    asked = codes[rng.integers(len(codes), size=queries)]
    for _ in range(FLIPS):
        asked = asked ^ (np.uint64(1) << rng.integers(64, size=queries).astype(np.uint64))
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(8), queries, [None, pa.py_buffer(asked.tobytes())])
    pq.write_table(pa.table({"code": column}), path)
    return asked


def check(path: Path, codes: np.ndarray, asked: np.ndarray, wanted: dict, rng: np.random.Generator) -> int:
    """Compare a sample of the answers with a scan; return the total number of answers."""
    found = pq.read_table(path)
    assert len(found) == len(asked)
    for row in rng.choice(len(asked), CHECKED, replace=False).tolist():
        distances = np.bitwise_count(codes ^ asked[row])
        farthest = wanted["radius"] if "radius" in wanted else np.partition(distances, wanted["k"] - 1)[wanted["k"] - 1]
        near = np.flatnonzero(distances <= farthest)
        expected = sorted(zip(distances[near].tolist(), near.tolist(), strict=True))[: wanted.get("k")]
        answer = found.slice(row, 1).to_pylist()[0]
        assert list(zip(answer["distances"], answer["ids"], strict=True)) == expected, row
    return int(pc.sum(pc.list_value_length(found["ids"])).as_py())


def measure(folder: Path, rows: int, queries: int, shards: int, workers: int, radius: int) -> list[dict]:
    rng = np.random.default_rng(0)
    codes = rng.integers(2**64, size=rows, dtype=np.uint64)
    Collection.create(folder / "c", codes[:, None], shards=shards)
    asked = write_queries(folder / "queries.parquet", codes, queries, rng)
    write_queries(folder / "few.parquet", codes, 1000, rng)
    results = []
    with ray_session(num_cpus=workers):
        searches: dict[str, dict[str, Any]] = {f"radius {radius}": {"radius": radius}, "10 nearest": {"k": 10}}
        for name, wanted in searches.items():
            # Workers start and load their kernels.
            search_codes(folder / "c", folder / "few.parquet", folder / "few-r.parquet", overwrite=True, **wanted)
            start = time.perf_counter()
            search_codes(folder / "c", folder / "queries.parquet", folder / "r.parquet", overwrite=True, **wanted)
            seconds = time.perf_counter() - start
            one = {"asked": name, "codes": rows, "shards": shards, "queries": queries, "workers": workers}
            one["answers"] = check(folder / "r.parquet", codes, asked, wanted, rng)
            results.append({**one, "seconds": round(seconds, 2), "queries_per_s": round(queries / seconds)})
            print(json.dumps(results[-1]), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--queries", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--radius", type=int, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hashlight-batch-"))
    try:
        results = measure(
            folder, arguments.rows, arguments.queries, arguments.shards, arguments.workers, arguments.radius
        )
    finally:
        shutil.rmtree(folder)
    document = {**environment("numpy", "numba", "pyarrow", "ray"), "results": results}
    save_report(arguments.out, document, as_markdown(document))


def as_markdown(document: dict) -> str:
    lines = [
        "# Batch search on Ray",
        "",
        f"`python -m benchmarks.batch_search`, {document['machine']}, {document['versions']}. Uniform 64-bit codes,",
        f"queries {FLIPS} bits from a stored one; file to file, Ray running; {CHECKED} answers of each row checked.",
        "",
        "| asked | codes | shards | workers | queries | seconds | queries/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in document["results"]:
        lines.append(
            f"| {one['asked']} | {one['codes']:,} | {one['shards']} | {one['workers']} | {one['queries']:,} | "
            f"{one['seconds']} | {one['queries_per_s']:,} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
