"""Which policy should the router have? Simulated tails of the fan-out, on service times measured here.

    python -m benchmarks.fanout --out benchmarks/results/fanout_NAME_DATE

A Flight server in its own process answers radius queries over a shard; the times of single calls, one at a time, are
the service times of the simulator (`benchmarks.simulate`, which tests check against closed forms). Each table varies
one parameter. Latency is in ms; a hedge is a second call; busy is the utilisation of the cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

from benchmarks.simulate import Outcome, Policy, System, exponential, measured, simulate, with_stalls
from hashlight.engine.indexes.multi_index.index import MultiIndex

ROWS = 2_500_000
RADIUS = 4
CALLS, ROUNDS, PAUSE_S = 4_000, 15, 4.0
GROUPS, REPLICAS, LOAD = 16, 2, 0.5
LOAD_IF_ONE_DIES = 0.3  # at half load the surviving replica would be overloaded
# One call in 200 waits for a page from the disk or for a process to be scheduled.
STALL_SHARE, STALL_S = 0.005, 10e-3
QUANTILES = (0.5, 0.95, 0.99, 0.999)

NONE = Policy()
CHOSEN = Policy(hedge_quantile=0.95, budget=0.05)
POLICIES = {
    "random, no hedge": Policy(choice="random"),
    "power of two, no hedge": NONE,
    "random, hedge at p95, 5 %": dataclasses.replace(CHOSEN, choice="random"),
    "power of two, hedge at p95, 5 %": CHOSEN,
    "power of two, hedge at p95, 5 %, 1,000 saved up": dataclasses.replace(CHOSEN, burst=1000.0),
    "power of two, hedge at p97, 5 %": dataclasses.replace(CHOSEN, hedge_quantile=0.97),
    "power of two, hedge at p99, 5 %": dataclasses.replace(CHOSEN, hedge_quantile=0.99),
    "power of two, hedge at p90, 5 %": dataclasses.replace(CHOSEN, hedge_quantile=0.9),
    "power of two, hedge at p90, 10 %": dataclasses.replace(CHOSEN, hedge_quantile=0.9, budget=0.1),
    "power of two, hedge at p95, no budget": dataclasses.replace(CHOSEN, budget=1.0),
    "power of two, hedge at p50, no budget": dataclasses.replace(CHOSEN, hedge_quantile=0.5, budget=1.0),
    "power of two, hedge at p95, 5 %, losers not cancelled": dataclasses.replace(CHOSEN, cancel=False),
}


class ShardServer(flight.FlightServerBase):
    def __init__(self, index):
        super().__init__("grpc://127.0.0.1:0")
        self._index = index

    def do_action(self, context, action):
        query = np.frombuffer(action.body, np.uint64)[None]
        answer = self._index.range_search(query, RADIUS, threads=1)
        return [pa.py_buffer(answer.ids.tobytes() + answer.distances.tobytes())]


def serve(pipe) -> None:
    codes = np.random.default_rng(0).integers(2**64, size=(ROWS, 1), dtype=np.uint64)
    with ShardServer(MultiIndex.build(codes, np.arange(ROWS), bits=64)) as server:
        pipe.send((server.port, codes[:100].tobytes()))
        server.serve()


def measure_calls() -> np.ndarray:
    """Return the seconds of single calls to a server in another process, from the quietest of several rounds.

    Answers are checked to contain the query's own code.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    port, known = here.recv()
    rng, rounds = np.random.default_rng(1), []
    with flight.connect(f"grpc://127.0.0.1:{port}") as client:
        for row in range(100):
            answer = next(iter(client.do_action(flight.Action("range", known[8 * row : 8 * row + 8])))).body
            assert row in np.frombuffer(answer[: len(answer) * 8 // 12], np.int64)
        for _ in range(ROUNDS):
            rounds.append(np.array([time_call(client, rng.bytes(8)) for _ in range(CALLS)]))
            time.sleep(PAUSE_S)
    server.terminate()
    server.join()
    return min(rounds, key=lambda times_s: float(np.quantile(times_s, 0.99)))


def time_call(client, query: bytes) -> float:
    start = time.perf_counter()
    list(client.do_action(flight.Action("range", query)))
    return time.perf_counter() - start


def run(system: System, policy: Policy, load: float, calls: int) -> Outcome:
    """Simulate at a load: the utilisation that cores would have without hedges."""
    queries = calls // system.groups
    mean_s = float(np.mean(system.service(np.random.default_rng(0), 400_000)))
    return simulate(system, policy, qps=load * system.replicas * system.cores / mean_s, queries=queries, seed=1)


def row(outcome: Outcome) -> dict:
    total = outcome.failed + len(outcome.latency_s)
    return {
        **{f"p{share * 100:g}": round(outcome.quantile(share) * 1e3, 2) for share in QUANTILES},
        "hedges, %": round(100 * outcome.hedges / outcome.calls, 2),
        "busy, %": round(100 * outcome.busy, 1),
        "failed, %": round(100 * outcome.failed / total, 2),
    }


def tables(times_s: np.ndarray, calls: int) -> dict[str, dict[str, dict]]:
    plain = measured(times_s)
    stalling = with_stalls(plain, share=STALL_SHARE, stall_s=STALL_S)

    def go(policy, load=LOAD, service=stalling, **system):
        given = {"groups": GROUPS, "replicas": REPLICAS, "service": service} | system
        return row(run(System(**given), policy, load, calls))

    shapes = {"as measured": plain, "with stalls": stalling, "exponential": exponential(float(times_s.mean()))}
    both = {"no hedge": NONE, "hedge at p95, 5 %": CHOSEN}
    return {
        "policy": {name: go(policy) for name, policy in POLICIES.items()},
        "replicas": {
            f"{replicas}, {name}": go(policy, replicas=replicas)
            for replicas in (1, 2, 3)
            for name, policy in both.items()
            if replicas > 1 or policy is NONE
        },
        "load": {f"{load}, {name}": go(policy, load) for load in (0.2, 0.4, 0.6, 0.8) for name, policy in both.items()},
        "groups": {
            f"{groups}, {name}": go(policy, groups=groups) for groups in (1, 4, 16, 64) for name, policy in both.items()
        },
        "service times": {
            f"{shape}, {name}": go(policy, service=service)
            for shape, service in shapes.items()
            for name, policy in both.items()
        },
        "a dead replica in one group": {
            "none dead": go(CHOSEN, LOAD_IF_ONE_DIES),
            "no retry, no breaker": go(
                dataclasses.replace(CHOSEN, retry=False, breaker_s=0.0), LOAD_IF_ONE_DIES, refusing=1
            ),
            "retry, no breaker": go(dataclasses.replace(CHOSEN, breaker_s=0.0), LOAD_IF_ONE_DIES, refusing=1),
            "retry, breaker 1 s": go(CHOSEN, LOAD_IF_ONE_DIES, refusing=1),
            f"retry, breaker 1 s, load {LOAD}": go(CHOSEN, refusing=1),
        },
    }


def as_markdown(results: dict) -> str:
    times = ", ".join(f"{name} {value:.3f}" for name, value in results["service_ms"].items())
    text = [
        "# The fan-out's tail by policy, simulated\n",
        f"`python -m benchmarks.fanout`, {results['date']}, {results['machine']}; pyarrow {pa.__version__}, Python "
        f"{platform.python_version()}.",
        f"Service times measured: single Flight calls with a radius-{RADIUS} query over {ROWS:,} uniform 64-bit codes, "
        f"client and server each a process, the quietest of {ROUNDS} rounds of {CALLS:,} calls, ms: {times}. "
        f"{results['note']}",
        f"Unless a table says otherwise: {GROUPS} groups, {REPLICAS} replicas of 1 core, load {LOAD} (share of busy "
        f"cores before hedges), stalls of {STALL_S * 1e3:g} ms in the mean in {STALL_SHARE:.1%} of calls on top of the "
        f"measured times, power of two choices, {results['calls']:,} calls, the first tenth not counted. "
        f"Latency of whole queries in ms. The table of a dead replica is at load {LOAD_IF_ONE_DIES}.",
    ]
    for title, rows in results["tables"].items():
        names = list(next(iter(rows.values())))
        text.append(f"\n## By {title}\n\n| {title} | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
        text += [
            f"| {name} | {' | '.join(f'{value:g}' for value in values.values())} |" for name, values in rows.items()
        ]
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="without suffix: .md and .json are written")
    parser.add_argument("--times", type=Path, help="service times (.npy), measured and saved if missing")
    parser.add_argument("--calls", type=int, default=1_000_000, help="of each simulation")
    parser.add_argument("--note", default="", help="what else the machine did")
    arguments = parser.parse_args()
    times_s = np.load(arguments.times) if arguments.times and arguments.times.is_file() else measure_calls()
    if arguments.times:
        np.save(arguments.times, times_s)
    shares = (0.5, 0.9, 0.95, 0.99, 0.999)
    results = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores of {platform.processor() or platform.machine()}",
        "note": arguments.note,
        "calls": arguments.calls,
        "service_ms": {
            "mean": times_s.mean() * 1e3,
            **{f"p{share * 100:g}": np.quantile(times_s, share) * 1e3 for share in shares},
        },
        "service_quantiles_ms": (np.quantile(times_s, np.linspace(0, 1, 201)) * 1e3).round(5).tolist(),
        "tables": tables(times_s, arguments.calls),
    }
    arguments.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(as_markdown(results))
    print(as_markdown(results))


if __name__ == "__main__":
    main()
