"""Reading a version with deleted rows, columns that were set later, and ids that have moved to another shard."""

from __future__ import annotations

import collections
import datetime
import decimal
import tempfile
from pathlib import Path

import faiss
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.errors import CorruptDataError, IdNotFoundError
from hashlight.engine.filters.filter import FilterError
from hashlight.engine.indexes.choice import INDEX_CHOICES
from hashlight.engine.service.asking.searcher import describe_collection, try_search
from tests import oracles
from tests.engine.collection.by_hand import Part, arrow_file, assemble, npy_file, put, write_next
from tests.engine.storage.forging import forge_manifest, sha256

BITS = 40
TAGS = pa.list_(pa.string())
# `label` and `tags` were there from the beginning, `later` was set later, `gone` is no longer shown.
SCHEMA = pa.schema({"label": pa.int64(), "tags": TAGS, "later": pa.string()})
KINDS = {"label": pa.int64(), "tags": TAGS, "gone": pa.int64()}
VALUES = {
    "label": st.none() | st.integers(0, 3),
    "tags": st.none() | st.lists(st.sampled_from(["x", "y", "z"]), max_size=3),
    "later": st.none() | st.sampled_from(["ant", "asp", "bee"]),
}
QUERIES = np.array([[0], [0b1], [2**BITS - 1]], np.uint64)

# A filter, what it names, and what it selects, with SQL's nulls.
FILTERS = [
    (None, None, lambda item: True),
    ("label == 2", None, lambda item: item["label"] == 2),
    ("label is null", None, lambda item: item["label"] is None),
    ("later like 'a%'", None, lambda item: (item["later"] or "").startswith("a")),
    ("not (label == 1 or later == 'bee')", None, lambda item: (
        item["label"] not in (None, 1) and item["later"] not in (None, "bee"))),
    ("'x' in tags", None, lambda item: "x" in (item["tags"] or ())),
    ("id not in :seen", {"seen": [1, 2, 3, 7, 20]}, lambda item: item["id"] not in (1, 2, 3, 7, 20)),
    ("id >= 6 and label < 3", None, lambda item: item["id"] >= 6 and item["label"] is not None and item["label"] < 3),
]  # fmt: skip


@st.composite
def versions(draw):
    """Draw the parts of a version, and the items that are alive, by id."""
    moves = [draw(st.permutations(range(24)))[: draw(st.integers(1, 12))] for _ in range(draw(st.integers(1, 3)))]
    parts, items = [], {}
    for number, ids in enumerate(moves):
        codes = [[draw(st.sampled_from([0, 1, 3, 7, 2**BITS - 1]))] for _ in ids]
        stored = {name: [draw(VALUES.get(name, VALUES["label"])) for _ in ids] for name in KINDS}
        written = draw(st.sampled_from([["label", "tags", "gone"], ["label", "gone"], ["tags"]]))
        columns = {}
        for name in draw(st.sets(st.sampled_from(SCHEMA.names))):
            columns[name] = (SCHEMA.field(name).type, {id_: draw(VALUES[name]) for id_ in ids})
        # An id that a later shard has, too, has moved there.
        moved = set(ids) & {id_ for later in moves[number + 1 :] for id_ in later}
        dead = moved | draw(st.sets(st.sampled_from(ids)))
        attributes = pa.table({name: pa.array(stored[name], KINDS[name]) for name in written})
        features = np.array([[id_, number] for id_ in ids], np.float16)
        pictures = {id_: f"{id_}/{number}".encode() for id_ in ids if id_ % 3} if number % 2 == 0 else None
        parts.append(Part(codes, ids, attributes, features, pictures, dead, columns))
        for place, id_ in enumerate(ids):
            if id_ in dead:
                continue
            item = {"id": id_, "code": codes[place][0]}
            for name in SCHEMA.names:
                own = stored[name][place] if name in written else None
                item[name] = columns[name][1][id_] if name in columns else own
            items[id_] = item | {"features": [id_, number], "thumbnail": (pictures or {}).get(id_)}
    return parts, items


def as_item(row):
    return row | {"code": int.from_bytes(row["code"], "little")}


def shown(item):
    return {name: item[name] for name in ("id", "code", *SCHEMA.names)}


def pairs_of(result, query):
    hits = slice(result.lims[query], result.lims[query + 1])
    return list(zip(result.distances[hits].tolist(), result.ids[hits].tolist(), strict=True))


