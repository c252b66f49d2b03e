"""What do many shards cost, and what does one row cost?

    python -m benchmarks.many_shards --folder FOLDER --out benchmarks/results/many_shards_NAME_DATE

Three questions, each answered in a process of its own, every answer checked:

- 1,000 shards of 1,000 rows, 64-bit codes, a URI and a label: opening at `ulimit -n 1024`, the first search, then one
  query, 64 queries, ten ids. Beside it, in the same process, the same rows in one shard, and the same shards searched
  one by one.
- 24 shards of 100,000 rows: each bounded by the k-th distance of the merged answers so far, by the least k-th of any
  one, and not at all.
- One row added to 4 million: from the call of `add` until a search has found it.

Times are medians, in ms, with the quietest of `ROUNDS` rounds for what can be repeated; the load average is recorded.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reporting import environment, save_report
from hashlight.engine.collection import parts, shard_set
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.shard_set import ShardSet
from hashlight.engine.query import Query
from hashlight.engine.results import merge

SHARDS, ROWS = 1_000, 1_000
FOLDED_SHARDS, FOLDED_ROWS = 24, 100_000
MILLIONS = 4
RADIUS, K, BATCH = 4, 10, 64
OPEN_FILES = 1024
ROUNDS, CALLS = 7, 20
TARGETS_MS = {"open": 500.0, "one query": 8.0, "64 queries": 30.0, "ten ids": 2.0, "one row added": 100.0}


def codes_of(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2**64, size=(rows, 1), dtype=np.uint64)


def queries_near(codes: np.ndarray, count: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    flips = np.uint64(1) << rng.integers(64, size=(2, count, 1), dtype=np.uint64)
    return codes[rng.integers(len(codes), size=count)] ^ flips[0] ^ flips[1]


def quietest_ms(call: Callable[[], object], calls: int = CALLS) -> float:
    """Return the median time of a call, of the round in which that was lowest."""
    call()
    return min(float(np.median([timed_ms(call) for _ in range(calls)])) for _ in range(ROUNDS))


def timed_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def make(path: Path, rows: int, shards: int, *, attributes: bool = False) -> Path:
    if not path.exists():
        ids = np.random.default_rng(2).permutation(rows)
        stored = {"uri": [f"s3://bucket/images/{id_:09d}.jpg" for id_ in ids], "label": ids % 100}
        Collection.create(path, codes_of(rows), ids=ids, shards=shards, attributes=stored if attributes else None)
    return path


def ask_many(many: Path, whole: Path) -> dict[str, dict[str, float]]:
    """Time the same rows in many shards, in many shards one by one, and in one shard."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    queries = queries_near(codes_of(SHARDS * ROWS), BATCH)
    ids = [np.random.default_rng(seed).integers(SHARDS * ROWS, size=10) for seed in range(CALLS)]
    table, answers = {}, []
    for name, path, few in (
        ("one shard", whole, parts.FEW_SHARDS),
        (f"{SHARDS:,} shards", many, parts.FEW_SHARDS),
        (f"{SHARDS:,} shards, one by one", many, SHARDS),
    ):
        parts.FEW_SHARDS = few
        row = {"open": quietest_ms(lambda path=path: Collection.open(path), 3)}
        collection = Collection.open(path)
        row["first search"] = timed_ms(lambda: collection.search(queries[:1], K))  # noqa: B023
        row["one query"] = max(
            quietest_ms(lambda: collection.search(queries[:1], K)),  # noqa: B023
            quietest_ms(lambda: collection.range_search(queries[:1], RADIUS)),  # noqa: B023
        )
        row["64 queries"] = max(
            quietest_ms(lambda: collection.search(queries, K), 5),  # noqa: B023
            quietest_ms(lambda: collection.range_search(queries, RADIUS), 5),  # noqa: B023
        )
        start = time.perf_counter()
        for each in ids:
            collection.get(each)
        row["ten ids, first"] = (time.perf_counter() - start) * 1e3 / len(ids)
        turns = iter(range(10**9))
        row["ten ids"] = quietest_ms(lambda: collection.get(ids[next(turns) % len(ids)]))  # noqa: B023
        row["filter, first"] = timed_ms(lambda: collection.search(queries[:1], K, filter="label < 50"))  # noqa: B023
        row["filter, again"] = quietest_ms(lambda: collection.search(queries[:1], K, filter="label < 50"))  # noqa: B023
        table[name] = row
        found = collection.search(queries, K), collection.range_search(queries, RADIUS, filter="label < 50")
        answers.append([array.tobytes() for each in found for array in each[:3] if isinstance(array, np.ndarray)])
        answers[-1].append(collection.get(ids[0]).to_pylist())
    assert answers[0] == answers[1] == answers[2]
    assert len(found[1].ids) > BATCH / 3
    return table


