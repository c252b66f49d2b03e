"""Attributes of every Arrow type: stored and given back as they were, or refused by name; read by rows."""

from __future__ import annotations

import datetime
import threading
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.filters.filter import FilterError
from hashlight.engine.storage import attributes, sorting
from hashlight.engine.storage.attributes import AttributeFile, write_attributes
from hashlight.engine.storage.columns import as_stored
from tests.engine.storage.forging import forge, publish_first_format

D, T = Decimal, datetime.datetime
ENCODED = pa.dictionary(pa.int8(), pa.string())

# Type -> four values, one filter, and the rows that match it.
STORED = {
    pa.null(): ([None] * 4, "a is null", [0, 1, 2, 3]),
    pa.bool_(): ([True, None, False, True], "a == true", [0, 3]),
    pa.decimal32(9, 2): ([D("1.10"), None, D("2.00"), D("1.00")], "a in (1, 2)", [2, 3]),
    pa.decimal64(18, 2): ([D("1.10"), None, D("2.00"), D("1.00")], "a in (1, 2)", [2, 3]),
    pa.decimal256(40, 2): ([D("1.10"), None, D("2.00"), D("1.00")], "a > 1.05", [0, 2]),
    pa.float16(): ([1.5, None, -0.0, 2.0], "a in (0, 2)", [2, 3]),
    pa.time32("ms"): ([datetime.time(8), None, datetime.time(9, 30), datetime.time(10)], "a >= '09:30'", [2, 3]),
    pa.time64("us"): ([datetime.time(8), None, datetime.time(9, 30), datetime.time(10)], "a < '09:30:00.5'", [0, 2]),
    pa.timestamp("us", "UTC"): (
        [T(2024, month, 2, tzinfo=datetime.UTC) for month in (1, 2, 3, 4)], "a == '2024-02-02'", [1]),
    pa.duration("us"): ([datetime.timedelta(hours=hours) for hours in (1, 2, 3, 4)], "a > 'PT2H30M'", [2, 3]),
    pa.string_view(): (["a", None, "b" * 100, "c"], "a in ('a', 'c')", [0, 3]),
    pa.binary_view(): ([b"a", None, b"b" * 100, b"c"], "a is null", [1]),
    pa.binary(2): ([b"ab", None, b"cd", b"ef"], "a is not null", [0, 2, 3]),
    ENCODED: (["x", None, "y", "x"], "a == 'x'", [0, 3]),
    pa.dictionary(pa.int32(), pa.int64()): ([7, None, 8, 7], "a < 8", [0, 3]),
    pa.list_(ENCODED): ([["x", None], None, [], ["y", "x"]], "'x' in a", [0, 3]),
    pa.large_list(pa.string_view()): ([["x"], None, [], ["y", "x"]], "'y' in a", [3]),
    pa.list_(pa.string(), 2): ([["x", "y"], None, ["z", None], ["y", "x"]], "'y' in a", [0, 3]),
    pa.list_(pa.decimal128(5, 2)): ([[D("1.10")], None, [D("1.00")], []], "1.1 in a", [0]),
    pa.list_view(pa.int32()): ([[1], None, [2, 3], []], "3 in a", [2]),
    pa.struct({"b": ENCODED}): ([{"b": "x"}, None, {"b": "y"}, {"b": None}], "a is null", [1]),
    pa.map_(pa.string(), pa.int32()): ([[("x", 1)], None, [], [("y", 2)]], "a is not null", [0, 2, 3]),
    pa.month_day_nano_interval(): ([(1, 2, 3), None, (1, 2, 4), (0, 0, 0)], "a is null", [1]),
}  # fmt: skip
COUNTED = pa.proxy_memory_pool(pa.default_memory_pool())  # outlives what is allocated in it
RUNS = pc.run_end_encode(pa.array([1]))
CODES = np.array([[8], [3], [5], [1]], np.uint64)


@pytest.mark.parametrize("kind", STORED, ids=str)
def test_every_type_is_stored_filtered_and_appended(tmp_path, kind):
    values, text, expected = STORED[kind]
    table = pa.table({"a": pa.array(values, kind), "n": [0, 1, 2, 3]})
    collection = Collection.create(tmp_path / "c", CODES, attributes=table, bits=16, shards=2)
    assert collection.get([3, 0, 1, 2, 0])["a"].to_pylist() == [values[row] for row in (3, 0, 1, 2, 0)]
    found = collection.search(CODES[:1], 4, filter=text).ids[0]
    assert sorted(found[found >= 0].tolist()) == expected
    chunks = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert collection.add(CODES, attributes=chunks).get([4, 7, 2])["a"].to_pylist() == [values[n] for n in (0, 3, 2)]


