"""How many queries a second do 1 to 64 groups and 1 to 8 gateways answer? Simulated, with costs measured here.

    python -m benchmarks.linearity --out benchmarks/results/linearity_NAME_DATE

Measured: the processor time that a gateway spends on a query, and a shard server on a call, by processes of this
machine with 1, 2, 4 and 8 groups, asked over HTTP with a query each; every answer is checked. A straight line through
them gives what a query costs a gateway by itself and for each group. Processor time, because what else runs here does
not change it. Simulated (`benchmarks.simulate`, which tests check against closed forms): those costs, spread as
single calls were measured to be (`benchmarks.fanout`), on machines with one core for each gateway and shard server.
Sought is the highest rate at which the slowest query in a hundred takes at most `--p99-ms`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks import soak
from benchmarks.reporting import environment, save_report
from benchmarks.simulate import Outcome, Policy, System, measured, simulate
from hashlight import SearchClient
from hashlight.engine.collection.collection import Collection

MEASURED_GROUPS = (1, 2, 4, 8)
GROUPS = (1, 2, 4, 8, 16, 32, 64)
GATEWAYS = (1, 2, 4, 8)
REPLICAS = 2
RADIUS = 4
POLICY = Policy(hedge_quantile=0.97, budget=0.05)
SPREAD = Path(__file__).parent / "results" / "fanout_xeon-2core_2026-11-21.json"
_STEPS = 6  # halvings of the range in which the highest rate lies


def processor_s(port: int) -> float:
    """Return the processor seconds of a process, as its metrics say."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    [line] = [line for line in text.splitlines() if line.startswith("process_cpu_seconds_total")]
    return float(line.split()[-1])


def measure(folder: Path, groups: int, rows: int, queries: int) -> dict[str, float]:
    """Return the processor seconds of a gateway and of all shard servers for each query."""
    codes_N = np.random.default_rng(1).integers(2**63, size=rows * groups, dtype=np.uint64)
    collection = folder / f"collection-{groups}"
    Collection.create(collection, codes_N[:, None], bits=64, shards=groups).range_search(codes_N[:1, None], RADIUS)
    with soak.Cluster(folder, collection, groups=groups, replicas=1, gateways=1, drain_s=0.0) as cluster:
        names = sorted(cluster.watched)
        with SearchClient(cluster.urls[0], timeout_s=60) as client:

            def ask(count: int) -> None:
                for number in range(count):
                    row = number * 7919 % len(codes_N)
                    (hits,) = client.range_search(codes_N[row : row + 1, None], RADIUS, allow_partial=False)
                    assert row in hits.ids
                    assert hits.distances[0] == 0

            ask(200)
            spent = {name: processor_s(cluster.watched[name]) for name in names}
            begun_s = time.monotonic()
            ask(queries)
            took_s = time.monotonic() - begun_s
            spent = {name: processor_s(cluster.watched[name]) - spent[name] for name in names}
            # What they spend without queries, looking for versions and at each other.
            idle = {name: processor_s(cluster.watched[name]) for name in names}
            time.sleep(took_s)
            idle = {name: processor_s(cluster.watched[name]) - idle[name] for name in names}
    for name in names:
        spent[name] = max(0.0, spent[name] - idle[name])
    shards = [spent[name] for name in names if name.startswith("shard")]
    return {"gateway_s": spent["gateway-0"] / queries, "call_s": statistics.mean(shards) / queries}


def costs_of(rows: dict[int, dict[str, float]]) -> dict[str, float]:
    """Return a query's cost for a gateway by itself and for each group, and a call's for a shard server."""
    groups = np.array(list(rows), float)
    each_s, query_s = np.polyfit(groups, [row["gateway_s"] for row in rows.values()], 1)
    return {
        "query_s": float(query_s), "group_s": float(each_s),
        "call_s": float(np.mean([row["call_s"] for row in rows.values()])),
    }  # fmt: skip


def spread() -> NDArray[np.float64]:
    """Return quantiles of measured calls, as shares of their mean, without the slowest in two hundred.

    Of those only the slowest is known, and a gateway's work is not interrupted as often as that would stand for.
    """
    times = np.array(json.loads(SPREAD.read_text())["service_quantiles_ms"])[:-1]
    found: NDArray[np.float64] = times / times.mean()
    return found


def system_of(costs: dict[str, float], groups: int, gateways: int) -> System:
    shape = spread()
    half_s = (costs["query_s"] + costs["group_s"] * groups) / 2  # to ask, and to merge and answer
    return System(
        groups=groups, replicas=REPLICAS, service=measured(costs["call_s"] * shape), gateways=gateways,
        before=measured(half_s * shape), after=measured(half_s * shape),
    )  # fmt: skip


def limit_of(costs: dict[str, float], groups: int, gateways: int) -> float:
    """Return the rate at which gateways or shard servers are always busy."""
    gateway_s = costs["query_s"] + costs["group_s"] * groups
    return min(gateways / gateway_s, REPLICAS / costs["call_s"])


