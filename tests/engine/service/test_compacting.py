"""A server compacts what others write: one group at a time, exactly, and without leaving anything half."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing import compaction
from hashlight.engine.collection.writing.compaction import compact
from hashlight.engine.collection.writing.draft import KEPT_VERSIONS
from hashlight.engine.collection.writing.policy import groups_to_merge
from hashlight.engine.indexes.threads import in_background, run_parts
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.control import compacting
from hashlight.engine.service.control.compacting import Compactor
from hashlight.engine.service.telemetry.metrics import Metrics
from hashlight.engine.storage.manifest import ShardSpec
from hashlight.engine.storage.versions import list_versions
from tests.engine.service.conftest import Load, eventually
from tests.oracles import clustered_codes, knn

BITS = 64
CODES = clustered_codes(np.random.default_rng(17), 400, BITS)
IDS = np.arange(400) * 5
LABELS = np.arange(400) % 3


@pytest.fixture
def built(tmp_path):
    """Five shards, as a build has made them."""
    return Collection.create(
        tmp_path / "c", CODES[:200], ids=IDS[:200], attributes={"label": LABELS[:200]}, bits=BITS, shards=5
    )


def add(collection, start, stop):
    part = slice(start, stop)
    return collection.add(CODES[part], ids=IDS[part], attributes={"label": LABELS[part]})


def value_of(metrics, name):
    return metrics.registry.get_sample_value(name)


def assert_holds(collection, rows):
    table = collection.scan().read_all()
    assert table["id"].to_pylist() == IDS[:rows].tolist()
    assert table["label"].to_pylist() == LABELS[:rows].tolist()
    assert [np.frombuffer(code, np.uint64)[0] for code in table["code"].to_pylist()] == CODES[:rows, 0].tolist()


def files_of(path):
    return sorted(str(each.relative_to(path)) for each in path.rglob("*"))


def test_what_was_built_is_left_alone_until_it_is_written(built):
    metrics = Metrics()
    compactor = Compactor(built.path, metrics=metrics)
    assert groups_to_merge(built.manifest.shards)
    assert compactor.look() is None
    assert Collection.open(built.path).version == 1
    add(built, 200, 201)
    done = compactor.look()
    assert (done.before, done.after, done.rows, done.version) == (6, 1, 201, 3)
    assert compactor.look() is None
    assert_holds(Collection.open(built.path), 201)
    assert value_of(metrics, "hashlight_compactions_total") == 1
    assert value_of(metrics, "hashlight_compacted_rows_total") == 201
    assert value_of(metrics, "hashlight_compaction_seconds_total") > 0
    assert value_of(metrics, "hashlight_compaction_failures_total") == 0


def test_one_group_is_merged_at_a_time_and_the_smallest_first(built, monkeypatch):
    compactor = Compactor(built.path)
    collection = add(built, 200, 201)
    large, small = collection.manifest.shards[:4], collection.manifest.shards[4:]
    groups = [list(large), list(small)]
    monkeypatch.setattr(compacting, "groups_to_merge", lambda shards, least: groups)
    assert compactor.look().rows == 41
    names = [spec.name for spec in Collection.open(built.path).manifest.shards]
    assert names[:4] == [spec.name for spec in large]
    assert len(names) == 5


def test_as_many_shards_are_left_as_share_the_rows(built):
    shards = [ShardSpec(str(number), 1_000_000, {}, (0, 1)) for number in range(16)]
    assert [len(group) for group in groups_to_merge(shards)] == [16]
    assert [len(group) for group in groups_to_merge(shards, least=4)] == [4, 4, 4, 4]
    assert groups_to_merge(shards, least=12) == []
    few = [*shards, *(ShardSpec(f"few {number}", 10, {}, (0, 1)) for number in range(4))]
    assert [len(group) for group in groups_to_merge(few, least=12)] == [4]
    compactor = Compactor(built.path, least=lambda: 5)
    add(built, 200, 240)
    while compactor.look() is not None:
        pass
    assert len(Collection.open(built.path).shards) == 6


def test_a_failure_is_counted_and_followed_by_a_pause(built, monkeypatch):
    now, metrics = [0.0], Metrics()
    compactor = Compactor(built.path, metrics=metrics, clock=lambda: now[0])
    add(built, 200, 210)
    before = files_of(built.path)

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(compaction, "write_codes", fail)
        assert compactor.look() is None
        assert value_of(metrics, "hashlight_compaction_failures_total") == 1
        assert files_of(built.path) == before
        now[0] = 1.9
        assert compactor.look() is None
        assert value_of(metrics, "hashlight_compaction_failures_total") == 1
        now[0] = 2.1
        assert compactor.look() is None
        assert value_of(metrics, "hashlight_compaction_failures_total") == 2
    now[0] = 6.0
    assert compactor.look() is None, "the second pause is twice as long"
    now[0] = 6.2
    assert compactor.look().before == 6
    assert_holds(Collection.open(built.path), 210)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_collection_that_cannot_be_written_is_left_alone(built, monkeypatch, number):
    tried, metrics = [], Metrics()

    def refuse(*_, **__):
        tried.append(number)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(compaction, "write_codes", refuse)
    compactor = Compactor(built.path, metrics=metrics, clock=lambda: 1e9 * len(tried))
    add(built, 200, 210)
    assert compactor.look() is compactor.look() is None
    assert tried == [number]
    assert value_of(metrics, "hashlight_compaction_failures_total") == 0


def test_the_end_leaves_nothing(built, monkeypatch):
    ending, metrics = threading.Event(), Metrics()
    compactor = Compactor(built.path, metrics=metrics, ending=ending)
    add(built, 200, 210)
    before = files_of(built.path)
    write_codes, write_attributes = compaction.write_codes, compaction.write_attributes
    for step, function in [("write_codes", write_codes), ("write_attributes", write_attributes)]:

        def end_before(*given, function=function, **more):
            ending.set()
            return function(*given, **more)

        with monkeypatch.context() as patch:
            patch.setattr(compaction, step, end_before)
            assert compactor.look() is None
        assert ending.is_set()
        ending.clear()
        assert files_of(built.path) == before
    assert value_of(metrics, "hashlight_compaction_failures_total") == 0
    assert compactor.look().before == 6


def test_the_later_of_two_compactions_is_dropped(built, monkeypatch):
    metrics = Metrics()
    compactor = Compactor(built.path, metrics=metrics)
    add(built, 200, 210)
    write_codes = compaction.write_codes

    def overtaken(*given, **more):
        monkeypatch.undo()
        assert compact(built.path).before == 6
        return write_codes(*given, **more)

    monkeypatch.setattr(compaction, "write_codes", overtaken)
    assert compactor.look() is None
    left = Collection.open(built.path)
    assert (len(left.shards), left.version) == (1, 3)
    assert_holds(left, 210)
    assert compactor.look() is None
    assert (
        value_of(metrics, "hashlight_compactions_total")
        == value_of(metrics, "hashlight_compaction_failures_total")
        == 0
    )
    assert len(list((built.path / "shards").iterdir())) == 7, "those of the versions before, and the new one"


def test_versions_go_as_with_any_commit(built):
    compactor = Compactor(built.path)
    collection = built
    for row in range(200, 240):
        collection = add(collection, row, row + 1)
        compactor.look()
    left = [each.version for each in list_versions(open_place(built.path))]
    assert 1 not in left
    assert len(left) <= KEPT_VERSIONS + 10
    assert_holds(Collection.open(built.path), 240)


def test_searches_are_exact_while_a_server_compacts(built, monkeypatch):
    monkeypatch.setattr(compacting, "LOOK_S", 0.01)
    metrics = Metrics()
    searcher = CollectionSearcher(built)
    codes = CODES[::29].copy()
    exact = {}  # the nearest ids, by the number of rows

    def ask():
        found = searcher.search(codes, 7)
        rows = found.coverage.codes
        if rows not in exact:
            exact[rows] = knn(codes, CODES[:rows], IDS[:rows], 7)
        assert rows == found.coverage.searched
        np.testing.assert_array_equal(found.distances, exact[rows][0])
        np.testing.assert_array_equal(found.ids, exact[rows][1])

    collection = built
    before = threading.active_count()
    with compacting.compacting(built.path, metrics=metrics), Load(ask, threads=2) as load:
        assert threading.active_count() >= before + 1
        for start in range(200, 400, 10):
            collection = add(collection, start, start + 10)
            searcher.renew()
            if start % 40 == 0:
                load.wait_for(2)

        def few_are_left():
            searcher.renew()
            return len(Collection.open(built.path).shards) < 7

        eventually(few_are_left)
        load.wait_for(4)
    assert not load.errors
    assert not [thread for thread in threading.enumerate() if thread.name == "hashlight-compact"]
    assert value_of(metrics, "hashlight_compactions_total") >= 2
    assert value_of(metrics, "hashlight_compaction_failures_total") == 0
    assert max(exact) == 400
    assert_holds(Collection.open(built.path), 400)


def test_work_in_the_background_takes_no_thread_and_no_slot_of_searches():
    with in_background():
        here = run_parts(lambda _: threading.get_ident(), [slice(0, 1)] * 9)
    assert set(here) == {threading.get_ident()}
    assert threading.get_ident() not in set(run_parts(lambda _: threading.get_ident(), [slice(0, 1)] * 9))


@pytest.mark.skipif(not hasattr(os, "setpriority"), reason="no priorities of threads")
def test_only_the_thread_that_compacts_has_a_lower_priority():
    found = []

    def look():
        compacting._lower_priority()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    assert found == [5]
