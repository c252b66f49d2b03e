"""Versions: opened, tagged, rolled back to, let go; and kept as long as somebody reads them."""

from __future__ import annotations

import datetime
import gc
import threading

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing import draft
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import CollectionNotFoundError
from hashlight.engine.places.bucket import Bucket
from hashlight.engine.places.folder import Folder
from hashlight.engine.places.opening import open_place
from hashlight.engine.storage import manifest, readers
from hashlight.engine.storage.versions import holding_live, list_versions, read_current, read_version
from tests.engine.collection.contents import contents

BITS = 40
CODES = np.random.default_rng(8).integers(2**BITS, size=(100, 1), dtype=np.uint64)


@pytest.fixture(params=["folder", "bucket"])
def where(request, tmp_path, bucket):
    """A location, and a function that reads a file there."""
    if request.param == "folder":
        return str(tmp_path / "c"), lambda name: (tmp_path / "c" / name).read_bytes()
    return bucket.uri("c"), lambda name: bucket.get(f"c/{name}")


def grow(location, times):
    """Add a row `times` times; version n then has n + 9 rows."""
    for _ in range(times):
        with Transaction(location, tables=False) as writer:
            writer.add(CODES[:1])
            writer.commit()


def make(location, *, versions=1):
    Collection.create(location, CODES[:10], bits=BITS, tables=False)
    grow(location, versions - 1)


def numbers(location):
    return [version.version for version in list_versions(open_place(location))]


def change(location, **what):
    ((name, arguments),) = what.items()
    with Transaction(location, tables=False) as writer:
        getattr(writer, name)(*arguments[0], **arguments[1])
        return writer.commit()


def given(*arguments, **options):
    return arguments, options


def test_a_version_is_opened_by_its_number_or_its_tag(where):
    location, read = where
    make(location, versions=5)
    assert numbers(location) == [5, 4, 3, 2, 1]
    old = Collection.open(location, version=3)
    assert (old.version, len(old)) == (3, 12)
    old.tag("good")
    assert len(Collection.open(location, version="good")) == 12
    assert len(Collection.open(location)) == 14
    for wrong, message in ((0, "no version 0"), (7, "no version 7: the live one is 6"), ("bad", "its tags are good")):
        with pytest.raises(CollectionNotFoundError, match=message):
            Collection.open(location, version=wrong)
    assert len(contents(read)) == 14


def test_a_tag_keeps_its_version_until_it_is_removed(where):
    location, _ = where
    make(location, versions=3)
    change(location, tag=given("second", 2))
    change(location, prune=given(keep=1))
    assert numbers(location) == [5, 4, 2]
    assert len(Collection.open(location, version="second")) == len(Collection.open(location, version=2)) == 11
    with pytest.raises(ValueError, match="has version 2 tagged 'second': remove that tag first"):
        change(location, tag=given("second", 5))
    with pytest.raises(CollectionNotFoundError, match="no version 3"):
        change(location, tag=given("third", 3))
    gc.collect()
    change(location, untag=given("second"))
    assert numbers(location) == [6, 5, 4]
    assert not [name for name in open_place(location).names("manifests") if name.startswith("00000002")]


def test_a_rollback_is_a_new_version_and_gives_no_id_again(where):
    location, read = where
    make(location)
    first = contents(read)
    change(location, delete=given(range(7)))
    change(location, add=given(CODES[20:23]))
    change(location, set_column=given("x", [1], ids=[9]))
    last = contents(read)
    assert change(location, rollback=given(1)).version == 5
    assert contents(read) == first
    assert change(location, rollback=given(4)).version == 6
    assert contents(read) == last
    change(location, rollback=given(1))
    change(location, add=given(CODES[30:31]))
    assert max(contents(read)) == 13, "10 to 12 were given before"
    assert numbers(location) == list(range(8, 0, -1))
    assert change(location, rollback=given(8)) == (8, 0, 0), "what is live need not be restored"


def test_prune_lets_old_versions_go(where):
    location, _ = where
    make(location, versions=6)
    change(location, prune=given(keep=4))
    assert numbers(location) == [7, 6, 5, 4]
    change(location, prune=given(older_than=datetime.timedelta(days=1)))
    assert numbers(location) == [7, 6, 5, 4], "all are younger"
    change(location, prune=given(keep=1, older_than=datetime.timedelta(days=1)))
    assert numbers(location) == [7, 6, 5, 4]
    change(location, prune=given(older_than=datetime.timedelta(seconds=-10)))
    assert numbers(location) == [8, 7]
    names = open_place(location).names("manifests")
    assert len(names) == 2
    assert len(open_place(location).names("shards")) == 6
    with pytest.raises(ValueError, match="at least 1"):
        change(location, prune=given(keep=0))