def codes_and_ids(items):
    codes = np.array([[item["code"]] for item in items], np.uint64)
    return codes, np.array([item["id"] for item in items], np.int64)


def knn(items, k):
    if not items:
        return np.full((len(QUERIES), k), 2**31 - 1), np.full((len(QUERIES), k), -1)
    return oracles.knn(QUERIES, *codes_and_ids(items), k)


def within_radius(queries, items, radius, limit=None):
    if not items:
        return [[]] * len(queries), [False] * len(queries)
    return oracles.within_radius(queries, *codes_and_ids(items), radius, limit)


READING = settings(deadline=None, max_examples=15)


@READING
@given(version=versions(), index=st.sampled_from(INDEX_CHOICES), asked=st.sampled_from(FILTERS), k=st.integers(1, 30))
def test_searches_and_counts_see_what_is_alive(version, index, asked, k):
    parts, items = version
    text, parameters, selects = asked
    with tempfile.TemporaryDirectory() as folder:
        collection = Collection.open(assemble(Path(folder) / "c", parts, bits=BITS, schema=SCHEMA), index=index)
        chosen = [item for item in items.values() if selects(item)]
        assert len(collection) == len(items)
        assert collection.count(text, parameters) == len(chosen)
        codes = np.array([item["code"] for item in chosen], np.uint64).reshape(-1, 1)
        expected, _ = oracles.distance_histograms(QUERIES, codes, np.zeros((3, len(chosen)), bool), BITS)
        assert collection.histogram(QUERIES, filter=text, parameters=parameters).tolist() == expected.tolist()
        sample = collection.sample(k, filter=text, parameters=parameters)
        assert len(sample) == min(k, len(chosen))
        assert set(sample.tolist()) <= {item["id"] for item in chosen}
        assert sample.tolist() == collection.sample(24, filter=text, parameters=parameters)[:k].tolist()
        found = collection.search(QUERIES, k, filter=text, parameters=parameters)
        distances, nearest = knn(chosen, k)
        np.testing.assert_array_equal(found.ids, nearest)
        np.testing.assert_array_equal(found.distances, distances)
        assert (found.coverage.codes, found.coverage.searched) == (len(items), len(items))
        for radius, limit in ((2, None), (BITS, 3), (BITS, None)):
            within = collection.range_search(QUERIES, radius, limit, filter=text, parameters=parameters)
            pairs, cut = within_radius(QUERIES, chosen, radius, limit)
            assert [pairs_of(within, query) for query in range(len(QUERIES))] == pairs
            assert within.truncated.tolist() == cut


@READING
@given(version=versions(), asked=st.sampled_from(FILTERS), batch_rows=st.integers(1, 9), after=st.integers(0, 24))
def test_items_are_read_as_they_are_now(version, asked, batch_rows, after):
    parts, items = version
    text, parameters, selects = asked
    with tempfile.TemporaryDirectory() as folder:
        collection = Collection.open(assemble(Path(folder) / "c", parts, bits=BITS, schema=SCHEMA))
        alive = np.array(sorted(items), np.int64)
        assert [as_item(row) for row in collection.get(alive[::-1]).to_pylist()] == [
            shown(items[id_]) for id_ in alive[::-1].tolist()
        ]
        assert collection.features_of(alive).tolist() == [items[id_]["features"] for id_ in alive.tolist()]
        assert collection.thumbnails_of(np.arange(30)) == [items.get(id_, {}).get("thumbnail") for id_ in range(30)]
        for id_ in set(range(24)) - items.keys():
            with pytest.raises(IdNotFoundError, match=str(id_)):
                collection.get([id_])
        chosen = [items[id_] for id_ in sorted(items) if selects(items[id_])]
        batches = list(collection.scan(filter=text, parameters=parameters, batch_rows=batch_rows))
        assert all(len(batch) == batch_rows for batch in batches[:-1])
        assert [as_item(row) for batch in batches for row in batch.to_pylist()] == [shown(item) for item in chosen]
        columns = ["thumbnail", "later", "features"]
        rest = collection.scan(columns, text, parameters, batch_rows=batch_rows, after=after).read_all()
        assert rest.schema.names == ["id", "code", *columns]
        assert [as_item(row) for row in rest.to_pylist()] == [
            {name: item[name] for name in rest.schema.names} for item in chosen if item["id"] > after
        ]


