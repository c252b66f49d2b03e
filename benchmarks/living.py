"""A collection that lives: how soon one added row is found, and what writes and compaction cost searches meanwhile.

python -m benchmarks.living --rows 4000000 --served-rows 1000000

One row: it is added to a collection by `Collection.add`, and searched for in the version that shows it. Searches under
writes: a server with `--writable` on this machine, asked over HTTP at a steady rate by one client; periods without and
with writes of one item each, a thousand a minute, take turns, so that both have the same machine. The server compacts
as it sees fit. Every answer is checked. What deleted rows cost is in `benchmarks/deleted.py`.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.reporting import environment, save_report
from hashlight.engine.client.client import SearchClient
from hashlight.engine.collection.collection import Collection

NEIGHBOURS = 10
ASKED_PER_S = 40.0
_WRITERS = 8
_COUNTS = ("compactions_total", "compacted_rows_total", "compaction_seconds_total", "compaction_failures_total")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4_000_000, help="of the collection that one row is added to")
    parser.add_argument("--adds", type=int, default=40)
    parser.add_argument("--served-rows", type=int, default=1_000_000)
    parser.add_argument("--period", type=float, default=15.0, help="seconds with writes, and without")
    parser.add_argument("--periods", type=int, default=3, help="of each kind")
    parser.add_argument("--writes-per-minute", type=float, default=1000.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    document: dict[str, Any] = {"settings": {k: v for k, v in vars(options).items() if k != "out"}}
    document["load_before"] = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="hashlight-living-") as folder:
        document["one_row"] = add_rows(Path(folder) / "large", options.rows, options.adds)
        document["searches"] = search_under_writes(Path(folder) / "served", options)
    document["load_after"] = os.getloadavg()
    document |= environment("numpy", "pyarrow", "numba")
    save_report(options.out, document, report(document))


def codes_of(seed: int, count: int) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(2**64, size=(count, 1), dtype=np.uint64)


def add_rows(path: Path, rows: int, adds: int) -> dict[str, Any]:
    """Add rows one after another, and find each."""
    collection = Collection.create(path, codes_of(1, rows), bits=64, shards=4)
    more = codes_of(2, adds)
    collection.search(more[:1], NEIGHBOURS)
    added_s, found_s, processor_s = [], [], []
    for code in more[:, None]:
        start_s, spent_s = time.perf_counter(), time.process_time()
        collection = collection.add(code)
        added_s.append(time.perf_counter() - start_s)
        found = collection.search(code, 1)
        found_s.append(time.perf_counter() - start_s)
        processor_s.append(time.process_time() - spent_s)
        assert found.ids[0, 0] == len(collection) - 1
        assert found.distances[0, 0] == 0
    times = {"added_ms": added_s, "found_ms": found_s, "processor_ms": processor_s}
    return {**{name: milliseconds(each) for name, each in times.items()}, "shards": len(collection.shards)}


def search_under_writes(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Search at a steady rate, in turns without and with writes."""
    codes = codes_of(3, options.served_rows)
    Collection.create(path, codes, bits=64, shards=2)
    seconds: dict[str, list[float]] = {"idle": [], "writing": []}
    written_s: list[float] = []
    next_id = options.served_rows
    with server(path) as url, SearchClient(url, timeout_s=60) as client:
        ask(client, codes, 3.0)
        for _ in range(options.periods):
            seconds["idle"] += ask(client, codes, options.period)
            with Writer(url, next_id, options.writes_per_minute) as writer:
                seconds["writing"] += ask(client, codes, options.period)
            written_s += writer.seconds
            next_id += len(writer.seconds)
            time.sleep(3.0)  # what is still to be merged
        assert client.describe()["rows"] == next_id
        told = httpx.get(f"{url}/metrics").text
        shards = client.describe()["shards"]
    counts = {
        name: float(found[1])
        for name in _COUNTS
        if (found := re.search(rf"^hashlight_{name} (\S+)$", told, re.MULTILINE)) is not None
    }
    searched = {name: milliseconds(each) for name, each in seconds.items()}
    return {"searched_ms": searched, "written_ms": milliseconds(written_s), **counts, "shards": shards}


