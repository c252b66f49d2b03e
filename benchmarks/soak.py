"""Does a cluster stay right while its processes are killed? Writes, deletions, compaction, rolls, and an oracle.

    python -m benchmarks.soak --seconds 1800 --out benchmarks/results/soak_NAME_DATE

Two groups of two shard servers and two gateways, each a process of this machine, which is started again when it ends.
One client writes and deletes through the first gateway, which compacts; others search through both. One process, chosen
at random, is killed every `--kill-every` seconds, and one is told to end, and replaced, every `--roll-every`. Every
answer names its version and is compared with what a brute-force search over that version's codes finds.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import os
import queue
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.reporting import environment, save_report
from hashlight import SearchClient
from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import HashlightError

GROUPS, REPLICAS, GATEWAYS = 2, 2, 2
BITS, K, RADIUS, LIMIT = 64, 10, 3, 10_000
WRITTEN = 5  # rows of a write
TIMEOUT_S = 10.0
SAMPLE_S = 5.0
WARM_S = 60.0  # of a process, in which it grows by what it loads
READY_S = 300.0
_NEVER = 2**62
_MEASURED = ("memory", "threads", "descriptors")


class Answer(NamedTuple):
    """What a client was told, and what it had asked."""

    query: int
    radius: int | None
    version: int
    is_complete: bool
    pairs: list[tuple[int, int]]
    begun: int  # writes that had begun when it came


class Ledger:
    """What every version holds, as far as the only writer can tell: rows with the versions in which they are.

    A write whose answer was lost and that was sent again is in some version from `first` on and in all from `last` on.
    """

    def __init__(self, codes_N: NDArray[np.uint64], version: int) -> None:
        self._ids, self._codes = list(range(len(codes_N))), codes_N.tolist()
        self._born = [(version, version)] * len(codes_N)
        self._died = [(_NEVER, _NEVER)] * len(codes_N)
        self._row_of = {id_: row for row, id_ in enumerate(self._ids)}
        self._version = version
        self._arrays: list[NDArray] | None = None  # of the rows, until there are others
        self.begun = self.made = 0
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Note that a write is about to be sent."""
        self.begun += 1

    def end(self, version: int, *, is_repeated: bool, put=(), delete=()) -> None:
        """Note that it was answered: `put` are pairs of id and code, `delete` ids."""
        span = (self._version + 1 if is_repeated else version), version
        with self._lock:
            for id_, code in put:
                self._row_of[id_] = len(self._ids)
                self._ids.append(id_)
                self._codes.append(code)
                self._born.append(span)
                self._died.append((_NEVER, _NEVER))
            for id_ in delete:
                self._died[self._row_of.pop(id_)] = span
            self._version, self._arrays = version, None
            self.made += 1

    @property
    def live(self) -> list[int]:
        """Ids of the newest version."""
        return list(self._row_of)

    def states(self, version: int) -> list[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
        """Return what a version may hold, ids and codes: without a write that may be in it or not, and with it."""
        with self._lock:
            if self._arrays is None:
                rows = self._ids, self._codes, self._born, self._died
                self._arrays = [np.array(each, np.uint64 if each is self._codes else np.int64) for each in rows]
            ids_N, codes_N, born_N2, died_N2 = self._arrays
        surely_N, maybe_N = ((born_N2[:, end] <= version) & (died_N2[:, end] > version) for end in (1, 0))
        return [(ids_N[there_N], codes_N[there_N]) for there_N in (surely_N, maybe_N)]

    def fault_of(self, answer: Answer) -> str | None:
        """Return what is wrong with an answer, if anything is."""
        for ids_N, codes_N in self.states(answer.version):
            expected = nearest(answer.query, ids_N, codes_N, answer.radius)
            if answer.is_complete and answer.pairs == expected:
                return None
            if not answer.is_complete and set(answer.pairs) <= set(nearest(answer.query, ids_N, codes_N, BITS)):
                return None
        kind = "complete" if answer.is_complete else "partial"
        return f"a {kind} answer of version {answer.version} is {answer.pairs[:3]}..., expected {expected[:3]}..."


def nearest(query: int, ids_N: NDArray[np.int64], codes_N: NDArray[np.uint64], radius: int | None):
    """Return pairs of distance and id in order: all within a radius, or the K nearest."""
    distances_N = np.bitwise_count(codes_N ^ np.uint64(query)).astype(np.int64)
    if radius is not None:
        near_N = distances_N <= radius
        ids_N, distances_N = ids_N[near_N], distances_N[near_N]
    order_N = np.lexsort((ids_N, distances_N))[: K if radius is None else None]
    return list(zip(distances_N[order_N].tolist(), ids_N[order_N].tolist(), strict=True))


def near(rng: np.random.Generator, count: int) -> NDArray[np.uint64]:
    """Return codes near to a few centres, so that neighbours tie."""
    centres = np.random.default_rng(0).integers(2**63, size=16, dtype=np.uint64)
    codes_N = rng.choice(centres, count)
    for _ in range(3):
        codes_N ^= np.uint64(1) << rng.integers(BITS, size=count).astype(np.uint64)
    return codes_N


class Cluster:
    """The processes, each started again when it ends."""

    def __init__(
        self, folder: Path, collection: Path, *, groups: int, replicas: int, gateways: int, drain_s: float
    ) -> None:
        self._log = open(folder / "processes.log", "ab")  # noqa: SIM115
        self._token = {"HASHLIGHT_SHARD_TOKEN": "of a soak"}
        ports = iter(free_ports(2 * (groups * replicas + gateways)))
        self.watched: dict[str, int] = {}
        self._commands: dict[str, list[str]] = {}
        shards: list[list[str]] = [[] for _ in range(groups)]
        rest = ["--drain-delay", str(drain_s), "--poll", "0.5"]
        for group in range(1, groups + 1):
            for replica in range(replicas):
                name, port = f"shard-{group}-{replica}", next(ports)
                self.watched[name] = next(ports)
                shards[group - 1].append(f"127.0.0.1:{port}")
                self._commands[name] = [
                    "shard-server", str(collection), "--group", f"{group}/{groups}", "--listen", f"127.0.0.1:{port}",
                    *rest,
                ]  # fmt: skip
        (folder / "map.json").write_text(json.dumps({"groups": shards}))
        self.urls = []
        for number in range(gateways):
            name, port = f"gateway-{number}", next(ports)
            self.watched[name] = next(ports)
            self.urls.append(f"http://127.0.0.1:{port}")
            writes = ["--writable", "--write-log", str(folder / "log")] if number == 0 else []
            self._commands[name] = [
                "gateway", str(collection), "--map", str(folder / "map.json"), "--port", str(port), *rest, *writes,
            ]  # fmt: skip
        for name, port in self.watched.items():
            self._commands[name] += ["--metrics-listen", f"127.0.0.1:{port}"]
        self.processes: dict[str, subprocess.Popen] = {}
        self.starts: collections.Counter[str] = collections.Counter()
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._keep, args=(name,), daemon=True) for name in self._commands]

    def __enter__(self) -> Cluster:
        for thread in self._threads:
            thread.start()
        until_s = time.monotonic() + READY_S
        while not all(self.is_ready(name) for name in self._commands):
            if time.monotonic() > until_s:
                raise TimeoutError(f"the cluster was not ready in {READY_S:g} s: see {self._log.name}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for process in list(self.processes.values()):
            process.kill()
        for thread in self._threads:
            thread.join()
        self._log.close()

    def is_ready(self, name: str) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.watched[name]}/health/complete", timeout=5).status_code == 200
        return False

    def _keep(self, name: str) -> None:
        command = [sys.executable, "-P", "-m", "hashlight", *self._commands[name]]
        while not self._ending.is_set():
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env={**os.environ, **self._token}
            )
            self.processes[name] = process
            self.starts[name] += 1
            if self._ending.is_set():
                process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Soak:
    """One run: its threads, and what they have found."""

    def __init__(self, cluster: Cluster, ledger: Ledger, options: argparse.Namespace) -> None:
        self._cluster, self._ledger, self._options = cluster, ledger, options
        self._ending = threading.Event()
        self._answers: queue.Queue[Answer | None] = queue.Queue()
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.errors: collections.Counter[str] = collections.Counter()
        self.events: list[str] = []
        self.seconds: list[float] = []
        self.samples: dict[int, list[tuple[str, float, dict[str, float]]]] = {}

    def run(self) -> None:
        """Go on for the time that was asked for, then check what is left to be checked."""
        work = [self._write, self._sample, self._kill, self._roll]
        threads = [threading.Thread(target=self._guarded, args=(one,), daemon=True) for one in work]
        askers = [
            threading.Thread(target=self._guarded, args=(self._ask, number), daemon=True)
            for number in range(self._options.askers)
        ]
        checker = threading.Thread(target=self._guarded, args=(self._check,), daemon=True)
        for thread in (*threads, *askers, checker):
            thread.start()
        self._ending.wait(self._options.seconds)
        self._ending.set()
        for thread in (*threads, *askers):
            thread.join()
        self._answers.put(None)
        checker.join()

    def _guarded(self, work, *arguments) -> None:
        try:
            work(*arguments)
        except Exception as error:  # whatever it is, the run has failed
            self.wrong.append(f"{work.__name__}: {type(error).__name__}: {error}")
            self._ending.set()

    def _write(self) -> None:
        rng = np.random.default_rng(self._options.seed)
        next_id = 10**9
        with SearchClient(self._cluster.urls[0], timeout_s=TIMEOUT_S) as client:
            while not self._ending.wait(1 / self._options.writes):
                if self.counts["writes"] % 2 == 0:
                    codes_N = near(rng, WRITTEN)
                    ids = list(range(next_id, next_id + WRITTEN))
                    next_id += WRITTEN
                    put = list(zip(ids, codes_N.tolist(), strict=True))
                    self._make(functools.partial(client.upsert, codes_N[:, None], ids=ids), put=put)
                else:
                    gone = rng.choice(self._ledger.live, WRITTEN, replace=False).tolist()
                    self._make(functools.partial(client.delete, gone), delete=gone)
                self.counts["writes"] += 1

    def _make(self, send, **what) -> None:
        """Send a write until it is answered: either kind may be made twice."""
        self._ledger.begin()
        until_s, tries = time.monotonic() + READY_S, 0
        while True:
            try:
                version = send()
                break
            except HashlightError as error:
                tries += 1
                self.errors[f"write: {type(error).__name__}"] += 1
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.2)
        self._ledger.end(version, is_repeated=tries > 0, **what)

    def _ask(self, number: int) -> None:
        rng = np.random.default_rng([self._options.seed, number])
        urls = self._cluster.urls[::-1] if number % 2 else self._cluster.urls
        begun_s, turn = time.monotonic(), 0
        with SearchClient(urls, timeout_s=TIMEOUT_S) as client:
            while not self._ending.is_set():
                turn += 1
                time.sleep(max(0.0, begun_s + turn * self._options.askers / self._options.rate - time.monotonic()))
                self._ask_once(client, near(rng, 1), RADIUS if turn % 5 == 0 else None)

    def _ask_once(self, client: SearchClient, query: NDArray[np.uint64], radius: int | None) -> None:
        self.counts["asked"] += 1
        started_s = time.monotonic()
        try:
            if radius is None:
                found = client.search(query[:, None], K)
            else:
                found = client.range_search(query[:, None], radius, LIMIT)
        except HashlightError as error:
            self.counts["refused"] += 1
            self.errors[f"search: {type(error).__name__}"] += 1
            return
        self.seconds.append(time.monotonic() - started_s)
        (hits,) = found
        pairs = list(zip(hits.distances.tolist(), hits.ids.tolist(), strict=True))
        is_complete = found.coverage.complete
        self.counts["complete" if is_complete else "partial"] += 1
        self._answers.put(Answer(int(query[0]), radius, found.coverage.version, is_complete, pairs, self._ledger.begun))

    def _check(self) -> None:
        """Check each answer once all writes that it may have are known."""
        while (answer := self._answers.get()) is not None:
            while self._ledger.made < answer.begun and not self.wrong:
                time.sleep(0.01)
            self.counts["checked"] += 1
            if fault := self._ledger.fault_of(answer):
                self.wrong.append(fault)

    def _kill(self) -> None:
        rng = random.Random(self._options.seed)
        while not self._ending.wait(self._options.kill_every):
            name = rng.choice(sorted(self._cluster.processes))
            self._cluster.processes[name].kill()
            self.counts["kills"] += 1
            self.events.append(f"{name} killed")

    def _roll(self) -> None:
        """Replace one process after another, each once all are there, as whoever rolls servers does."""
        names = sorted(self._cluster.processes)
        while not self._ending.wait(self._options.roll_every):
            while not all(self._cluster.is_ready(name) for name in names):
                if self._ending.wait(0.2):
                    return
            name = names[self.counts["rolls"] % len(names)]
            self._cluster.processes[name].send_signal(signal.SIGTERM)
            self.counts["rolls"] += 1
            self.events.append(f"{name} replaced")

    def _sample(self) -> None:
        born_s: dict[int, float] = {}
        while not self._ending.wait(self._options.sample):
            for name, process in list(self._cluster.processes.items()):
                now_s = time.monotonic()
                measured = measure(process.pid)
                if measured:
                    age_s = now_s - born_s.setdefault(process.pid, now_s)
                    self.samples.setdefault(process.pid, []).append((name.partition("-")[0], age_s, measured))


