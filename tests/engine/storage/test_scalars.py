"""Scalars beside the attributes: what is stored, what is known of it, and what is refused."""

from __future__ import annotations

import datetime
import io
import json
import os
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.storage import attributes, scalars
from hashlight.engine.storage.attributes import write_attributes
from hashlight.engine.storage.scalars import ScalarFile, column_statistics, merge_statistics, shard_statistics
from tests.engine.storage.forging import forge, forge_manifest, shard_file

DAY = datetime.date(2024, 1, 31)


def one_column(values, kind):
    return pa.record_batch({"a": pa.array(values, kind)})


@pytest.mark.parametrize(
    ("values", "kind", "least", "most"),
    [
        ([3, None, -5], pa.int16(), -5, 3),
        ([2**64 - 1, 2], pa.uint64(), 2, 2**64 - 1),
        ([1.5, None, 0.25], pa.float32(), 0.25, 1.5),
        ([np.float16(1.5), np.float16(-2)], pa.float16(), -2.0, 1.5),
        ([1.5, float("nan")], pa.float64(), None, None),
        ([1.5, float("-inf")], pa.float64(), None, None),
        ([True, None], pa.bool_(), True, True),
        ([DAY, None], pa.date32(), 19753, 19753),
        ([datetime.datetime(2024, 1, 31)], pa.timestamp("ms"), 19753 * 86_400_000, 19753 * 86_400_000),
        ([datetime.time(0, 1)], pa.time32("s"), 60, 60),
        ([datetime.timedelta(seconds=2)], pa.duration("us"), 2_000_000, 2_000_000),
        ([Decimal("1.25"), Decimal("-0.5")], pa.decimal128(9, 2), -50, 125),
        ([Decimal("1.25"), Decimal("-0.5")], pa.decimal256(18, 2), -50, 125),
        (["b", None, "a"], pa.string(), "a", "b"),
        (["b", "c" * 65], pa.string(), "b", None),
        ([None, None], pa.int32(), None, None),
        ([None], pa.string(), None, None),
    ],
)
def test_statistics_of_a_column(values, kind, least, most):
    found = column_statistics(one_column(values, kind))
    assert found == {"a": {"min": least, "max": most, "nulls": values.count(None)}}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    table = pa.Table.from_batches([one_column(values[:1], kind), one_column(values[1:], kind)])
    assert column_statistics(table) == found


@pytest.mark.parametrize(
    "kind", [pa.decimal32(9, 2), pa.decimal64(18, 2), pa.decimal128(18, 2), pa.decimal256(18, 2), pa.decimal128(6, -1)]
)
def test_bounds_of_decimals_are_units_of_their_last_digit(kind):
    values = [None if count is None else Decimal(f"{count}E{-kind.scale}") for count in (250, None, -31, 7)]
    for rows in (one_column(values, kind), pa.Table.from_batches([one_column(values, kind)] * 2)):
        assert column_statistics(rows)["a"] == {"min": -31, "max": 250, "nulls": len(rows) // 4}


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.binary(), pa.decimal128(19, 0), pa.struct({"x": pa.int8()})])
def test_other_types_have_no_statistics(kind):
    assert column_statistics(one_column([None], kind)) == {}


def test_statistics_of_several_parts_are_those_of_all_rows():
    def merged(*parts):
        each = [column_statistics(one_column(*part)) for part in parts]
        return merge_statistics(each, [len(values) for values, _ in parts])

    whole = pa.int64()
    assert merged(([1, 5], whole), ([None], whole), ([-2, None], whole)) == {"a": {"min": -2, "max": 5, "nulls": 2}}
    assert merged(([None], whole), ([None], whole)) == {"a": {"min": None, "max": None, "nulls": 2}}
    real = pa.float64()
    assert merged(([1.0], real), ([float("nan")], real))["a"] == {"min": None, "max": None, "nulls": 0}


def write(folder, table):
    folder.mkdir(exist_ok=True)
    write_attributes(folder / "attributes.arrow", [table], np.arange(len(table)))
    scalars.write_scalars(folder, len(table))
    return folder / "scalars.arrow"


