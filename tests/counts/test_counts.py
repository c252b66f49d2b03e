"""Exact counts of the work of searching and opening: they show a slow-down even on a machine with noisy timings."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.shard_set import ShardSet
from hashlight.engine.indexes import answers, scan
from hashlight.engine.indexes.multi_index import planner, probe
from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.query import Query
from tests.costs import FIXED_COSTS
from tests.counts import data
from tests.counts.baseline import compare

ROWS, QUERIES = 30_000, 32
RADII = (0, 3, 8, 20)
KS = (1, 10, 300)
CASES = [(kind, bits) for kind in ("uniform", "clustered") for bits in (64, 256)]
KERNELS = {
    probe: ("range_tables", "knn_tables", "price_radius"),
    scan: ("range_scan", "knn_scan"),
    answers: ("arrange", "count_hits", "lay_out", "place_hits", "order_ids", "sort_heaps"),
}


@pytest.fixture(autouse=True)
def _fixed_costs(monkeypatch):
    monkeypatch.setattr(planner, "_costs", FIXED_COSTS)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request):
    kind, bits = request.param
    codes = getattr(data, kind)(1, ROWS, bits)
    index = MultiIndex.build(codes, np.arange(ROWS), bits=bits)
    return f"{kind}-{bits}", index, data.near(2, codes, QUERIES), codes


def questions():
    yield from (Query(radius=radius, threads=1) for radius in RADII)
    yield from (Query(k=k, threads=1) for k in KS)


def named(query):
    return f"radius {query.radius}" if query.k is None else f"{query.k} nearest"


def test_lookups_and_candidates_of_the_tables(case):
    name, index, queries, codes = case
    sizes = [np.diff(index.tables.offsets[begin:][: 2**width + 1].astype(np.int64)) for begin, width in tables(index)]
    counts = {
        "widths": list(index.tables.widths),
        "distinct": index.tables.distinct,
        "buckets in use": [int(np.count_nonzero(size)) for size in sizes],
        "largest buckets": [int(size.max()) for size in sizes],
    }
    assert counts["distinct"] == len(np.unique(codes, axis=0))
    for query in questions():
        explained = Query(k=query.k, radius=query.radius, threads=1, explain=True)
        found = index.answer(queries, explained, plan="tables")
        counts[named(query)] = {
            "lookups": int(found.explain.probes.sum()),
            "candidates": int(found.explain.candidates.sum()),
            "answers": int((found.ids >= 0).sum()),
        }
        if query.k is None:
            assert counts[named(query)]["answers"] == within(queries, codes, query.radius)
    compare(f"tables-{name}", counts)


def within(queries, codes, radius):
    """Return how many codes are within the radius, by comparing all of them."""
    apart_QN = np.zeros((len(queries), len(codes)), np.int64)
    for word in range(codes.shape[1]):
        apart_QN += np.bitwise_count(queries[:, None, word] ^ codes[None, :, word])
    return int((apart_QN <= radius).sum())


def tables(index):
    begin = 0
    for width in index.tables.widths:
        yield begin, width
        begin += 2**width + 1


def test_plans_of_the_planner(case):
    name, index, queries, _ = case
    counts = {}
    for query in questions():
        explained = Query(k=query.k, radius=query.radius, threads=1, explain=True)
        together = index.answer(queries, explained).explain
        alone = [index.answer(queries[q : q + 1], explained).explain.plans[0] for q in range(QUERIES)]
        counts[named(query)] = {
            "together": dict(sorted(collections.Counter(together.plans).items())),
            "alone": dict(sorted(collections.Counter(alone).items())),
            "lookups together": int(together.probes.sum()),
            "codes and candidates together": int(together.candidates.sum()),
        }
    compare(f"plans-{name}", counts)


def test_kernel_calls_of_a_batch(case, monkeypatch):
    name, index, queries, _ = case
    calls = collections.Counter()
    for module, kernels in KERNELS.items():
        for kernel in kernels:
            monkeypatch.setattr(module, kernel, counted(getattr(module, kernel), kernel, calls))
    counts = {}
    for query in questions():
        for size in (1, QUERIES):
            calls.clear()
            index.answer(queries[:size], query)
            counts[f"{named(query)}, {size} at a time"] = dict(sorted(calls.items()))
    compare(f"kernels-{name}", counts)


def counted(function, name, calls):
    def call(*arguments):
        calls[name] += 1
        return function(*arguments)

    return call


class CountedShard:
    """A shard that records its calls."""

    def __init__(self, index):
        self.index = index
        self.calls = self.queries = self.candidates = 0

    def __len__(self):
        return len(self.index)

    def answer(self, queries_QW, query, *, farthest_Q=None):
        self.calls += 1
        self.queries += len(queries_QW)
        found = self.index.answer(queries_QW, query, farthest_Q=farthest_Q)
        self.candidates += int(found.explain.candidates.sum())
        return found


@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_calls_of_each_shard(kind, bits):
    codes = getattr(data, kind)(1, ROWS, bits)
    queries = data.near(2, codes, QUERIES)
    counts = {}
    for query in (Query(k=10, threads=1, explain=True), Query(radius=3, threads=1, explain=True)):
        shards = [
            CountedShard(MultiIndex.build(codes[part::4].copy(), np.arange(part, ROWS, 4), bits=bits))
            for part in range(4)
        ]
        found = ShardSet.of(shards, version=1).answer(queries, query)
        if query.k:
            whole = MultiIndex.build(codes, np.arange(ROWS), bits=bits).search(queries, query.k, plan="scan")
            assert (found.ids == whole.ids).all()
        counts[named(query)] = {
            "calls": [shard.calls for shard in shards],
            "queries": [shard.queries for shard in shards],
            "candidates": [shard.candidates for shard in shards],
        }
    compare(f"shards-{kind}-{bits}", counts)


OPENING = """
import json, os, sys
from pathlib import Path
from hashlight.engine.collection.collection import Collection

