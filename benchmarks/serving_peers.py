"""A radius query over HTTP: this gateway against the obvious alternatives, in one run.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.serving_peers --collection FOLDER --out benchmarks/results/serving_peers_NAME_DATE

Each server has its own processes on this machine, the same codes and the same queries, and its answers are checked
before it is timed:

- Hashlight: `hashlight serve --groups 4`, and embedded;
- FAISS behind FastAPI: one process, `IndexBinaryFlat`, or `IndexBinaryMultiHash` with 3 tables made exact;
- Ray Serve: an ingress that fans out to 4 deployments, each with Hashlight's index of a quarter of the codes;
- milvus-lite: its own client and protocol, no HTTP; a million codes, as inserting more takes hours.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.ipc

from benchmarks.http_load import HttpLoad
from benchmarks.reporting import environment, save_report
from benchmarks.serving import BATCH, CLIENTS, GROUPS, RADIUS, build, quantiles, queries_of
from hashlight.engine.collection.collection import Collection

LIMIT = 1000
MILVUS_ROWS = 1_000_000
PEERS = ("hashlight, 4 groups", "hashlight, embedded", "faiss flat", "faiss multi-hash", "ray serve", "milvus-lite")
ARROW = "application/vnd.apache.arrow.stream"


def hexed(queries: np.ndarray) -> list[str]:
    return [query.tobytes().hex() for query in queries]


# The servers; each runs in its own process and prints its port.


def serve_faiss(codes: Path, kind: str) -> None:
    import faiss
    import uvicorn
    from fastapi import FastAPI

    packed = np.load(codes).view(np.uint8)
    index: Any
    if kind == "flat":
        index = faiss.IndexBinaryFlat(64)
    else:
        index = faiss.IndexBinaryMultiHash(64, 3, 21)
        index.nflip = RADIUS // 3
    index.add(packed)
    app = FastAPI()

    @app.post("/v1/range_search")
    def range_search(body: dict) -> dict:
        queries = np.frombuffer(bytes.fromhex("".join(query["code"] for query in body["queries"])), np.uint8)
        lims, distances, rows = index.range_search(queries.reshape(-1, 8), body["radius"] + 1)
        hits = sorted_hits(lims, distances, rows)
        return {"results": [{"hits": one[: body["limit"]]} for one in hits]}

    announce_and_run(uvicorn.Config(app, port=0, log_level="error", loop="uvloop", http="httptools"))


def sorted_hits(lims, distances, rows) -> list[list[dict]]:
    lims = lims.astype(np.int64)
    order = np.lexsort((rows, distances, np.repeat(np.arange(len(lims) - 1), np.diff(lims))))
    pairs = list(zip(rows[order].tolist(), distances[order].tolist(), strict=True))
    return [
        [{"id": id_, "distance": int(distance)} for id_, distance in pairs[begin:end]]
        for begin, end in zip(lims[:-1].tolist(), lims[1:].tolist(), strict=True)
    ]


def announce_and_run(config) -> None:
    import uvicorn

    class Announcing(uvicorn.Server):
        async def startup(self, sockets=None) -> None:
            await super().startup(sockets)
            print(self.servers[0].sockets[0].getsockname()[1], flush=True)

    Announcing(config).run()


def serve_ray(codes: Path) -> None:
    import socket

    import ray
    from ray import serve
    from starlette.requests import Request

    @serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
    class Part:
        def __init__(self, number: int) -> None:
            from hashlight.engine.indexes.multi_index.index import MultiIndex

            words = np.load(codes)
            own = slice(number * len(words) // GROUPS, (number + 1) * len(words) // GROUPS)
            ids = np.arange(own.start, own.stop)
            self.index = MultiIndex.build(np.ascontiguousarray(words[own]), ids, bits=64)

        def within(self, queries: bytes, radius: int) -> tuple:
            words = np.frombuffer(queries, np.uint64).reshape(-1, 1)
            found = self.index.range_search(words, radius, LIMIT)
            return found.lims, found.distances, found.ids

    @serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
    class Ingress:
        def __init__(self, *parts) -> None:
            self.parts = parts

        async def __call__(self, request: Request) -> dict:
            body = await request.json()
            queries = bytes.fromhex("".join(query["code"] for query in body["queries"]))
            answers = await asyncio.gather(*(part.within.remote(queries, body["radius"]) for part in self.parts))
            merged = [
                sorted(
                    (int(distance), int(id_))
                    for lims, distances, ids in answers
                    for distance, id_ in zip(*(a[lims[q] : lims[q + 1]] for a in (distances, ids)), strict=True)
                )
                for q in range(len(body["queries"]))
            ]
            return {
                "results": [
                    {"hits": [{"id": id_, "distance": d} for d, id_ in hits[: body["limit"]]]} for hits in merged
                ]
            }

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    parts = [Part.options(name=f"part-{number}").bind(number) for number in range(GROUPS)]  # type: ignore[attr-defined]
    serve.run(Ingress.bind(*parts), route_prefix="/v1/range_search")  # type: ignore[attr-defined]
    print(port, flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


# The measurements.


@contextlib.contextmanager
def started(*command: str) -> Iterator[tuple[str, int]]:
    """Start a server and wait for its port; yields its URL and process id, and stops it on exit."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline().strip().rsplit(":", 1)[-1].strip("/"))
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.stdin.close()
            process.terminate()


