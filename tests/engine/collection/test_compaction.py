"""Compaction keeps every row, its id and what is stored beside it, and merges what the policy says."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing import policy
from hashlight.engine.collection.writing.compaction import compact, merge_shards
from hashlight.engine.collection.writing.policy import groups_of_all, groups_to_merge
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import CollectionBusyError
from hashlight.engine.places.folder import Folder
from hashlight.engine.storage import sorting
from hashlight.engine.storage.manifest import DeadRows, ShardSpec
from hashlight.engine.storage.versions import read_current
from tests.engine.collection.contents import contents

BITS = 50
RNG = np.random.default_rng(4)
CODES = RNG.integers(8, size=(6000, 1), dtype=np.uint64)


def spec(name, rows, dead=0):
    about = DeadRows("x", dead, 1, "0" * 64) if dead else None
    return ShardSpec(name, rows, {}, (0, 1), about)


def names(groups):
    return sorted(sorted(each.name for each in group) for group in groups)


def test_four_shards_of_a_size_are_merged_and_the_result_counts_as_one():
    million = 10**6
    assert groups_to_merge([spec(str(n), 100) for n in range(3)]) == []
    assert names(groups_to_merge([spec(str(n), 100) for n in range(5)])) == [list("01234")]
    big = [spec(letter, 2 * million) for letter in "abc"]
    small = [spec(str(n), million // 2) for n in range(4)]
    assert names(groups_to_merge(big)) == []
    assert names(groups_to_merge([*big, *small[:3]])) == []
    assert names(groups_to_merge([*big, *small])) == [[*"0123", *"abc"]], "one of 2 million beside three"
    assert groups_to_merge([spec(str(n), 15 * million) for n in range(9)]) == [], "as large as they should be"
    packed = groups_to_merge([spec(str(n), 9 * million) for n in range(5)])
    assert [len(group) for group in packed] == [2, 2]
    assert all(sum(each.alive for each in group) <= policy.TARGET_ROWS for group in packed)


def test_a_shard_with_many_deleted_rows_is_written_again():
    shards = [spec("few", 1000, 199), spec("many", 1000, 200), spec("large", 30 * 10**6, 10**7), spec("none", 10)]
    assert names(groups_to_merge(shards)) == [["large"], ["many"]]


def test_all_of_it_leaves_nothing_deleted():
    assert groups_of_all([spec("a", 100)]) == []
    assert names(groups_of_all([spec("a", 100, 1)])) == [["a"]]
    shards = [spec("a", 100), spec("b", 19 * 10**6), spec("c", 10**7), spec("d", 15 * 10**6)]
    assert names(groups_of_all(shards)) == [["a", "c"]]


@pytest.fixture
def living(tmp_path):
    """Seven shards with everything that a shard can have, of which rows were deleted and columns set."""
    path = tmp_path / "c"
    shape = (len(CODES), 3)
    features = RNG.normal(size=shape).astype(np.float16)
    table = pa.table(
        {
            "label": pa.array([None if n % 11 == 0 else n for n in range(len(CODES))], pa.int32()),
            "tags": [["x"] * (n % 3) for n in range(len(CODES))],
            "kind": pa.array([f"kind {n % 5}" for n in range(len(CODES))]).dictionary_encode(),
        }
    )
    ids = RNG.permutation(10**6)[: len(CODES)]
    pictures = [None if n % 4 == 0 else b"p%d" % n for n in range(len(CODES))]
    Collection.create(path, CODES[:3000], ids=ids[:3000], attributes=table[:3000], features=features[:3000], bits=BITS,
                      shards=3)  # fmt: skip
    for start in range(3000, 6000, 750):
        part = slice(start, start + 750)
        with Transaction(path) as writer:
            more = None if start == 3000 else pictures[part]
            writer.add(CODES[part], ids[part], table[part], features[part], more)
            writer.commit()
    with Transaction(path) as writer:
        writer.delete(ids[RNG.permutation(6000)[:900]])
        writer.commit()
    left = np.array(sorted(contents(lambda name: (path / name).read_bytes())))
    with Transaction(path) as writer:
        writer.set_column("score", RNG.normal(size=400), ids=left[:400])
        writer.set_column("label", [-1] * 50, ids=left[300:350], type=pa.int32())
        writer.commit()
    return path, dict(zip(ids.tolist(), features.tolist(), strict=True))


def stored_features(path):
    """{id: features} of all live rows, which are in the first rows of a file after its header."""
    found = {}
    for shard in read_current(Folder(path)).shards:
        ids = np.load(path / "shards" / shard.name / "ids.npy")
        dead = np.load(path / "deletions" / shard.dead.name) if shard.dead else []
        rows = np.setdiff1d(np.arange(len(ids)), dead)
        stored = np.load(path / "shards" / shard.name / "features.npy")
        found |= dict(zip(ids[rows].tolist(), stored[rows].tolist(), strict=True))
    return found


@pytest.mark.parametrize("run_bytes", [None, 2000])
def test_compaction_keeps_every_row(living, monkeypatch, run_bytes):
    if run_bytes:
        monkeypatch.setattr(sorting, "_RUN_BYTES", run_bytes)
    path, features = living
    before = contents(lambda name: (path / name).read_bytes())
    assert len(before) == 5100
    compact(path)
    live = read_current(Folder(path))
    assert [(spec.rows, spec.dead, spec.columns) for spec in live.shards] == [(5100, None, {})]
    assert contents(lambda name: (path / name).read_bytes()) == before
    assert stored_features(path) == {id_: features[id_] for id_ in before}
    compacted = Collection.open(path, verify=True)
    assert (len(compacted), compacted.has_tables) == (5100, True)
    assert live.next_id == max(features) + 1
    compact(path)
    assert read_current(Folder(path)).version == live.version, "there is nothing left to do"


def test_a_shard_without_live_rows_goes(tmp_path):
    Collection.create(tmp_path / "c", CODES[:10], bits=BITS, shards=2)
    with Transaction(tmp_path / "c") as writer:
        writer.delete(range(5))
        writer.commit()
    assert [spec.rows for spec in read_current(Folder(tmp_path / "c")).shards] == [5]


def test_compaction_in_a_bucket(bucket):
    Collection.create(bucket.uri("c"), CODES[:40], attributes={"label": range(40)}, bits=BITS, shards=4)
    with Transaction(bucket.uri("c")) as writer:
        writer.delete([7])
        writer.set_column("x", ["a", "b"], ids=[1, 2])
        writer.update([3, 30], {"label": [-3, -30]})
        writer.commit()
    before = contents(lambda name: bucket.get(f"c/{name}"))
    compact(bucket.uri("c"))
    assert contents(lambda name: bucket.get(f"c/{name}")) == before
    assert len(Collection.open(bucket.uri("c"), verify=True).shards) == 1


@pytest.mark.parametrize(
    "change", [lambda writer: writer.delete([3, 12]), lambda writer: writer.drop_column("kind")], ids=["rows", "column"]
)
def test_a_compaction_does_not_lose_what_a_rollback_brings_back_meanwhile(tmp_path, change):
    path = tmp_path / "c"
    kinds = {"label": range(20), "kind": ["a", "b"] * 10}
    Collection.create(path, CODES[:20], attributes=kinds, bits=BITS, shards=2, tables=False)
    before = contents(lambda name: (path / name).read_bytes())
    with Transaction(path) as writer:
        change(writer)
        writer.commit()
    with Transaction(path) as compacting:
        old = list(compacting.live.shards)
        compacting.replace(old, [merge_shards(compacting, compacting.live, old)])
        Collection.open(path).rollback(1)
        with pytest.raises(CollectionBusyError, match="rolled back: this compaction was discarded"):
            compacting.commit()
    assert contents(lambda name: (path / name).read_bytes()) == before
