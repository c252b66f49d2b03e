"""How many items each deletion finds, among writes that are made together."""

from __future__ import annotations

import time
from concurrent.futures import Future

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.writing.buffering import Buffer
from hashlight.engine.writing.committing import Waiting
from hashlight.engine.writing.direct import Direct
from hashlight.engine.writing.opened import Opened
from hashlight.engine.writing.records import Key
from hashlight.engine.writing.writes import Delete, DeleteWhere, Put

IDS = 12


def random_write(rng, items):
    """A write, what it leaves of the ids, and how many it deletes."""
    ids = rng.choice(IDS, size=rng.integers(1, 5), replace=False)
    named = set(ids.tolist())
    kind = rng.integers(4)
    codes = rng.integers(100, size=(len(ids), 1), dtype=np.uint64)
    if kind == 0 and not items & named:
        return Put(codes, ids, replaces=False), items | named, None
    if kind <= 1:
        return Put(codes, ids), items | named, None
    if kind == 2:
        return DeleteWhere("id in :some", Parameters({"some": ids.tolist()})), items - named, len(items & named)
    repeated = np.concatenate([ids, ids[:1]])
    return Delete(repeated), items - named, len(items & named)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["direct", "buffer"])
def test_each_deletion_counts_what_it_finds_after_the_writes_before_it(tmp_path, seed, kind):
    rng = np.random.default_rng(seed)
    folder, items = tmp_path / "c", set(range(0, IDS, 2))
    codes = np.arange(IDS // 2, dtype=np.uint64)[:, None]
    collection = Collection.create(folder, codes, ids=np.array(sorted(items)), bits=16, shards=2)
    opened = Opened(folder, tmp_path / "log")
    store = Direct(folder, opened) if kind == "direct" else Buffer(collection, opened, lambda shown: None)
    keys, expected = [], []
    for batch in (1, 2, 7, 9):
        ready = []
        for _ in range(batch):
            write, items, deleted = random_write(rng, items)
            keys.append(Key(str(len(keys)), "d"))
            expected.append(deleted)
            ready.append(Waiting(write, time.monotonic() + 600, Future(), keys[-1]))
        store.settle(ready)
        assert [one.made.result(0).deleted for one in ready] == expected[-batch:]
    assert any(expected)
    assert [store.find(key).deleted for key in keys] == expected
    store.close()
    with_log = Opened(folder, tmp_path / "log")
    assert [with_log.keys.find(key).deleted for key in keys] == expected
    with_log.close()
    assert set(Collection.open(folder).scan([]).read_all()["id"].to_pylist()) == items
