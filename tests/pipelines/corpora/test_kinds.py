"""Corpora as other tools write them are read with the right counts, ids, labels, columns and images."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from hashlight.pipelines.corpora.corpus import list_all, list_corpus, open_listing, read_images, read_uri
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.labels import labels_of
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.corpora.work import WorkList, list_work
from hashlight.pipelines.jobs.errors import PipelineError

from .layouts import (
    IMAGE_STRUCT,
    IMG2DATASET,
    add,
    hugging_face_schema,
    img2dataset_rows,
    png,
    value_of,
    write_img2dataset,
)

BASE = {"id", "uri", "__source", "__row", "__stamp", "__group", "__column"}


def listed(corpus, **options):
    """The entries of a corpus, and what was left out."""
    listing = open_listing(corpus, options=CorpusOptions(**options))
    entries = list_corpus(corpus, CorpusOptions(**options))
    for _ in listing.chunks():
        pass
    return entries, dict(listing.skipped)


def values(entries):
    return [value_of(data) for data in read_images(entries)]


def kept(entries):
    return [name for name in entries.column_names if name not in BASE]


# img2dataset.


@pytest.mark.parametrize("layout", ["files", "webdataset", "parquet"])
def test_img2dataset_has_its_columns_in_every_layout(tmp_path, layout):
    folder = write_img2dataset(tmp_path / "laion", layout)
    entries, skipped = listed(folder)
    assert len(entries) == 6
    assert values(entries) == [0, 2, 4, 10, 12, 14]
    assert skipped == {"rows failed_to_download": 2, "rows failed_to_resize": 2}
    assert kept(entries) == IMG2DATASET.names
    expected = [row for shard in (0, 1) for row in img2dataset_rows(shard) if row["status"] == "success"]
    assert entries.select(IMG2DATASET.names).to_pylist() == expected
    assert len(set(entries["id"].to_pylist())) == 6
    assert [value_of(read_uri(uri)) for uri in entries["uri"].to_pylist()] == values(entries)
    some = list_corpus(folder, CorpusOptions(keep=("key", "original_width"), label_column="status"))
    assert set(kept(some)) == {"label", "key", "original_width"}
    assert set(some["label"].to_pylist()) == {"success"}
    assert some["original_width"].to_pylist() == [0, 2, 4, 10, 12, 14]


@pytest.mark.parametrize("layout", ["files", "webdataset", "parquet"])
def test_shards_that_img2dataset_has_not_finished_are_left_out(tmp_path, layout):
    folder = write_img2dataset(tmp_path / "laion", layout, shards=3)
    (folder / "00001_stats.json").unlink()
    (folder / "notes.md").write_text("")
    entries, skipped = listed(folder)
    assert values(entries) == [0, 2, 4, 20, 22, 24]
    assert (skipped["unfinished shards"], skipped["*.md"]) == (1, 1)
    with pytest.raises(PipelineError, match="no finished shard of img2dataset"):
        listed(write_img2dataset(tmp_path / "empty", layout, shards=0), kind="img2dataset")


def test_rows_and_files_of_img2dataset_that_lack_each_other_are_counted(tmp_path):
    folder = write_img2dataset(tmp_path / "laion", "files", shards=1)
    (folder / "00000" / "000000002.png").unlink()
    (folder / "00000" / "000000009.png").write_bytes(png(9))
    entries, skipped = listed(folder)
    assert values(entries) == [0, 4]
    # The caption and the JSON of the image that is gone describe nothing.
    assert skipped == {
        "rows failed_to_download": 1, "rows failed_to_resize": 1, "rows without a file": 1, "files without a row": 1,
        "*.txt": 1, "*.json": 1,
    }  # fmt: skip


def test_text_ids_of_img2dataset(tmp_path):
    for layout in ("files", "parquet"):
        entries, _ = listed(write_img2dataset(tmp_path / layout, layout), id_column="key")
        assert len(set(entries["id"].to_pylist())) == 6
        assert entries["key"].to_pylist()[0] == "000000000"
    with pytest.raises(PipelineError, match=r"ids of the tars .* cannot be taken from `key`: give the kind tar"):
        listed(write_img2dataset(tmp_path / "tars", "webdataset"), id_column="key")


# LAION.


def test_metadata_of_laion_is_a_list_of_urls(tmp_path):
    table = pa.table(
        {
            "SAMPLE_ID": [1.0, 2.0, 3.0],
            "URL": ["https://example.org/a.jpg", None, "https://example.org/c.jpg"],
            "TEXT": ["a", "b", "c"],
            "HEIGHT": pa.array([1, 2, 3], pa.int32()),
            "WIDTH": pa.array([4, 5, 6], pa.int32()),
            "LICENSE": ["?", "?", "?"],
            "NSFW": ["UNLIKELY", "NSFW", "UNSURE"],
            "similarity": [0.3, 0.31, 0.32],
        }
    )
    pq.write_table(table, tmp_path / "part-00000.snappy.parquet")
    entries, skipped = listed(tmp_path)
    assert entries["uri"].to_pylist() == ["https://example.org/a.jpg", "https://example.org/c.jpg"]
    assert entries["__source"].to_pylist() == entries["uri"].to_pylist()
    assert entries["TEXT"].to_pylist() == ["a", "c"]
    assert kept(entries) == ["SAMPLE_ID", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"]
    assert skipped == {"rows without a URI": 1}


def test_a_list_that_has_an_image_twice_has_it_once(tmp_path):
    urls = [f"https://example.org/{number}.jpg" for number in (1, 2, 1, 3, 2, 1)]
    for number in range(2):
        some = pa.table({"URL": urls[3 * number : 3 * number + 3], "n": range(3 * number, 3 * number + 3)})
        pq.write_table(some, tmp_path / f"{number}.parquet")
    entries, _ = listed(tmp_path)
    assert entries["n"].to_pylist() == [0, 1, 3]
    summary = list_work(tmp_path, tmp_path / "work.arrow", unit_images=2)
    assert (summary.images, summary.skipped) == (3, {"rows with the URI of an earlier one": 3})
    with pa.memory_map(str(tmp_path / "work.arrow")) as raw:
        assert pa.concat_tables(WorkList(raw, "").read_all())["n"].to_pylist() == [0, 1, 3]
    # What has an id of its own is another image, unless two have the same.
    pq.write_table(pa.table({"URL": urls, "id": range(6)}), tmp_path / "0.parquet")
    assert len(list_corpus(tmp_path / "0.parquet")) == 6
    pq.write_table(pa.table({"URL": urls, "id": [1, 1, 2, 3, 4, 5]}), tmp_path / "0.parquet")
    with pytest.raises(PipelineError, match="1 id occurs more than once"):
        list_corpus(tmp_path / "0.parquet")


# Hugging Face.


def test_hugging_face_parquet(tmp_path):
    features = {
        "img": {"_type": "Image"},
        "label": {"names": ["airplane", "automobile"], "_type": "ClassLabel"},
        "tags": {"feature": {"names": ["red", "green"], "_type": "ClassLabel"}, "_type": "List"},
        "id": {"dtype": "string", "_type": "Value"},
    }
    columns = {"img": IMAGE_STRUCT, "label": pa.int64(), "tags": pa.list_(pa.int64()), "id": pa.string()}
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "there.png").write_bytes(png(3))
    rows = [
        {"img": {"bytes": png(1), "path": "0.png"}, "label": 1, "tags": [0, 1], "id": "n01"},
        {"img": {"bytes": png(2), "path": None}, "label": -1, "tags": [], "id": "n02"},
        {"img": {"bytes": None, "path": str(tmp_path / "there.png")}, "label": 0, "tags": None, "id": "n03"},
    ]
    table = pa.Table.from_pylist(rows, hugging_face_schema(columns, features))
    pq.write_table(table, tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    entries, _ = listed(tmp_path / "set")
    assert values(entries) == [1, 2, 3]
    assert kept(entries) == ["label", "tags", "source_id", "label_name", "tags_name"]
    assert entries["label"].to_pylist() == [1, None, 0]
    assert entries["label_name"].to_pylist() == ["automobile", None, "airplane"]
    assert entries["tags_name"].to_pylist() == [["red", "green"], [], None]
    assert entries["source_id"].to_pylist() == ["n01", "n02", "n03"]
    # The ids do not depend on where the rows are.
    pq.write_table(table.slice(1), tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    assert list_corpus(tmp_path / "set")["id"].to_pylist() == entries["id"].to_pylist()[1:]
    relabelled, _ = listed(tmp_path / "set", label_column="tags")
    assert kept(relabelled) == ["source_label", "label", "source_id", "source_label_name", "label_name"]


def test_columns_of_images_are_named_where_they_must_be(tmp_path):
    table = pa.table({"image": [png(1), png(2)], "photo": [{"bytes": png(3)}, {"bytes": png(4)}]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    assert values(listed(tmp_path)[0]) == [1, 2]
    entries, _ = listed(tmp_path, image_column="photo")
    assert values(entries) == [3, 4]
    assert kept(entries) == ["image"]
    for options, message in (
        ({"image_column": "picture"}, "no column `picture`: it has .'image', 'photo'"),
        ({"uri_column": "url"}, "no column `url`"),
        ({"label_column": "class"}, r"no column \['class'\]"),
        ({"keep": ("a", "image")}, r"no column \['a'\]"),
        ({"id_column": "key"}, "no column `key` to take ids from"),
    ):
        with pytest.raises(PipelineError, match=message):
            listed(tmp_path, **options)
    pq.write_table(pa.table({"photo": [png(1)], "caption": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(PipelineError, match="name one with --image-column or --uri-column"):
        listed(tmp_path)
    with pytest.raises(PipelineError, match=r"`caption` must have encoded images .* got string"):
        listed(tmp_path, image_column="caption")


# CSV and JSON lines.


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "set" / "cats").mkdir(parents=True)
    for number, name in enumerate(("cats/a.png", "cats/b.png", "c.png")):
        (tmp_path / "set" / name).write_bytes(png(number))
    return tmp_path / "set"


CSV = """file_name,label,zip,score,code,ok
cats/a.png,cat,007,1,x,true
cats/b.png,cat,,2.5,y,false
"c.png","dog, small",042,,z,
,nothing,1,1,1,true
"""


def test_csv_with_paths_relative_to_the_file(pictures):
    (pictures / "list.csv").write_text(CSV)
    entries, skipped = listed(pictures / "list.csv")
    assert values(entries) == [0, 1, 2]
    assert skipped == {"rows without a URI": 1}
    assert kept(entries) == ["label", "zip", "score", "source_code", "ok"]
    assert entries["label"].to_pylist() == ["cat", "cat", "dog, small"]
    assert entries["zip"].to_pylist() == ["007", None, "042"]
    assert entries["score"].to_pylist() == [1.0, 2.5, None]
    assert entries["ok"].to_pylist() == [True, False, None]
    same = CSV.replace(",", "\t").replace("dog\t small", "dog, small")
    (pictures / "list.tsv.gz").write_bytes(gzip.compress(same.encode("utf-8-sig")))
    assert listed(pictures / "list.tsv.gz")[0].drop_columns(["__stamp"]).equals(entries.drop_columns(["__stamp"]))


def test_csv_with_other_names_of_columns(pictures):
    text = "path,asset,class\r\ncats/a.png,12,3\r\nc.png,11,4\r\n"
    (pictures / "list.csv").write_bytes(text.encode())
    entries, _ = listed(pictures / "list.csv", uri_column="path", id_column="asset", label_column="class", keep=())
    assert entries["id"].to_pylist() == [12, 11]
    assert kept(entries) == ["label"]
    assert labels_of(entries)[1] == ["3", "4"]
    with pytest.raises(PipelineError, match=r"no column `uri` to read them from: it has .'path': 'string'"):
        listed(pictures / "list.csv")


def test_json_lines(pictures):
    rows = [
        {"uri": "cats/a.png", "n": 1, "mixed": 1, "tags": ["x"], "id": "first"},
        {"uri": str(pictures / "c.png"), "n": 2.5, "mixed": "one", "query": "why", "id": "second"},
        {"uri": None, "id": "third"},
    ]
    (pictures / "list.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    entries, skipped = listed(pictures / "list.jsonl")
    assert values(entries) == [0, 2]
    assert skipped == {"rows without a URI": 1}
    assert entries["n"].to_pylist() == [1.0, 2.5]
    assert entries["mixed"].to_pylist() == ["1", "one"]
    assert entries["tags"].to_pylist() == [["x"], None]
    assert entries["source_query"].to_pylist() == [None, "why"]
    assert entries["source_id"].to_pylist() == ["first", "second"]
    (pictures / "list.json").write_text((pictures / "list.jsonl").read_text())
    assert listed(pictures / "list.json", kind="jsonl")[0]["id"].equals(entries["id"])
    with pytest.raises(PipelineError, match=r"is not readable as JSON: .*; for one object a line, give the kind jsonl"):
        listed(pictures / "list.json")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"uri\n\xff\xfe\n", "is not readable as CSV"),
        ("a.csv", b"uri,x\na.png,1,2\n", "is not readable as CSV"),
        ("a.csv", b"uri,uri\na,b\n", r"the columns \['uri'\] more than once"),
        ("a.csv", b"uri\n", "its files have no rows"),
        ("a.csv", b'uri,"x\n' + b"a.png,1\n" * 200_000, "a quote in it is not closed"),
        ("a.csv", b'uri,"' + b"x" * 200_000 + b'"\na.png,1\n', "is not readable as the names of columns: field larger"),
        ("a.jsonl", b'{"uri": "a"}\n{"uri": \n', "line 2 of .*a.jsonl is not valid JSON"),
        ("a.jsonl", b"[1]\n", r"line 1 of .*a.jsonl is b'\[1\]"),
        ("a.jsonl", b'{"uri": "\xff"}\n', "line 1 of .*a.jsonl is not valid JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 of .*a.jsonl is not valid JSON .it is nested too deeply"),
        ("a.jsonl", b'{"uri": "a.png", "x": "\\ud800"}\n', "line 1 of .*a.jsonl is not valid JSON .*surrogates"),
        ("a.jsonl", b"", "no column `uri`"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PipelineError, match=message):
        listed(tmp_path / name)


def test_a_table_beside_images_only_describes_them(pictures):
    (pictures / "annotations.csv").write_text("x\n1\n")
    entries, skipped = listed(pictures)
    assert len(entries) == 3
    assert skipped == {"*.csv": 1}
    entries, skipped = listed(pictures / "cats")
    assert len(entries) == 2
    (pictures / "cats" / "list.csv").write_text("uri\na.png\n")
    entries, skipped = listed(pictures / "cats", kind="csv")
    assert values(entries) == [0]
    assert skipped == {"*.png": 2}
    with pytest.raises(PipelineError, match="has no files of the kind tar: got 3 files"):
        listed(pictures / "cats", kind="tar")


# ImageFolder.


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_the_metadata_of_an_image_folder(tmp_path, name):
    folder = tmp_path / "photos"
    for number, path in enumerate(("train/cats/a.png", "train/cats/b.png", "test/a.png")):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(png(number))
    rows = {
        "train": [{"file_name": "cats/a.png", "label": "tabby", "n": 1}, {"file_name": "cats/gone.png", "n": 2}],
        "test": [{"file_name": "a.png", "label": "siamese", "n": 3}],
    }
    for split, some in rows.items():
        table = pa.Table.from_pylist(some, pa.schema({"file_name": pa.string(), "label": pa.string(), "n": pa.int32()}))
        path = folder / split / name
        if name.endswith("csv"):
            pa.csv.write_csv(table, path)
        elif name.endswith("jsonl"):
            path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
        else:
            pq.write_table(table, path)
    entries, skipped = listed(folder)
    assert [uri.removeprefix(f"{folder}/") for uri in entries["uri"].to_pylist()] == [
        "test/a.png", "train/cats/a.png", "train/cats/b.png",
    ]  # fmt: skip
    assert entries["label"].to_pylist() == ["siamese", "tabby", None]
    assert entries["n"].to_pylist() == [3, 1, None]
    [(kind, count)] = skipped.items()
    assert kind.startswith("rows of ")
    assert kind.endswith(" without an image")
    assert count == 1
    assert kept(listed(folder, keep=("n",))[0]) == ["label", "n"]


def test_metadata_that_fits_no_image_is_refused(pictures):
    (pictures / "metadata.csv").write_text("file_name,x\nimages/a.png,1\n")
    with pytest.raises(
        PipelineError, match=r"no image of .* has one of the 1 keys .* 'images/a.png', an image is 'c.png'"
    ):
        list_corpus(pictures)
    (pictures / "metadata.csv").write_text("file_name,x\nc.png,1\nc.png,2\n")
    with pytest.raises(PipelineError, match=r"more than one row for 'c.png'"):
        list_corpus(pictures)
    (pictures / "metadata.csv").write_text("name,x\nc.png,1\n")
    assert listed(pictures)[1] == {"*.csv": 1}


# Joined metadata.


def test_metadata_is_joined_by_path_name_or_stem(pictures, tmp_path):
    table = tmp_path / "about.csv"
    for keys in (("cats/a.png", "c.png"), ("a.png", "c.png"), ("a", "c")):
        table.write_text(f"key,label,uri,size\n{keys[0]},tabby,u1,5\n{keys[1]},terrier,u2,6\nz,none,u3,7\n")
        entries, skipped = listed(pictures, join=(str(table), "key"))
        assert [uri.rpartition("/")[2] for uri in entries["uri"].to_pylist()] == ["c.png", "a.png", "b.png"]
        assert entries["label"].to_pylist() == ["terrier", "tabby", None]
        assert entries["source_uri"].to_pylist() == ["u2", "u1", None]
        assert entries["size"].to_pylist() == [6, 5, None]
        assert skipped == {"rows of about.csv without an image": 1}
    assert kept(listed(pictures, join=(str(table), "key"), keep=("size",))[0]) == ["label", "size"]
    assert listed(pictures, join=(str(table), "key"), label_column="size")[0]["label"].to_pylist() == [6, 5, None]
    for join, message in (
        ((str(table), "name"), "no column `name` to join by"),
        (("no.csv", "key"), "no file of meta"),
    ):
        with pytest.raises(PipelineError, match=message):
            listed(pictures, join=join)


def test_metadata_is_joined_by_id(tmp_path):
    about = tmp_path / "about.parquet"
    pq.write_table(pa.table({"number": [7, 5, 9], "text": ["seven", "five", "nine"]}), about)
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"id": [5, 6, 7], "image": [png(5), png(6), png(7)]}), tmp_path / "set" / "a.parquet")
    entries, _ = listed(tmp_path / "set", join=(str(about), "number"))
    assert entries["text"].to_pylist() == ["five", None, "seven"]
    pq.write_table(pa.table({"id": ["5", "x", "7"], "image": [png(5), png(6), png(7)]}), tmp_path / "set" / "a.parquet")
    entries, _ = listed(tmp_path / "set", join=(str(about), "number"))
    assert entries["text"].to_pylist() == ["five", None, "seven"]


# Tars.


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESSIONS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


def tar_of(number):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for row in range(3):
            add(tar, f"{number}{row}.png", png(10 * number + row))
            about = {"class": f"c{row}", "n": row, "score": 1 if row else 0.5, "id": row, "box": [row]}
            add(tar, f"{number}{row}.json", json.dumps(about).encode())
    return buffer.getvalue()


@pytest.mark.parametrize("said", [b"[" * 100_000, b'{"caption": "\\ud800"}', b"[1]", b"{", b"\xff"])
def test_json_of_tars_that_cannot_be_read_says_nothing(tmp_path, said):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for row, about in enumerate([b'{"caption": "a cat"}', said]):
            add(tar, f"{row}.png", png(row))
            add(tar, f"{row}.json", about)
    entries, _ = listed(tmp_path / "a.tar", keep=("caption",))
    assert entries["caption"].to_pylist() == ["a cat", None]


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_compressed_tars(tmp_path, suffix):
    # Two streams, one after the other, are how parallel compressors write.
    data = tar_of(1)
    (tmp_path / f"a.tar.{suffix}").write_bytes(COMPRESSIONS[suffix](data[:1000]) + COMPRESSIONS[suffix](data[1000:]))
    entries, _ = listed(tmp_path)
    assert values(entries) == [10, 11, 12]
    assert value_of(read_uri(entries["uri"][1].as_py())) == 11
    (tmp_path / f"a.tar.{suffix}").write_bytes(COMPRESSIONS[suffix](data)[: len(COMPRESSIONS[suffix](data)) // 2])
    *_, last = read_images(list_corpus(tmp_path))
    assert isinstance(last, OSError)


def test_values_of_json_in_tars_become_columns(tmp_path):
    for number in (1, 2):
        (tmp_path / f"{number}.tar").write_bytes(tar_of(number))
    entries, _ = listed(tmp_path, keep=("n", "score", "id", "box"), label_column="class")
    assert kept(entries) == ["n", "score", "source_id", "box", "label"]
    assert entries["label"].to_pylist() == ["c0", "c1", "c2"] * 2
    assert entries["n"].to_pylist() == [0, 1, 2] * 2
    assert entries["score"].to_pylist() == [0.5, 1.0, 1.0] * 2
    assert entries["box"].to_pylist() == ["[0]", "[1]", "[2]"] * 2
    assert kept(listed(tmp_path)[0]) == ["json"]
    with pytest.raises(PipelineError, match=r"has no \['colour'\]: it has \['box', 'class', 'id', 'n', 'score'\]"):
        listed(tmp_path, keep=("colour",))


def test_metadata_is_joined_to_the_images_of_tars(tmp_path):
    shards, about = tmp_path / "set", tmp_path / "about.csv"
    shards.mkdir()
    for number in (1, 2):
        (shards / f"{number}.tar").write_bytes(tar_of(number))
    for keys in (("10.png", "22.png"), ("10", "22")):
        about.write_text(f"key,label,size\n{keys[0]},tabby,5\n{keys[1]},terrier,6\nz,none,7\n")
        entries, _ = listed(shards, join=(str(about), "key"), keep=("n", "size"))
        assert kept(entries) == ["n", "label", "size"]
        assert entries["n"].to_pylist() == [0, 1, 2] * 2
        assert entries["label"].to_pylist() == ["tabby", None, None, None, None, "terrier"]
        assert entries["size"].to_pylist() == [5, None, None, None, None, 6]
        assert values(entries) == [10, 11, 12, 20, 21, 22]
    for keep, key, message in (
        (("colour",), "key", r"has no column \['colour'\]: it has \[.*'size'"),
        (
            None,
            "label",
            r"no image of .*set has one of the 3 keys of .*about.csv: the first key is 'tabby', ",
        ),
    ):
        with pytest.raises(PipelineError, match=message):
            listed(shards, join=(str(about), key), keep=keep)
    listing = open_listing(shards, options=CorpusOptions(join=(str(about), "key")))
    about.write_text("key,label,size\n10,tabby,5\n11,siamese,5\n")
    with pytest.raises(PipelineError, match=r"about.csv was changed since the corpus was listed with it"):
        list_all(listing)


def write_assets(path, assets):
    with tarfile.open(path, "w") as tar:
        for row, asset in enumerate(assets):
            add(tar, f"{row}.png", png(row))
            add(tar, f"{row}.json", json.dumps({} if asset is None else {"asset": asset}).encode())


def test_ids_of_tars_are_taken_from_their_json(tmp_path):
    about = tmp_path / "about.csv"
    about.write_text("number,text\n70,seventy\n90,ninety\n")
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "a.tar"
    write_assets(path, [90, 2**63 - 1, 0])
    entries, _ = listed(tmp_path / "set", id_column="asset", join=(str(about), "number"))
    assert entries["id"].to_pylist() == [90, 2**63 - 1, 0]
    assert entries["text"].to_pylist() == ["ninety", None, None]
    write_assets(path, ["x", "y", "90"])
    entries, _ = listed(tmp_path / "set", id_column="asset")
    assert entries["id"].to_pylist() == IdRule("column:asset", "set").ids_of_texts(["x", "y", "90"]).tolist()
    assert entries["asset"].to_pylist() == ["x", "y", "90"]
    for assets, message in (
        ([90, 91, 90], "1 id occurs more than once in the corpus, for example 90"),
        ([1.5, 2.5, 3.5], "`asset` in the JSON of .* must be whole numbers or texts to be ids, got double"),
        ([None] * 3, r"the JSON of the first samples of .* has no \['asset'\]"),
        ([1, 2, None], r"a.tar#2.png: its JSON must have a whole number of 0 or more, or a text, as `asset`, got None"),
        ([1, 2, -1], "as `asset`, got -1"),
    ):
        write_assets(path, assets)
        with pytest.raises(PipelineError, match=message):
            listed(tmp_path / "set", id_column="asset")


# Types.


@pytest.mark.parametrize(
    "text", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
@pytest.mark.parametrize(
    "data", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int16(), pa.binary())]
)
def test_dictionaries_views_and_large_types(tmp_path, text, data):
    def column(values, kind):
        plain = pa.array(values)
        return plain.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else plain.cast(kind)

    images, texts = [png(1), png(2), png(1)], ["a", "b", "a"]
    ids, uris = ["x", "y", "z"], ["u1", "u2", "u3"]
    table = pa.table(
        {
            "image": column(images, data),
            "label": column(texts, text),
            "id": column(ids, text),
            "uri": column(uris, text),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.set_column(1, "label", pa.array(["c", "d", "e"])), tmp_path / "b.parquet")
    entries = list_corpus(tmp_path / "a.parquet")
    assert values(entries) == [1, 2, 1]
    assert entries["label"].to_pylist() == texts
    assert entries["source_id"].to_pylist() == ids
    assert entries["uri"].to_pylist() == uris
    listing = open_listing(tmp_path)
    assert [label for chunk in listing.chunks() for label in chunk["label"].to_pylist()] == [*texts, "c", "d", "e"]
    labels_of(entries)
    pq.write_table(table.drop_columns(["image"]), tmp_path / "c.parquet")
    assert list_corpus(tmp_path / "c.parquet")["__source"].to_pylist() == [f"{tmp_path}/{uri}" for uri in uris]


def test_reserved_names_are_prefixed_and_widths_widened(tmp_path):
    names = ["code", "query", "distance", "features", "thumbnail", "__source", "source_code"]
    for number, kind in enumerate((pa.int8(), pa.int32(), pa.uint16(), pa.int64())):
        columns = {name: pa.array([number]) for name in names}
        table = pa.table({"image": [png(number)], "n": pa.array([100 + number], kind), **columns})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    entries, _ = listed(tmp_path)
    assert kept(entries) == [
        "n", "source_source_code", "source_query", "source_distance", "source_features", "source_thumbnail",
        "source___source", "source_code",
    ]  # fmt: skip
    assert entries["n"].to_pylist() == [100, 101, 102, 103]
    assert entries.schema.field("n").type == pa.int64()
    assert np.array_equal(entries["source_source_code"], [0, 1, 2, 3])
    pq.write_table(pa.table({"image": [png(9)], "n": ["nine"]}), tmp_path / "9.parquet")
    with pytest.raises(PipelineError, match="disagree on their columns"):
        listed(tmp_path)
