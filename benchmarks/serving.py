"""What a query costs behind shard servers: transports, the router over Flight, open-loop load, a server that dies.

    python -m benchmarks.serving --collection FOLDER --out benchmarks/results/serving_NAME_DATE

Client, router and shard servers run on one machine. `--collection` is built if it does not exist. Load is open: queries
arrive at random at a rate that does not depend on the answers, and latency counts from their scheduled time, so that
a slow server is not flattered. Every kind of answer is compared with the embedded collection's before it is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from benchmarks.reporting import environment, save_report
from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.control.finding import Finder
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.pipelines.serving.local_servers import LocalServers

BITS, GROUPS, SHARDS = 64, 4, 4
RADIUS, K, BATCH = 4, 10, 1000
CLIENTS = 16
KILL_SECONDS, KILL_AT_S = 30, 10
SECTIONS = ("transports", "router", "load", "kill")


def quantiles(seconds) -> dict:
    """Return milliseconds at the usual percentiles."""
    return {f"p{share * 100:g}_ms": round(float(np.quantile(seconds, share)) * 1e3, 3) for share in (0.5, 0.95, 0.99)}


def timed(ask, calls: int) -> dict:
    """Time consecutive calls, and the CPU time that this process spends on each."""
    for _ in range(max(10, calls // 10)):
        ask()
    seconds, cpu_s = np.empty(calls), time.process_time()
    for call in range(calls):
        start = time.perf_counter()
        ask()
        seconds[call] = time.perf_counter() - start
    return {**quantiles(seconds), "client_cpu_ms": round((time.process_time() - cpu_s) / calls * 1e3, 3)}


def closed_loop(ask, clients: int, seconds: float) -> dict:
    """Query from several threads, each as fast as it gets answers."""
    ending = threading.Event()
    times: list[list[float]] = [[] for _ in range(clients)]

    def run(own: list) -> None:
        while not ending.is_set():
            start = time.perf_counter()
            ask()
            own.append(time.perf_counter() - start)

    threads = [threading.Thread(target=run, args=(own,)) for own in times]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    ending.wait(seconds)
    ending.set()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - start
    flat = np.concatenate([np.array(own) for own in times])
    return {"clients": clients, "calls_per_s": round(len(flat) / took_s, 1), **quantiles(flat)}


def open_loop(ask, rate: float, seconds: float, *, threads: int = 64) -> tuple[np.ndarray, np.ndarray, list]:
    """Query at random times, `rate` a second on average; return scheduled times, latencies and failures."""
    due_N = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)))
    took_N, failed = np.full(len(due_N), np.nan), []
    work: queue.SimpleQueue = queue.SimpleQueue()
    start = time.perf_counter()

    def run() -> None:
        while (number := work.get()) is not None:
            try:
                ask()
                took_N[number] = time.perf_counter() - start - due_N[number]
            except Exception as error:
                failed.append((due_N[number], repr(error)))

    workers = [threading.Thread(target=run) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for number, due_s in enumerate(due_N):
        time.sleep(max(0.0, due_s - (time.perf_counter() - start)))
        work.put(number)
    for _ in workers:
        work.put(None)
    for worker in workers:
        worker.join()
    return due_N, took_N, failed


class Echo(flight.FlightServerBase):
    """Echoes its input, for every kind of call."""

    def do_action(self, context, action):
        return [action.body]

    def do_get(self, context, ticket):
        batch = pa.record_batch([pa.array([ticket.ticket], pa.binary())], names=["body"])
        return flight.RecordBatchStream(pa.Table.from_batches([batch]))

    def do_exchange(self, context, descriptor, reader, writer):
        frames: queue.SimpleQueue = queue.SimpleQueue()

        def answer() -> None:
            while (frame := frames.get()) is not None:
                writer.write_metadata(frame)

        worker = threading.Thread(target=answer)
        worker.start()
        try:
            while True:
                frames.put(reader.read_chunk().app_metadata)
        except StopIteration:
            frames.put(None)
            worker.join()


def serve_echo() -> None:
    with Echo("grpc://127.0.0.1:0") as server:
        print(server.port, flush=True)
        server.serve()


def transports(calls: int) -> dict:
    """Get 200 bytes from each of four servers, by each of Flight's calls."""
    command = [sys.executable, "-m", "benchmarks.serving", "--echo"]
    servers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(GROUPS)]
    ports = [int(server.stdout.readline()) for server in servers if server.stdout is not None]
    clients = [flight.connect(f"grpc://127.0.0.1:{port}") for port in ports]
    body, action, ticket = pa.py_buffer(bytes(200)), flight.Action("echo", bytes(200)), flight.Ticket(bytes(200))
    streams = [client.do_exchange(flight.FlightDescriptor.for_command(b"echo")) for client in clients]

    def by_action() -> None:
        for results in [client.do_action(action) for client in clients]:
            next(iter(results))

    def by_get() -> None:
        for client in clients:
            client.do_get(ticket).read_all()

    def by_exchange() -> None:
        for writer, _ in streams:
            writer.write_metadata(body)
        for _, reader in streams:
            reader.read_chunk()

    rows = {
        "DoGet, one server after the other": timed(by_get, calls // 4),
        "DoAction, four at once": timed(by_action, calls // 2),
        "open DoExchange streams": timed(by_exchange, calls),
    }
    for writer, _ in streams:
        writer.done_writing()
    for server in servers:
        server.terminate()
        server.wait()
    return rows


def queries_of(collection: Collection, count: int) -> np.ndarray:
    """Stored codes with up to 3 bits changed."""
    rng = np.random.default_rng(1)
    codes = np.concatenate([shard.codes_NW[rng.integers(shard.rows, size=count)] for shard in collection.shards])
    flips = np.bitwise_or.reduce(np.uint64(1) << rng.integers(BITS, size=(3, len(codes), 1), dtype=np.uint64))
    return np.ascontiguousarray(rng.permutation(codes ^ flips))


def in_turn(queries: np.ndarray, size: int, ask):
    """Use different queries each time."""
    places = iter(range(10**12))

    def go() -> None:
        start = next(places) * size % (len(queries) - size + 1)
        ask(queries[start : start + size])

    return go


def compare(router: ClusterRouter, collection: Collection, queries: np.ndarray) -> None:
    """Raise if answers are wrong, before they are timed."""
    for one, two in (
        (router.search(queries, K), collection.search(queries, K)),
        (router.range_search(queries, RADIUS), collection.range_search(queries, RADIUS)),
    ):
        assert one.coverage is not None
        assert one.coverage.complete
        assert (one.ids == two.ids).all()
        assert (one.distances == two.distances).all()
        assert len(one.ids) > 0


def over_router(router: ClusterRouter, queries: np.ndarray, calls: int, seconds: float) -> dict:
    """Time single queries, many clients and batches."""
    within = in_turn(queries, 1, lambda some: router.range_search(some, RADIUS))
    nearest = in_turn(queries, 1, lambda some: router.search(some, K))
    batch = in_turn(queries, BATCH, lambda some: router.range_search(some, RADIUS))
    batches = timed(batch, max(20, calls // 50))
    return {
        f"radius {RADIUS}, one query at a time": timed(within, calls),
        f"{K} nearest, one query at a time": timed(nearest, calls // 4),
        f"radius {RADIUS}, {CLIENTS} clients": closed_loop(within, CLIENTS, seconds),
        f"radius {RADIUS}, batches of {BATCH:,}": {**batches, "queries_per_s": round(BATCH / batches["p50_ms"] * 1e3)},
    }


def under_load(router: ClusterRouter, queries: np.ndarray, capacity: float, seconds: float) -> dict:
    """Run open load at fractions of the rate that 16 clients reached."""
    within = in_turn(queries, 1, lambda some: router.range_search(some, RADIUS))
    rows = {}
    for share in (0.25, 0.5, 0.75):
        before = router.stats()
        _, took_N, failed = open_loop(within, share * capacity, seconds)
        after = router.stats()
        hedges = (after["hedges"] - before["hedges"]) / max(1, after["calls"] - before["calls"])
        rows[f"{share:.0%} of {capacity:,.0f} queries/s"] = {
            **quantiles(took_N[~np.isnan(took_N)]),
            "failed": len(failed),
            "hedges_%": round(100 * hedges, 2),
        }
    return rows


def kill_one(cluster: LocalServers, router: ClusterRouter, queries: np.ndarray, rate: float) -> dict:
    """Kill a server under load: failed queries, coverage, and p99 in each second."""
    partial = []

    def check(some: np.ndarray) -> None:
        coverage = router.range_search(some, RADIUS).coverage
        if coverage is None or not coverage.complete:
            partial.append(time.perf_counter())

    victim = cluster.processes[0, 0]
    timer = threading.Timer(KILL_AT_S, os.kill, (victim.pid, signal.SIGKILL))
    timer.start()
    due_N, took_N, failed = open_loop(in_turn(queries, 1, check), rate, KILL_SECONDS)
    seconds = {
        f"second {second}": quantiles(took_N[(due_N >= second) & (due_N < second + 1)])
        for second in range(KILL_AT_S - 2, KILL_SECONDS, 2)
    }
    return {f"{rate:,.0f} queries/s": {"failed": len(failed), "partial": len(partial)}, **seconds}


def build(path: Path, rows: int) -> Collection:
    if not (path / "CURRENT").is_file():
        codes = np.random.default_rng(0).integers(2**BITS, size=(rows, 1), dtype=np.uint64)
        Collection.create(path, codes, shards=SHARDS)
    return Collection.open(path)


def as_markdown(results: dict) -> str:
    text = [
        "# Serving\n",
        f"`python -m benchmarks.serving`, {results['date']}, {results['machine']}, {results['versions']}. "
        f"{results['rows']:,} uniform {BITS}-bit codes in {GROUPS} groups; client, router "
        f"and shard servers on this machine. {results['note']}",
    ]
    for title, rows in results["tables"].items():
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        text.append(f"\n## {title.capitalize()}\n\n| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
        text += [
            f"| {row} | {' | '.join(str(values.get(name, '')) for name in names)} |" for row, values in rows.items()
        ]
    return "\n".join(text) + "\n"


@contextlib.contextmanager
def routed(collection: Path, *, replicas: int) -> Iterator[tuple[LocalServers, ClusterRouter]]:
    with (
        LocalServers(collection, groups=GROUPS, replicas=replicas) as cluster,
        contextlib.closing(Finder(cluster.source, security=cluster.security)) as finder,
        contextlib.closing(ClusterRouter(finder.map, security=cluster.security)) as router,
    ):
        yield cluster, router


def measure(given: argparse.Namespace) -> tuple[int, dict]:
    tables: dict = {}
    if "transports" in given.only:
        tables["transports"] = transports(given.calls)
    if set(given.only) == {"transports"}:
        return 0, tables
    collection = build(given.collection, given.rows)
    queries = queries_of(collection, 20_000)
    rate = 200.0
    with routed(given.collection, replicas=1) as (_, router):
        compare(router, collection, queries[:200])
        if "router" in given.only:
            tables["router"] = over_router(router, queries, given.calls, given.seconds)
            rate = tables["router"][f"radius {RADIUS}, {CLIENTS} clients"]["calls_per_s"]
        if "load" in given.only:
            tables["open load"] = under_load(router, queries, rate, given.seconds)
    if "kill" in given.only:
        with routed(given.collection, replicas=2) as (cluster, router):
            tables["a server killed, 2 replicas"] = kill_one(cluster, router, queries, 0.3 * rate)
    return len(collection), tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collection", type=Path, default=Path("serving_collection"))
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path, help="without suffix: .md and .json are written")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.echo:
        serve_echo()
        return
    rows, tables = measure(given)
    results = {
        "date": time.strftime("%Y-%m-%d"),
        **environment("pyarrow"),
        "note": given.note,
        "rows": rows,
        "tables": tables,
    }
    save_report(given.out, results, as_markdown(results))


if __name__ == "__main__":
    main()