def body_of(queries: np.ndarray) -> dict:
    return {"queries": [{"code": code} for code in hexed(queries)], "radius": RADIUS, "limit": LIMIT}


def check(url: str, collection: Collection, queries: np.ndarray, *, arrow: bool) -> None:
    expected = collection.range_search(queries, RADIUS, LIMIT)
    answer = httpx.post(f"{url}/v1/range_search", json=body_of(queries), timeout=600).raise_for_status().json()
    found = [hit for result in answer["results"] for hit in result["hits"]]
    assert [hit["id"] for hit in found] == expected.ids.tolist()
    assert [hit["distance"] for hit in found] == expected.distances.tolist()
    if arrow:
        options: dict[str, Any] = {"params": {"radius": RADIUS, "limit": LIMIT}, "headers": {"content-type": ARROW}}
        stream = httpx.post(f"{url}/v1/range_search", content=arrow_body(queries), **options).raise_for_status()
        table = pyarrow.ipc.open_stream(stream.content).read_all()
        assert table["query"].to_pylist() == np.repeat(np.arange(len(queries)), np.diff(expected.lims)).tolist()
        assert table["id"].to_pylist() == expected.ids.tolist()
        assert table["distance"].to_pylist() == expected.distances.tolist()


async def over_http(url: str, queries: np.ndarray, seconds: float, *, arrow: bool) -> dict:
    """One client, 16 clients, and batches."""
    http = HttpLoad(url)
    path, kind = "/v1/range_search", "application/json"
    requests = itertools.cycle(
        [http.request(path, kind, json.dumps(body_of(queries[n : n + 1])).encode()) for n in range(len(queries))]
    )
    batches = {"JSON": http.request(path, kind, json.dumps(body_of(queries[:BATCH])).encode())}
    if arrow:
        batches["Arrow"] = http.request(f"{path}?radius={RADIUS}&limit={LIMIT}", ARROW, arrow_body(queries[:BATCH]))

    async def ask(request: bytes) -> float:
        start = time.perf_counter()
        answer = await http.send(request)
        assert answer.status == 200, answer
        return time.perf_counter() - start

    async def keep_asking(seconds: float, what: Iterator[bytes]) -> list[float]:
        until = time.perf_counter() + seconds
        times: list[float] = []
        while len(times) < 3 or time.perf_counter() < until:
            times.append(await ask(next(what)))
        return times

    await keep_asking(1, requests)
    alone = await keep_asking(seconds, requests)
    start = time.perf_counter()
    many = await asyncio.gather(*(keep_asking(seconds, requests) for _ in range(CLIENTS)))
    took_s = time.perf_counter() - start
    batch_s = {name: np.median(await keep_asking(seconds, itertools.repeat(batch))) for name, batch in batches.items()}
    http.close()
    together = np.concatenate(many)
    return {
        "one client, p50 ms": round(float(np.median(alone)) * 1e3, 2),
        "p99 ms": quantiles(alone)["p99_ms"],
        f"{CLIENTS} clients, queries/s": round(len(together) / took_s),
        f"{CLIENTS} clients, p99 ms": quantiles(together)["p99_ms"],
        **{
            f"batches of {BATCH:,} in {name}, queries/s": round(min(len(queries), BATCH) / float(batch_s[name]))
            for name in batches
        },
    }


