"""Shards that a filter cannot match are not opened, and none that it might match is left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine.collection import parts
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.outcomes import Outcomes
from hashlight.engine.collection.writing.rows import Reader
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.filters.filter import FilterError
from hashlight.engine.filters.outcomes import TRUE
from hashlight.engine.storage import scalars
from hashlight.engine.storage.shard import Shard
from tests.oracles import clustered_codes, knn, within_radius

BITS = 64
SHARDS = 12
CENTURY = np.datetime64("2000-01-01", "D")


class Rows:
    """What a collection must hold: of each id its code and its attributes, None where there is none."""

    def __init__(self):
        self.codes, self.attributes = {}, {}

    def put(self, codes, ids, attributes):
        for row, id_ in enumerate(ids.tolist()):
            self.codes[id_] = codes[row]
            self.attributes[id_] = {name: values[row] for name, values in attributes.items()}

    def ids(self, holds):
        return np.array([id_ for id_, item in self.attributes.items() if holds(item)], np.int64)


def batch_of(rng, number, rows=40):
    """Rows whose day, price and label lie in a range of their own for each number."""
    codes = clustered_codes(rng, rows, BITS, centres=5, flips=5)
    attributes = {
        "label": [None if row % 7 == 3 else number * 10 + row % 5 for row in range(rows)],
        "price": [number + row / rows for row in range(rows)],
        "name": [f"{'abcdefghijklmnop'[number]}{row % 3}" for row in range(rows)],
        "day": [(CENTURY + number * 100 + row % 9).astype(object) for row in range(rows)],
    }
    return codes, number * 10**5 + rng.permutation(rows * 3)[:rows], attributes


SCHEMA = pa.schema([("label", pa.int32()), ("price", pa.float32()), ("name", pa.string()), ("day", pa.date32())])


def make(path, *, rows=40):
    """A collection of a shard for each of 12 ranges, with deleted rows and a column set later in some."""
    rng, kept = np.random.default_rng(3), Rows()
    for number in range(SHARDS):
        codes, ids, attributes = batch_of(rng, number, rows)
        kept.put(codes, ids, attributes)
        table = pa.table(attributes, schema=SCHEMA)
        if number == 0:
            collection = Collection.create(path, codes, ids=ids, attributes=table, bits=BITS)
        else:
            collection = collection.add(codes, ids=ids, attributes=table)
    gone = [id_ for id_ in kept.codes if id_ // 10**5 in (2, 5) and id_ % 2]
    collection = collection.delete(np.array(gone))
    for id_ in gone:
        del kept.codes[id_], kept.attributes[id_]
    marked = np.array([id_ for id_ in kept.codes if id_ // 10**5 in (4, 5) and id_ % 3 == 0])
    collection = collection.set_column("marked", [True] * len(marked), ids=marked)
    for id_, item in kept.attributes.items():
        item["marked"] = True if id_ in set(marked.tolist()) else None
    changed = np.array([id_ for id_ in kept.codes if id_ // 10**5 == 7])
    collection = collection.set_column("price", pa.array([500.0] * len(changed), pa.float32()), ids=changed)
    for id_ in changed.tolist():
        kept.attributes[id_]["price"] = 500.0
    return collection, kept


FILTERS = {
    "label == 31": lambda item: item["label"] == 31,
    "label >= 30 and label < 52": lambda item: item["label"] is not None and 30 <= item["label"] < 52,
    "label < 12 or label > 999": lambda item: item["label"] is not None and item["label"] < 12,
    "label in (3, 104)": lambda item: item["label"] in (3, 104),
    "not (label < 100)": lambda item: item["label"] is not None and item["label"] >= 100,
    "label is null": lambda item: item["label"] is None,
    "price > 11.9": lambda item: item["price"] > np.float32(11.9),
    "price >= 0": lambda item: True,
    "price >= 3 and price < 4": lambda item: 3 <= item["price"] < 4,
    "name == 'c1'": lambda item: item["name"] == "c1",
    "name < 'b'": lambda item: item["name"] < "b",
    "name like 'd%'": lambda item: item["name"].startswith("d"),
    "day < '2000-04-01'": lambda item: item["day"] < np.datetime64("2000-04-01").astype(object),
    "marked == true": lambda item: item["marked"] is True,
    "marked is null": lambda item: item["marked"] is None,
    "marked is not null and price > 4": lambda item: item["marked"] is not None and item["price"] > 4,
    "label == 77": lambda item: False,
}


def assert_exact(collection, kept, text):
    ids = kept.ids(FILTERS[text])
    codes = np.array([kept.codes[id_] for id_ in ids.tolist()], np.uint64).reshape(len(ids), 1)
    queries = clustered_codes(np.random.default_rng(8), 6, BITS, centres=5, flips=3)
    found = collection.search(queries, 7, filter=text, explain=True)
    np.testing.assert_array_equal(found.ids, knn(queries, codes, ids, 7)[1])
    np.testing.assert_array_equal(found.distances, knn(queries, codes, ids, 7)[0])
    assert found.coverage.complete
    assert found.coverage.searched == found.coverage.codes == len(kept.codes)
    assert (found.explain.candidates <= len(ids)).all()
    near = collection.range_search(queries, 9, filter=text)
    pairs, _ = within_radius(queries, codes, ids, 9)
    assert [
        list(zip(near.distances[a:b].tolist(), near.ids[a:b].tolist(), strict=True))
        for a, b in zip(near.lims[:-1], near.lims[1:], strict=True)
    ] == [[tuple(map(int, pair)) for pair in of_query] for of_query in pairs]
    assert collection.count(text) == len(ids)
    scanned = collection.scan(["name"], text, batch_rows=50).read_all()
    assert scanned["id"].to_pylist() == sorted(ids.tolist())
    assert scanned["name"].to_pylist() == [kept.attributes[id_]["name"] for id_ in sorted(ids.tolist())]
    facets = collection.facets("name", text, limit=None)
    names = [kept.attributes[id_]["name"] for id_ in ids.tolist()]
    assert dict(zip(*facets.to_pydict().values(), strict=True)) == {name: names.count(name) for name in set(names)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("skipping") / "c")


@pytest.mark.parametrize("gathered", [True, False], ids=["gathered", "alone"])
def test_answers_are_those_of_all_rows(made, monkeypatch, gathered):
    collection, kept = made
    monkeypatch.setattr(parts, "SMALL_ROWS", 65_536 if gathered else 0)
    collection = Collection.open(collection.path)
    assert bool(collection._parts.gathered) == gathered
    for text in FILTERS:
        assert_exact(collection, kept, text)


@pytest.mark.parametrize("gathered", [True, False], ids=["gathered", "alone"])
def test_only_shards_that_may_match_are_opened(made, monkeypatch, gathered):
    monkeypatch.setattr(parts, "SMALL_ROWS", 65_536 if gathered else 0)
    path = made[0].path
    query = made[0].get([next(iter(made[1].codes))])["code"].to_numpy(zero_copy_only=False)
    query = np.frombuffer(query[0], np.uint64)[None]
    for text, shards in [
        ("label >= 30 and label < 52", {3, 4, 5}),
        ("name == 'c1'", {2}),
        ("name == 'c1' and label > 30", set()),
        ("day > '2000-04-12' and price < 2", {1}),
        ("marked == true", {4, 5}),
        ("label == 77000", set()),
    ]:
        for ask in (
            lambda collection, text: collection.search(query, 3, filter=text),
            lambda collection, text: collection.range_search(query, 3, filter=text),
            lambda collection, text: collection.count(text),
            lambda collection, text: collection.facets("name", text),
            lambda collection, text: collection.scan(["label"], text).read_all(),
        ):
            collection = Collection.open(path)
            if gathered:  # which shows where rows were deleted
                collection.search(query, 1)
            before = opened(collection)
            ask(collection, text)
            assert opened(collection) - before == shards - before, text


def opened(collection):
    return {number for number in range(len(collection.shards)) if collection.shards.is_open(number)}


def test_a_shard_that_matches_wholly_needs_no_mask(made, monkeypatch):
    masks = []
    original = Shard._find_mask
    monkeypatch.setattr(Shard, "_find_mask", lambda self, *given: (masks.append(self.name), original(self, *given))[1])
    collection = Collection.open(made[0].path)
    query = np.zeros((1, 1), np.uint64)
    ids = made[1].ids(lambda item: item["price"] >= 1)
    assert collection.count("price >= 1") == len(ids)
    assert set(collection.search(query, 2000, filter="price >= 1").ids[0, : len(ids)]) == set(ids.tolist())
    assert collection.scan([], "price >= 1").read_all()["id"].to_pylist() == sorted(ids.tolist())
    assert not masks
    assert collection.count("price >= 1.5") < len(ids)
    assert masks == [collection.manifest.shards[1].name]


def test_a_filter_deletes_without_reading_shards_that_it_cannot_match(tmp_path, monkeypatch):
    collection, kept = make(tmp_path / "c")
    read = set()
    original = Reader.ids
    monkeypatch.setattr(Reader, "ids", lambda self, spec: (read.add(spec.name), original(self, spec))[1])
    left = collection.delete_where("label >= 30 and label < 52")
    assert read == {collection.manifest.shards[number].name for number in (3, 4, 5)}
    monkeypatch.undo()
    for id_ in kept.ids(FILTERS["label >= 30 and label < 52"]).tolist():
        del kept.codes[id_], kept.attributes[id_]
    for text in FILTERS:
        assert_exact(left, kept, text)


def test_shards_with_scalar_files_and_versions_that_follow_are_skipped_too(tmp_path, monkeypatch):
    monkeypatch.setattr(scalars, "MIN_ROWS", 16)
    collection, kept = make(tmp_path / "c")
    assert all(scalars.SCALARS in spec.files for spec in collection.manifest.shards)
    assert (
        Outcomes(collection.manifest, where=collection.path).of("label == 31", None).astype(bool).tolist()
        == [True] * SHARDS
    )
    assert [number for number, _ in collection._parts.matching("label == 31", None)] == [3]
    for text in ("label >= 30 and label < 52", "name == 'c1'", "marked is null", "price > 11.9"):
        assert collection.count(text) == len(kept.ids(FILTERS[text]))
    smaller = collection.compact(full=True)
    assert smaller.count("label == 31") == len(kept.ids(FILTERS["label == 31"]))
    assert list(smaller._parts.matching("label == 77000", None)) == []


def test_a_filter_is_checked_where_no_shard_is_asked(made):
    collection = Collection.open(made[0].path)
    for text in ("nobody == 3", "label == 'x'", "label =="):
        with pytest.raises(FilterError):
            collection.search(np.zeros((1, 1), np.uint64), 1, filter=text)
    assert not opened(collection)


def test_statistics_that_are_not_known_skip_nothing(made):
    manifest = made[0].manifest
    bare = [dataclasses.replace(spec, statistics={}) for spec in manifest.shards]
    unknown = Outcomes(dataclasses.replace(manifest, shards=tuple(bare)), where=Path("c"))
    half = Outcomes(dataclasses.replace(manifest, shards=(*bare[:6], *manifest.shards[6:])), where=Path("c"))
    whole = Outcomes(manifest, where=Path("c"))
    for text in FILTERS:
        told = whole.of(text, None)
        found = unknown.of(text, None)
        assert (found & told == told).all()
        assert (found & TRUE).all()
        assert (found != TRUE).all()
        np.testing.assert_array_equal(half.of(text, None), [*found[:6], *told[6:]])


def test_statistics_of_another_type_are_refused(made):
    manifest = made[0].manifest
    first = manifest.shards[0]
    wrong = dataclasses.replace(first, statistics={**first.statistics, "label": {"min": "a", "max": "b", "nulls": 0}})
    outcomes = Outcomes(dataclasses.replace(manifest, shards=(wrong, *manifest.shards[1:])), where=Path("c"))
    with pytest.raises(CorruptDataError, match="statistics of attribute label in the manifest are not of type int32"):
        outcomes.of("label == 3", None)