warm, path = sys.argv[1:]
opened, stamps = [], 0

def note(event, given):
    global stamps
    if event == "open" and str(given[0]).startswith(path):
        opened.append(given[0])
    elif event == "open" and given[1] == "r" and str(given[0]).startswith(os.environ["XDG_CACHE_HOME"]):
        stamps += os.path.getsize(given[0]) if os.path.exists(given[0]) else 0

def bytes_read():
    # Without the counter's own reads, and without the stamps, which depend on the machine.
    text = Path("/proc/self/io").read_text()
    global own
    count, own = int(text.split()[1]) - own - stamps, own + len(text)
    return count

def open_files():
    return len(os.listdir("/proc/self/fd"))

own = 0
sys.addaudithook(note)
kept = [Collection.open(warm)]  # load everything that is loaded only once
counts = {}
for name in ("first", "again"):
    opened.clear()
    before, descriptors = bytes_read(), open_files()
    kept.append(Collection.open(path))
    counts[name] = {"bytes read": bytes_read() - before, "files opened": len(opened)}
    counts[name]["descriptors kept"] = open_files() - descriptors
print(json.dumps(counts))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_bytes_and_files_read_when_opening_a_collection(tmp_path):
    codes = data.uniform(1, 4000, 64)
    features = (np.arange(4000 * 64) % 100).reshape(4000, 64).astype(np.float16)
    for name in ("warm", "path"):
        Collection.create(tmp_path / name, codes, ids=np.arange(4000), bits=64, shards=4, features=features)
    done = subprocess.run(
        [sys.executable, "-c", OPENING, str(tmp_path / "warm"), str(tmp_path / "path")],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},  # an empty cache, so no shard has been verified
        capture_output=True,
        text=True,
        check=True,
    )
    counts = json.loads(done.stdout)
    assert counts["first"]["bytes read"] > codes.nbytes + features.nbytes > counts["again"]["bytes read"]
    compare("opening", counts)