def ask_folded(path: Path) -> dict[str, dict[str, float]]:
    """Time the bounds that shards get from those before them."""
    queries = queries_near(codes_of(FOLDED_SHARDS * FOLDED_ROWS), BATCH)
    collection = Collection.open(path)
    shards = list(collection.shards)
    query = Query(k=K, threads=1)
    folded = ShardSet.of(shards, version=1)

    def least(bounded: bool):
        found, farthest_Q = [], None
        for shard in shards:
            found.append(shard.answer(asked, query, farthest_Q=farthest_Q))
            last_Q = found[-1].distances[:, -1]
            farthest_Q = (last_Q if farthest_Q is None else np.minimum(farthest_Q, last_Q)) if bounded else None
        return merge(found, query)

    table: dict[str, Any] = {}
    for size in (1, BATCH):
        asked = queries[:size]
        calls = {
            "k-th of the merged answers": lambda: folded.answer(asked, query),  # noqa: B023
            "least k-th of any shard": lambda: least(True),
            "no bound": lambda: least(False),
        }
        assert len({call().ids.tobytes() for call in calls.values()}) == 1
        for name, call in calls.items():
            table.setdefault(name, {})[f"{size} at a time, one thread"] = quietest_ms(call, 5)
    both = Query(k=K, threads=2)
    for name, share in (("cut over shards", shard_set._SHARDS_A_THREAD), ("cut inside each shard", 10**9)):
        shard_set._SHARDS_A_THREAD = share
        table[name] = {f"{BATCH} at a time, two threads": quietest_ms(lambda: folded.answer(queries, both), 5)}
    return table


def add_one(path: Path) -> dict[str, dict[str, float]]:
    """Time one row added, from the call until it was found."""
    code = np.array([[0x0123456789ABCDEF]], np.uint64)
    table: dict[str, Any] = {}
    for name, shards in (("4 million rows in 4 shards", 4), (f"4 million rows in {SHARDS:,} shards", SHARDS)):
        make(path / str(shards), MILLIONS * 10**6, shards)
        collection = Collection.open(path / str(shards))
        collection.search(code, 1)
        added, found = [], []
        for number in range(9):
            flipped = code ^ np.uint64(number)
            start = time.perf_counter()
            collection = collection.add(flipped)
            added.append((time.perf_counter() - start) * 1e3)
            assert collection.search(flipped, 1).distances[0, 0] == 0
            found.append((time.perf_counter() - start) * 1e3)
        table[name] = {"one row added": float(np.median(found)), "of which `add`": float(np.median(added))}
    return table


def in_process(work: Callable[..., dict], *arguments: Path) -> dict:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def as_markdown(tables: dict[str, dict[str, dict[str, float]]], load: tuple[float, ...]) -> str:
    lines = ["# Many shards", "", f"Load average before the run {load[0]:.1f}. Times in ms.", ""]
    for title, table in tables.items():
        columns = list(dict.fromkeys(column for row in table.values() for column in row))
        lines += [f"## {title}", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name, row in table.items():
            cells = [f"{row[column]:,.3g}" if column in row else "" for column in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        wanted = [f"{column} {TARGETS_MS[column]:g}" for column in columns if column in TARGETS_MS]
        lines += ["", f"At most: {', '.join(wanted)}.", ""] if wanted else [""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = os.getloadavg()
    many = make(arguments.folder / "many", SHARDS * ROWS, SHARDS, attributes=True)
    whole = make(arguments.folder / "whole", SHARDS * ROWS, 1, attributes=True)
    folded = make(arguments.folder / "folded", FOLDED_SHARDS * FOLDED_ROWS, FOLDED_SHARDS)
    tables = {
        f"{SHARDS:,} shards of {ROWS:,} rows": in_process(ask_many, many, whole),
        f"{FOLDED_SHARDS} shards of {FOLDED_ROWS:,} rows, {K} nearest": in_process(ask_folded, folded),
        "One row added": in_process(add_one, arguments.folder / "added"),
    }
    shutil.rmtree(arguments.folder / "added")
    document = {**environment("numpy", "numba", "pyarrow"), "load": load, "tables": tables}
    save_report(arguments.out, document, as_markdown(tables, load))


if __name__ == "__main__":
    main()
