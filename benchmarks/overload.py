"""A gateway at three times its capacity for ten minutes: what is refused, how fast, and how memory develops.

    python -m benchmarks.overload --collection FOLDER --out benchmarks/results/overload_NAME_DATE

Gateway, shard servers and load generator run on one machine. Requests arrive at random at a rate that does not depend
on the answers, and latency counts from their scheduled time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.http_load import HttpLoad
from benchmarks.reporting import environment, save_report
from benchmarks.serving import GROUPS, K, build, quantiles, queries_of
from benchmarks.serving_peers import hexed, started

IN_FLIGHT = 8
CODES = 64  # of a request, so that generating load costs little compared with answering
FACTOR = 3
SLICE_S = 60.0


def resident_mib(pid: int) -> float:
    """Memory of a process and its children."""
    status = Path(f"/proc/{pid}/status").read_text()
    own = next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))
    children = [
        int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
    ]
    return own + sum(resident_mib(child) for child in children)


class Load:
    """A few different requests, sent in turn."""

    def __init__(self, url: str, queries: np.ndarray) -> None:
        self._http = HttpLoad(url)
        bodies = [
            json.dumps({"queries": [{"code": code} for code in hexed(part)], "k": K}).encode()
            for part in np.array_split(queries, len(queries) // CODES)
        ]
        self._requests = itertools.cycle(self._http.request("/v1/search", "application/json", body) for body in bodies)

    async def ask(self) -> int:
        """Return the status of the answer."""
        answer = await self._http.send(next(self._requests))
        assert answer.status != 429 or int(answer.headers["retry-after"]) > 0
        return answer.status

    def close(self) -> None:
        self._http.close()

    async def capacity(self, seconds: float) -> dict:
        """Send requests from as many clients as the server accepts in parallel."""
        until, took = time.perf_counter() + seconds, []

        async def keep_asking() -> None:
            while (start := time.perf_counter()) < until:
                assert await self.ask() == 200
                took.append(time.perf_counter() - start)

        await asyncio.gather(*(keep_asking() for _ in range(IN_FLIGHT)))
        return {"requests_per_s": round(len(took) / seconds, 1), **quantiles(took)}

    async def open(self, rate: float, seconds: float) -> list[tuple[float, int, float]]:
        """Send `rate` requests a second on average; return for each its scheduled time, its status and its latency."""
        due_N = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)))
        start, done = time.perf_counter(), []

        async def one(due_s: float) -> None:
            status = await self.ask()
            done.append((due_s, status, time.perf_counter() - start - due_s))

        async with asyncio.TaskGroup() as group:
            for due_s in due_N:
                await asyncio.sleep(max(0.0, due_s - (time.perf_counter() - start)))
                group.create_task(one(due_s))
        return done


async def measure(url: str, pid: int, queries: np.ndarray, seconds: float) -> dict:
    load, memory = Load(url, queries), []

    async def watch() -> None:
        while True:
            memory.append((time.perf_counter() - start, resident_mib(pid)))
            await asyncio.sleep(SLICE_S / 4)

    await load.capacity(3)
    capacity = await load.capacity(20)
    start = time.perf_counter()
    watching = asyncio.create_task(watch())
    done = await load.open(FACTOR * capacity["requests_per_s"], seconds)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    after = await load.capacity(10)
    load.close()
    return {"capacity": capacity, "slices": slices(done, memory), "after": after}


def slices(done: list[tuple[float, int, float]], memory: list[tuple[float, float]]) -> list[dict]:
    rows = []
    for number in range(int(max(due_s for due_s, _, _ in done) // SLICE_S) + 1):
        part = [one for one in done if number * SLICE_S <= one[0] < (number + 1) * SLICE_S]
        statuses = Counter(status for _, status, _ in part)
        took = {
            code: quantiles([s for _, status, s in part if status == code]) for code in (200, 429) if statuses[code]
        }
        rows.append(
            {
                "asked": len(part),
                "answered": statuses.pop(200, 0),
                "refused": statuses.pop(429, 0),
                "other": sum(statuses.values()),
                "answered_p50_ms": took.get(200, {}).get("p50_ms"),
                "answered_p99_ms": took.get(200, {}).get("p99_ms"),
                "refused_p50_ms": took.get(429, {}).get("p50_ms"),
                "refused_p99_ms": took.get(429, {}).get("p99_ms"),
                "memory_mib": round(max(mib for at_s, mib in memory if at_s // SLICE_S == number)),
            }
        )
    return rows


def as_markdown(results: dict) -> str:
    capacity, columns = results["capacity"], list(results["slices"][0])
    lines = [
        "# Three times what can be answered\n",
        f"`python -m benchmarks.overload`, {results['date']}, {results['machine']}, {results['versions']}. "
        f"{results['rows']:,} uniform 64-bit codes in {GROUPS} groups, requests of {CODES} codes, {K} nearest, "
        f"`--in-flight {IN_FLIGHT}`; gateway, shard servers and load on this machine.\n",
        f"Capacity, {IN_FLIGHT} clients: {capacity['requests_per_s']} requests/s, p50 {capacity['p50_ms']} ms, "
        f"p99 {capacity['p99_ms']} ms; after the overload {results['after']['requests_per_s']} requests/s, p50 "
        f"{results['after']['p50_ms']} ms. Rows are {SLICE_S:.0f} s each.\n",
        f"| {' | '.join(name.replace('_', ' ') for name in columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(str(row[name]) for name in columns)} |" for row in results["slices"]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collection", type=Path, default=Path("serving_collection"))
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--out", type=Path, help="without suffix: .md and .json are written")
    given = parser.parse_args()
    collection = build(given.collection, given.rows)
    command = ("-P", "-m", "hashlight", "serve", str(given.collection), "--port", "0", "--groups", str(GROUPS))
    with started(*command, "--in-flight", str(IN_FLIGHT)) as (url, pid):
        measured = asyncio.run(measure(url, pid, queries_of(collection, 64 * CODES), given.seconds))
    results = {
        "date": time.strftime("%Y-%m-%d"),
        **environment("pyarrow", "fastapi"),
        "rows": len(collection),
        **measured,
    }
    save_report(given.out, results, as_markdown(results))


if __name__ == "__main__":
    main()