@READING
@given(version=versions(), asked=st.sampled_from(FILTERS), limit=st.none() | st.integers(1, 3))
def test_facets_count_the_values_of_what_is_alive(version, asked, limit):
    parts, items = version
    text, parameters, selects = asked
    with tempfile.TemporaryDirectory() as folder:
        collection = Collection.open(assemble(Path(folder) / "c", parts, bits=BITS, schema=SCHEMA))
        for column in SCHEMA.names:
            counts = collections.Counter()
            for item in filter(selects, items.values()):
                value = item[column]
                counts.update(set(value) if isinstance(value, list) else [value])
            expected = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0] is None, pair[0]))[:limit]
            found = collection.facets(column, text, parameters, limit=limit)
            assert list(zip(*found.to_pydict().values(), strict=True)) == expected


@READING
@given(version=versions(), index=st.sampled_from(INDEX_CHOICES), radius=st.integers(0, BITS), limit=st.integers(1, 5))
def test_a_radius_is_read_page_by_page(version, index, radius, limit):
    parts, items = version
    with tempfile.TemporaryDirectory() as folder:
        collection = Collection.open(assemble(Path(folder) / "c", parts, bits=BITS, schema=SCHEMA), index=index)
        for query in QUERIES:
            everything = pairs_of(collection.range_search(query[None], radius), 0)
            read, after = [], None
            while True:
                found = collection.range_search(query[None], radius, limit, after=after)
                read += pairs_of(found, 0)
                assert found.truncated[0] == (len(read) < len(everything))
                if not found.truncated[0]:
                    break
                assert len(found.ids) == limit
                after = (int(found.distances[-1]), int(found.ids[-1]))
            assert read == everything
            assert everything == within_radius(query[None], items.values(), radius)[0][0]


def test_a_shard_is_read_in_its_own_order(tmp_path):
    codes, ids = [[3], [1], [1], [0], [2]], [5, 9, 4, 7, 6]
    parts = [Part(codes, ids, {"label": ids}, dead={4}, columns={"later": (pa.string(), dict.fromkeys(ids, "ant"))})]
    schema = pa.schema({"later": pa.string(), "label": pa.int64()})
    (shard,) = Collection.open(assemble(tmp_path / "c", parts, bits=BITS, schema=schema)).shards
    assert (len(shard), shard.rows) == (4, 5)
    assert "1 deleted" in repr(shard)
    batches = list(shard.scan(["label"], "label != 6", batch_rows=3))
    assert [row for batch in batches for row in batch["id"].to_pylist()] == [7, 9, 5]
    assert batches[0].to_pydict() == {"id": [7, 9], "code": [bytes(8), b"\1" + bytes(7)], "label": [7, 9]}
    assert shard.rows_of(np.array([4, 5, 8])).tolist() == [-1, 4, -1]


PARTS = [
    Part(
        [[1], [2], [3]],
        [1, 2, 3],
        {"label": [1, 2, 3]},
        dead={2},
        columns={"later": (pa.string(), dict.fromkeys([1, 2, 3]))},
    ),
    Part([[4], [5]], [4, 5], {"label": [4, 5]}),
]
LABELLED = pa.schema({"label": pa.int64(), "later": pa.string()})


def test_exports_leave_deleted_rows_out(tmp_path):
    collection = Collection.open(assemble(tmp_path / "c", PARTS, bits=BITS, schema=LABELLED))
    rows = sorted(collection.to_arrow().read_all().to_pylist(), key=lambda row: row["id"])
    assert [(row["id"], row["label"], row["later"]) for row in rows] == [
        (1, 1, None),
        (3, 3, None),
        (4, 4, None),
        (5, 5, None),
    ]
    index = collection.to_faiss()
    assert sorted(faiss.vector_to_array(index.id_map).tolist()) == [1, 3, 4, 5]


FACETS = [
    (pa.bool_(), [True, False, True, None]),
    (pa.uint64(), [2**64 - 1, 0, 2**64 - 1, 2**63]),
    (pa.float64(), [0.0, -0.0, 1.5, None]),
    (pa.float16(), [1.5, 1.5, float("inf"), -2.0]),
    (pa.decimal32(5, 2), [decimal.Decimal("1.20"), decimal.Decimal("-3.00"), None, decimal.Decimal("1.20")]),
    (pa.decimal128(5, -2), [decimal.Decimal("1200"), decimal.Decimal("1200"), None, decimal.Decimal("0")]),
    (pa.date32(), [datetime.date(2024, 2, 29), None, datetime.date(1960, 1, 1), datetime.date(2024, 2, 29)]),
    (pa.time32("s"), [datetime.time(1), datetime.time(1), datetime.time(0), None]),
    (pa.timestamp("us", "UTC"), [datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)] * 2 + [None] * 2),
    (pa.duration("s"), [datetime.timedelta(1), datetime.timedelta(-1), datetime.timedelta(1), None]),
    (pa.large_string(), ["b", "a", "é", "b"]),
    (pa.large_list(pa.float32()), [[0.0, -0.0, 2.0], [2.0, None], None, []]),
]


