"""Corpora that other tools wrote, encoded: what is kept beside the codes, and its types."""

from __future__ import annotations

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hashlight.pipelines.cli.main import app
from hashlight.pipelines.codes.parts import read_parts
from hashlight.pipelines.codes.summary import read_summary

from ..corpora.layouts import IMG2DATASET, add, img2dataset_rows, png, write_img2dataset


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def encoded(corpus, encoder, folder, *options):
    printed = run("encode", "--input", corpus, "--encoder", encoder, "--output", folder, "--actors", 1, *options)
    return printed, pa.concat_tables(read_parts(folder))


@pytest.mark.parametrize("layout", ["files", "webdataset", "parquet"])
def test_img2dataset(tmp_path, encoder, ray_session, layout):
    printed, codes = encoded(write_img2dataset(tmp_path / "laion", layout), encoder, tmp_path / "codes")
    assert "encoded 6 of 6 images" in printed
    assert "left out 4 rows: 2 failed_to_download, 2 failed_to_resize" in printed
    assert codes.column_names == ["id", "code", "uri", *IMG2DATASET.names]
    rows = [row for shard in (0, 1) for row in img2dataset_rows(shard) if row["status"] == "success"]
    assert codes.select(IMG2DATASET.names).to_pylist() == rows
    assert pa.types.is_integer(codes.schema.field("width").type)
    assert len(set(codes["id"].to_pylist())) == 6


def test_values_of_json_that_have_another_type_later_are_left_out_and_told(tmp_path, encoder, ray_session, caplog):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for row in range(1003):
            add(tar, f"{row}.png", png(row % 250))
            add(tar, f"{row}.json", json.dumps({"n": row if row < 1001 else "many", "c": f"c{row % 2}"}).encode())
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    options = ("--keep", "n", "--label-column", "c")
    _, codes = encoded(tmp_path / "a.tar", encoder, tmp_path / "codes", *options)
    assert codes.schema.field("n").type == pa.int64()
    assert codes["n"].to_pylist() == [*range(1001), None, None]
    assert codes["label"].to_pylist() == [f"c{row % 2}" for row in range(1003)]
    assert "the attributes n are left out" in caplog.text


def test_a_column_of_images_with_another_name(tmp_path, encoder, ray_session):
    table = pa.table(
        {"photo": [{"bytes": png(1)}, {"bytes": None}], "image": ["a", "b"], "code": [7, 8], "key": ["x", "y"]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    options = ("--image-column", "photo", "--id-column", "key", "--keep", "code")
    printed, codes = encoded(tmp_path / "a.parquet", encoder, tmp_path / "codes", *options)
    assert "encoded 1 of 2 images" in printed
    assert codes.column_names == ["id", "code", "uri", "source_code", "key"]
    assert codes.drop_columns(["id", "code", "uri"]).to_pylist() == [{"source_code": 7, "key": "x"}]
    [reject] = pq.read_table(tmp_path / "codes" / "rejects.parquet").to_pylist()
    assert "a.parquet#1 has no image bytes" in reject["reason"]
    assert read_summary(tmp_path / "codes").codes == 1
    # The codes of such a corpus become a collection that is searched by the prefixed name.
    run("build", "--codes", tmp_path / "codes", "--output", tmp_path / "collection")
    assert "1" in run("count", tmp_path / "collection", "--filter", "source_code == 7")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--kind", "zip"), "`kind` must be one of images, parquet"),
        (("--keep", " , "), "`keep` must name columns"),
        (("--join", "about.csv"), "`join` must be FILE:COLUMN"),
        (("--ids", "uri", "--id-column", "key"), "made from uri: say one of them"),
        (("--retry-rejects", "--label-column", "x"), "--retry-rejects keeps the columns"),
        (("--retry-rejects", "--since", "codes"), "give --since or --retry-rejects, not both"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_work(tmp_path, encoder, options, message):
    pq.write_table(pa.table({"image": [png(1)]}), tmp_path / "a.parquet")
    arguments = ("encode", "--input", tmp_path / "a.parquet", "--encoder", encoder, "--output", tmp_path / "codes")
    result = CliRunner().invoke(app, list(map(str, (*arguments, *options))))
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "codes").exists()