def measure(pid: int) -> dict[str, float]:
    """Return the memory of a process that is no file's (MB), its threads and descriptors; nothing if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        told = dict(line.split(":", 1) for line in lines if ":" in line)
        fds = len(os.listdir(f"/proc/{pid}/fd"))
        return {
            "memory": int(told["RssAnon"].split()[0]) / 1000, "threads": int(told["Threads"]), "descriptors": fds,
        }  # fmt: skip
    except (OSError, KeyError, ValueError):
        return {}


def slopes(samples, warm_s: float) -> dict[str, dict[str, Any]]:
    """Return, for each kind of process, how fast it grows per hour, by least squares over all of them together.

    Each process has a level of its own; its first `warm_s` seconds are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in sorted({points[0][0] for points in samples.values()}):
        own = [[point for point in points if point[1] >= warm_s] for points in samples.values() if points[0][0] == kind]
        own = [points for points in own if len(points) > 2]
        if not own:
            continue
        row: dict[str, Any] = {"processes": len(own), "longest_s": round(max(points[-1][1] for points in own))}
        ages = np.concatenate([np.array([p[1] for p in points]) - np.mean([p[1] for p in points]) for points in own])
        for name in _MEASURED:
            values = [np.array([point[2][name] for point in points]) for points in own]
            centred = np.concatenate([each - each.mean() for each in values])
            per_hour = float(ages @ centred / (ages @ ages) * 3600)
            row[name] = {
                "last": round(float(np.mean([each[-1] for each in values])), 1),
                "per_hour": round(per_hour, 1),
            }
        found[kind] = row
    return found


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Run, and return what was found."""
    with tempfile.TemporaryDirectory(prefix="hashlight-soak-") as temporary:
        folder = Path(temporary)
        ledger, collection = begin(folder, options)
        sizes = {"groups": GROUPS, "replicas": REPLICAS, "gateways": GATEWAYS}
        with Cluster(folder, collection, **sizes, drain_s=options.drain) as cluster:
            run = Soak(cluster, ledger, options)
            run.run()
            starts = dict(cluster.starts)
        opened = Collection.open(collection)
        versions, shards, rows = opened.version, len(opened.shards), len(opened)
        asked = run.counts["asked"]
    return {
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "counts": dict(run.counts),
        "availability": run.counts["complete"] / max(1, asked),
        "wrong": run.wrong,
        "errors": dict(run.errors),
        "starts": starts,
        "last_version": versions,
        "shards": shards,
        "milliseconds": quantiles(run.seconds),
        "slopes": slopes(run.samples, min(WARM_S, options.seconds / 10)),
        "later_slopes": slopes(run.samples, options.seconds / 2),
        "rows": rows,
        "events": run.events,
    }


def begin(folder: Path, options: argparse.Namespace) -> tuple[Ledger, Path]:
    """Make the collection, and what it must hold."""
    codes_N = near(np.random.default_rng(options.seed), options.rows)
    made = Collection.create(folder / "collection", codes_N[:, None], bits=BITS, shards=2 * GROUPS)
    made.search(codes_N[:1, None], K)  # compiles what a query needs
    return Ledger(codes_N, made.version), folder / "collection"


def quantiles(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    cut = statistics.quantiles(seconds, n=1000, method="inclusive")
    return {name: round(1e3 * value, 2) for name, value in
            {"p50": cut[499], "p99": cut[989], "p99.9": cut[998], "max": max(seconds)}.items()}  # fmt: skip


def report(document: dict[str, Any]) -> str:
    counts, settings = document["counts"], document["settings"]
    lines = [
        "# A soak",
        "",
        f"`python -m benchmarks.soak`, {document['machine']}; load averages before "
        f"{document['load_before']}, after {document['load_after']}.",
        f"{settings['seconds']:g} s; {GROUPS} groups of {REPLICAS} shard servers and {GATEWAYS} gateways; "
        f"{settings['rows']:,} codes of {BITS} bits; {counts.get('writes', 0):,} writes of {WRITTEN} items; "
        f"{counts.get('kills', 0)} processes killed, {counts.get('rolls', 0)} replaced; "
        f"{document['last_version']:,} versions, {document['rows']:,} codes in {document['shards']} shards at the end.",
        "",
        "| asked | complete | partial, and say so | refused | checked | wrong | complete, share |",
        "|---|---|---|---|---|---|---|",
        f"| {counts.get('asked', 0):,} | {counts.get('complete', 0):,} | {counts.get('partial', 0)} | "
        f"{counts.get('refused', 0)} | {counts.get('checked', 0):,} | {len(document['wrong'])} | "
        f"{document['availability']:.4%} |",
        "",
        f"Times of answers, ms: {document['milliseconds']}. Errors that clients saw, after their own retries: "
        f"{document['errors'] or 'none'}.",
        "",
        "Growth of processes, by least squares over all of a kind, each from when it was a minute old, and from when "
        "it was half as old as this took:",
        "",
        "| | processes | longest life, s | memory, MB | MB an hour | threads | an hour | descriptors | an hour |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for slopes_of, when in ((document["slopes"], ""), (document["later_slopes"], ", later")):
        for kind, row in slopes_of.items():
            cells = [f"{row[name][part]}" for name in _MEASURED for part in ("last", "per_hour")]
            lines.append(f"| {kind}{when} | {row['processes']} | {row['longest_s']} | {' | '.join(cells)} |")
    if document["wrong"]:
        lines += ["", "Wrong:", "", *(f"- {fault}" for fault in document["wrong"][:20])]
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--seconds", type=float, default=1800.0)
    made.add_argument("--rows", type=int, default=20_000)
    made.add_argument("--rate", type=float, default=20.0, help="searches a second")
    made.add_argument("--askers", type=int, default=2)
    made.add_argument("--writes", type=float, default=2.0, help="a second, at most")
    made.add_argument("--kill-every", type=float, default=20.0)
    made.add_argument("--roll-every", type=float, default=60.0)
    made.add_argument("--drain", type=float, default=2.0, help="--drain-delay of every process")
    made.add_argument("--sample", type=float, default=SAMPLE_S)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, help="without suffix: .md and .json are written")
    return made


def main() -> None:
    options = parser().parse_args()
    document: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "load_before": os.getloadavg()}
    document |= soak(options)
    document["load_after"] = os.getloadavg()
    document |= environment("numpy", "pyarrow")
    save_report(options.out, document, report(document))
    if document["wrong"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
