"""A state machine that changes, asks and reopens a collection, and compares each answer with a plain dict."""

from __future__ import annotations

import contextlib
import datetime
import functools
import random

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import CollectionNotFoundError, IdNotFoundError
from hashlight.engine.filters.filter import FilterError
from tests.engine.collection.contents import contents
from tests.engine.living import sampling
from tests.engine.living.asking import Opened, rows_of
from tests.engine.living.model import FILTERS, History, RefusedError, Row, Version

LISTS = pa.list_(pa.string())
# Attributes with the types that each may have; values are equal in all of them.
TYPES = {
    "label": [pa.int64(), pa.float64()],
    "name": [pa.string()],
    "tags": [LISTS],
    "price": [pa.float32(), pa.float64()],
    "later": [pa.string()],
}
FIRST = {"label": pa.int64(), "name": pa.string(), "tags": LISTS}
VALUES = {
    "label": sampling.none() | sampling.integers(0, 3),
    "name": sampling.none() | sampling.sampled_from(["a", "ab", "b"]),
    "tags": sampling.none() | sampling.lists(sampling.sampled_from(["x", "y"]), max_size=2),
    "price": sampling.none() | sampling.sampled_from([0.25, 0.5, 1.5]),
    "later": sampling.none() | sampling.sampled_from(["ant", "bee"]),
}
IDS = sampling.integers(0, 40)
ASKED_IDS = st.integers(0, 40)
FILTER = st.none() | st.integers(0, len(FILTERS) - 1)
REFUSED = (ValueError, IdNotFoundError, CollectionNotFoundError, FilterError)


def distinct(ids, **sizes):
    return st.lists(ids, unique=True, **sizes)


def as_arrays(rows, types):
    """Return the keywords that add rows to a real collection."""
    columns = {name: pa.array([row.attributes[name] for row in rows], kind) for name, kind in types.items()}
    features = None if not rows or rows[0].features is None else np.array([row.features for row in rows], np.float16)
    pictures = [row.thumbnail for row in rows]
    return {
        "codes": np.array([row.code for row in rows], np.uint64),
        "attributes": pa.table(columns) if columns else None,
        "features": features,
        "thumbnails": pictures if any(pictures) else None,
    }


def run(target, name, given):
    """Make a change to a collection or record it in a transaction."""
    given = dict(given)
    if name in ("add", "upsert"):
        ids = given.pop("ids")
        arrays = as_arrays(given.pop("rows"), given.pop("types"))
        return getattr(target, name)(**arrays, ids=None if ids is None else np.array(ids, np.int64), **given)
    if name == "delete_where":
        text, parameters, _, _ = FILTERS[given["number"]]
        return target.delete_where(text, parameters)
    if name == "update":
        types = given["types"]
        table = {each: pa.array([item[each] for item in given["items"]], types[each]) for each in types}
        return target.update(given["ids"], pa.table(table))
    if name == "set_column":
        values = pa.array(given["values"], given["kind"])
        return target.set_column(given["name"], values, ids=given["ids"])
    return getattr(target, name)(**given)


