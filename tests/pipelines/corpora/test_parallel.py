"""A corpus that workers list has the list that one process makes."""

from __future__ import annotations

import io
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashlight.pipelines.corpora.corpus import open_listing
from hashlight.pipelines.corpora.kinds import parquet
from hashlight.pipelines.corpora.listing import split_walk, walk
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.corpora.work import WorkList, list_work

from .layouts import add, png, write_img2dataset


def write_parquet(folder):
    folder.mkdir()
    for number in range(3):
        images = pa.array([png(number), None, png(9)], pa.binary())
        table = pa.table({"image": images, "n": pa.array([number] * 3, (pa.int8(), pa.int32(), pa.int64())[number])})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=1)
    (folder / "notes.txt").write_text("")


def write_tars(folder):
    folder.mkdir()
    for number in range(20):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for row in range(5):
                add(tar, f"{number}/{row}.png", png(row))
        (folder / f"{number:02d}.tar").write_bytes(buffer.getvalue())


def write_csv(folder):
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.csv").write_text("uri,n\n" + "".join(f"{number}{row}.png,{row}\n" for row in range(4)))


def content(path):
    """The units of a work list, and what it says of them."""
    with pa.memory_map(str(path)) as raw:
        work = WorkList(raw, str(path))
        return [(unit.schema, unit.to_pydict()) for unit in work.read_all()], [
            column.tolist() for column in work.units()
        ]


CORPORA = {
    "parquet": write_parquet,
    "tars": write_tars,
    "csv": write_csv,
    "files": lambda folder: write_img2dataset(folder, "files", shards=3),
    "webdataset": lambda folder: write_img2dataset(folder, "webdataset", shards=3),
}


@pytest.mark.parametrize("kind", CORPORA)
def test_workers_make_the_list_that_one_process_makes(tmp_path, ray_session, monkeypatch, kind):
    monkeypatch.setattr(parquet, "_PART_ROWS", 1)
    CORPORA[kind](tmp_path / "corpus")
    listing = open_listing(tmp_path / "corpus")
    if kind == "parquet":
        assert len(list(listing.pieces(True))) == 9
    lists = {workers: tmp_path / f"{workers}.arrow" for workers in (None, 1, 3)}
    summaries = [
        list_work(tmp_path / "corpus", path, unit_images=2, workers=workers) for workers, path in lists.items()
    ]
    assert summaries[0].skipped == summaries[1].skipped == summaries[2].skipped
    assert summaries[0].digest == summaries[1].digest == summaries[2].digest
    first, *others = map(content, lists.values())
    assert all(other == first for other in others)
    assert summaries[0].units > 1


def test_workers_list_what_is_joined_and_tell_what_is_wrong(tmp_path, ray_session):
    write_csv(tmp_path / "corpus")
    (tmp_path / "about.csv").write_text("key,x\n00,1\n23,2\nzz,3\n")
    options = CorpusOptions(join=(str(tmp_path / "about.csv"), "key"))
    alone, together = (
        list_work(tmp_path / "corpus", tmp_path / f"{workers}.arrow", options=options, workers=workers)
        for workers in (None, 2)
    )
    assert alone == together
    assert alone.skipped == {"rows of about.csv without an image": 1}
    with open(tmp_path / "corpus" / "1.csv", "a") as file:
        file.write("a,b,c,d\n")
    with pytest.raises(Exception, match=r"1\.csv is not readable as CSV"):
        list_work(tmp_path / "corpus", tmp_path / "work.arrow", workers=2)
    assert not (tmp_path / "work.arrow").exists()


NAMES = (
    "a", "a-b.png", "a/1.png", "a/b/2.png", "a.png", "ab/3.png", ".h/4.png", ".h/5.png", ".x.png", "c/.d/6.png",
    "c/notes.txt", "z.png",
)  # fmt: skip


@pytest.mark.parametrize("size", [0, 1])
def test_the_parts_of_a_bucket_are_what_is_in_it(bucket, size):
    """Whether an empty object has the name of a folder, or a full one."""
    for name in NAMES:
        bucket.put(f"photos/{name}", b"x" * (size if name == "a" else 1))
    uri = bucket.uri("photos")
    whole, parts = Counter(), Counter()
    expected = list(walk(uri, whole))
    found = [file for part in split_walk(uri) for file in part(parts)]
    assert found == expected
    assert parts == whole
    assert whole["hidden"] == 3
    assert len(split_walk(uri)) > 3


def test_workers_list_a_bucket(bucket, tmp_path, ray_session):
    for name in NAMES:
        bucket.put(f"photos/{name}", name.encode())
    alone, together = (
        list_work(bucket.uri("photos"), tmp_path / f"{workers}.arrow", workers=workers) for workers in (None, 2)
    )
    assert alone == together
    assert alone.images == 6
    assert content(tmp_path / "None.arrow") == content(tmp_path / "2.arrow")
