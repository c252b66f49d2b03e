"""Every change against a plain dict: alone, in a row, and with another writer at each of its steps."""

from __future__ import annotations

import errno
import itertools
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing import compaction, opening, transaction
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import CollectionBusyError, IdNotFoundError
from hashlight.engine.places import files
from hashlight.engine.places.folder import Folder
from hashlight.engine.storage.versions import list_versions, read_current
from tests.engine.collection.contents import Model, RefusedError, contents
from tests.engine.storage.forging import publish_first_format

BITS = 70
RNG = np.random.default_rng(17)
CODES = RNG.integers(4, size=(400, 2), dtype=np.uint64)  # many are equal
LABELS = [1, 2, None, 3, 1, 2, 3, None, 1, 2, 3, 1]


def reader(path):
    return lambda name: (path / name).read_bytes()


def make(path, model, *, shards=3):
    Collection.create(path, CODES[:12], attributes={"label": LABELS, "name": list("abcdefghijkl")}, bits=BITS,
                      shards=shards, tables=False)  # fmt: skip
    model.names = ("label", "name")
    model.add(CODES[:12], None, {"label": LABELS, "name": list("abcdefghijkl")})


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def path(tmp_path, model):
    make(tmp_path / "c", model)
    return tmp_path / "c"


def committed(path, change):
    with Transaction(path, tables=False) as writer:
        change(writer)
        return writer.commit()


def check(path, model):
    assert contents(reader(path)) == model.rows


def leftovers(path):
    """What no version has."""
    named = {name for version in list_versions(Folder(path)) for name in version.names}
    found = {f"{folder}/{each.name}" for folder in ("shards", "deletions", "columns", "encoder", "intents")
             for each in path.glob(f"{folder}/*")}  # fmt: skip
    return found - named


# Changes, each as a transaction and as the model make it.

CHANGES = {
    "add": (
        lambda t: t.add(CODES[20:23], np.array([100, 50, 77]), {"label": [7, 8, 9]}, thumbnails=[b"x", None, b"z"]),
        lambda m: m.add(CODES[20:23], [100, 50, 77], {"label": [7, 8, 9]}, [b"x", None, b"z"]),
    ),
    "add other ids": (
        lambda t: t.add(CODES[30:32], np.array([60, 61]), shards=2),
        lambda m: m.add(CODES[30:32], [60, 61]),
    ),
    "number": (
        lambda t: t.add(CODES[40:44], attributes={"name": list("wxyz")}, shards=2),
        lambda m: m.add(CODES[40:44], None, {"name": list("wxyz")}),
    ),
    "number more": (lambda t: t.add(CODES[44:47]), lambda m: m.add(CODES[44:47])),
    "delete": (lambda t: t.delete([3, 4, 4, 999]), lambda m: m.delete([3, 4])),
    "delete other ids": (lambda t: t.delete(np.array([0, 11])), lambda m: m.delete([0, 11])),
    "delete a shard": (lambda t: t.delete(range(4)), lambda m: m.delete(range(4))),
    "delete where": (
        lambda t: t.delete_where("label == 1 or name = 'c' or id in :some", {"some": [60, 7]}),
        lambda m: m.delete_if(lambda id_, item: item["label"] == 1 or item["name"] == "c" or id_ in (60, 7)),
    ),
    "upsert": (
        lambda t: t.upsert(CODES[50:53], np.array([3, 60, 5]), {"label": [30, 31, 32]}),
        lambda m: m.upsert(CODES[50:53], [3, 60, 5], {"label": [30, 31, 32]}),
    ),
    "update": (
        lambda t: t.update([5, 3], {"label": [55, 33]}),
        lambda m: m.update([5, 3], {"label": [55, 33]}),
    ),
    "update with views": (
        lambda t: t.update([5, 3], {"name": pa.array(["p", None], pa.string_view())}),
        lambda m: m.update([5, 3], {"name": ["p", None]}),
    ),
    "set": (
        lambda t: t.set_column("price", [0.5, None, 2.5], ids=[1, 5, 9]),
        lambda m: m.set_column("price", [0.5, None, 2.5], [1, 5, 9]),
    ),
    "set what is there": (
        lambda t: t.set_column("label", [-1, -2], ids=[2, 11]),
        lambda m: m.set_column("label", [-1, -2], [2, 11]),
    ),
    "drop": (lambda t: t.drop_column("label"), lambda m: m.drop_column("label")),
    "compact": (None, lambda m: None),
}


