"""Changes of one transaction build on each other."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine.collection.collection import Collection

CODES = np.arange(6, dtype=np.uint64)[:, None]


@pytest.fixture
def collection(tmp_path):
    labels = {"label": [1, 2, 3, 4]}
    return Collection.create(tmp_path / "c", CODES[:4], bits=16, attributes=labels, shards=2)


def column(collection, name):
    return dict(zip(*collection.scan([name]).read_all().select(["id", name]).to_pydict().values(), strict=True))


def test_rows_added_after_a_rollback_fit_the_version_rolled_back_to(collection):
    collection = collection.drop_column("label")
    with collection.transaction() as change:
        change.rollback(1)
        change.add(CODES[4:], attributes={"label": [5, None]})
        change.commit()
    collection = Collection.open(collection.location)
    assert column(collection, "label") == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: None}
    with collection.transaction() as change:
        change.rollback(2)
        with pytest.raises(ValueError, match="stores no attributes, got attribute label"):
            change.add(CODES[4:], attributes={"label": [5, None]})
    assert collection.versions()[0].version == 3


def test_a_rollback_takes_back_what_a_transaction_has_changed(collection):
    with collection.transaction() as change:
        change.delete([0, 1])
        change.drop_column("label")
        change.rollback(1)
        change.delete([3])
        assert change.commit() == (2, 0, 1)
    assert column(Collection.open(collection.location), "label") == {0: 1, 1: 2, 2: 3}


def test_codes_of_another_length_are_rolled_back_to_alone(collection):
    Collection.create(collection.location, CODES[:2], bits=24, overwrite=True)
    for rows_first in (True, False):
        with Collection.open(collection.location).transaction() as change:
            if rows_first:
                change.add(CODES[4:])
            change.rollback(1)
            if not rows_first:
                change.add(CODES[4:])
            with pytest.raises(ValueError, match="roll back in a transaction of its own"):
                change.commit()
    back = Collection.open(collection.location).rollback(1)
    assert (back.bits, column(back, "label")) == (16, {0: 1, 1: 2, 2: 3, 3: 4})


def test_only_values_that_stay_must_fit_the_new_type_of_a_column(collection):
    collection = collection.set_column("size", ["1", "x", "3", "y"], ids=[0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"attribute size of .* cannot become int64"):
        collection.set_column("size", [7], ids=[3], type=pa.int64())
    collection = collection.delete([1]).set_column("size", [7], ids=[3], type=pa.int64())
    assert column(collection, "size") == {0: 1, 2: 3, 3: 7}
    collection = collection.set_column("size", [["a"], None, []], ids=[0, 2, 3], type=pa.list_(pa.string()))
    assert column(collection, "size") == {0: ["a"], 2: None, 3: []}


def test_filters_see_values_beyond_those_that_a_column_had(collection):
    collection = collection.set_column("label", [100, None], ids=[0, 3])
    assert collection.count("label > 50") == collection.count("label is null") == 1
    assert collection.search(CODES[:1], 1, filter="label == 100").ids.tolist() == [[0]]
    assert collection.delete_where("label >= 100").count() == 3


def test_a_rollback_keeps_tags_that_were_given_since(collection):
    collection = collection.delete([0]).tag("later").rollback(1)
    assert collection.manifest.tags.keys() == {"later"}
    assert len(Collection.open(collection.location, version="later")) == 3