def highest(costs: dict[str, float], groups: int, gateways: int, p99_s: float, queries: int) -> dict[str, float]:
    """Return the highest rate with a p99 in bounds, its p99, and the p99 at half of the limit."""
    system, limit = system_of(costs, groups, gateways), limit_of(costs, groups, gateways)

    def go(share: float) -> Outcome:
        return simulate(system, POLICY, qps=share * limit, queries=queries, seed=1)

    low, high, best = 0.0, 1.0, None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        outcome = go(middle)
        if outcome.quantile(0.99) <= p99_s:
            low, best = middle, outcome
        else:
            high = middle
    half = go(0.5)
    return {
        "qps": round(low * limit, 1),
        "share_of_limit": round(low, 3),
        "p99_ms": round(1e3 * best.quantile(0.99), 2) if best else float("nan"),
        "half_qps": round(limit / 2, 1),
        "half_p50_ms": round(1e3 * half.quantile(0.5), 2),
        "half_p99_ms": round(1e3 * half.quantile(0.99), 2),
    }


def report(document: dict[str, Any]) -> str:
    settings, costs = document["settings"], document["costs"]
    found = document["simulated"]
    limit_ms = settings["p99_ms"]
    lines = [
        "# Groups and gateways",
        "",
        f"`python -m benchmarks.linearity`, {document['date']}, {document['machine']}; load averages before "
        f"{document['load_before']}, after {document['load_after']}.",
        f"Measured, processor time, {settings['rows']:,} codes of 64 bits a group, radius {RADIUS}, "
        f"{settings['queries']:,} queries one after another:",
        "",
        "| groups | a gateway, ms a query | a shard server, ms a call |",
        "|---|---|---|",
        *(
            f"| {groups} | {1e3 * row['gateway_s']:.3f} | {1e3 * row['call_s']:.3f} |"
            for groups, row in document["measured"].items()
        ),
        "",
        f"So a query costs a gateway {1e3 * costs['query_s']:.3f} ms and {1e3 * costs['group_s']:.3f} ms for each "
        f"group, and each group {1e3 * costs['call_s']:.3f} ms.",
        "",
        f"Simulated: {REPLICAS} replicas of a core in each group, a core for each gateway, "
        f"{settings['simulated_queries']:,} queries a point, the first tenth not counted.",
        "",
        f"## Queries a second, of which the slowest in a hundred take at most {limit_ms:g} ms",
        "",
        _table(found, "qps", "{:,.0f}"),
        "",
        "Against one gateway, with as many groups:",
        "",
        _table(_relative(found), "qps", "{:.2f}"),
        "",
        "## p99 in ms, with gateways or shard servers half busy, whichever are busier",
        "",
        _table(found, "half_p99_ms", "{:.2f}"),
    ]
    return "\n".join(lines) + "\n"


def _relative(found: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    return {
        groups: {name: {"qps": row["qps"] / (rows[str(GATEWAYS[0])]["qps"] or np.nan)} for name, row in rows.items()}
        for groups, rows in found.items()
    }


def _table(found: dict[str, dict[str, dict[str, float]]], value: str, form: str) -> str:
    found = {groups: rows for groups, rows in found.items() if not np.isnan(next(iter(rows.values()))[value])}
    heads = [f"{gateways} gateway{'s' if gateways > 1 else ''}" for gateways in GATEWAYS]
    lines = [f"| groups | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for groups, rows in found.items():
        lines.append(f"| {groups} | {' | '.join(form.format(row[value]) for row in rows.values())} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500_000, help="codes of a group")
    parser.add_argument("--queries", type=int, default=3_000, help="measured, for each number of groups")
    parser.add_argument("--simulated-queries", type=int, default=5_000, help="for each point")
    parser.add_argument("--p99-ms", type=float, default=25.0)
    parser.add_argument("--out", type=Path, help="without suffix: .md and .json are written")
    options = parser.parse_args()
    document: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "load_before": os.getloadavg()}
    document["settings"] = {name: value for name, value in vars(options).items() if name != "out"}
    rows = {}
    for groups in MEASURED_GROUPS:
        with tempfile.TemporaryDirectory(prefix="hashlight-linearity-") as folder:
            rows[groups] = measure(Path(folder), groups, options.rows, options.queries)
    document["measured"], document["costs"] = rows, costs_of(rows)
    document["simulated"] = {
        str(groups): {
            str(gateways): highest(document["costs"], groups, gateways, options.p99_ms / 1e3, options.simulated_queries)
            for gateways in GATEWAYS
        }
        for groups in GROUPS
    }
    document["load_after"] = os.getloadavg()
    document |= environment("numpy", "pyarrow")
    save_report(options.out, document, report(document))


if __name__ == "__main__":
    main()
