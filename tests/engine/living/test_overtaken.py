"""Writers in a bucket, where others may remove what they read: a short one begins again, a long one holds a lease."""

from __future__ import annotations

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.verifying.repair import Salvage, repair
from hashlight.engine.collection.writing.rows import Reader
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import CollectionBusyError, CorruptDataError
from hashlight.engine.places.bucket import Bucket
from hashlight.engine.places.opening import open_place
from tests.engine.collection.contents import contents

CODES = np.arange(8, dtype=np.uint64)[:, None]


def make(bucket, **more):
    """Make a collection of two shards, some of whose rows are deleted."""
    Collection.create(bucket.uri("c"), CODES, bits=16, tables=False, shards=2, **more).delete([0, 5])
    return bucket.uri("c")


def ids_in(bucket):
    return set(contents(lambda name: bucket.get(f"c/{name}")))


def overtake(monkeypatch, method, change, of=Reader):
    """Have a change made, and all that nobody reads removed, when the next writer first reads something of a shard."""
    real, left = getattr(of, method), [True]

    def overtaken(self, *given):
        if left:
            left.clear()
            change().prune(keep=1).prune(keep=1)
        return real(self, *given)

    monkeypatch.setattr(of, method, overtaken)
    return left


def test_what_a_compaction_reads_stays(bucket, monkeypatch):
    location = make(bucket)
    before = {key for key in bucket.keys("c/") if "/shards/" in key or "/deletions/" in key}
    left = overtake(monkeypatch, "dead", lambda: Collection.open(location).delete([1, 6]))
    done = Collection.open(location).compact(full=True)
    assert not left
    assert ids_in(bucket) == {2, 3, 4, 7}
    (shard,) = done.manifest.shards
    assert (shard.rows, shard.dead.count) == (6, 2), "what was deleted meanwhile"
    assert bucket.keys("c/leases") == []
    done.prune(keep=1).prune(keep=1)
    assert not before & set(bucket.keys("c/"))


def test_a_compaction_of_shards_that_another_has_merged_is_dropped(bucket, monkeypatch):
    location = make(bucket)
    left = overtake(monkeypatch, "codes", lambda: Collection.open(location).compact(full=True).delete([1]))
    Collection.open(location).compact(full=True)
    assert not left
    assert ids_in(bucket) == {2, 3, 4, 6, 7}


def test_a_repair_of_shards_that_another_has_merged_is_dropped(bucket, monkeypatch):
    location = make(bucket)
    (shard, _) = Collection.open(location).manifest.shards
    bucket.put(f"c/shards/{shard.name}/rows_by_id.npy", b"damaged")
    left = overtake(monkeypatch, "dead", lambda: Collection.open(location).compact(full=True).delete([1]), of=Salvage)
    with pytest.raises(CollectionBusyError, match="another process has replaced shard"):
        repair(location)
    assert not left
    assert repair(location).faults == ()
    assert ids_in(bucket) == {2, 3, 4, 6, 7}


def test_what_would_be_done_is_found_out_although_versions_go(bucket, monkeypatch):
    location = make(bucket)
    left = overtake(monkeypatch, "rows_of", lambda: Collection.open(location).delete([4]).compact(full=True))
    with Transaction(location) as change:
        change.delete([3, 4])
        assert change.preview().deleted == 1
    assert not left


def test_a_file_that_breaks_off_is_fetched_again(bucket, monkeypatch):
    location = make(bucket, attributes={"label": list(range(8))})
    real, left = Bucket.download, [True]

    def broken(self, name, target):
        if left:
            left.clear()
            target.write_bytes(b"half")
            raise OSError("the connection was lost")
        real(self, name, target)

    monkeypatch.setattr(Bucket, "download", broken)
    with Transaction(location, tables=False) as change:
        change.update([1], {"label": [10]})
        with pytest.raises(OSError, match="connection was lost"):
            change.commit()
        assert not left
        change.commit()
    assert Collection.open(location).get([1])["label"].to_pylist() == [10]


def test_what_a_writer_reads_goes_while_it_commits(bucket, monkeypatch):
    location = bucket.uri("c")
    Collection.create(location, CODES, bits=16, tables=False)
    real, left = Reader.rows_of, [True]

    def overtaken(self, spec, ids):
        if left:
            left.clear()
            other = Collection.open(location).delete([0]).compact(full=True)
            other.delete([1]).prune(keep=1).prune(keep=1)
            assert not bucket.keys(f"c/shards/{spec.name}")
        return real(self, spec, ids)

    monkeypatch.setattr(Reader, "rows_of", overtaken)
    with Transaction(location, tables=False) as change:
        change.delete([2])
        assert change.commit().deleted == 1
    assert not left
    assert ids_in(bucket) == {3, 4, 5, 6, 7}


def test_what_is_missing_from_the_live_version_is_an_error(bucket):
    location = bucket.uri("c")
    (shard,) = Collection.create(location, CODES, bits=16, tables=False).manifest.shards
    with Transaction(location, tables=False) as change:
        change.delete([2])
        open_place(location).remove(f"shards/{shard.name}/ids.npy")
        with pytest.raises(CorruptDataError, match=r"ids\.npy is missing"):
            change.commit()
