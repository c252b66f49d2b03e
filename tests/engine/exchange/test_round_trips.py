"""What goes out of a collection and comes back is equal: codes, ids, attributes of every type, features, thumbnails."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashlight.engine.collection import importing
from hashlight.engine.collection.collection import Collection
from hashlight.engine.exchange import parquet
from hashlight.engine.exchange.arrow import write_arrow_file
from hashlight.engine.exchange.parquet_types import from_portable, portable_schema, to_portable
from tests.data.make_golden import KINDS, table_of
from tests.engine.exchange.kinds import columns
from tests.engine.storage.test_golden import DATA, expected_rows

ROWS = 7
GOLDEN = DATA / "format1"


def codes_of(bits, rows, seed=0):
    """Codes as a table of bits makes them, (rows, W) uint64."""
    words = -(-bits // 64)
    padded = np.zeros((rows, 64 * words), bool)
    padded[:, :bits] = np.random.default_rng(seed).random((rows, bits)) < 0.5
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)


def source_of(codes, ids, attributes=None, **metadata):
    """A table as another program might have it."""
    rows = [code.astype("<u8").tobytes() for code in codes]
    table = pa.table({"id": pa.array(ids, pa.int64()), "code": pa.array(rows, pa.binary(8 * codes.shape[1]))})
    for name, column in () if attributes is None else zip(attributes.column_names, attributes.columns, strict=True):
        table = table.append_column(name, column)
    return table


def sorted_table(table):
    """Rows in the order of their ids, each column in one array, and the types."""
    order = np.argsort(table["id"].to_numpy())
    return {name: pa.concat_arrays(table[name].chunks).take(order) for name in table.column_names}


def assert_equal(got, expected):
    got, expected = sorted_table(got), sorted_table(expected)
    assert list(got) == list(expected)
    for name, column in expected.items():
        assert got[name].type == column.type, name
        assert got[name].equals(column), name


def through_arrow(collection, folder):
    write_arrow_file(collection.to_arrow(batch_rows=5), folder / "x.arrow")
    return Collection.from_arrow(folder / "x.arrow", folder / "from_arrow", tables=False, shard_rows=4)


def through_parquet(collection, folder):
    collection.to_parquet(folder / "x.parquet", batch_rows=5)
    return Collection.from_parquet(folder / "x.parquet", folder / "from_parquet", tables=False, shard_rows=4)


@pytest.mark.parametrize("through", [through_arrow, through_parquet])
def test_every_type_that_a_collection_takes_comes_back(tmp_path, through):
    codes, ids = codes_of(100, 11), np.arange(11) * 3 + 5
    given_table = source_of(codes, ids, table_of(KINDS, 11, stored=False))
    stored = source_of(codes, ids, table_of(KINDS, 11, stored=True))
    collection = Collection.from_arrow(given_table, tmp_path / "c", bits=100, tables=False)
    assert_equal(collection.to_arrow().read_all(), stored)
    back = through(collection, tmp_path)
    assert (back.bits, len(back.shards)) == (100, 3)
    assert_equal(back.to_arrow().read_all(), stored)


@settings(max_examples=20, deadline=None)
@given(
    column=columns(ROWS),
    bits=st.integers(1, 130),
    ids=st.lists(st.integers(0, 2**63 - 1), min_size=ROWS, max_size=ROWS, unique=True),
)
def test_attributes_of_any_type_come_back(column, bits, ids):
    table = source_of(codes_of(bits, ROWS), ids, pa.table({"a": column}))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        collection = Collection.from_arrow(table, folder / "c", bits=bits, tables=False)
        assert_equal(collection.to_arrow(batch_rows=3).read_all(), table)
        for through in (through_arrow, through_parquet):
            back = through(collection, folder)
            assert back.bits == bits
            assert_equal(back.to_arrow().read_all(), table)


def test_slices_of_every_type_survive_parquet():
    table = table_of(KINDS, 11, stored=True)
    for name in table.column_names:
        assert_survives_parquet(table[name].chunk(0).slice(1, 7))


@settings(max_examples=150, deadline=None)
@given(column=columns(5), start=st.integers(0, 4))
def test_any_type_survives_parquet(column, start):
    assert_survives_parquet(column.slice(start))


def assert_survives_parquet(column):
    batch = pa.record_batch([column], names=["a"])
    schema = portable_schema(batch.schema)
    file = io.BytesIO()
    pq.write_table(pa.Table.from_batches([to_portable(batch, schema)]), file)
    read = pq.read_table(io.BytesIO(file.getvalue()))
    assert read.schema.types == schema.types
    found = from_portable(read.combine_chunks().to_batches()[0], batch.schema)
    found.validate(full=True)
    assert found["a"].type == column.type
    assert found["a"].equals(batch["a"])


@pytest.mark.parametrize("through", [through_arrow, through_parquet])
def test_features_thumbnails_and_the_fingerprint_come_back(tmp_path, through):
    shutil.copytree(GOLDEN / "everything" / "collection", tmp_path / "c")
    back = through(Collection.open(tmp_path / "c"), tmp_path)
    rows = expected_rows(GOLDEN / "everything", 3)
    ids = rows["id"].to_numpy()
    assert (back.bits, back.fingerprint, len(back)) == (256, "0f" * 16, len(ids))
    found = back.get(ids)
    assert found["code"].to_pylist() == rows["code"].to_pylist()
    assert found["uri"].to_pylist() == rows["attribute uri"].to_pylist()
    assert back.features_of(ids).tolist() == rows["features"].to_pylist()
    assert back.thumbnails_of(ids) == rows["thumbnail"].to_pylist()


def test_only_the_rows_of_the_open_version_go_out(tmp_path):
    codes, ids = codes_of(64, 12), np.arange(12) * 2
    attributes = pa.table({"n": list(range(12)), "s": [f"{n}" for n in range(12)]})
    old = Collection.create(tmp_path / "c", codes, ids=ids, attributes=attributes, shards=2, tables=False)
    new = old.delete([0, 6, 14]).update([2, 20], {"n": [-1, None]}).set_column("late", [1.5], ids=[4])
    left = [row for row in range(12) if row not in (0, 3, 7)]
    changed = {1: -1, 10: None}
    expected = source_of(codes, ids, pa.table({
        "n": pa.array([changed.get(row, row) for row in range(12)], pa.int64()),
        "s": attributes["s"],
        "late": pa.array([1.5 if row == 2 else None for row in range(12)], pa.float64()),
    })).take(left)  # fmt: skip
    for through in (through_arrow, through_parquet):
        assert_equal(through(new, tmp_path).to_arrow().read_all(), expected)
        shutil.rmtree(tmp_path / through.__name__.replace("through", "from"))
        (tmp_path / f"x.{through.__name__.partition('_')[2]}").unlink()
        assert_equal(through(old, tmp_path).to_arrow().read_all(), source_of(codes, ids, attributes))
    index = new.to_faiss()
    assert sorted(faiss.vector_to_array(index.id_map).tolist()) == ids[left].tolist()
    assert [index.reconstruct(int(ids[row])).tobytes() for row in left] == [codes[row].tobytes() for row in left]


def test_attributes_with_the_names_of_other_columns_keep_them(tmp_path):
    codes = codes_of(64, 6)
    table = pa.table({"features": [f"f{n}" for n in range(6)], "thumbnail": list(range(6))})
    features = np.arange(12, dtype=np.float16).reshape(6, 2)
    collection = Collection.create(tmp_path / "c", codes, attributes=table, features=features, tables=False)
    for through in (through_arrow, through_parquet):
        back = through(collection, tmp_path)
        assert back.get([4, 1]).select(["features", "thumbnail"]).to_pydict() == {
            "features": ["f4", "f1"], "thumbnail": [4, 1],
        }  # fmt: skip
        assert back.features_of(np.array([5, 0])).tolist() == [[10, 11], [0, 1]]


def test_metadata_and_nullability_of_attributes_come_back(tmp_path):
    field = pa.field("n", pa.int32(), nullable=False, metadata={"unit": "mm"})
    table = pa.Table.from_arrays([pa.array(range(6), pa.int32())], schema=pa.schema([field], {"made": "by hand"}))
    collection = Collection.create(tmp_path / "c", codes_of(64, 6), attributes=table, tables=False)
    for through in (through_arrow, through_parquet):
        schema = through(collection, tmp_path).shards[0].attributes.schema
        assert schema.field("n").equals(field, check_metadata=True)
        assert schema.metadata == {b"made": b"by hand"}


def test_a_parquet_file_is_what_other_readers_expect(tmp_path):
    codes = codes_of(48, 9)
    table = source_of(codes, range(9), pa.table({"label": list("abcdefghi"), "day": pa.array([1] * 9, pa.date64())}))
    Collection.from_arrow(table, tmp_path / "c", bits=48, tables=False).to_parquet(tmp_path / "x.parquet", batch_rows=4)
    read = pq.ParquetFile(tmp_path / "x.parquet")
    assert read.metadata.num_row_groups == 3
    kinds = {column.name: (column.physical_type, column.length) for column in read.schema}
    assert kinds["code"] == ("FIXED_LEN_BYTE_ARRAY", 8)
    assert kinds["id"][0] == "INT64"
    found = read.read().sort_by("id")
    assert found["code"].to_pylist() == table["code"].to_pylist()
    assert found.schema.field("day").type == pa.timestamp("ms")


def test_a_parquet_file_that_another_program_changed_is_read_as_it_is(tmp_path):
    table = source_of(codes_of(64, 4), range(4), pa.table({"day": pa.array([0] * 4, pa.date64()), "n": range(4)}))
    Collection.from_arrow(table, tmp_path / "c", tables=False).to_parquet(tmp_path / "x.parquet")
    read = pq.read_table(tmp_path / "x.parquet")
    changed = read.set_column(2, "day", read["day"].cast(pa.string()))
    pq.write_table(changed.drop_columns(["n"]), tmp_path / "y.parquet")
    back = Collection.from_parquet(tmp_path / "y.parquet", tmp_path / "d", tables=False)
    assert back.get([0])["day"].type == pa.string()


def test_a_folder_of_parquet_files_is_one_source(tmp_path):
    codes = codes_of(64, 9)
    table = source_of(codes, range(9), pa.table({"n": list(range(9))}))
    (tmp_path / "p" / "deeper").mkdir(parents=True)
    pq.write_table(table.slice(0, 4), tmp_path / "p" / "a.parquet")
    pq.write_table(table.slice(4), tmp_path / "p" / "deeper" / "b.parquet")
    (tmp_path / "p" / "notes.txt").write_text("not a part")
    back = Collection.from_parquet(tmp_path / "p", tmp_path / "c", tables=False)
    assert_equal(back.to_arrow().read_all(), table)
    pq.write_table(table.drop_columns(["n"]), tmp_path / "p" / "z.parquet")
    with pytest.raises(
        ValueError, match=r"must have the same columns; a\.parquet has .*n \(int64\), z\.parquet has id"
    ):
        Collection.from_parquet(tmp_path / "p", tmp_path / "d", tables=False)
    assert not (tmp_path / "d" / "CURRENT").exists()


def test_parquet_goes_to_a_bucket_and_back(tmp_path, bucket):
    collection = Collection.from_numpy(codes_of(64, 9), tmp_path / "c", tables=False, attributes={"n": list(range(9))})
    collection.to_parquet(bucket.uri("x/all.parquet"))
    write_arrow_file(collection.to_arrow(), bucket.uri("x/all.arrow"))
    expected = collection.to_arrow().read_all()
    for read, name in ((Collection.from_parquet, "all.parquet"), (Collection.from_arrow, "all.arrow")):
        assert_equal(read(bucket.uri(f"x/{name}"), tmp_path / name, tables=False).to_arrow().read_all(), expected)
    with pytest.raises(FileExistsError, match=r"all\.parquet is there already: .*`--overwrite`"):
        collection.to_parquet(bucket.uri("x/all.parquet"))


@pytest.mark.parametrize("give", [
    lambda table: table,
    lambda table: table.to_reader(max_chunksize=3),
    lambda table: table.to_batches(max_chunksize=3),
    lambda table: iter(table.to_batches(max_chunksize=3)),
    lambda table: table.combine_chunks().to_batches()[0],
    lambda table: Stream(table),
])  # fmt: skip
def test_record_batches_come_in_many_ways(tmp_path, give):
    table = source_of(codes_of(64, 9), range(9), pa.table({"n": list(range(9))}))
    assert_equal(Collection.from_arrow(give(table), tmp_path / "c", tables=False).to_arrow().read_all(), table)


class Stream:
    """A table of another library."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