def run(path, name):
    """Make a change; return whether it was made."""
    if name == "compact":
        before = read_current(Folder(path)).version
        compaction.compact(path, full=True)
        return read_current(Folder(path)).version > before
    try:
        committed(path, CHANGES[name][0])
    except (ValueError, IdNotFoundError):
        return False
    return True


def expected(model, *names):
    model = model.copy()
    for name in names:
        before = model.copy()
        try:
            CHANGES[name][1](model)
        except RefusedError:
            model = before
        except KeyError:  # a filter on a column that was dropped
            model = before
    return model


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_does_what_it_does_to_a_dict(path, model, name):
    assert run(path, name)
    check(path, expected(model, name))
    assert leftovers(path) == set()


@pytest.mark.parametrize("seed", range(3))
def test_many_changes_in_a_row(path, model, seed):
    rng = np.random.default_rng(seed)
    names = [*CHANGES, "compact"]
    done = set()
    for step in range(40):
        name = names[int(rng.integers(len(names)))]
        if model.names.count("label") == 0 and "label" in str(name):
            continue
        before = model.copy()
        made = run(path, name)
        try:
            CHANGES[name][1](model)
        except (RefusedError, KeyError):
            model = before
            assert not made, (step, name)
        check(path, model)
        done.add(name)
        if "label" not in model.names:
            committed(path, lambda t: t.set_column("label", [], ids=[], type=pa.int64()))
            model.set_column("label", [], [])
            check(path, model)
    assert len(done) > 9
    assert leftovers(path) == set()


def test_several_changes_are_one_version_in_their_order(path, model):
    def change(writer):
        writer.add(CODES[60:63], attributes={"label": [1, 1, 2]})
        writer.delete([13])
        writer.set_column("price", [1.5], ids=[12])
        writer.add(CODES[63:65], np.array([13, 400]), {"price": [2.5, None]})
        writer.add(CODES[65:66])
        writer.delete_where("price == 2.5")
        writer.upsert(CODES[66:67], np.array([0]))

    model.add(CODES[60:63], None, {"label": [1, 1, 2]})
    model.delete([13])
    model.set_column("price", [1.5], [12])
    model.add(CODES[63:65], [13, 400], {"price": [2.5, None]})
    model.add(CODES[65:66])
    model.delete([13])
    model.upsert(CODES[66:67], [0])
    done = committed(path, change)
    assert done == (2, 7, 3)
    check(path, model)


def test_what_changes_nothing_makes_no_version(path, model):
    assert committed(path, lambda t: t.delete([77, 78])) == (1, 0, 0)
    assert committed(path, lambda t: t.delete_where("label > 1000")) == (1, 0, 0)
    assert committed(path, lambda t: t.add(CODES[:0])) == (1, 0, 0)
    assert committed(path, lambda t: None) == (1, 0, 0)
    check(path, model)


def test_ids_of_deleted_rows_are_not_given_again(path, model):
    assert committed(path, lambda t: t.delete([11])) == (2, 0, 1)
    assert committed(path, lambda t: t.add(CODES[:1])) == (3, 1, 0)
    model.delete([11])
    model.add(CODES[:1])
    assert max(model.rows) == 12
    check(path, model)
    assert committed(path, lambda t: t.add(CODES[:1], np.array([11]))) == (4, 1, 0), "who gives it may have it again"


def test_a_collection_may_be_empty_and_be_filled_again(tmp_path, path, model):
    committed(path, lambda t: t.delete(range(12)))
    assert contents(reader(path)) == {}
    model.delete(range(12))
    committed(path, CHANGES["add"][0])
    CHANGES["add"][1](model)
    check(path, model)
    empty = pa.schema([("label", pa.int32())]).empty_table()
    with Transaction(tmp_path / "e", fresh=opening.Fresh(BITS, None)) as writer:
        writer.add(CODES[:0], attributes=empty, features=np.zeros((0, 5), np.float16))
        assert writer.commit() == (1, 0, 0)
    features = np.ones((2, 5), np.float16)
    column = pa.table({"label": pa.array([1, 2], pa.int32())})
    assert committed(tmp_path / "e", lambda t: t.add(CODES[:2], None, column, features)) == (2, 2, 0)
    assert {id_: item["label"] for id_, (_, item, _) in contents(reader(tmp_path / "e")).items()} == {0: 1, 1: 2}


