"""Ids in filters, written out and as parameters, compared with sets in Python."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashlight.engine.collection.collection import Collection
from hashlight.engine.filters.filter import Filter, FilterError
from hashlight.engine.filters.parameters import MAX_VALUES, Parameters
from hashlight.engine.query import Query
from hashlight.engine.storage.attributes import Attributes
from hashlight.engine.storage.scalars import ShardColumns
from tests import oracles
from tests.engine.filters.evaluated import matching

ROWS = 3000


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(7)
    ids = np.unique(rng.integers(2**63, size=ROWS + 100, dtype=np.uint64).astype(np.int64))[:ROWS]
    return oracles.clustered_codes(rng, ROWS, 48), rng.permutation(ids), rng.integers(10, size=ROWS)


@pytest.fixture(scope="module", params=["attributes", "none"])
def collection(request, corpus, tmp_path_factory):
    codes, ids, label = corpus
    attributes = {"label": label} if request.param == "attributes" else None
    return Collection.create(
        tmp_path_factory.mktemp("ids") / "c", codes, ids=ids, attributes=attributes, bits=48, shards=3, tables=False
    )


def found(collection, corpus, text, **lists):
    """The ids that match, from a search so wide that it finds them all."""
    code = corpus[0][:1]
    return set(collection.range_search(code, 48, filter=text, parameters=lists or None).ids.tolist())


def test_ids_are_filtered_with_and_without_attributes(collection, corpus):
    _, ids, _ = corpus
    every, some = set(ids.tolist()), set(ids[:50].tolist())
    middle, first = int(np.median(ids)), int(ids[0])
    written = ", ".join(map(str, some))
    assert found(collection, corpus, f"id == {first}") == {first}
    assert found(collection, corpus, f"id < {middle}") == {id_ for id_ in every if id_ < middle}
    assert found(collection, corpus, f"id in ({written}, 5)") == some
    assert found(collection, corpus, f"not id in ({written})") == every - some
    assert found(collection, corpus, "`id` is not null and id < 1e300") == every
    assert found(collection, corpus, "id is null or id < 0.5") == set()
    assert found(collection, corpus, "id in :some", some=[*some, 5]) == some
    assert found(collection, corpus, "id not in :some", some=ids[:50]) == every - some
    assert found(collection, corpus, "id in :some and id not in :few", some=ids[:50], few=ids[10:60]) == set(
        ids[:10].tolist()
    )
    assert found(collection, corpus, "id in :none", none=[]) == set()
    assert found(collection, corpus, "id not in :none", none=[]) == every


class Sought:
    """Ids of rows that can be sought; who reads all of them is led astray."""

    def __init__(self, ids):
        self.rows = {id_: row for row, id_ in enumerate(ids)}
        self.ids_N = np.full(len(ids), -7)

    def rows_of(self, ids_M):
        return np.array([self.rows.get(id_, -1) for id_ in ids_M.tolist()], np.int64)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("id == 5", lambda id_: id_ == 5),
        ("id = 6", lambda id_: id_ == 6),
        ("id != 5", lambda id_: id_ != 5),
        ("not id <> 5.0", lambda id_: id_ == 5),
        ("id in (5, 2, 7.5, 2)", lambda id_: id_ in (2, 5)),
        ("id not in (5, 1e300)", lambda id_: id_ != 5),
        ("id == 5.5", lambda id_: False),
        ("id != 1e300", lambda id_: True),
        (f"id == {2**63 - 1} or id == {2**63}", lambda id_: id_ == 2**63 - 1),
        ("id == -1 or id != -99999999999999999999", lambda id_: True),
    ],
)
def test_single_ids_are_sought_as_lists_of_them_are(text, matches):
    ids = [9, 5, 2**63 - 1, 2, 0]
    bits = Filter(text, pa.schema([])).mask(
        ShardColumns(Attributes(pa.schema([]), len(ids), None, {}), None, len(ids)), Sought(ids)
    )
    assert np.unpackbits(bits, count=len(ids), bitorder="little").tolist() == [matches(id_) for id_ in ids]


def test_ids_and_attributes_together(corpus, tmp_path):
    codes, ids, label = corpus
    collection = Collection.create(tmp_path / "c", codes, ids=ids, attributes={"label": label}, bits=48, tables=False)
    kept = (label == 3) & ~np.isin(ids, ids[:1500])
    assert found(collection, corpus, "label == 3 and id not in :seen", seen=ids[:1500]) == set(ids[kept].tolist())
    kept = np.isin(label, [1, 2]) | np.isin(ids, ids[:20])
    got = found(collection, corpus, "label in :labels or id in :mine", labels=[2, 1, 77, -(2**63)], mine=ids[:20])
    assert got == set(ids[kept].tolist())


def test_a_hundred_thousand_ids(corpus, tmp_path):
    codes, ids, _ = corpus
    collection = Collection.create(tmp_path / "c", codes, ids=ids, bits=48, shards=2, tables=False)
    many = np.concatenate([ids[:1000], np.arange(99_000)])
    assert found(collection, corpus, "id not in :seen", seen=many) == set(ids[1000:].tolist())
    assert found(collection, corpus, "id in :seen", seen=many) == set(ids[:1000].tolist())


@settings(deadline=None, max_examples=30)
@given(st.data())
@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int64(), pa.uint64()], ids=str)
def test_whole_numbers_of_every_width_are_looked_up_exactly(kind, data):
    bounds = np.iinfo(kind.to_pandas_dtype())
    near = st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, 127, 128, 0, 1])
    values = st.integers(int(bounds.min), int(bounds.max)) | near.filter(lambda value: value <= bounds.max)
    stored = data.draw(st.lists(st.none() | values, min_size=1, max_size=8))
    listed = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1) | near, max_size=6))
    batch = pa.record_batch([pa.array(stored, kind)], names=["a"])
    mask = matching("a in :values", [batch], Parameters({"values": listed}))
    assert mask.tolist() == [value in listed for value in stored]
    mask = matching("a not in :values", [batch], Parameters({"values": listed}))
    assert mask.tolist() == [value is not None and value not in listed for value in stored]


@pytest.mark.parametrize(
    ("lists", "error", "message"),
    [
        ([1, 2], TypeError, "must map names to lists of ids"),
        ({"seen": 3}, TypeError, "must be a list of whole numbers within 64 bits"),
        ({"seen": [1.0]}, TypeError, "got float64"),
        ({"seen": ["1"]}, TypeError, "whole numbers"),
        ({"seen": [True]}, TypeError, "got bool"),
        ({"seen": [[1]]}, TypeError, r"of shape \(1, 1\)"),
        ({"seen": np.array([2**63], np.uint64)}, ValueError, r"below 2\*\*63"),
        ({"seen": [2**70]}, TypeError, "whole numbers within 64 bits"),
        ({"a b": [1]}, ValueError, "got 'a b'"),
        ({3: [1]}, ValueError, "got 3"),
        ({"seen": np.arange(MAX_VALUES + 1)}, ValueError, "at most 250000 numbers in all, got 250001"),
        ({f"n{n}": [1] for n in range(17)}, ValueError, "at most 16 lists, got 17"),
    ],
)
def test_lists_that_are_none_are_refused(lists, error, message):
    with pytest.raises(error, match=message):
        Parameters(lists)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id in :other", "at character 6: `:other` has no values: give `parameters="),
        ("id == :seen", "at character 6: expected a value"),
        ("price in :seen", "`:seen` is a list of whole numbers, `price` is float"),
        ("name in :seen", "`:seen` is a list of whole numbers, `name` is string"),
        ("id in : seen", "expected a name, a value or an operator, got `: seen`"),
        (":seen in id", "expected an attribute"),
        ("id in (:seen)", "expected a value"),
    ],
)
def test_a_parameter_stands_where_a_list_of_numbers_can(text, message):
    schema = pa.schema({"price": pa.float32(), "name": pa.string()})
    with pytest.raises(FilterError) as caught:
        Filter(text, schema, Parameters({"seen": [1]}))
    assert message in str(caught.value)


def test_parameters_that_a_filter_does_not_name_are_refused(tmp_path):
    collection = Collection.create(tmp_path / "c", np.array([[1]], np.uint64), bits=16)
    with pytest.raises(ValueError, match="`parameters` has mine, seen, which `filter` does not name: write `in :mine`"):
        collection.search(np.array([[1]], np.uint64), filter="id == 0", parameters={"seen": [1], "mine": [2]})
    with pytest.raises(ValueError, match="`parameters` are named by `filter`, got none"):
        collection.search(np.array([[1]], np.uint64), parameters={"seen": [1]})


def test_queries_with_the_same_lists_are_alike():
    first, same = (
        Query(k=3, filter="id in :a", parameters=Parameters({"a": values})) for values in ([2, 1, 1], [1, 2])
    )
    other = Query(k=3, filter="id in :a", parameters=Parameters({"a": [1, 3]}))
    assert len({first, same, other}) == 2
    with pytest.raises(ValueError, match="read-only"):
        first.parameters["a"][0] = 7