def test_few_rows_and_columns_that_are_no_scalars_are_not_stored_again(tmp_path):
    few = pa.table({"a": np.arange(scalars.MIN_ROWS - 1)})
    assert not write(tmp_path / "few", few).exists()
    assert shard_statistics(tmp_path / "few", len(few)) == {"a": {"min": 0, "max": len(few) - 1, "nulls": 0}}
    names = pa.table({"name": [f"{row}" for row in range(scalars.MIN_ROWS)], "tags": [[1]] * scalars.MIN_ROWS})
    assert not write(tmp_path / "names", names).exists()
    assert shard_statistics(tmp_path / "names", len(names)) == {}
    (tmp_path / "none").mkdir()
    assert shard_statistics(tmp_path / "none", 5) == {}


def test_text_is_stored_as_a_dictionary_while_there_are_few_words(tmp_path):
    rows = scalars.MIN_ROWS
    table = pa.table(
        {
            "few": [("é", None, "", "a")[row % 4] for row in range(rows)],
            "some": pa.array([f"{row % 1000}" for row in range(rows)], pa.large_string()),
            "many": [f"{row % 2000}" for row in range(rows)],
            "none": pa.nulls(rows, pa.string()),
        }
    )
    stored = ScalarFile(write(tmp_path / "c", table))
    assert [str(kind) for kind in stored.schema.types] == [
        f"dictionary<values={kind}, indices={indices}, ordered=0>"
        for kind, indices in (("string", "int8"), ("large_string", "int16"), ("string", "int8"))
    ]
    assert stored.schema.names == ["few", "some", "none"]
    assert stored.batches[0].column("few").dictionary.to_pylist() == ["", "a", "é"]
    for name in stored.schema.names:
        assert pa.chunked_array([batch.column(name) for batch in stored.batches]).to_pylist() == table[name].to_pylist()
    assert stored.statistics[0]["few"] == {"min": "", "max": "é", "nulls": rows // 4}


def test_values_are_aligned_and_in_place(tmp_path):
    rows = scalars.MIN_ROWS
    path = write(tmp_path / "c", pa.table({"a": np.arange(rows), "b": np.arange(rows, dtype=np.float32)}))
    before = pa.total_allocated_bytes()
    stored = ScalarFile(path)
    assert pa.total_allocated_bytes() - before < rows
    for column in stored.batches[0].columns:
        assert column.buffers()[1].address % 8 == 0


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.none() | st.integers(-(10**17), 10**17), min_size=1, max_size=30),
    st.sampled_from([(pa.decimal128, 2), (pa.decimal256, 4), (pa.decimal64, 1)]),
    st.sampled_from([0, 3, 18, -2]),
)
def test_short_decimals_are_whole_multiples_of_their_unit(units, made, scale):
    kind, words = made[0](18, scale), made[1]
    unit_N = np.array([0 if unit is None else unit for unit in units])
    extended_NW = np.repeat(unit_N[:, None] >> 63, words, axis=1)
    extended_NW[:, 0] = unit_N
    valid = pa.py_buffer(np.packbits([unit is not None for unit in units], bitorder="little"))
    stored = pa.Array.from_buffers(kind, len(units), [valid, pa.py_buffer(extended_NW)])
    assert scalars._units_of(stored).to_pylist() == units
    assert scalars._units_of(stored.slice(1)).to_pylist() == units[1:]
    if scale >= 0:
        assert stored.to_pylist() == [None if unit is None else Decimal(unit).scaleb(-scale) for unit in units]


ROWS = 300


@pytest.fixture
def collection(tmp_path, monkeypatch):
    monkeypatch.setattr(attributes, "BATCH_ROWS", 32)
    monkeypatch.setattr(scalars, "BLOCK_ROWS", 128)
    monkeypatch.setattr(scalars, "MIN_ROWS", 1)
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "label": pa.array([None if row % 9 == 0 else row % 7 for row in range(ROWS)], pa.int32()),
            "price": [float("nan") if row % 50 == 0 else row / 3 for row in range(ROWS)],
            "kind": [("shoe", "bag", None)[row % 3] for row in range(ROWS)],
            "paid": pa.array([Decimal(row).scaleb(-2) for row in range(ROWS)], pa.decimal128(9, 2)),
        }
    )
    codes = rng.integers(2**48, size=(ROWS, 1), dtype=np.uint64)
    Collection.create(tmp_path / "c", codes, ids=np.arange(ROWS), attributes=table, bits=48)
    return tmp_path / "c"


def same(what):
    return what


