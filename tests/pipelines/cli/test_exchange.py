"""`hashlight export` and `hashlight import`: what leaves a collection becomes the same collection."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hashlight.engine.collection.collection import Collection
from hashlight.pipelines.cli.main import app

CODES = np.random.default_rng(5).integers(2**48, size=(30, 1), dtype=np.uint64)
IDS = np.arange(30) * 4 + 1


@pytest.fixture
def photos(tmp_path):
    Collection.create(tmp_path / "photos", CODES, ids=IDS, attributes={"n": list(range(30))}, bits=48, tables=False)
    return tmp_path / "photos"


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("name", "options"),
    [("x.parquet", []), ("x.arrow", []), ("x.faiss", []), ("x", ["parquet"]), ("y", ["arrow"]), ("z", ["faiss"])],
)
def test_what_is_exported_is_imported(photos, tmp_path, name, options):
    target = tmp_path / name
    said = run("export", photos, target, *(["--to", *options] if options else []))
    assert said == f"exported 30 codes of 48 bits, version 1: {target}"
    kind = options[0] if options else name.rpartition(".")[2]
    source = ["--from", *options] if options else []
    said = run("import", target, tmp_path / "back", *source, "--shard-rows", 20, "--no-tables")
    assert said == f"imported 30 codes of 48 bits in 2 shards: {tmp_path / 'back'}"
    back = Collection.open(tmp_path / "back")
    assert not back.has_tables
    found = back.get(IDS)
    assert found["code"].to_pylist() == [code.tobytes() for code in CODES]
    assert kind == "faiss" or found["n"].to_pylist() == list(range(30))
    assert "allow it to be replaced" in run("export", photos, target, "--to", kind, code=1)
    run("export", photos, target, "--to", kind, "--overwrite")


@pytest.mark.parametrize(("bits", "stored"), [(1, 8), (12, 16), (72, 72), (100, 104)])
def test_faiss_has_whole_bytes_and_what_is_exported_says_so(tmp_path, bits, stored):
    codes = np.random.default_rng(5).integers(2, size=(30, bits), dtype=np.uint8)
    packed = np.packbits(codes, axis=1, bitorder="little")
    Collection.from_numpy(packed, tmp_path / "c", bits=bits, tables=False)
    said = run("export", tmp_path / "c", tmp_path / "x.faiss")
    assert (f"have {stored} bits, the last {stored - bits} of them zero: import them with --bits {bits}" in said) == (
        bits != stored
    )
    run("import", tmp_path / "x.faiss", tmp_path / "all", "--no-tables")
    assert Collection.open(tmp_path / "all").bits == stored
    run("import", tmp_path / "x.faiss", tmp_path / "back", "--no-tables", "--bits", bits)
    back = Collection.open(tmp_path / "back")
    assert back.bits == bits
    found = back.get(np.arange(30))["code"].to_pylist()
    assert [code[: packed.shape[1]] for code in found] == [row.tobytes() for row in packed]


def test_columns_are_named(tmp_path):
    table = pa.table({
        "hash": pa.array([code.tobytes() for code in CODES]),
        "name": [str(n) for n in range(30)],
        "fine": pa.array([[n, 1.0] for n in range(30)], pa.list_(pa.float32(), 2)),
        "small": [b"jpg"] * 30,
    })  # fmt: skip
    (tmp_path / "p").mkdir()
    pq.write_table(table, tmp_path / "p" / "a.parquet")
    names = ["--code-column", "hash", "--number-rows", "--features-column", "fine", "--thumbnail-column", "small"]
    run("import", tmp_path / "p", tmp_path / "c", "--from", "parquet", *names)
    made = Collection.open(tmp_path / "c")
    assert made.bits == 64
    assert made.get([7]).to_pylist() == [{"id": 7, "code": CODES[7].tobytes(), "name": "7"}]
    assert made.features_of(np.array([7])).tolist() == [[7, 1]]
    assert made.thumbnails_of(np.array([7])) == [b"jpg"]
    run("import", tmp_path / "p", tmp_path / "small", "--from", "parquet", *names, "--features-as", "int8")
    small = Collection.open(tmp_path / "small")
    assert small.features_as == "int8"
    assert abs(small.features_of(np.array([7])) - [[7, 1]]).max() < 7 / 127
    said = run(
        "import", tmp_path / "p", tmp_path / "no", "--from", "parquet", *names[:3], "--features-as", "int8", code=2
    )
    assert "--features-as needs features: name their column by --features-column" in said
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["export", "{photos}", "x.csv"],
            2,
            "x.csv ends in none of .faiss, .index, .parquet, .arrow, .arrows, .feather:",
        ),
        (["export", "{photos}", "x.csv", "--to", "csv"], 2, "'csv' is not one of 'faiss', 'parquet', 'arrow'"),
        (["import", "{photos}", "c"], 2, "say what it is with --from"),
        (["import", "missing.parquet", "c"], 2, "missing.parquet does not exist"),
        (["import", "{photos}", "c", "--from", "faiss", "--number-rows"], 2, "a FAISS index has no columns"),
        (["import", "{photos}", "c", "--from", "faiss"], 1, "is not a file: expected a binary index"),
        (["import", "{photos}", "c", "--from", "parquet"], 1, "has no files whose names end in .parquet"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(photos, monkeypatch, arguments, code, message):
    monkeypatch.chdir(photos.parent)
    assert message in run(*(argument.format(photos=photos) for argument in arguments), code=code)
    assert not (photos.parent / "c").exists()
