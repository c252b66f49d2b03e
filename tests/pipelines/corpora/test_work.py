"""Corpora of every kind and place, and the work lists made from them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hashlight.engine.ids import RepeatedIds
from hashlight.engine.places.opening import open_place
from hashlight.pipelines.codes.parts import list_parts
from hashlight.pipelines.corpora.corpus import list_corpus, read_images, read_uri
from hashlight.pipelines.corpora.work import WorkList, WorkWriter, list_work, read_work
from hashlight.pipelines.jobs.errors import PipelineError


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pixel(data):
    return int(np.asarray(Image.open(io.BytesIO(data)))[0, 0])


def id_of(folder, name):
    text = f"{folder.name}/{name}" if folder else name
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def units_of(path):
    with pa.OSFile(str(path)) as raw:
        work = WorkList(raw, "work.arrow")
        return [work.read(unit) for unit in range(work.summary.units)]


@pytest.fixture
def folder(tmp_path):
    for number in range(10):
        path = tmp_path / "photos" / f"class {number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return tmp_path / "photos"


def test_units_are_the_listing_in_order(folder, tmp_path):
    summary = list_work(folder, tmp_path / "work.arrow", unit_images=4)
    assert (summary.units, summary.images, summary.kind) == (3, 10, "images")
    assert read_work(tmp_path / "work.arrow") == summary
    units = units_of(tmp_path / "work.arrow")
    assert [len(unit) for unit in units] == [4, 4, 2]
    assert pa.concat_tables(units).equals(list_corpus(folder))
    assert [pixel(data) for unit in units for data in read_images(unit)] == [0, 3, 6, 9, 1, 4, 7, 2, 5, 8]


def test_the_digest_changes_with_what_was_listed(folder, tmp_path):
    def digest(**options):
        return list_work(folder, tmp_path / "work.arrow", **options).digest

    first = digest()
    assert digest(unit_images=3) == first
    (folder / "class 0" / "0.png").write_bytes(png(200) + b" ")
    second = digest()
    (folder / "class 0" / "new.png").write_bytes(png(1))
    assert len({first, second, digest()}) == 3


def test_a_failed_listing_leaves_the_old_work_list(folder, tmp_path):
    list_work(folder, tmp_path / "work.arrow")
    before = (tmp_path / "work.arrow").read_bytes()
    (tmp_path / "twice.txt").write_text("a.png\nb.png\na.png\n")
    with pytest.raises(
        PipelineError, match=f"1 id occurs more than once in the corpus, for example {id_of(tmp_path, 'a.png')}"
    ):
        list_work(tmp_path / "twice.txt", tmp_path / "work.arrow")
    assert (tmp_path / "work.arrow").read_bytes() == before
    assert not list(tmp_path.glob(".*"))
    assert read_work(tmp_path / "twice.txt") is None
    assert read_work(folder) is None


def test_a_list_of_uris(folder, tmp_path):
    absolute = str(folder / "class 1" / "4.png")
    (tmp_path / "uris.txt").write_text(f"photos/class 0/3.png\n\n  {absolute}\n")
    entries = list_corpus(tmp_path / "uris.txt")
    assert entries["uri"].to_pylist() == [str(folder / "class 0" / "3.png"), absolute]
    assert entries["id"].to_pylist() == [id_of(tmp_path, "photos/class 0/3.png"), id_of(None, absolute)]
    assert [pixel(data) for data in read_images(entries)] == [3, 4]


def test_parquet_of_uris(folder, tmp_path):
    table = pa.table({"uri": ["photos/class 0/3.png", "photos/none.png"], "id": [7, 8], "price": [1.5, 2.5]})
    pq.write_table(table, tmp_path / "uris.parquet")
    entries = list_corpus(tmp_path / "uris.parquet")
    assert entries["id"].to_pylist() == [7, 8]
    assert entries["price"].to_pylist() == [1.5, 2.5]
    first, second = read_images(entries)
    assert pixel(first) == 3
    assert isinstance(second, FileNotFoundError)
    assert pixel(read_uri(entries["uri"][0].as_py())) == 3


def test_webdataset_shards(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    first = {"a.png": png(1), "a.cls": b"7\n", "b.cls": b"8", "b.png": png(2), ".c.png": png(9)}
    (shards / "0.tar").write_bytes(tar_of(first))
    second = tar_of({"x/a.png": png(3), "x/a.cls": b"5", "only.cls": b"6"})
    (shards / "1.tar.gz").write_bytes(gzip.compress(second))
    entries = list_corpus(shards)
    assert entries["uri"].to_pylist() == [
        f"{shards}/0.tar#a.png",
        f"{shards}/0.tar#b.png",
        f"{shards}/1.tar.gz#x/a.png",
    ]
    assert entries["id"].to_pylist()[:3] == [
        id_of(shards, name) for name in ("0.tar#a.png", "0.tar#b.png", "1.tar.gz#x/a.png")
    ]
    assert entries["label"].to_pylist() == ["7", "8", "5"]
    assert [pixel(data) for data in read_images(entries)] == [1, 2, 3]
    assert pixel(next(read_images(entries.slice(1, 1)))) == 2
    assert pixel(read_uri(f"{shards}/1.tar.gz#x/a.png")) == 3
    summary = list_work(shards, tmp_path / "work.arrow")
    assert (summary.kind, summary.units, summary.images) == ("shards", 2, None)


def test_a_truncated_shard_gives_what_comes_before_the_cut(tmp_path):
    data = tar_of({f"{number}.png": png(number) for number in range(6)})
    (tmp_path / "a.tar").write_bytes(data[: 3 * 1024 + 512 + 20])
    *images, last = read_images(list_corpus(tmp_path / "a.tar"))
    assert [pixel(data) for data in images] == [0, 1, 2]
    assert "cannot be read from here on" in str(last)
    (tmp_path / "b.tar").write_bytes(b"this is no tar" * 100)
    (only,) = read_images(list_corpus(tmp_path / "b.tar"))
    assert "damaged" in str(only)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_with_their_labels(tmp_path, suffix):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(256, size=(50, 6, 5), dtype=np.uint8), rng.integers(10, size=50, dtype=np.uint8)
    pack = gzip.compress if suffix else bytes
    header = struct.pack(">HBB3I", 0, 8, 3, 50, 6, 5)
    images = tmp_path / f"train-images-idx3-ubyte{suffix}"
    images.write_bytes(pack(header + pixels.tobytes()))
    (tmp_path / f"train-labels-idx1-ubyte{suffix}").write_bytes(
        pack(struct.pack(">HBBI", 0, 8, 1, 50) + labels.tobytes())
    )
    for corpus in (tmp_path, images):
        entries = list_corpus(corpus)
        assert entries["label"].to_pylist() == labels.tolist()
        some = entries.take([0, 1, 7, 49])
        found = [np.asarray(Image.open(io.BytesIO(data))) for data in read_images(some)]
        np.testing.assert_array_equal(found, pixels[[0, 1, 7, 49]])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(read_uri(f"{images}#33")))), pixels[33])
    images.write_bytes(pack(header + pixels.tobytes()[:100]))
    assert [isinstance(data, OSError) for data in read_images(some)] == [False, False, True, True]


def test_a_bucket_is_a_corpus_like_a_folder(folder, tmp_path, bucket):
    for path in folder.rglob("*.png"):
        bucket.put(f"photos/{path.relative_to(folder)}", path.read_bytes())
    bucket.put("photos/.hidden/a.png", png(1))
    bucket.put("other/b.png", png(1))
    here, there = list_corpus(folder), list_corpus(bucket.uri("photos"))
    assert there.select(["id", "label"]).equals(here.select(["id", "label"]))
    assert there["uri"][0].as_py() == f"s3://{bucket.name}/photos/class 0/0.png"
    assert list(read_images(there)) == list(read_images(here))
    assert len(list(open_place(bucket.uri("photos")).walk())) == 10
    summary = list_work(bucket.uri("photos"), bucket.uri("work/list.arrow"), unit_images=3)
    assert read_work(bucket.uri("work/list.arrow")) == summary
    bucket.put("shards/0.tar", tar_of({"a.png": png(1), "b.png": png(2)}))
    assert [pixel(data) for data in read_images(list_corpus(bucket.uri("shards")))] == [1, 2]
    with pytest.raises(PipelineError, match="no corpus at"):
        list_corpus(bucket.uri("nothing"))


def test_credentials_in_a_uri_are_used_and_not_shown(folder, tmp_path, bucket):
    query = bucket.uri("").partition("?")[2]
    for path in folder.rglob("*.png"):
        bucket.put(f"photos/{path.relative_to(folder)}", path.read_bytes())
    bucket.put("list.txt", b"photos/class 0/0.png\n")
    with_key = f"s3://KEY:SECRET@{bucket.name}"
    for name in ("photos", "list.txt"):
        listed = list_corpus(f"{with_key}/{name}?{query}")
        assert listed["uri"][0].as_py() == f"s3://{bucket.name}/photos/class 0/0.png"
        assert next(read_images(listed)) == (folder / "class 0" / "0.png").read_bytes()
    summary = list_work(f"{with_key}/photos?{query}", tmp_path / "work.arrow")
    assert summary.corpus == f"s3://{bucket.name}/photos"
    bucket.put("photos/x.parquet", b"")
    for name in ("nothing", "photos"):
        with pytest.raises(PipelineError) as raised:
            list_corpus(f"{with_key}/{name}?{query}")
        assert "SECRET" not in str(raised.value)


def test_any_file_system_of_fsspec(folder):
    memory = fsspec.filesystem("memory")
    for path in folder.rglob("*.png"):
        memory.pipe(f"/photos/{path.relative_to(folder).as_posix()}", path.read_bytes())
    entries = list_corpus("memory://photos")
    assert entries.select(["id", "label"]).equals(list_corpus(folder).select(["id", "label"]))
    assert [pixel(data) for data in read_images(entries)] == [0, 3, 6, 9, 1, 4, 7, 2, 5, 8]


@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_repeated_ids_are_found_in_memory_and_on_disk(size):
    rng = np.random.default_rng(1)
    ids = rng.permutation(size).astype(np.int64) * 1024
    repeated = rng.choice(ids, 5, replace=False)
    with RepeatedIds() as check:
        for part in np.array_split(np.concatenate([ids, repeated, repeated[:2]]), 7):
            check.add(part)
        assert sorted(check.find()) == sorted(repeated)


def test_parts_are_in_the_order_of_their_numbers(tmp_path):
    (tmp_path / "sidecars").mkdir()
    numbers = [0, 99_999, 100_000, 100_001, 1_000_000]
    for number in numbers:
        said = json.dumps({"codes": number + 1, "sha256": "0" * 64})
        (tmp_path / "sidecars" / f"{number:05d}.json").write_text(said)
    assert [part.rows - 1 for part in list_parts(tmp_path)] == numbers


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"__start": [5], "__stop": [5]}, "a range of a file, got one from 5 to 5"),
        ({"__start": [0], "__stop": [-2]}, "a range of a file, got one from 0 to -2"),
        ({"__start": [-512], "__stop": [-1]}, "a range of a file, got one from -512"),
        ({"__start": ["0"], "__stop": ["1"]}, "expected whole numbers"),
    ],
)
def test_ranges_of_a_tar_that_lead_nowhere_are_refused(tmp_path, columns, message):
    (tmp_path / "a.tar").write_bytes(tar_of({"0.png": png(0)}))
    summary = list_work(tmp_path / "a.tar", tmp_path / "work.arrow")
    entry = units_of(tmp_path / "work.arrow")[0]
    for name, values in columns.items():
        entry = entry.set_column(entry.column_names.index(name), name, pa.array(values))
    with WorkWriter(tmp_path / "forged.arrow") as work:
        work.add(entry)
        work.finish(summary)
    with pytest.raises(PipelineError, match=message):
        units_of(tmp_path / "forged.arrow")
