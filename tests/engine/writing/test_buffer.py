"""Pending writes on top of a version, against a plain dict: every answer, whatever happens to the version meanwhile."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import (
    CollectionBusyError,
    EncoderMismatchError,
    IdExistsError,
    IdNotFoundError,
    NotReadyError,
    OverloadedError,
    PlaceError,
)
from hashlight.engine.query import Query
from hashlight.engine.service.asking.retrieval import Ask, answer
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.storage.versions import read_current
from hashlight.engine.writing import buffering
from hashlight.engine.writing.buffering import Buffer, Gathering
from hashlight.engine.writing.committing import Committer
from hashlight.engine.writing.direct import Direct
from hashlight.engine.writing.keys import Made
from hashlight.engine.writing.opened import Opened
from hashlight.engine.writing.records import Key, Logged, encode
from hashlight.engine.writing.writes import Delete, DeleteWhere, Put, Update
from tests import independent, oracles

BITS, FEATURES, IDS = 16, 3, 48
SCHEMA = pa.schema([("label", pa.int64()), ("name", pa.string()), ("tags", pa.list_(pa.string()))])
NEVER = Gathering(items=10**6, num_bytes=2**40, age_s=1e9)
WHERE = {
    "label == 3": lambda id_, row: row["label"] == 3,
    "name is null": lambda id_, row: row["name"] is None,
    "label is not null and id < 20": lambda id_, row: row["label"] is not None and id_ < 20,
}


def random_rows(rng, count):
    """Rows for as many items: of each a code, features, a thumbnail and attributes."""
    labels = [None if rng.random() < 0.2 else int(rng.integers(5)) for _ in range(count)]
    return [
        {
            "code": int(rng.integers(40)) * 3,
            "features": rng.integers(-3, 4, size=FEATURES).astype(np.float16).tolist(),
            "thumbnail": None if rng.random() < 0.4 else rng.bytes(3),
            "label": label,
            "name": None if rng.random() < 0.3 else f"name {rng.integers(9)}",
            "tags": None if rng.random() < 0.3 else ["a", "b"][: rng.integers(3)],
        }
        for label in labels
    ]


def table_of(rows, names=SCHEMA.names):
    fields = [SCHEMA.field(name) for name in names]
    return pa.table([pa.array([row[field.name] for row in rows], field.type) for field in fields], names=list(names))


def columns_of(rows):
    """Codes, attributes, features and thumbnails, as writes take them."""
    codes = np.array([[row["code"]] for row in rows], np.uint64).reshape(-1, 1)
    features = np.array([row["features"] for row in rows], np.float16).reshape(-1, FEATURES)
    return codes, table_of(rows), features, pa.array([row["thumbnail"] for row in rows], pa.binary())


def put_of(ids, rows, *, replaces=True):
    codes, table, features, thumbnails = columns_of(rows)
    return Put(codes, np.array(ids, np.int64), table, features, thumbnails, replaces)


def apply(items, change):
    """Make a change to a dict of id -> row."""
    kind, *what = change
    if kind == "put":
        items.update(zip(*what, strict=True))
    elif kind == "delete":
        for id_ in what[0]:
            items.pop(id_, None)
    else:
        for id_, values in zip(*what, strict=True):
            if id_ in items:
                items[id_] = {**items[id_], **values}


class Model:
    """What is committed, and what is pending."""

    def __init__(self, items):
        self.committed, self.pending = dict(items), []

    @property
    def shown(self):
        items = dict(self.committed)
        for change in self.pending:
            apply(items, change)
        return items

    def flush(self):
        self.committed, self.pending = self.shown, []


def check(searcher, items, rng):
    """Compare every kind of answer with the dict."""
    ids = np.array(sorted(items), np.int64)
    rows = [items[id_] for id_ in ids.tolist()]
    codes = np.array([[row["code"]] for row in rows], np.uint64).reshape(-1, 1)
    queries = rng.integers(120, size=(3, 1)).astype(np.uint64)
    assert searcher.describe()["rows"] == len(items)
    found = searcher.search(queries, 7)
    distances, nearest = oracles.knn(queries, codes, ids, 7)
    assert (found.distances == distances).all()
    assert (found.ids == nearest).all()
    within = searcher.range_search(queries, 3)
    answers, _ = oracles.within_radius(queries, codes, ids, 3)
    pairs = list(zip(within.distances.tolist(), within.ids.tolist(), strict=True))
    assert [pairs[a:b] for a, b in zip(within.lims, within.lims[1:], strict=False)] == answers
    for text, holds in WHERE.items():
        kept = np.array([holds(id_, items[id_]) for id_ in ids.tolist()], bool)
        assert searcher.count(text)[0] == kept.sum()
        found = searcher.search(queries, 5, filter=text)
        assert (found.ids == oracles.knn(queries, codes[kept], ids[kept], 5)[1]).all()
    table, _ = searcher.scan(limit=1000)
    assert table["id"].to_pylist() == ids.tolist()
    for name in SCHEMA.names:
        assert table[name].to_pylist() == [row[name] for row in rows]
    counted = {}
    for row in rows:
        counted[row["label"]] = counted.get(row["label"], 0) + 1
    facets, _ = searcher.facets("label")
    assert dict(zip(facets["value"].to_pylist(), facets["count"].to_pylist(), strict=True)) == counted
    some = rng.permutation(ids)[:6]
    assert searcher.get(some)["name"].to_pylist() == [items[id_]["name"] for id_ in some.tolist()]
    assert searcher.features_of(some).tolist() == [items[id_]["features"] for id_ in some.tolist()]
    assert [searcher.thumbnail(id_) for id_ in some.tolist()] == [items[id_]["thumbnail"] for id_ in some.tolist()]
    for id_ in set(range(IDS)) - items.keys():
        with pytest.raises(IdNotFoundError):
            searcher.get([id_])
        break
    if len(ids) >= 4:
        wanted = np.zeros((1, FEATURES), np.float32)
        pool = oracles.knn(queries[:1], codes, ids, min(12, len(ids)))[1][0]
        squares = [(sum(value**2 for value in items[id_]["features"]), id_) for id_ in pool.tolist()]
        found = searcher.search(queries[:1], 4, rerank=Rerank(pool=12), features=wanted)
        assert found.ids[0].tolist() == [id_ for _, id_ in sorted(squares)[:4]]


@pytest.fixture
def start(tmp_path):
    """A folder with a collection of several shards, and the items in it."""
    rng = np.random.default_rng(1)
    ids, rows = list(range(0, IDS, 2)), random_rows(rng, IDS // 2)
    codes, table, features, thumbnails = columns_of(rows)
    folder = tmp_path / "c"
    collection = Collection.create(folder, codes[:8], ids=np.array(ids[:8]), bits=BITS, attributes=table[:8],
                                   features=features[:8])  # fmt: skip
    with collection.transaction() as change:
        change.delete(ids[:8])
        change.upsert(codes, np.array(ids), table, features, thumbnails, shards=3)
        change.commit()
    return folder, dict(zip(ids, rows, strict=True))


@contextlib.contextmanager
def buffered(folder, log, gathering=NEVER):
    """Yield a searcher, what takes writes, and the buffer behind."""
    collection = Collection.open(folder)
    searcher = CollectionSearcher(collection)
    buffer = Buffer(collection, Opened(folder, log), searcher.show, gathering=gathering)
    with contextlib.closing(Committer(buffer)) as committer:
        yield searcher, committer, buffer


def make(committer, write, **more):
    return committer.submit(write, deadline_s=time.monotonic() + 600, **more).result(600)


def write_here(rng, committer, model):
    """Make a random write, and say so in the model."""
    shown, kind = model.shown, rng.integers(6)
    ids = rng.choice(IDS, size=rng.integers(1, 6), replace=False).tolist()
    rows = random_rows(rng, len(ids))
    if kind <= 1:
        make(committer, put_of(ids, rows))
        model.pending.append(("put", ids, rows))
    elif kind == 2:
        add = put_of(ids, rows, replaces=False)
        if shown.keys() & set(ids):
            with pytest.raises(IdExistsError, match="in the collection already"):
                make(committer, add)
        else:
            make(committer, add)
            model.pending.append(("put", ids, rows))
    elif kind == 3:
        make(committer, Delete(np.array(ids)))
        model.pending.append(("delete", ids))
    elif kind == 4:
        text = rng.choice(list(WHERE))
        gone = [id_ for id_, row in shown.items() if WHERE[text](id_, row)]
        make(committer, DeleteWhere(text))
        model.pending.append(("delete", gone))
    else:
        names = ["label", "name", "tags"][rng.integers(2) :][: rng.integers(1, 3)]
        update = Update([(np.array(ids), table_of(rows, names))])
        if set(ids) <= shown.keys():
            make(committer, update)
            model.pending.append(("update", ids, [{name: row[name] for name in names} for row in rows]))
        else:
            with pytest.raises(IdNotFoundError, match="not found"):
                make(committer, update)


def write_elsewhere(rng, folder, model):
    """Write as another process does."""
    collection, kind = Collection.open(folder), rng.integers(4)
    ids = rng.choice(IDS, size=rng.integers(1, 6), replace=False).tolist()
    if kind == 0:
        rows = random_rows(rng, len(ids))
        codes, table, features, thumbnails = columns_of(rows)
        collection.upsert(codes, ids=np.array(ids), attributes=table, features=features, thumbnails=thumbnails)
        apply(model.committed, ("put", ids, rows))
    elif kind == 1:
        collection.delete(ids)
        apply(model.committed, ("delete", ids))
    elif kind == 2:
        there = sorted(model.committed.keys() & set(ids))
        values = [{"label": int(rng.integers(5))} for _ in there]
        if there:
            collection.update(there, {"label": [value["label"] for value in values]})
        apply(model.committed, ("update", there, values))
    else:
        collection.compact(full=True)


@pytest.mark.parametrize("seed", range(4))
def test_any_writes_on_top_of_any_version(start, tmp_path, seed):
    folder, items = start
    rng, model, copies = np.random.default_rng(seed), Model(items), []
    with buffered(folder, tmp_path / "log") as (searcher, committer, buffer):
        for step in range(50):
            kind = rng.integers(10)
            if kind <= 6:
                write_here(rng, committer, model)
            elif kind == 7:
                write_elsewhere(rng, folder, model)
                buffer.renew()
            elif kind == 8:
                last = make(committer, Delete(np.array([IDS + step])))
                version = buffer.visible(last).result(600)
                model.flush()
                assert version == searcher.version == read_current(buffer._place).version
                assert buffer.state().writes == 0
            elif len(copies) < 3:  # a crash now would leave this
                at = tmp_path / f"crash-{step}"
                shutil.copytree(folder, at / "c")
                shutil.copytree(tmp_path / "log", at / "log")
                copies.append((at, copy.deepcopy(model)))
            check(searcher, model.shown, rng)
    assert len(copies) > 0
    model.flush()
    check(CollectionSearcher(folder), model.committed, rng)
    for at, then in copies:
        with buffered(at / "c", at / "log") as (searcher, _, _):
            check(searcher, then.shown, rng)
        check(CollectionSearcher(at / "c"), then.shown, rng)


def test_what_gathers_is_committed_by_itself(start, tmp_path):
    folder, items = start
    rng, model = np.random.default_rng(0), Model(items)
    with buffered(folder, tmp_path / "log", Gathering(items=10, age_s=0.05)) as (searcher, committer, buffer):
        for _ in range(60):
            write_here(rng, committer, model)
            model.flush()
            check(searcher, model.committed, rng)
        until_s = time.monotonic() + 60
        while buffer.state().writes and time.monotonic() < until_s:
            time.sleep(0.02)
        state = buffer.state()
        assert (state.writes, state.num_bytes, state.oldest_s, state.failures) == (0, 0, 0.0, 0)
        assert state.flushes > 1
        check(CollectionSearcher(folder), model.committed, rng)
    assert not list((tmp_path / "log").rglob("*.log"))
    read = independent.read_version(folder)
    assert sorted(read.rows) == sorted(model.committed)
    assert read.manifest["logs"].keys() == {buffer._opened.log.id}


def test_a_commit_that_was_not_seen_is_not_made_twice(start, tmp_path):
    """Killed between the commit and the removal of what it has from the log."""
    folder, items = start
    rows, rng = random_rows(np.random.default_rng(3), 2), np.random.default_rng(4)
    with buffered(folder, tmp_path / "log") as (_, committer, buffer):
        make(committer, put_of([1, 3], rows), key=Key("k", "d"))
        make(committer, Delete(np.array([4])))
        shutil.copytree(tmp_path / "log", tmp_path / "as before")
    # Meanwhile another process changes the same items.
    Collection.open(folder).delete([1])
    codes, table, features, thumbnails = columns_of(rows[:1])
    Collection.open(folder).upsert(codes, ids=np.array([4]), attributes=table, features=features, thumbnails=thumbnails)
    version = read_current(buffer._place).version
    items |= {3: rows[1], 4: rows[0]}
    with buffered(folder, tmp_path / "as before") as (searcher, committer, buffer):
        assert buffer.state().writes == 0
        check(searcher, items, rng)
        assert make(committer, put_of([1, 3], rows), key=Key("k", "d")) == Made(1, version)
        check(searcher, items, rng)
    assert read_current(buffer._place).version == version
    check(CollectionSearcher(folder), items, rng)


def test_a_rollback_elsewhere_keeps_what_is_pending_and_repeats_nothing(start, tmp_path):
    folder, items = start
    rows, rng = random_rows(np.random.default_rng(5), 2), np.random.default_rng(6)
    first = Collection.open(folder).version
    with buffered(folder, tmp_path / "log") as (searcher, committer, buffer):
        made = make(committer, put_of([1], rows[:1]))
        shutil.copytree(tmp_path / "log", tmp_path / "as before")  # as after a kill before it was trimmed
        buffer.visible(made).result(60)
        Collection.open(folder).rollback(first)
        shutil.copytree(folder, tmp_path / "rolled back")
        make(committer, put_of([3], rows[1:]))
        buffer.renew()
        check(searcher, items | {3: rows[1]}, rng)
    check(CollectionSearcher(folder), items | {3: rows[1]}, rng)
    with buffered(tmp_path / "rolled back", tmp_path / "as before") as (searcher, committer, buffer):
        assert buffer.state().writes == 0
        check(searcher, items, rng)
        assert make(committer, put_of([5], rows[:1])).number == 2


def test_what_is_gone_meanwhile_is_left_out_of_an_update(start, tmp_path):
    folder, items = start
    values = [{"label": 77}, {"label": 78}]
    with buffered(folder, tmp_path / "log") as (searcher, committer, buffer):
        made = make(committer, Update([(np.array([2, 4]), table_of(values, ["label"]))]))
        Collection.open(folder).delete([2])
        buffer.visible(made).result(60)
        items[4]["label"] = 78
        del items[2]
        check(searcher, items, np.random.default_rng(1))
    check(CollectionSearcher(folder), items, np.random.default_rng(1))


def test_a_request_is_answered_from_one_state(start):
    folder, items = start
    collection = Collection.open(folder)

    class Moving(CollectionSearcher):
        def answer(self, *given, **more):
            found = super().answer(*given, **more)
            asked.show(collection.overlaid(None, np.arange(IDS), sequence=1))  # all are gone
            return found

    asked = Moving(collection)
    ask = Ask(codes=np.array([[5]], np.uint64), query=Query(k=4), include=frozenset({"attributes"}))
    found = answer(asked, ask, timeout_s=60)
    assert found.items["label"].to_pylist() == [items[id_]["label"] for id_ in found.ids.tolist()]
    assert len(found.ids) == 4
    assert asked.count()[0] == 0


def test_attributes_that_change_elsewhere_are_those_of_what_is_pending(start, tmp_path):
    folder, _ = start
    rows = random_rows(np.random.default_rng(7), 2)
    rows[0]["label"], rows[0]["name"] = 4, "kept"
    with buffered(folder, tmp_path / "log") as (searcher, committer, buffer):
        make(committer, put_of([1], rows[:1]))
        make(committer, Update([(np.array([2]), table_of(rows[:1], ["label", "name"]))]))
        collection = Collection.open(folder)
        with collection.transaction() as change:
            change.drop_column("tags")
            change.set_column("price", [0.5], ids=[2])
            change.set_column("label", [], ids=np.zeros(0, np.int64), type=pa.float64())
            change.commit()
        buffer.renew()
        for _ in range(2):
            found = searcher.get([1, 2])
            assert found.schema.names == ["id", "code", "label", "name", "price"]
            assert found["label"].to_pylist() == [4.0, 4.0]
            assert found["name"].to_pylist() == ["kept", "kept"]
            assert found["price"].to_pylist() == [None, 0.5]
            buffer.visible(Made(2, None)).result(60)
        assert Collection.open(folder).get([1, 2]).equals(found)


def test_another_collection_in_its_place_begins_another_log(start, tmp_path):
    folder, _ = start
    former = Collection.open(folder).manifest.collection
    rows = random_rows(np.random.default_rng(8), 2)
    with buffered(folder, tmp_path / "log") as (searcher, committer, buffer):
        make(committer, put_of([1], rows[:1]))
        codes, table, features, _ = columns_of(rows)
        Collection.create(folder, codes, bits=BITS, attributes=table, features=features, overwrite=True)
        buffer.renew()
        assert searcher.count()[0] == 2
        assert buffer.state().writes == 0
        with pytest.raises(CollectionBusyError, match=r"was replaced, .* before the write was committed"):
            buffer.visible(Made(1, None)).result(60)
        assert make(committer, put_of([7], rows[:1])).number == 1
        assert searcher.count()[0] == 3
    found = Collection.open(folder)
    assert found.scan([]).read_all()["id"].to_pylist() == [0, 1, 7]
    # What was pending was answered, and the collection may only have been moved.
    assert {path.name for path in (tmp_path / "log").iterdir()} == {former, found.manifest.collection}


def test_the_version_that_has_a_write_is_never_one_of_a_former_collection(start, tmp_path):
    folder, _ = start
    rows = random_rows(np.random.default_rng(8), 2)
    with buffered(folder, tmp_path / "log") as (_, committer, buffer):
        for _ in range(3):
            buffer.visible(make(committer, put_of([1], rows[:1]))).result(60)
        codes, table, features, _ = columns_of(rows)
        Collection.create(folder, codes, bits=BITS, attributes=table, features=features, overwrite=True)
        buffer.renew()
        version = buffer.visible(make(committer, put_of([7], rows[:1]))).result(60)
        assert Collection.open(folder, version=version).has(np.array([7])).all()
    assert len(list((tmp_path / "log").iterdir())) == 1  # nothing was pending


class Swap:
    """Two collections that were served before, of which one takes the place of the other."""

    def __init__(self, folder, other):
        self.folder, self.other = folder, other

    def write(self, log):
        """Write to both, so that their logs have numbers."""
        rows = random_rows(np.random.default_rng(8), 1)
        for place, count in ((self.folder, 1), (self.other, 5)):
            with buffered(place, log) as (_, committer, buffer):
                for _ in range(count):
                    buffer.visible(make(committer, put_of([1], rows))).result(60)

    def make(self):
        """Put the other one in the place of the first, whole, as `mv` does."""
        self.folder.rename(self.folder.with_name("away"))
        self.other.rename(self.folder)


@pytest.fixture
def swap(start, tmp_path):
    folder, _ = start
    codes, table, features, _ = columns_of(random_rows(np.random.default_rng(4), 2))
    Collection.create(tmp_path / "d", codes, bits=BITS, attributes=table, features=features)
    both = Swap(folder, tmp_path / "d")
    both.write(tmp_path / "log")
    return both


def ids_in(folder):
    return Collection.open(folder).scan([]).read_all()["id"].to_pylist()


def test_a_collection_that_was_served_elsewhere_loses_no_write_here(swap, tmp_path):
    rows = random_rows(np.random.default_rng(9), 2)
    with buffered(swap.folder, tmp_path / "log") as (searcher, committer, buffer):
        swap.make()
        buffer.renew()
        version = buffer.visible(make(committer, put_of([7], rows[:1]))).result(60)
        assert Collection.open(swap.folder, version=version).has(np.array([7])).all()
        make(committer, put_of([8], rows[1:]))
        assert searcher.count()[0] == 4
    assert ids_in(swap.folder) == [0, 1, 7, 8]


def test_what_a_killed_server_of_the_new_collection_had_answered_is_made(swap, tmp_path):
    rows = random_rows(np.random.default_rng(9), 2)
    killed = Opened(swap.other, tmp_path / "log")
    killed.take(Collection.open(swap.other).manifest)
    killed.log.append([encode(Logged(6, put_of([30], rows[:1]), (BITS, None), key=Key("k", "d")))])
    killed.close()
    with buffered(swap.folder, tmp_path / "log") as (searcher, committer, buffer):
        swap.make()
        buffer.renew()
        assert searcher.count()[0] == 3
        assert make(committer, put_of([30], rows[:1]), key=Key("k", "d")).number == 6
        assert make(committer, put_of([31], rows[1:])).number == 7
    assert ids_in(swap.folder) == [0, 1, 30, 31]


def test_writes_committed_before_they_are_answered_go_over_to_another_collection(swap, tmp_path):
    rows = random_rows(np.random.default_rng(9), 2)
    killed = Opened(swap.other, tmp_path / "log")
    killed.take(Collection.open(swap.other).manifest)
    killed.log.append([encode(Logged(6, put_of([30], rows[:1]), (BITS, None)))])
    killed.close()
    store = Direct(swap.folder, Opened(swap.folder, tmp_path / "log"))
    with contextlib.closing(Committer(store)) as committer:
        swap.make()
        made = make(committer, put_of([7], rows[1:]))
        assert made.number == 7
        assert Collection.open(swap.folder, version=made.version).has(np.array([7, 30])).all()
    assert ids_in(swap.folder) == [0, 1, 7, 30]


def test_writes_are_not_committed_to_a_collection_that_takes_the_place_meanwhile(start, tmp_path, monkeypatch):
    folder, _ = start
    rows = random_rows(np.random.default_rng(8), 2)
    with buffered(folder, tmp_path / "log") as (_, committer, buffer):

        def replace(step, name):
            if step == "flushing" and not replaced:
                replaced.append(name)
                codes, table, features, _ = columns_of(rows)
                Collection.create(folder, codes, bits=BITS, attributes=table, features=features, overwrite=True)
                buffer.renew()

        replaced = []
        monkeypatch.setattr(buffering, "report_step", replace)
        made = make(committer, put_of([30], rows[:1]))
        with pytest.raises(CollectionBusyError, match="was replaced"):
            buffer.visible(made).result(60)
    assert replaced
    assert ids_in(folder) == [0, 1]


def test_a_sum_that_fails_does_not_end_the_commits(start, tmp_path, monkeypatch):
    folder, _ = start
    rows = random_rows(np.random.default_rng(8), 1)
    monkeypatch.setattr(buffering, "_FIRST_PAUSE_S", 0.01)
    with buffered(folder, tmp_path / "log") as (_, committer, buffer):
        with monkeypatch.context() as patch:
            patch.setattr(buffering.Pending, "sum", lambda _: (_ for _ in ()).throw(pa.ArrowInvalid("offset overflow")))
            with pytest.raises(pa.ArrowInvalid, match="overflow"):
                buffer.visible(make(committer, put_of([30], rows))).result(60)
        assert buffer.visible(Made(1, None)).result(60) == Collection.open(folder).version


def test_codes_of_another_encoder_do_not_meet(start, tmp_path):
    folder, items = start
    rows = random_rows(np.random.default_rng(9), 1)
    with buffered(folder, tmp_path / "log") as (searcher, committer, buffer):
        make(committer, put_of([1], rows))
        make(committer, Delete(np.array([0])))
        with Transaction(folder) as change:  # as a rollback to a version of before does
            change._operations.append(Change("other"))
            change.commit()
        buffer.renew()
        assert searcher.count()[0] == len(items) - 1
        with pytest.raises(EncoderMismatchError, match="stores codes of encoder other"):
            make(committer, dataclasses.replace(put_of([1], rows), encoder="mine"))
    assert sorted(items.keys() - {0}) == Collection.open(folder).scan([]).read_all()["id"].to_pylist()


class Change:
    """An operation of a transaction that changes whose codes a collection has."""

    def __init__(self, encoder):
        self.encoder = encoder

    def apply(self, draft):
        draft.change(encoder=self.encoder)


def test_a_commit_that_fails_is_tried_again_and_too_much_is_refused(start, tmp_path, monkeypatch):
    folder, items = start
    rows, rng = random_rows(np.random.default_rng(2), 40), np.random.default_rng(3)
    monkeypatch.setattr(buffering, "_FIRST_PAUSE_S", 0.01)
    gathering = Gathering(items=2, num_bytes=2**40, age_s=1e9)
    with buffered(folder, tmp_path / "log", gathering) as (searcher, committer, buffer):
        with monkeypatch.context() as patch:
            patch.setattr(Buffer, "_commit", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            made = make(committer, put_of([1], rows[:1]))
            with pytest.raises(OSError, match="No space"):
                buffer.visible(made).result(60)
            for number in range(32):
                make(committer, put_of([101 + number], rows[number : number + 1]))
            with pytest.raises(OverloadedError, match="33 writes wait to be committed, which fails"):
                make(committer, put_of([200], rows[:1]))
            assert buffer.state().failures > 0
        items |= {1: rows[0]} | {101 + number: rows[number] for number in range(32)}
        check(searcher, items, rng)
        buffer.visible(Made(33, None)).result(60)
        assert buffer.state().writes == 0
        check(searcher, items, rng)
    check(CollectionSearcher(folder), items, rng)


def test_who_asks_for_a_version_after_the_end_is_answered(start, tmp_path, monkeypatch):
    folder, _ = start
    rows = random_rows(np.random.default_rng(2), 1)
    with buffered(folder, tmp_path / "log") as (_, committer, buffer):
        committed = make(committer, put_of([1], rows))
    assert buffer.visible(committed).result(60) == read_current(buffer._place).version
    with buffered(folder, tmp_path / "log") as (_, committer, buffer):
        monkeypatch.setattr(Buffer, "_commit", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        logged = make(committer, put_of([1], rows))
    with pytest.raises(NotReadyError, match="is logged, and not lost"):
        buffer.visible(logged).result(60)


def test_a_commit_that_seemed_to_fail_is_not_made_again(start, tmp_path, monkeypatch):
    folder, items = start
    rows, rng = random_rows(np.random.default_rng(2), 2), np.random.default_rng(3)
    monkeypatch.setattr(buffering, "_FIRST_PAUSE_S", 0.01)
    with buffered(folder, tmp_path / "log") as (searcher, committer, buffer):
        commit = Transaction.commit

        def lose_the_answer(change):
            commit(change)
            raise OSError(5, "the answer was lost")

        made = make(committer, put_of([1], rows[:1]))
        with monkeypatch.context() as patch:
            patch.setattr(Transaction, "commit", lose_the_answer)
            with pytest.raises(OSError, match="the answer was lost"):
                buffer.visible(made).result(60)
        Collection.open(folder).delete([1])  # after the commit
        make(committer, put_of([3], rows[1:]))
        buffer.visible(Made(2, None)).result(60)
        check(searcher, items | {3: rows[1]}, rng)
    check(CollectionSearcher(folder), items | {3: rows[1]}, rng)


def test_a_full_disk_refuses_the_write_and_shows_nothing_of_it(start, tmp_path, monkeypatch):
    folder, items = start
    rows, rng = random_rows(np.random.default_rng(2), 2), np.random.default_rng(3)
    with buffered(folder, tmp_path / "log") as (searcher, committer, _):
        make(committer, put_of([1], rows[:1]))
        items |= {1: rows[0]}
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            for write in (put_of([3], rows[1:]), Delete(np.array([1]))):
                with pytest.raises(OSError, match="No space"):
                    make(committer, write, key=Key("k", "d"))
            check(searcher, items, rng)
        assert make(committer, put_of([3], rows[1:]), key=Key("k", "d")).number == 2
        check(searcher, items | {3: rows[1]}, rng)


def test_a_log_that_the_collection_has_forgotten_is_refused(start, tmp_path):
    folder, _ = start
    opened = Opened(folder, tmp_path / "log")
    write = Delete(np.array([1]))
    opened.log.append([encode(Logged(1, write, (BITS, None), time.time() - 40 * 86400))])
    opened.close()
    with pytest.raises(PlaceError, match=r"has 1 writes of .*, and after 30 days the collection no longer tells"):
        Buffer(Collection.open(folder), Opened(folder, tmp_path / "log"), lambda _: None)


def test_a_collection_of_the_first_format_is_written_too(tmp_path):
    codes = [number * 3 for number in range(20)]
    (tmp_path / "c").mkdir()
    files = independent.shard_files(codes, list(range(20)), BITS)
    independent.write_first_format(tmp_path / "c", [files], BITS)
    log, put = tmp_path / "log", Put(np.array([[5]], np.uint64), np.array([30]))
    opened = Opened(tmp_path / "c", log)
    searcher = CollectionSearcher(tmp_path / "c")
    with contextlib.closing(Committer(Buffer(Collection.open(tmp_path / "c"), opened, searcher.show))) as committer:
        make(committer, put)
        assert searcher.search(np.array([[5]], np.uint64), 1).ids.tolist() == [[30]]
    assert len(Collection.open(tmp_path / "c")) == 21


def test_an_attribute_that_is_new_can_be_written_at_once(start, tmp_path):
    folder, _ = start
    with buffered(folder, tmp_path / "log") as (searcher, committer, _):
        Collection.open(folder).set_column("price", [0.5], ids=[2])
        assert committer.live().schema.names[-1] == "price"
        make(committer, Update([(np.array([4]), pa.table({"price": [1.5]}))]))
        assert searcher.get([2, 4])["price"].to_pylist() == [0.5, 1.5]


def test_a_folder_that_cannot_be_written_is_refused_with_what_to_do(start, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(PlaceError, match=r"cannot be kept in .*file \(.*\): name a folder .*--write-log"):
        Opened(start[0], tmp_path / "file")


def test_a_collection_in_a_bucket(bucket, tmp_path):
    rng = np.random.default_rng(11)
    ids, rows = list(range(0, IDS, 2)), random_rows(rng, IDS // 2)
    uri, (codes, table, features, thumbnails) = bucket.uri("c"), columns_of(rows)
    with Transaction(uri, fresh=Fresh(BITS, None)) as change:
        change.add(codes, np.array(ids), table, features, thumbnails, shards=2)
        change.commit()
    model = Model(dict(zip(ids, rows, strict=True)))
    with buffered(uri, tmp_path / "log") as (searcher, committer, buffer):
        for _ in range(6):
            write_here(rng, committer, model)
        check(searcher, model.shown, rng)
        buffer.visible(make(committer, Delete(np.array([IDS])))).result(60)
        check(searcher, model.shown, rng)
        write_here(rng, committer, model)
    check(CollectionSearcher(uri), model.shown, rng)


KILLED = """
import os, sys, time
from pathlib import Path
import numpy as np
from hashlight.engine.collection.collection import Collection
from hashlight.engine.places.files import on_step
from hashlight.engine.writing.buffering import Buffer, Gathering
from hashlight.engine.writing.committing import Committer
from hashlight.engine.writing.opened import Opened
from hashlight.engine.writing.records import Key
from hashlight.engine.writing.writes import Delete, Put