def rewritten(data, change=same, columns=same, statistics=same, blocks=None):
    """Write `scalars.arrow` again, with changes to each column, batch and block's statistics."""
    reader = pyarrow.ipc.open_file(data)
    read = [reader.get_batch_with_custom_metadata(number) for number in range(reader.num_record_batches)]
    changed = [pa.record_batch([change(column) for column in batch.columns], batch.schema.names) for batch, _ in read]
    batches = [columns(batch) for batch in changed]
    out = io.BytesIO()
    with pyarrow.ipc.new_file(out, batches[0].schema) as writer:
        for batch, (_, more) in list(zip(batches, read, strict=True))[:blocks]:
            found = json.dumps(statistics(json.loads(more["statistics"])))
            writer.write_batch(batch, custom_metadata={"statistics": found})
    return out.getvalue()


def first_changed(name, value):
    def change(batch):
        column = batch.column(name).to_pylist()
        place = next(row for row, each in enumerate(column) if each not in (None, value))
        column[place] = value
        return batch.set_column(batch.schema.names.index(name), name, pa.array(column, batch.column(name).type))

    return change


def unordered(column):
    if not pa.types.is_dictionary(column.type):
        return column
    places = pa.array([None if place is None else 1 - place for place in column.indices.to_pylist()], pa.int8())
    return pa.DictionaryArray.from_arrays(places, column.dictionary.take(pa.array([1, 0])))


FORGED = {
    "another value": ({"columns": first_changed("label", 99)}, "label differs in block 0"),
    "a null": ({"columns": first_changed("price", None)}, "price differs in block 0"),
    "another NaN": ({"columns": first_changed("price", 0.5)}, "price differs in block 0"),
    "another word": ({"columns": first_changed("kind", "bag")}, "kind differs in block 0"),
    "another decimal": ({"columns": first_changed("paid", 7)}, "paid differs in block 0"),
    "another type": (
        {"columns": lambda batch: batch.set_column(0, "label", batch.column(0).cast(pa.int64()))},
        "label is int64, expected int32",
    ),
    "a column of no attribute": (
        {"columns": lambda batch: batch.rename_columns(["colour", "price", "kind", "paid"])},
        "colour",
    ),
    "a dictionary out of order": ({"change": unordered}, "the dictionary of kind is not in order"),
    "a block less": ({"blocks": 2}, "block 2 has None rows, expected 44"),
    "wrong bounds": (
        {"statistics": lambda found: {**found, "label": {"min": 0, "max": 3, "nulls": 0}}},
        "the statistics of block 0",
    ),
    "no bounds": ({"statistics": lambda found: {}}, "the statistics of block 0"),
}  # fmt: skip


def test_what_was_written_is_accepted_again(collection):
    data = shard_file(collection, "scalars.arrow").read_bytes()
    forge(collection, "scalars.arrow", rewritten(data))
    [shard] = Collection.open(collection).shards
    assert shard.mask_of("label == 3 and kind == 'shoe'").count == sum(
        row % 9 != 0 and row % 7 == 3 and row % 3 == 0 for row in range(ROWS)
    )


@pytest.mark.parametrize("case", FORGED)
def test_scalars_that_contradict_the_attributes_are_refused(collection, case):
    changes, message = FORGED[case]
    data = shard_file(collection, "scalars.arrow").read_bytes()
    forge(collection, "scalars.arrow", rewritten(data, **changes))
    for _ in range(2):  # a refusal is not remembered as a success
        with pytest.raises(CorruptDataError, match=message):
            Collection.open(collection)


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0", os.urandom(300)], ids=["empty", "cut", "noise"])
def test_what_is_not_arrow_is_refused(collection, content):
    forge(collection, "scalars.arrow", content)
    with pytest.raises(CorruptDataError, match=r"scalars\.arrow is not readable as scalar attributes"):
        Collection.open(collection)


def test_scalars_without_attributes_are_refused(collection):
    def without_attributes(document):
        [shard] = document["shards"]
        os.unlink(collection / "shards" / shard["name"] / "attributes.arrow")
        del shard["files"]["attributes.arrow"]

    forge_manifest(collection, without_attributes)
    with pytest.raises(CorruptDataError, match=r"scalars\.arrow is not readable.*attributes\.arrow"):
        Collection.open(collection, verify=True)