def arrow_body(queries: np.ndarray) -> bytes:
    column = pa.array([query.tobytes() for query in queries], pa.binary(8))
    sink = pa.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, pa.schema([("code", pa.binary(8))])) as writer:
        writer.write_batch(pa.record_batch([column], names=["code"]))
    return bytes(sink.getvalue())


def over_milvus(codes: np.ndarray, queries: np.ndarray, seconds: float) -> dict:
    """Insert a part of the codes and query with its own client."""
    from benchmarks.peers import MilvusLite

    peer = MilvusLite(codes[:MILVUS_ROWS].view(np.uint8))
    times: list[float] = []
    until = time.perf_counter() + seconds
    for number in range(len(queries)):
        start = time.perf_counter()
        _, rows = peer.within(queries[number : number + 1].view(np.uint8), RADIUS)
        times.append(time.perf_counter() - start)
        distance = np.bitwise_count(codes[:MILVUS_ROWS, 0] ^ queries[number, 0]) if number < 8 else None
        assert distance is None or sorted(rows.tolist()) == np.flatnonzero(distance <= RADIUS).tolist()
        if time.perf_counter() > until:
            break
    return {"one client, p50 ms": round(float(np.median(times)) * 1e3, 2), "p99 ms": quantiles(times)["p99_ms"]}


def measure(peer: str, collection: Collection, codes: Path, given: argparse.Namespace) -> dict:
    queries = queries_of(collection, 2000)
    if peer == "milvus-lite":
        return over_milvus(np.load(codes), queries, given.seconds)
    here = ("-m", "benchmarks.serving_peers", "--codes", str(codes), "--serve")
    serve = ("-P", "-m", "hashlight", "serve", str(given.collection), "--port", "0")
    command = {
        "hashlight, 4 groups": (*serve, "--groups", str(GROUPS)),
        "hashlight, embedded": serve,
        "faiss flat": (*here, "flat"),
        "faiss multi-hash": (*here, "multi-hash"),
        "ray serve": (*here, "ray"),
    }[peer]
    with started(*command) as (url, _):
        arrow = peer.startswith("hashlight")
        check(url, collection, queries[:100], arrow=arrow)
        return asyncio.run(over_http(url, queries, given.seconds, arrow=arrow))


def as_markdown(results: dict) -> str:
    names = list(dict.fromkeys(name for row in results["peers"].values() for name in row))
    lines = [
        "# A radius query over HTTP, against other servers\n",
        f"`python -m benchmarks.serving_peers`, {results['date']}, {results['machine']}, "
        f"{results['versions']}. {results['rows']:,} uniform 64-bit codes, radius {RADIUS}; all on "
        f"one machine. Only Hashlight takes Arrow. milvus-lite has {MILVUS_ROWS:,} codes, its own protocol, and no "
        "batches here.\n",
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(
            f"| {peer} | {' | '.join(f'{row[name]:,}' if name in row else '' for name in names)} |"
            for peer, row in results["peers"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collection", type=Path, default=Path("serving_collection"))
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--out", type=Path, help="without suffix: .md and .json are written")
    parser.add_argument("--serve", choices=("flat", "multi-hash", "ray"), help=argparse.SUPPRESS)
    parser.add_argument("--codes", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve_ray(given.codes) if given.serve == "ray" else serve_faiss(given.codes, given.serve)
        return
    collection = build(given.collection, given.rows)
    codes = given.collection / "codes.npy"
    by_id = np.empty((len(collection), 1), np.uint64)
    for shard in collection.shards:
        by_id[shard.ids_N] = shard.codes_NW
    np.save(codes, by_id)
    results = {
        "date": time.strftime("%Y-%m-%d"),
        **environment("pyarrow", "ray", "faiss-cpu", "fastapi"),
        "rows": len(collection),
        "peers": {},
    }
    for peer in given.peers:
        results["peers"][peer] = measure(peer, collection, codes, given)
        print(peer, results["peers"][peer], flush=True)
    save_report(given.out, results, as_markdown(results))


if __name__ == "__main__":
    main()