folder, log, wanted = sys.argv[1:]
buffer = Buffer(Collection.open(folder), Opened(folder, Path(log)), lambda _: None, gathering=Gathering(age_s=1e9))
committer = Committer(buffer)
features = np.zeros((1, 3), np.float16)
put = Put(np.array([[7]], np.uint64), np.array([101]), None, features)
committer.submit(put, deadline_s=1e12, key=Key("k", "d")).result()
made = committer.submit(Delete(np.array([2])), deadline_s=1e12).result()
print("answered", flush=True)
on_step(lambda step, name: step == wanted and os.kill(os.getpid(), 9))
committer.submit(Delete(np.array([4])), deadline_s=1e12).result()
print("answered, too", flush=True)
buffer.visible(made).result()
"""


@pytest.mark.parametrize("step", ["logging", "logged", "flushing", "aside", "published", "flushed", "trimming"])
def test_a_kill_at_each_step_of_a_commit(start, tmp_path, step):
    folder, items = start
    command = [sys.executable, "-P", "-c", KILLED, str(folder), str(tmp_path / "log"), step]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    answered = killed.stdout.splitlines()
    assert answered == ["answered"] if step.startswith("log") else ["answered", "answered, too"]
    gone = {2, 4} if step != "logging" else {2}
    expected = sorted(items.keys() - gone | {101})
    # Somebody stores what was deleted: if it is committed already, it must not be deleted once more.
    rows = random_rows(np.random.default_rng(1), 1)
    codes, table, features, thumbnails = columns_of(rows)
    Collection.open(folder).upsert(codes, ids=np.array([2]), attributes=table, features=features, thumbnails=thumbnails)
    committed = step in ("flushed", "trimming")
    expected = sorted({*expected, 2}) if committed else expected
    with buffered(folder, tmp_path / "log") as (searcher, committer, buffer):
        assert buffer.state().writes == (0 if committed else 2 if step == "logging" else 3)
        assert searcher.scan(limit=1000)[0]["id"].to_pylist() == expected
        put = Put(np.array([[7]], np.uint64), np.array([101]), None, np.zeros((1, FEATURES), np.float16))
        assert make(committer, put, key=Key("k", "d")).number == 1
    assert Collection.open(folder).scan([]).read_all()["id"].to_pylist() == expected
    assert not list((tmp_path / "log").rglob("*.log"))