def test_a_commit_keeps_ten_versions_and_seldom_looks_at_them(tmp_path, monkeypatch):
    location = tmp_path / "c"
    make(location)
    reads = []
    parse = manifest.parse_manifest
    monkeypatch.setattr(
        "hashlight.engine.storage.versions.parse_manifest", lambda *given: reads.append(given) or parse(*given)
    )
    costs, kept = [], []
    for _ in range(45):
        reads.clear()
        grow(location, 1)
        costs.append(len(reads))
        kept.append(len(numbers(location)))
    assert min(kept[draft.KEPT_VERSIONS :]) == draft.KEPT_VERSIONS + 1, "the live one and ten before"
    assert max(kept) == 2 * draft.KEPT_VERSIONS
    assert sorted(costs)[len(costs) * 8 // 10] <= 3


def test_a_job_in_a_bucket_keeps_its_version(bucket, monkeypatch):
    location = bucket.uri("c")
    make(location, versions=2)
    place = open_place(location)
    with holding_live(place) as live:
        grow(location, 1)
        Collection.create(location, CODES[:3], bits=BITS, overwrite=True, tables=False)
        Collection.create(location, CODES[:4], bits=BITS, overwrite=True, tables=False)
        assert {f"shards/{name}" for name in place.names("shards")} > {name for name in live.names}
        assert place.exists(f"manifests/{live.file_name}")
        assert len(place.names("leases")) == 1
    assert place.names("leases") == []
    Collection.create(location, CODES[:5], bits=BITS, overwrite=True, tables=False)
    assert len(place.names("manifests")) == len(place.names("shards")) == 2


def test_the_lease_of_a_dead_job_ends(bucket, monkeypatch):
    location = bucket.uri("c")
    make(location)
    place = open_place(location)
    first = read_current(place)
    place.put("leases/dead", first.file_name.encode())
    for _ in range(2):
        Collection.create(location, CODES[:3], bits=BITS, overwrite=True, tables=False)
    assert place.exists(f"manifests/{first.file_name}")
    monkeypatch.setattr(readers, "_LEASE_S", -1.0)
    Collection.create(location, CODES[:3], bits=BITS, overwrite=True, tables=False)
    assert not place.exists(f"manifests/{first.file_name}")
    assert place.names("leases") == []


def test_a_lease_is_renewed_and_outlives_failures(bucket, monkeypatch, caplog):
    location = bucket.uri("c")
    make(location)
    monkeypatch.setattr(readers, "_RENEWED_S", 0.001)
    puts, enough = [], threading.Event()
    real = Bucket.put

    def put(self, name, data, **options):
        puts.append(name)
        if len(puts) > 4:
            enough.set()
        if len(puts) == 2:
            raise OSError("the network is down")
        real(self, name, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "put", put)
        with holding_live(open_place(location)):
            assert enough.wait(60)
    assert len(set(puts)) == 1
    assert "the network is down" in caplog.text
    assert open_place(location).names("leases") == []


def test_a_version_that_goes_before_its_lease_is_seen_is_not_held(bucket, monkeypatch):
    location = bucket.uri("c")
    make(location)
    real, left = readers.Lease.__enter__, [True]

    def late(lease):
        if left:
            left.clear()
            for _ in range(2):
                Collection.create(location, CODES[:3], bits=BITS, overwrite=True, tables=False)
        return real(lease)

    monkeypatch.setattr(readers.Lease, "__enter__", late)
    with holding_live(open_place(location)) as live:
        assert (live.version, live.rows) == (3, 3)
        assert len(open_place(location).names("leases")) == 1


def test_who_may_only_read_reads_without_a_lease(bucket, monkeypatch):
    location = bucket.uri("c")
    make(location)

    def refuse(self, name, data, **options):
        raise PermissionError("not allowed")

    monkeypatch.setattr(Bucket, "put", refuse)
    with holding_live(open_place(location)) as live:
        assert live.version == 1


def test_what_goes_while_it_is_looked_up_is_said_to_be_gone(tmp_path, monkeypatch):
    make(tmp_path / "c", versions=4)
    real = Folder.find

    def find(self, name):
        if name.startswith("manifests/00000002"):
            monkeypatch.undo()
            change(tmp_path / "c", prune=given(keep=1))
        return real(self, name)

    monkeypatch.setattr(Folder, "find", find)
    with pytest.raises(CollectionNotFoundError, match="no version 1"):
        read_version(Folder(tmp_path / "c"), 1)