@pytest.mark.parametrize(("kind", "values"), FACETS, ids=[str(kind) for kind, _ in FACETS])
def test_facets_of_every_type(tmp_path, kind, values):
    attributes = pa.table({"a": pa.array(values, kind)})
    collection = Collection.create(tmp_path / "c", np.zeros((4, 1), np.uint64), attributes=attributes)
    counts = collections.Counter()
    for value in values:
        counts.update({each for each in value if each is not None} if isinstance(value, list) else [value])
    expected = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0] is None, pair[0]))
    found = collection.facets("a")
    assert found.schema.field("value").type == (kind.value_type if isinstance(values[0], list) else kind)
    assert list(zip(*found.to_pydict().values(), strict=True)) == expected


def test_what_cannot_be_counted_or_read_is_refused(tmp_path):
    attributes = {"label": [1, 2], "place": [{"x": 1}, None]}
    collection = Collection.create(tmp_path / "c", np.zeros((2, 1), np.uint64), attributes=attributes)
    for ask, error, message in (
        (lambda: collection.facets("size"), ValueError, "got 'size'; there are: label, place"),
        (lambda: collection.facets("place"), ValueError, "whose values have no order"),
        (lambda: collection.facets("label", "size == 1"), FilterError, "`size` is not an attribute"),
        (lambda: collection.facets("label", limit=0), ValueError, "`limit` must be None or at least 1"),
        (lambda: collection.count("size == 1"), FilterError, "`size` is not an attribute"),
        (lambda: collection.scan(filter="size == 1"), FilterError, "`size` is not an attribute"),
        (lambda: collection.scan(["size"]), ValueError, "must be of id, code, label, place, thumbnail, got 'size'"),
        (lambda: collection.scan(["features"]), ValueError, "got 'features'"),
        (lambda: collection.scan(["label", "label"]), ValueError, "label more than once"),
        (lambda: collection.scan(batch_rows=0), ValueError, "`batch_rows` must be at least 1, got 0"),
        (lambda: collection.scan(after="x"), TypeError, "`after` must be a whole number"),
        (lambda: collection.range_search(QUERIES, 3, after=7), TypeError, "`after` must be a .distance, id"),
        (lambda: collection.range_search(QUERIES, 3, after=(70, 1)), ValueError, "a distance of 0 to 64"),
        (lambda: collection.range_search(QUERIES, 3, after=(3, -1)), ValueError, "got .3, -1"),
    ):
        with pytest.raises(error, match=message):
            ask()


def rewrite(path, kind, data):
    """Replace a file of the first shard's changes, with the right checksum."""

    def change(document):
        shard = document["shards"][0]
        entry = shard["dead"] if kind == "deletions" else shard["columns"]["later"]
        (path / kind / entry["name"]).write_bytes(data)
        entry |= {"bytes": len(data), "sha256": sha256(data)}

    forge_manifest(path, change)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("deletions", npy_file(np.array([3], np.uint32)), "from 0 to 2 in ascending order"),
        ("deletions", npy_file(np.array([1, 1], np.uint32)), r"expected uint32 of shape \(1\), got <u4 of shape \(2\)"),
        ("deletions", npy_file(np.array([1], np.int64)), "expected uint32"),
        ("deletions", b"", "does not begin as a .npy file"),
        ("columns", arrow_file("later", pa.array(["a", "b"])), "expected 3 rows"),
        ("columns", arrow_file("label", pa.array(["a", "b", "c"])), "expected one attribute, later, got label"),
        ("columns", arrow_file("later", pa.array([1, 2, 3])), "`later` as int64, the manifest as string"),
        ("columns", b"ARROW1", "not readable as attributes"),
    ],
)
def test_changes_that_make_no_sense_are_refused(tmp_path, kind, data, message):
    path = assemble(tmp_path / "c", PARTS, bits=BITS, schema=LABELLED)
    rewrite(path, kind, data)
    with pytest.raises(CorruptDataError, match=message):
        Collection.open(path)


