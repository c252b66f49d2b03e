"""Exact counts of the work a shard: many small ones must cost what one does, once they are gathered."""

from __future__ import annotations

import collections
import functools

import numpy as np
import pytest

from hashlight.engine.collection import opening, parts
from hashlight.engine.collection.collection import Collection
from hashlight.engine.indexes.multi_index import planner
from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.scan import ScanIndex
from hashlight.engine.storage.shard import Shard
from tests.costs import FIXED_COSTS
from tests.counts import data
from tests.counts.baseline import compare

SHARDS, ROWS = 40, 50


@pytest.fixture
def calls(monkeypatch):
    """Counted calls of whatever is done for each shard."""
    monkeypatch.setattr(planner, "_costs", FIXED_COSTS)
    counted = collections.Counter()

    def count(owner, name, what, amount=lambda *arguments: 1):
        function = getattr(owner, name)

        @functools.wraps(function)
        def call(*arguments, **options):
            counted[what] += amount(*arguments)
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    count(opening, "verify_shard", "shards verified")
    count(Shard, "__init__", "shards opened")
    count(Shard, "mask_of", "masks of shards")
    count(Shard, "take", "shards items were taken from")
    count(Shard, "rows_of", "shards asked for ids")
    count(parts, "map_faiss_flat", "shards read")
    count(parts, "gather", "rows gathered", lambda names, rows, read: sum(rows))
    for index in (MultiIndex, ScanIndex):
        count(index, "answer_checked", "indexes asked")
    return counted


def test_work_of_many_small_shards(tmp_path, calls):
    codes = data.uniform(1, SHARDS * ROWS, 64)
    ids = np.arange(SHARDS * ROWS) * 7
    path = tmp_path / "c"
    Collection.create(path, codes, ids=ids, attributes={"label": ids % 3}, shards=SHARDS)
    queries = data.near(2, codes, 32)
    counts = {}

    def step(name, work):
        calls.clear()
        result = work()
        counts[name] = dict(sorted(calls.items()))
        return result

    collection = step("open", lambda: Collection.open(path))
    step("first search", lambda: collection.search(queries[:1], 10))
    step("one query, 10 nearest", lambda: collection.search(queries[:1], 10))
    step("one query, radius 3", lambda: collection.range_search(queries[:1], 3))
    step("32 queries, 10 nearest", lambda: collection.search(queries, 10))
    step("ten ids of three shards", lambda: collection.get(ids[[0, 1, 2, 3, 60, 61, 62, 1999, 1998, 1997]]))
    step("the same ids again", lambda: collection.get(ids[[0, 1, 2, 3, 60, 61, 62, 1999, 1998, 1997]]))
    step("first search with a filter", lambda: collection.search(queries[:1], 10, filter="label == 1"))
    step("the same filter again", lambda: collection.search(queries, 10, filter="label == 1"))
    more = step("one row added", lambda: collection.add(~codes[:1], attributes={"label": [1]}))
    found = step("first search of the new version", lambda: more.search(~codes[:1], 1))
    assert found.distances.tolist() == [[0]]
    left = step("one row deleted", lambda: more.delete([7]))
    step("first search without it", lambda: left.search(queries[:1], 10))
    compare("many-shards", counts)