def test_an_arrow_stream_in_a_file_is_read(tmp_path):
    table = source_of(codes_of(64, 9), range(9))
    with pa.OSFile(str(tmp_path / "x.arrows"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert_equal(Collection.from_arrow(tmp_path / "x.arrows", tmp_path / "c").to_arrow().read_all(), table)


def test_the_shards_of_a_source_are_gathered_in_bounded_memory(tmp_path, monkeypatch):
    """Of a long source, at most the codes and ids of one shard are in memory, and two batches beside them."""
    drawn, gathered, ahead = [], [], []

    class Counted(importing._Gathered):
        def add(self, rows):
            super().add(rows)
            gathered.append(sum(map(len, self._codes)))
            added.append(len(rows))
            ahead.append(sum(drawn) - sum(added))

    added = []
    monkeypatch.setattr(importing, "_Gathered", Counted)
    codes = codes_of(64, 100)
    table = source_of(codes, range(100), pa.table({"s": [str(n) for n in range(100)]}))

    def batches():
        for start in range(0, 100, 7):
            [batch] = table.slice(start, 7).combine_chunks().to_batches()
            drawn.append(len(batch))
            yield batch

    collection = Collection.from_arrow(batches(), tmp_path / "c", shard_rows=30, tables=False)
    assert [len(shard) for shard in collection.shards] == [30, 30, 30, 10]
    assert max(gathered) == 30
    assert max(ahead) <= 2 * 7
    assert_equal(collection.to_arrow().read_all(), table)


def test_export_replaces_nothing_unasked(tmp_path):
    collection = Collection.from_numpy(codes_of(64, 3), tmp_path / "c", tables=False)
    collection.to_parquet(tmp_path / "x.parquet")
    before = (tmp_path / "x.parquet").read_bytes()
    with pytest.raises(FileExistsError, match="allow it to be replaced"):
        collection.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(FileExistsError, match="is a folder"):
        collection.to_parquet(tmp_path / "c", overwrite=True)
    collection.to_parquet(tmp_path / "x.parquet", overwrite=True)
    assert (tmp_path / "x.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "x.parquet"]


def test_a_time_beyond_parquet_is_named(tmp_path):
    table = source_of(codes_of(64, 1), [0], pa.table({"when": pa.array([2**62], pa.timestamp("s"))}))
    collection = Collection.from_arrow(table, tmp_path / "c", tables=False)
    with pytest.raises(ValueError, match=r"attribute `when` \(timestamp\[s\]\).*export to Arrow"):
        collection.to_parquet(tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()
    assert_equal(collection.to_arrow().read_all(), table)


def test_types_of_a_file_that_are_not_readable_are_left_out(tmp_path):
    table = source_of(codes_of(64, 2), [0, 1]).replace_schema_metadata({parquet._TYPES: b"not base64!"})
    pq.write_table(table, tmp_path / "x.parquet")
    assert len(Collection.from_parquet(tmp_path / "x.parquet", tmp_path / "c", tables=False)) == 2
