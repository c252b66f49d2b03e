"""The page on the format is true and complete: a reader and a writer made from it alone agree with this release."""

from __future__ import annotations

import ast
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import CorruptDataError, IdNotFoundError
from tests import independent
from tests.engine.storage.test_golden import GOLDEN, expected_rows
from tests.oracles import knn

ROOT = Path(__file__).parents[3]


def test_the_reader_of_the_page_imports_nothing_of_this_package():
    tree = ast.parse((ROOT / "tests" / "independent.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "numpy" in imported
    assert not [name for name in imported if name.startswith(("hashlight", "tests", "engine"))]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden.parent.name}-{golden.name}")
def test_every_version_of_a_golden_collection_is_read_from_the_page(golden):
    said = json.loads((golden / "expected.json").read_text())
    for number, facts in said["versions"].items():
        read = independent.read_version(golden / "collection", int(number))
        assert (read.manifest["bits"], read.manifest["encoder"]) == (said["bits"], said["encoder"])
        assert len(read.manifest["shards"]) == facts["shards"]
        rows = expected_rows(golden, int(number))
        assert len(rows)
        assert_same(read, rows)
        for name, data in said.get("encoder_files", {}).items():
            path = golden / "collection" / "encoder" / read.manifest["encoder_folder"] / name
            assert path.read_bytes().hex() == data


def assert_same(read, rows):
    ids = rows["id"].to_pylist()
    assert sorted(read.rows) == sorted(ids)
    ordered = [read.rows[id_] for id_ in ids]
    assert [row["code"] for row in ordered] == rows["code"].to_pylist()
    names = [name for name in rows.column_names if name.startswith("attribute ")]
    assert all([f"attribute {name}" for name in row["attributes"]] == names for row in ordered)
    for name in names:
        expected = rows[name].combine_chunks()
        for row, value in zip(ordered, expected, strict=True):
            got = row["attributes"][name.removeprefix("attribute ")]
            assert got.type == expected.type
            assert got.equals(value), name
    if "features" in rows.column_names:
        assert [row["features"] for row in ordered] == rows["features"].to_pylist()
        assert [row["thumbnail"] for row in ordered] == rows["thumbnail"].to_pylist()


def made_up(bits, rows=700):
    """Codes as numbers, some equal, with ids, attributes and features."""
    rng = np.random.default_rng(bits)
    values = [int.from_bytes(rng.bytes(-(-bits // 8)), "little") % 2**bits for _ in range(rows * 2 // 3)]
    codes = [values[number] for number in rng.integers(len(values), size=rows)]
    ids = (rng.permutation(rows) * 5 + 1).tolist()
    table = pa.table(
        {
            "n": pa.array(range(rows)),
            "s": [f"text {row}" for row in range(rows)],
            "few": [None if row % 7 == 0 else "äbcde"[row % 5] for row in range(rows)],
            "price": pa.array([Decimal(row) / 100 for row in range(rows)], pa.decimal128(12, 2)),
            "at": pa.array([None if row % 11 == 0 else row - 50 for row in range(rows)], pa.timestamp("ns", "UTC")),
            "ratio": pa.array([row / 7 for row in range(rows)], pa.float32()),
            "yes": [row % 3 == 0 for row in range(rows)],
        }
    )
    return codes, ids, table, rng.normal(size=(rows, 3)).astype(np.float16)


def as_words(codes, bits):
    size = 8 * -(-bits // 64)
    data = b"".join(code.to_bytes(size, "little") for code in codes)
    return np.frombuffer(data, "<u8").reshape(len(codes), -1).astype(np.uint64)


@pytest.mark.parametrize("format_version", [1, 2])
@pytest.mark.parametrize(("bits", "widths"), [(64, [8, 8, 9, 9]), (48, [7, 10]), (130, [9, 9, 9, 9, 9]), (5, [2, 3])])
def test_a_collection_written_from_the_page_is_opened(tmp_path, bits, widths, format_version):
    codes, ids, table, features = made_up(bits)
    parts = (slice(0, 300), slice(300, None))
    shards = [
        independent.shard_files(
            codes[part], ids[part], bits, attributes=table.slice(part.start, len(ids[part])), features=features[part],
            widths=widths,
        )
        for part in parts
    ]  # fmt: skip
    if format_version == 1:
        independent.write_first_format(tmp_path, shards, bits)
    else:
        independent.write_second_format(tmp_path, shards, bits, schema=table.schema, features=3)
    opened = Collection.open(tmp_path, verify=True, index="multi")
    assert [len(shard) for shard in opened.shards] == [300, 400]
    assert opened.get(ids).drop_columns(["id", "code"]).equals(table)
    assert (opened.features_of(np.array(ids)) == features).all()
    words = as_words(codes, bits)
    queries = words[:10] ^ np.uint64(1)
    distances, found = knn(queries, words, np.array(ids), 20)
    answer = opened.search(queries, 20)
    assert answer.distances.tolist() == distances.tolist()
    assert answer.ids.tolist() == found.tolist()


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_features_of_other_kinds_written_from_the_page_are_read(tmp_path, kind):
    codes, ids, _, _ = made_up(64)
    features = (np.random.default_rng(5).integers(-127, 128, size=(700, 4)) / 8).astype(np.float32)
    files = independent.shard_files(codes, ids, 64, features=features, features_as=kind)
    independent.write_second_format(tmp_path, [files], 64, features=4, features_as=kind)
    opened = Collection.open(tmp_path, verify=True)
    assert opened.features_as == kind
    assert (opened.features_of(np.array(ids)) == features).all()


def test_deleted_rows_and_columns_written_from_the_page_are_read(tmp_path):
    codes, ids, table, _ = made_up(64)
    order = sorted(range(len(ids)), key=lambda row: (codes[row], ids[row]))
    files = independent.shard_files(codes, ids, 64, attributes=table.select(["n", "s", "yes"]), widths=[10, 10])
    dead, gone = [0, 5, 6, 699], {ids[order[row]] for row in (0, 5, 6, 699)}
    renewed = pa.table({"n": pa.array([None if row % 3 else row * 2 for row in range(700)], pa.int64())})
    late = pa.table({"at": pa.array([row - 9 for row in range(700)], pa.timestamp("ms"))})
    schema = pa.schema(
        [("at", pa.timestamp("ms")), ("s", pa.string()), ("n", pa.int64()), ("none", pa.list_(pa.int8()))]
    )
    independent.write_second_format(tmp_path, [files], 64, schema=schema, dead=dead, columns={"n": renewed, "at": late})
    opened = Collection.open(tmp_path, verify=True)
    assert len(opened) == 696
    left = [row for row in range(700) if row not in dead]
    found = opened.get([ids[order[row]] for row in left])
    assert found.drop_columns(["id", "code"]).equals(
        pa.table(
            [
                late["at"].take(left),
                table["s"].take(order).take(left),
                renewed["n"].take(left),
                pa.nulls(696, schema[3].type),
            ],
            schema=schema,
        )
    )
    answer = opened.search(as_words(codes, 64)[:1], 700)
    assert {id_ for id_ in answer.ids[0].tolist() if id_ >= 0} == set(ids) - gone
    with pytest.raises(IdNotFoundError):
        opened.get([gone.pop()])
    more = opened.add(as_words(codes, 64)[:2])
    assert more.get([max(ids) + 2])["s"].to_pylist() == [None]
    assert len(independent.read_version(tmp_path).rows) == 698


def test_a_need_that_a_release_does_not_know_is_refused(tmp_path):
    codes, ids, _, _ = made_up(64)
    independent.write_second_format(tmp_path, [independent.shard_files(codes, ids, 64)], 64, needs=["time-travel"])
    with pytest.raises(CorruptDataError, match="needs time-travel, which this release does not know"):
        Collection.open(tmp_path)


def test_what_this_release_writes_is_read_from_the_page(tmp_path):
    codes, ids, table, features = made_up(90, rows=9000)
    made = Collection.create(
        tmp_path / "c", as_words(codes, 90), ids=np.array(ids), attributes=table, features=features, bits=90, shards=2
    )
    read = independent.read_version(tmp_path / "c")
    assert read.manifest["version"] == made.version
    for row, id_ in enumerate(ids):
        assert read.rows[id_]["code"] == codes[row].to_bytes(16, "little")
        assert read.rows[id_]["features"] == features[row].tolist()
    stored = {name: [read.rows[id_]["attributes"][name] for id_ in ids] for name in table.column_names}
    for name, column in zip(table.column_names, table.columns, strict=True):
        assert pa.array(stored[name], column.type).equals(column.combine_chunks()), name
    assert all("scalars.arrow" in shard["files"] for shard in read.manifest["shards"])