def refused(kind):
    return pa.table({"fine": [1], "bad": pa.nulls(1, kind)})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"bad": RUNS}), "attribute `bad` is run_end_encoded.*cast it to int64"),
        (pa.table({"bad": pa.ListArray.from_arrays([0, 1], RUNS)}), "attribute `bad` is list.*cast it to int64"),
        (refused(pa.list_view(pa.string_view())), "attribute `bad` is list_view.*cast string_view to string"),
        (refused(pa.map_(pa.string(), ENCODED)), "attribute `bad` is map.*cast dictionary.* to string"),
        (refused(pa.dense_union([pa.field("x", pa.int32())])), "attribute `bad` is dense_union.*a column for each"),
        (refused(pa.timestamp("s", "Mars/Base")), r"`Mars/Base` is not known.*cast it to timestamp\[s, tz=UTC\]"),
        (refused(pa.decimal128(5, -100)), r"attribute `bad` is decimal128.*cast .* to decimal256\(76, 0\)"),
        (pa.table([[1], [2]], names=["a", "a"]), r"must have distinct names, got \['a'\] more than once: rename"),
        (pa.table([[1]], names=[""]), "must have names, got none for column 0: rename it"),
        (pa.table({"id": [1]}), r"must not be named \['id'\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_cannot_be_stored_is_refused_by_name_before_anything_is_written(tmp_path, table, message):
    with pytest.raises(ValueError, match=message):
        Collection.create(tmp_path / "c", CODES[:1], attributes=table, bits=16)
    assert not (tmp_path / "c" / "CURRENT").exists()
    collection = Collection.create(tmp_path / "c", CODES, bits=16, attributes={"fine": [1, 2, 3, 4]})
    with pytest.raises(ValueError, match=message):
        collection.add(CODES[:1], attributes=table)
    assert Collection.open(tmp_path / "c").version == 1


def test_names_with_any_characters_are_filtered(tmp_path):
    names = ["a`b", "`", "and", "a b", "Ä€", "id2", "``x``", "new\nline", "1st"]
    table = {name: [number, 99, 99, 99] for number, name in enumerate(names)}
    collection = Collection.create(tmp_path / "c", CODES, attributes=table, bits=16)
    for number, name in enumerate(names):
        quoted = name.replace("`", "``")
        assert collection.search(CODES[:1], 4, filter=f"`{quoted}` = {number}").ids[0].tolist() == [0, -1, -1, -1]


def earlier_file(path, table):
    """A file as earlier releases wrote it: with dictionaries."""
    with pa.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1024)
    return table


@pytest.mark.parametrize("kind", [ENCODED, pa.list_(ENCODED), pa.struct({"b": ENCODED})], ids=str)
def test_dictionaries_of_earlier_releases_are_read_by_many_threads_at_once(tmp_path, kind):
    wrap = {ENCODED: lambda text: text}.get(kind, lambda text: [text] if pa.types.is_list(kind) else {"b": text})
    values = [wrap(f"{n % 50}") for n in range(20_000)]
    earlier_file(tmp_path / "a.arrow", pa.table({"a": pa.array(values, kind), "n": range(20_000)}))
    rows = np.arange(19_999, 0, -700)
    expected = [values[row] for row in rows]
    for _ in range(10):  # a file is read for the first time once
        stored, failed = AttributeFile(tmp_path / "a.arrow"), []
        together = threading.Barrier(8)

        def read(stored=stored, failed=failed, together=together):
            together.wait()
            try:
                assert stored.take(rows)["a"].to_pylist() == expected
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert stored.schema.field("a").type == pa.array(values).type


def test_a_collection_with_dictionaries_of_an_earlier_release_is_searched_and_appended_to(tmp_path, monkeypatch):
    from hashlight.engine.storage import shard

    kinds = pa.table({"a": pa.array(["x", None, "y", "x"], ENCODED)})
    with monkeypatch.context() as patch:
        patch.setattr(shard, "write_attributes", lambda path, tables, order: earlier_file(path, tables[0].take(order)))
        collection = Collection.create(tmp_path / "c", CODES, attributes=kinds, bits=16, shards=2)
    both = collection.add(CODES, attributes=kinds)
    assert both.get([0, 4, 6, 2])["a"].to_pylist() == ["x", "x", "y", "y"]
    assert sorted(both.search(CODES[:1], 4, filter="a == 'x'").ids[0].tolist()) == [0, 3, 4, 7]


def test_reading_scattered_rows_takes_the_memory_of_a_batch_and_the_answer(tmp_path, monkeypatch):
    long = pa.table({"a": [f"{n:05}" * 400 for n in range(60 * 1024)]})
    write_attributes(tmp_path / "a.arrow", [long], np.arange(len(long)))
    del long
    batch_bytes, pool, seen = 1024 * 2000, pa.default_memory_pool(), []

    def counted(batch, schema):
        seen.append(pool.bytes_allocated())
        return as_stored(batch, schema)

    monkeypatch.setattr(attributes, "as_stored", counted)
    stored, rows = AttributeFile(tmp_path / "a.arrow"), np.arange(59, -1, -1) * 1024 + 7
    before = pool.bytes_allocated()
    found = stored.take(rows)
    assert pool.bytes_allocated() - before < batch_bytes / 4  # the answer is a sixteenth of a batch
    assert len(seen) == 60
    assert batch_bytes < max(seen) - before < 3 * batch_bytes  # all batches together are sixty times as long
    assert found["a"].to_pylist() == [f"{row:05}" * 400 for row in rows]