@contextmanager
def server(path: Path) -> Iterator[str]:
    command = [sys.executable, "-P", "-m", "hashlight", "serve", str(path), "--port", "0", "--writable"]
    command += ["--write-log", str(path.parent / "logs")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"at (http\S+)", process.stdout.readline())
        assert found, "the server has not started"
        yield found[1]
    finally:
        process.terminate()
        process.wait(60)


def ask(client: SearchClient, codes: NDArray[np.uint64], seconds: float) -> list[float]:
    """Search for stored codes at a steady rate; return what each search took, from when it was due."""
    took_s = []
    begun_s = time.perf_counter()
    for number in range(int(seconds * ASKED_PER_S)):
        due_s = begun_s + number / ASKED_PER_S
        time.sleep(max(0.0, due_s - time.perf_counter()))
        row = number * 7919 % len(codes)
        found = client.search(codes[row : row + 1], NEIGHBOURS)
        took_s.append(time.perf_counter() - due_s)
        assert found[0].ids[0] == row
    return took_s


class Writer:
    """Stores items at a steady rate, each in a request of its own, as long as its context is open.

    Attributes
    ----------
    seconds : list of float
        What each write took.
    """

    def __init__(self, url: str, first_id: int, per_minute: float) -> None:
        self._client = SearchClient(url, timeout_s=60)
        self._first_id, self._pause_s = first_id, 60 / per_minute
        self.seconds: list[float] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._client.close()

    def _work(self) -> None:
        begun_s, number = time.perf_counter(), 0
        with ThreadPoolExecutor(_WRITERS) as pool:
            writes = []
            while not self._ending.wait(max(0.0, begun_s + number * self._pause_s - time.perf_counter())):
                writes.append(pool.submit(self._write, number))
                number += 1
            self.seconds = [write.result() for write in writes]

    def _write(self, number: int) -> float:
        start_s = time.perf_counter()
        self._client.add(codes_of(1000 + number, 1), ids=[self._first_id + number])
        return time.perf_counter() - start_s


def milliseconds(seconds: list[float]) -> dict[str, float]:
    cut = statistics.quantiles(seconds, n=100, method="inclusive")
    found = {"p50": cut[49], "p90": cut[89], "p99": cut[98], "max": max(seconds)}
    return {"count": len(seconds), **{name: round(1e3 * value, 2) for name, value in found.items()}}


def report(document: dict[str, Any]) -> str:
    one, searches = document["one_row"], document["searches"]
    settings = document["settings"]
    p99 = {name: each["p99"] for name, each in searches["searched_ms"].items()}
    before, after = (", ".join(f"{load:.1f}" for load in document[when]) for when in ("load_before", "load_after"))
    lines = [
        "# A collection that lives",
        "",
        f"{document['machine']}; load averages before {before}, after {after}.",
        "",
        f"## One row added to {settings['rows']:,}",
        "",
        "| | times | p50, ms | p90, ms | p99, ms | max, ms |",
        "|---|---|---|---|---|---|",
        row("added", one["added_ms"]),
        row("added and found", one["found_ms"]),
        row("of it processor time, all threads", one["processor_ms"]),
        "",
        f"## Searches of {settings['served_rows']:,} codes over HTTP, {ASKED_PER_S:.0f} a second",
        "",
        f"Writes: {settings['writes_per_minute']:,.0f} a minute, one item each. Compactions: "
        f"{searches['compactions_total']:.0f}, {searches['compacted_rows_total']:,.0f} rows in "
        f"{searches['compaction_seconds_total']:.1f} s, {searches['compaction_failures_total']:.0f} failed; "
        f"{searches['shards']} shards at the end.",
        "",
        "| | times | p50, ms | p90, ms | p99, ms | max, ms |",
        "|---|---|---|---|---|---|",
        *(row(f"searches, {name}", each) for name, each in searches["searched_ms"].items()),
        row("writes", searches["written_ms"]),
        "",
        f"p99 with writes / idle: {p99['writing'] / p99['idle']:.2f}",
    ]
    return "\n".join(lines) + "\n"


def row(name: str, found: dict[str, float]) -> str:
    return f"| {name} | {found['count']} | {found['p50']} | {found['p90']} | {found['p99']} | {found['max']} |"


if __name__ == "__main__":
    main()