def test_a_collection_of_the_first_format_is_upgraded_by_the_next_write(path, model):
    publish_first_format(path, own_checksum=True)
    for name in ("delete", "number", "update", "set"):
        assert run(path, name) == (name != "update"), "row 3 is gone"
        model = expected(model, name)
        check(path, model)


BAD = {
    "codes of another length": (lambda t: t.add(CODES[:1, :1].copy()), "1 word per code .* 70-bit codes have 2 words"),
    "an id that is there": (lambda t: t.add(CODES[:2], np.array([40, 7])), "1 of 2 ids is in .*, first 7: .*`upsert`"),
    "an id twice": (lambda t: t.add(CODES[:2], np.array([40, 40])), "more than once"),
    "an id twice in two adds": (
        lambda t: [t.add(CODES[:1], np.array([40])), t.add(CODES[:1], np.array([40]))],
        "is in .* already",
    ),
    "an attribute that is unknown": (lambda t: t.add(CODES[:1], None, {"size": [1]}), "attribute size .*`set_column`"),
    "an attribute of another type": (lambda t: t.add(CODES[:1], None, {"label": ["x"]}), r"label \(string\): cast it"),
    "fewer attributes": (lambda t: t.add(CODES[:2], None, {"label": [1]}), "2 rows, one per code, got 1"),
    "a number beyond 64 bits": (lambda t: t.add(CODES[:1], None, {"label": [2**70]}), "numbers that 64 bits hold"),
    "a value beyond 64 bits": (lambda t: t.set_column("x", [2**70], ids=[1]), "`values` are not of one type"),
    "features": (lambda t: t.add(CODES[:1], features=np.ones((1, 4), np.float16)), "none beside .* 4 dimensions"),
    "thumbnails as text": (lambda t: t.add(CODES[:1], thumbnails=["x"]), "`thumbnails` must be encoded pictures"),
    "fewer thumbnails": (lambda t: t.add(CODES[:2], thumbnails=[b"x"]), "2 entries, one per code, got 1"),
    "an update of no row": (lambda t: t.update([5, 999], {"label": [1, 2]}), "1 of 2 ids was not found: 999"),
    "an update of an unknown attribute": (lambda t: t.update([5], {"size": [1]}), "attribute size .*`set_column`"),
    "a column of no row": (lambda t: t.set_column("x", [1], ids=[999]), "id 999 was not found"),
    "a column of no type": (lambda t: t.set_column("x", [None], ids=[1]), "give `type`"),
    "fewer values": (lambda t: t.set_column("x", [1], ids=[1, 2]), "2 entries, one per id, got 1"),
    "a column that is reserved": (lambda t: t.set_column("id", [1], ids=[1]), "must not be named"),
    "values that cannot be converted": (lambda t: t.set_column("name", [1], ids=[1]), "cannot become int64"),
    "no such column": (lambda t: t.drop_column("size"), "there is no 'size' to drop"),
    "ids as text": (lambda t: t.delete(["a"]), "`ids` must be whole numbers"),
    "a filter on an unknown attribute": (lambda t: t.delete_where("size == 1"), "size"),
    "a tag that is a number": (lambda t: t.tag("7"), "is not a number"),
    "a version that never was": (lambda t: t.rollback(7), "has no version 7"),
    "no tag": (lambda t: t.rollback("x"), "no version tagged 'x'"),
    "no tag to remove": (lambda t: t.untag("x"), "no version tagged 'x'"),
    "nothing to prune by": (lambda t: t.prune(), "give `keep`, `older_than`"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_refused_and_harms_nothing(path, model, case):
    change, message = BAD[case]
    before = sorted(path.rglob("*"))
    with pytest.raises(Exception, match=message) as caught:
        committed(path, change)
    assert not isinstance(caught.value, AssertionError)
    assert [each for each in sorted(path.rglob("*")) if each.name not in ("columns", "deletions")] == before
    check(path, model)


def test_a_transaction_ends_with_its_commit(path):
    with Transaction(path) as writer:
        writer.delete([1])
        writer.commit()
        for more in (lambda: writer.delete([2]), writer.commit, lambda: writer.add(CODES[:1])):
            with pytest.raises(ValueError, match="has ended"):
                more()


def test_adding_a_row_does_not_read_which_others_were_deleted(path, monkeypatch):
    committed(path, lambda writer: writer.delete([0, 5, 11]))
    read = []
    find = Folder.find
    monkeypatch.setattr(Folder, "find", lambda self, name: read.append(name) or find(self, name))
    committed(path, lambda writer: writer.add(CODES[:1]))
    assert "CURRENT" in read
    assert not [name for name in read if name.startswith("deletions/")]


# Two writers.


def steps_of(monkeypatch, at):
    """Call `at(number)` at every step of the writes that follow, but for those that it makes itself."""
    numbers = itertools.count()
    within = []

    def note(step, name):
        if not within:
            within.append(True)
            try:
                at(next(numbers), name)
            finally:
                within.clear()

    monkeypatch.setattr(files, "_steps", [note])
    return numbers


PAIRS = [
    ("add", "add"), ("number", "number more"), ("upsert", "add other ids"), ("delete", "upsert"), ("update", "delete"),
    ("update", "upsert"), ("set", "add"), ("delete where", "upsert"), ("compact", "delete"), ("compact", "compact"),
    ("compact", "set"), ("set", "compact"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[" - ".join(pair) for pair in PAIRS])
def test_another_writer_at_each_step(tmp_path, path, model, monkeypatch, first, second):
    monkeypatch.setattr(opening, "_LOCK_S", 0.0)
    allowed = [expected(model, first, second).rows, expected(model, second, first).rows]
    for wanted in itertools.count():
        copy = tmp_path / str(wanted)
        shutil.copytree(path, copy)
        waiting = [second]

        def at(number, name, copy=copy, waiting=waiting, wanted=wanted):
            if number == wanted:
                try:
                    run(copy, second)
                    waiting.clear()
                except CollectionBusyError:
                    assert name == "CURRENT" or name.endswith(".json"), "locked only for the exchange"

        with monkeypatch.context() as patch:
            numbers = steps_of(patch, at)
            run(copy, first)
        for name in waiting:
            run(copy, name)
        assert contents(reader(copy)) in allowed, wanted
        assert leftovers(copy) == set()
        if next(numbers) <= wanted:
            break
    assert wanted > 3


def test_who_is_always_overtaken_keeps_others_away_at_last(path, model, monkeypatch):
    monkeypatch.setattr(opening, "_LOCK_S", 0.0)
    overtaken = []

    def at(_number, name):
        if len(name) == 37:  # the deleted rows of an attempt
            try:
                committed(path, lambda t: t.add(CODES[len(overtaken) : len(overtaken) + 1]))
                overtaken.append(name)
            except CollectionBusyError:
                overtaken.append(None)

    steps_of(monkeypatch, at)
    monkeypatch.setattr(transaction, "_FIRST_PAUSE_S", 0.0)
    done = committed(path, lambda t: t.delete([1, 2]))
    assert None in overtaken, "kept away in the end"
    added = sum(name is not None for name in overtaken)
    assert added >= transaction._FREE_ATTEMPTS - 1
    assert (done.deleted, len(contents(reader(path)))) == (2, 10 + added)
    assert leftovers(path) == set()


def test_rows_of_a_collection_that_was_replaced_meanwhile_are_not_added(path):
    with Transaction(path) as writer:
        writer.add(CODES[:3])
        make_again = Collection.create(path, CODES[:5], bits=BITS, overwrite=True)
        with pytest.raises(CollectionBusyError, match="was replaced by another collection"):
            writer.commit()
    assert len(contents(reader(path))) == len(make_again) == 5
    assert leftovers(path) == set()


@pytest.mark.parametrize(
    ("name", "error"),
    [("add", errno.EIO), ("add", errno.EROFS), ("update", errno.ENOSPC), ("set", errno.EIO), ("compact", errno.ENOSPC)],
)
def test_a_disk_that_fails_at_any_step_harms_nothing(tmp_path, path, model, monkeypatch, name, error):
    for wanted in itertools.count():
        copy = tmp_path / f"{name}-{wanted}"
        shutil.copytree(path, copy)

        def fail(number, _name, wanted=wanted):
            if number == wanted:
                raise OSError(error, os.strerror(error))

        with monkeypatch.context() as patch:
            numbers = steps_of(patch, fail)
            try:
                run(copy, name)
                failed = None
            except OSError as caught:
                failed = caught.errno
        assert contents(reader(copy)) in (model.rows, expected(model, name).rows)
        committed(copy, lambda t: t.tag("after"))
        assert leftovers(copy) == set()
        if next(numbers) <= wanted:
            assert failed is None
            break
        assert failed in (error, None)
    assert wanted > 3