class Machine(RuleBasedStateMachine):
    """Subclasses say where the collection is, and how its files are read; `changes` counts those of all examples."""

    changes = 0
    kinds = ("add", "add", "delete", "where", "update", "set", "drop", "tag", "untag", "rollback", "prune")

    def place(self):
        """Return a new location, and a function that reads a file there."""
        raise NotImplementedError

    def teardown(self):
        self.readers = []
        self.collection = None

    @initialize(data=st.data())
    def create(self, data):
        self.random = random.Random(data.draw(st.integers(0, 2**32), "seed"))
        self.bits = data.draw(st.sampled_from([3, 40, 70]), "bits")
        self.with_features = data.draw(st.booleans(), "features")
        self.location, self.read = self.place()
        size = data.draw(st.sampled_from([0, 1, 9, 1500]), "rows")
        rows = [self._row(number, number % 7, number % 3) for number in range(size)]
        given = as_arrays(rows, FIRST)
        del given["thumbnails"]
        if not size:
            given["codes"] = np.zeros((0, -(-self.bits // 64)), np.uint64)
            given["features"] = np.zeros((0, 2), np.float16) if self.with_features else None
        shards = data.draw(st.integers(1, 3), "shards") if size > 3 else 1
        self.collection = Collection.create(self.location, **given, bits=self.bits, shards=shards)
        self.history = History(Version(dict(enumerate(rows)), dict(FIRST)), 1)
        self.readers = []
        self.is_checked = False
        self.begin()

    def begin(self):
        """Subclasses go on from here, where there is a collection of one version."""

    @property
    def now(self):
        """What the collection must hold."""
        return self.history.now

    @property
    def asked(self):
        """What is asked; see `tests.engine.living.asking`."""
        return Opened(self.collection)

    @contextlib.contextmanager
    def writing(self):
        """Yield while the collection is written through `self.collection`."""
        yield

    def _row(self, number, code, label):
        attributes = {"label": label, "name": "ab"[number % 2], "tags": ["x", "y"][: number % 3]}
        return Row(self._code(code), attributes, self._features(number))

    def _code(self, number):
        """Return one of few codes, in which many distances are equal."""
        bits = (0, 1, 2, 3, 2**self.bits - 1, 1 << (self.bits - 1), 6)[number] & (2**self.bits - 1)
        return tuple(bits >> shift & (2**64 - 1) for shift in range(0, self.bits, 64))

    def _features(self, number):
        return (float(number % 100), 0.5) if self.with_features else None

    # Changes.

    def _kinds(self, draw, names):
        """Draw types for some attributes: mostly those that they have."""
        known = self.now.types
        kinds = {}
        for name in names:
            kind = known.get(name, TYPES[name][0])
            kinds[name] = draw(sampling.sampled_from([kind, kind, kind, kind, *TYPES[name]]))
        return kinds

    def _names(self, draw, **sizes):
        known = list(self.now.types)
        others = [name for name in TYPES if name not in known]
        names = draw(sampling.lists(unique=True, each=sampling.sampled_from(known), **sizes)) if known else []
        return names + ([others[0]] if others and not draw(sampling.integers(0, 9)) else [])

    def _add(self, draw):
        kinds = self._kinds(draw, self._names(draw))
        ids = draw(sampling.lists(unique=True, each=IDS, min_size=1, max_size=5))
        rows = [
            Row(
                self._code(draw(sampling.integers(0, 6))),
                {name: draw(VALUES[name]) for name in kinds},
                self._features(draw(sampling.integers(0, 99))),
                draw(sampling.none() | sampling.sampled_from([b"1", b"22"])),
            )
            for _ in ids
        ]
        name = draw(sampling.sampled_from(["add", "upsert", "number"]))
        shards = draw(sampling.integers(1, len(ids)))
        return ("upsert" if name == "upsert" else "add"), {
            "rows": rows, "ids": None if name == "number" else ids, "types": kinds, "shards": shards,
        }  # fmt: skip

    def _some_ids(self, draw, **sizes):
        """Draw ids: mostly of live rows."""
        live = sorted(self.now.rows)
        alive = sampling.sampled_from(live) if live else IDS
        return (
            draw(sampling.lists(alive, unique=True, **sizes))
            if draw(sampling.integers(0, 5))
            else draw(sampling.lists(IDS, unique=True, **sizes))
        )

    def _update(self, draw):
        kinds = self._kinds(draw, self._names(draw, max_size=2))
        ids = self._some_ids(draw, min_size=1, max_size=4)
        items = [{name: draw(VALUES[name]) for name in kinds} for _ in ids]
        return "update", {"ids": ids, "types": kinds, "items": items}

    def _set_column(self, draw):
        name = draw(sampling.sampled_from(list(TYPES)))
        ids = self._some_ids(draw, max_size=6)
        kind = draw(sampling.sampled_from(TYPES[name]))
        return "set_column", {"name": name, "kind": kind, "ids": ids, "values": [draw(VALUES[name]) for _ in ids]}

    def _version(self, draw):
        known = [*self.history.versions, *self.history.tags]
        return draw(sampling.sampled_from(known) | sampling.just(99) | sampling.just("none"))

    def _operation(self, draw):
        kind = draw(sampling.sampled_from(self.kinds))
        if kind in ("add", "update", "set"):
            return {"add": self._add, "update": self._update, "set": self._set_column}[kind](draw)
        if kind == "delete":
            return "delete", {"ids": draw(sampling.lists(IDS, max_size=6))}
        if kind == "where":
            return "delete_where", {"number": draw(sampling.integers(0, len(FILTERS) - 1))}
        if kind == "drop":
            return "drop_column", {"name": draw(sampling.sampled_from(list(TYPES)))}
        if kind == "tag":
            number = draw(sampling.sampled_from(list(self.history.versions)) | sampling.none())
            return "tag", {"name": draw(sampling.sampled_from(["a", "b"])), "version": number}
        if kind == "untag":
            return "untag", {"name": draw(sampling.sampled_from(["a", "b"]))}
        if kind == "rollback":
            return "rollback", {"version": self._version(draw)}
        return "prune", draw(sampling.sampled_from(
            [{"keep": 1}, {"keep": 3}, {"older_than": datetime.timedelta(0)},
             {"keep": 1, "older_than": datetime.timedelta(days=1)}]))  # fmt: skip

    def _draw(self, sampler):
        return sampler(self.random)

    @rule(changes=st.integers(1, 5))
    def change(self, changes):
        for _ in range(changes):
            self.do(self._operation(self._draw))
            self.is_as_it_should_be()

    def do(self, operation):
        """Make one change."""
        self._change([operation], lambda: run(self.collection, *operation))

    @rule(changes=st.integers(2, 4))
    def change_much(self, changes):
        """Make several changes in one transaction."""
        operations = [self._operation(self._draw) for _ in range(changes)]

        def make():
            with self.collection.transaction() as change:
                for operation in operations:
                    run(change, *operation)
                done = change.commit()
            return Collection.open(self.location, version=done.version, reuse=self.collection)

        self._change(operations, make)

    def _change(self, operations, make):
        self.is_checked = False
        type(self).changes += 1
        with self.writing():
            try:
                draft = self.history.change(operations)
            except RefusedError:
                with pytest.raises(REFUSED):
                    make()
                return
            self.collection = make()
            assert self.collection.version - self.history.live in (0, 1)
            self.history.commit(draft, self.collection.version)

    @rule(full=st.booleans())
    def compact(self, full):
        self.is_checked = False
        with self.writing():
            self.collection = self.collection.compact(full=full)
            self.history.commit(self.history.change([]), self.collection.version)
        if full:
            assert sum(shard.rows for shard in self.collection.shards) == len(self.collection)

    # Opening.

    @rule(index=st.sampled_from(["auto", "scan", "multi", "faiss-flat"]), verify=st.booleans())
    def reopen(self, index, verify):
        self.is_checked = False
        self.open(index=index, verify=verify)

    def open(self, *, index, verify=False):
        self.collection = Collection.open(self.location, index=index, verify=verify)

    @rule()
    def verify(self):
        report = Collection.verify(self.location)
        assert report.is_sound, report.faults

    @rule()
    def open_another_version(self):
        assert [version.version for version in self.collection.versions()] == sorted(self.history.kept, reverse=True)
        version = self._version(self._draw)
        number = self.history.tags.get(version) if isinstance(version, str) else version
        if number not in self.history.kept:
            with pytest.raises(CollectionNotFoundError):
                Collection.open(self.location, version=version)
            return
        opened = Collection.open(self.location, version=version)
        assert opened.version == number
        self._compare(opened, self.history.versions[number])
        # Kept open, it stays whatever becomes of the version.
        self.readers = [*self.readers, opened][-3:]

    @invariant()
    def is_as_it_should_be(self):
        if self.is_checked:
            return
        now = self.history.now
        self._compare(self.collection, now)
        assert self.collection.manifest.next_id == self.history.next_id
        found = contents(self.read)
        assert found == {id_: (row.code, row.attributes, row.thumbnail) for id_, row in now.rows.items()}
        for opened in self.readers:
            self._compare(opened, self.history.versions[opened.version])
        self.is_checked = True

    def _compare(self, opened, version):
        """Compare all that a version holds."""
        assert {field.name: field.type for field in opened.schema} == version.types
        assert opened.num_features == (2 if self.with_features else None)
        columns = [*version.types, *(["features"] if self.with_features else []), "thumbnail"]
        assert rows_of(opened.scan(columns).read_all(), features=self.with_features) == version.rows
        assert (len(opened), opened.count()) == (len(version.rows),) * 2

    # Questions.

    def _queries(self, numbers):
        return np.array([self._code(number) for number in numbers], np.uint64)

    def _ask(self, expected, ask):
        """Return the answers to compare, None if both are refused."""
        try:
            wanted = expected()
        except RefusedError:
            with pytest.raises(REFUSED):
                ask()
            return None
        return ask(), wanted

    @rule(numbers=st.lists(st.integers(0, 6), min_size=1, max_size=3), k=st.integers(1, 30), number=FILTER)
    def search(self, numbers, k, number):
        queries = self._queries(numbers)
        both = self._ask(lambda: self.now.knn(queries, k, number), lambda: self.asked.knn(queries, k, where(number)))
        if both is not None:
            found, (distances, ids) = both
            np.testing.assert_array_equal(found.ids, ids)
            np.testing.assert_array_equal(found.distances, distances)
            assert (found.codes, found.searched) == (len(self.now.rows),) * 2

    @rule(numbers=st.lists(st.integers(0, 6), min_size=1, max_size=3), radius=st.integers(0, 3), number=FILTER,
          limit=st.none() | st.integers(1, 9))  # fmt: skip
    def search_a_radius(self, numbers, radius, number, limit):
        queries = self._queries(numbers)
        both = self._ask(lambda: self.now.within(queries, radius, number, limit),
                         lambda: self.asked.within(queries, radius, where(number), limit))  # fmt: skip
        if both is not None:
            found, (pairs, cut) = both
            assert (found.pairs, found.cut) == (pairs, cut)

    @rule(code=st.integers(0, 6), radius=st.integers(0, 3), number=FILTER, limit=st.integers(1, 9))
    def read_a_radius_by_pages(self, code, radius, number, limit):
        queries, asked = self._queries([code]), self.asked
        last = after = None
        for _ in range(10):
            both = self._ask(functools.partial(self.now.within, queries, radius, number, limit, last),
                             functools.partial(asked.within, queries, radius, where(number), limit, after))  # fmt: skip
            if both is None:
                return
            found, (pairs, cut) = both
            assert (found.pairs, found.cut) == (pairs, cut)
            if not cut[0]:
                return
            last, after = pairs[0][-1], found.next[0]

    @rule(number=FILTER, page=st.sampled_from([1, 7, 1000]), after=st.none() | ASKED_IDS, data=st.data())
    def scan(self, number, page, after, data):
        now = self.now
        if len(now.rows) > 100:
            page = max(100, page)
        columns = data.draw(distinct(st.sampled_from(list(now.types)))) if now.types else []
        both = self._ask(functools.partial(now.select, number),
                         lambda: self.asked.scan(columns, where(number), page, after))  # fmt: skip
        if both is not None:
            found, rows = both
            assert found == {
                id_: Row(row.code, {name: row.attributes[name] for name in columns})
                for id_, row in rows.items()
                if after is None or id_ > after
            }

    @rule(number=FILTER, column=st.sampled_from(list(TYPES)))
    def count_by_value(self, number, column):
        both = self._ask(functools.partial(self.now.select, number), lambda: self.asked.count(where(number)))
        assert both is None or both[0] == len(both[1])
        both = self._ask(functools.partial(self.now.facets, column, number),
                         lambda: self.asked.facets(column, where(number)))  # fmt: skip
        assert both is None or both[0] == both[1]

    @rule(ids=st.lists(ASKED_IDS, min_size=1, max_size=6))
    def get(self, ids):
        rows = self.now.rows
        assert self.asked.thumbnails(ids) == [rows[id_].thumbnail if id_ in rows else None for id_ in ids]
        if set(ids) - rows.keys():
            with pytest.raises(IdNotFoundError):
                self.asked.get(ids)
            return
        assert self.asked.get(ids) == [(id_, rows[id_].code, rows[id_].attributes) for id_ in ids]
        if self.with_features and (features := self.asked.features(ids)) is not None:
            assert features == [rows[id_].features for id_ in ids]


def where(number):
    """Return a filter of `FILTERS` and its parameters, or none."""
    return (None, None) if number is None else FILTERS[number][:2]