def test_rows_deleted_twice_are_refused(tmp_path):
    path = assemble(tmp_path / "c", PARTS, bits=BITS, schema=LABELLED)
    rewrite(path, "deletions", npy_file(np.array([2, 1], np.uint32)))
    forge_manifest(path, lambda document: document["shards"][0]["dead"].update(count=2))
    with pytest.raises(CorruptDataError, match="in ascending order, each once"):
        Collection.open(path)


@pytest.mark.parametrize("kind", ["deletions", "columns"])
@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_damaged_changes_are_refused(tmp_path, kind, harm):
    path = assemble(tmp_path / "c", PARTS, bits=BITS, schema=LABELLED)
    Collection.open(path)
    (file,) = (path / kind).iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"?") if harm == "damaged" else file.unlink()
    with pytest.raises(CorruptDataError, match=f"{kind}/.* is {harm}"):
        Collection.open(path)


def test_a_later_version_shares_what_is_open(tmp_path):
    path = assemble(tmp_path / "c", PARTS, bits=BITS, schema=LABELLED)
    before = Collection.open(path, index="faiss-flat")

    def delete(document):
        dead = put(path / "deletions", "another", npy_file(np.array([0], np.uint32)))
        document["shards"][1]["dead"] = dead | {"count": 1}

    write_next(path, delete)
    after = Collection.open(path, index="faiss-flat", reuse=before)
    assert after.shards[0] is before.shards[0]
    assert after.shards[1].index is before.shards[1].index
    assert after.shards[1].codes_NW is before.shards[1].codes_NW
    assert (len(before), len(after)) == (4, 3)
    everything = np.zeros((1, 1), np.uint64)
    assert before.search(everything, 5).ids.tolist() == [[1, 4, 3, 5, -1]]
    assert after.search(everything, 5).ids.tolist() == [[1, 3, 5, -1, -1]]
    assert before.search(everything, 5, filter="label > 3").ids.tolist() == [[4, 5, -1, -1, -1]]
    assert after.search(everything, 5, filter="label > 3").ids.tolist() == [[5, -1, -1, -1, -1]]
    other = Collection.open(path, index="scan", reuse=before)
    assert other.shards[0] is not before.shards[0]
    assert other.search(everything, 5).ids.tolist() == [[1, 3, 5, -1, -1]]


@pytest.mark.parametrize("gone", ["shards", "rows"])
@pytest.mark.parametrize("index", INDEX_CHOICES)
def test_an_empty_version_answers_every_call(tmp_path, gone, index):
    features = np.ones((2, 3), np.float16)
    part = Part([[1], [2]], [1, 2], {"label": [1, 2]}, features, dead={1, 2})
    path = assemble(tmp_path / "c", [part], bits=BITS, schema=LABELLED)
    if gone == "shards":
        forge_manifest(path, lambda document: document.update(shards=[]))
    collection = Collection.open(path, index=index)
    try_search(collection)
    assert (len(collection), collection.count(), collection.count("label == 1")) == (0, 0, 0)
    assert "0 codes" in repr(collection)
    found = collection.search(QUERIES, 2, explain=True)
    assert found.ids.tolist() == [[-1, -1]] * 3
    assert len(found.explain.plans) == 3
    assert collection.search(QUERIES, 2, filter="label == 1").distances.tolist() == [[2**31 - 1] * 2] * 3
    within = collection.range_search(QUERIES, 3, limit=1, after=(0, 5))
    assert (within.lims.tolist(), within.ids.tolist(), within.truncated.tolist()) == ([0] * 4, [], [False] * 3)
    reranked = collection.search(QUERIES, 2, rerank=Rerank(pool=5), features=np.ones((3, 3), np.float32))
    assert reranked.ids.tolist() == [[-1, -1]] * 3
    assert collection.get([]).schema.names == ["id", "code", "label", "later"]
    assert collection.features_of(np.array([], np.int64)).shape == (0, 3)
    assert collection.thumbnails_of(np.array([1])) == [None]
    assert collection.scan(["features", "label"]).read_all().schema.names == ["id", "code", "features", "label"]
    assert collection.facets("label").to_pydict() == {"value": [], "count": []}
    assert describe_collection(collection)["attributes"] == {"label": "int64", "later": "string"}
    with pytest.raises(IdNotFoundError):
        collection.get([1])
    with pytest.raises(FilterError):
        collection.search(QUERIES, 2, filter="size == 1")