@pytest.mark.parametrize("rows", [[], [5], [5, 5, 1024, 0, 5], list(range(3000, 1000, -7))])
def test_rows_come_in_the_order_asked(tmp_path, rows):
    order = np.random.default_rng(0).permutation(4000)
    table = pa.table({"n": range(4000), "s": [str(n) for n in range(4000)]})
    write_attributes(tmp_path / "a.arrow", [table], order)
    found = AttributeFile(tmp_path / "a.arrow").take(np.array(rows, np.int64))
    assert found.to_pydict() == {"n": order[rows].tolist(), "s": [str(n) for n in order[rows]]}


def test_two_attributes_of_one_name_in_an_earlier_collection_are_named_by_a_filter(tmp_path):
    Collection.create(tmp_path / "c", CODES, attributes={"a": [1, 2, 3, 4]}, bits=16)
    earlier_file(tmp_path / "a.arrow", pa.table([[1, 2, 3, 4], [5, 6, 7, 8]], names=["a", "a"]))
    forge(tmp_path / "c", "attributes.arrow", (tmp_path / "a.arrow").read_bytes())
    publish_first_format(tmp_path / "c", own_checksum=True)
    with pytest.raises(FilterError, match="there are 2 attributes `a`"):
        Collection.open(tmp_path / "c").search(CODES[:1], filter="a == 1")


def pieces_of(table, rows):
    return (table.slice(start, rows) for start in range(0, len(table), rows))


@pytest.mark.parametrize("run_bytes", [1, 3000, 200_000])
@pytest.mark.parametrize("rows", [1, 1023, 1024, 5000])
def test_columns_longer_than_a_run_are_put_in_order(tmp_path, monkeypatch, run_bytes, rows):
    monkeypatch.setattr(sorting, "_RUN_BYTES", run_bytes)
    rng = np.random.default_rng(rows)
    order = rng.permutation(rows)
    table = pa.table(
        {
            "s": pa.array([None if n % 7 == 0 else f"{n}" * int(rng.integers(9)) for n in range(rows)]),
            "d": pa.array([f"kind {n % 3}" for n in range(rows)]).dictionary_encode(),
            "l": pa.array([[f"{n}"] * (n % 3) for n in range(rows)], pa.list_(pa.string_view())),
        }
    )
    write_attributes(tmp_path / "a.arrow", pieces_of(table, 700), order)
    assert [path.name for path in tmp_path.iterdir()] == ["a.arrow"]
    with pyarrow.ipc.open_file(str(tmp_path / "a.arrow")) as file:
        lengths = [len(file.get_batch(number)) for number in range(file.num_record_batches)]
        stored = file.read_all().to_pylist()
    rows_given = table.to_pylist()
    assert stored == [rows_given[row] for row in order]
    assert lengths == [min(1024, rows - start) for start in range(0, rows, 1024)]


def test_a_failed_sort_leaves_no_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sorting, "_RUN_BYTES", 100)

    def broken():
        yield pa.table({"s": ["x" * 50] * 10})
        raise OSError("the second part is gone")

    with pytest.raises(OSError, match="the second part is gone"):
        write_attributes(tmp_path / "a.arrow", broken(), np.arange(20))
    assert not list(tmp_path.glob(".sorting*"))


@pytest.mark.slow
def test_half_a_million_thumbnails_over_2_gib_are_written_and_read(tmp_path):
    rows, piece = 520_000, 2_000
    pictures = np.random.default_rng(0).bytes(4_200)

    def picture(n):
        return f"{n:08}".encode() + pictures

    def tables():
        for start in range(0, rows, piece):
            yield pa.table({"thumbnail": [picture(n) for n in range(start, start + piece)]})

    order = np.random.default_rng(1).permutation(rows)
    assert rows * len(picture(0)) > 2**31
    before = pa.default_memory_pool()
    pa.set_memory_pool(COUNTED)
    try:
        write_attributes(tmp_path / "t.arrow", tables(), order, compressed=False)
    finally:
        pa.set_memory_pool(before)
    assert 64 * 2**20 < COUNTED.max_memory() < 512 * 2**20
    stored, asked = AttributeFile(tmp_path / "t.arrow"), np.arange(0, rows, 997)
    assert stored.take(asked)["thumbnail"].to_pylist() == [picture(n) for n in order[asked]]
