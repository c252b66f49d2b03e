"""Ids: what they are made from, and what becomes of images whose hashes are the same."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashlight.pipelines.corpora import ids
from hashlight.pipelines.corpora.corpus import list_corpus
from hashlight.pipelines.corpora.work import WorkList, list_work
from hashlight.pipelines.jobs.errors import PipelineError

WIDTH = 5


def narrow(text, bits=WIDTH):
    """The hash of a text in so few bits that many have the same."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> (64 - bits)


def settled(first, bits=WIDTH):
    """The id of each image, in order, by its hash: the first that is free of that and the hashes of it and a count."""
    found = []
    for id_ in first:
        tries, hashed = 0, id_
        while id_ in found:
            tries += 1
            id_ = narrow(hashed.to_bytes(8, "little") + tries.to_bytes(8, "little"), bits)
        found.append(id_)
    return found


def entries_of(path):
    with pa.OSFile(str(path)) as raw:
        work = WorkList(raw, "work.arrow")
        return pa.concat_tables([work.read(unit) for unit in range(work.summary.units)])


@pytest.fixture
def narrow_hashes(monkeypatch):
    monkeypatch.setattr(ids, "HASH_BITS", WIDTH)


def write_files(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


NAMES = [f"{number}.png" for number in range(16)]


@pytest.mark.parametrize("unit_images", [1, 5, 100])
def test_names_of_a_folder_with_the_same_hash(tmp_path, narrow_hashes, unit_images):
    folder = write_files(tmp_path / "photos", NAMES)
    first = [narrow(f"photos/{name}".encode()) for name in sorted(NAMES)]
    assert len(set(first)) < len(first), "some have the same hash"
    list_work(folder, tmp_path / "work.arrow", unit_images=unit_images)
    entries = entries_of(tmp_path / "work.arrow")
    assert entries["id"].to_pylist() == settled(first)
    assert entries["uri"].to_pylist() == [str(folder / name) for name in sorted(NAMES)]
    assert list_corpus(folder).equals(entries)
    assert [path.name for path in tmp_path.iterdir() if "work" in path.name] == ["work.arrow"]


CRASH = """
import os, sys
from hashlight.pipelines.corpora import ids, work

ids.HASH_BITS = 5
lists = []
def start(self, path):
    lists.append(path)
    if len(lists) == 2:
        os._exit(9)
    begin(self, path)
begin, work.WorkWriter.__init__ = work.WorkWriter.__init__, start
work.list_work(sys.argv[1], sys.argv[2])
"""


def test_what_a_crash_leaves_while_ids_are_settled_is_removed_by_the_next_run(tmp_path):
    folder = write_files(tmp_path / "photos", NAMES)
    (tmp_path / "lists").mkdir()
    output = tmp_path / "lists" / "work.arrow"
    other = tmp_path / "lists" / f".other.arrow.{'0' * 32}.tmp"
    other.write_bytes(b"another list is being written")
    done = subprocess.run([sys.executable, "-c", CRASH, str(folder), str(output)], capture_output=True, check=False)
    assert done.returncode == 9, done.stderr
    assert len(list(output.parent.iterdir())) == 2
    list_work(folder, output)
    assert sorted(output.parent.iterdir()) == sorted([other, output])


def test_lines_and_rows_with_the_same_hash(tmp_path, narrow_hashes):
    (tmp_path / "list.txt").write_text("\n".join(NAMES))
    first = [narrow(f"{tmp_path.name}/{name}".encode()) for name in NAMES]
    assert list_corpus(tmp_path / "list.txt")["id"].to_pylist() == settled(first)
    pq.write_table(pa.table({"image": [b"x"] * 16}), tmp_path / "p.parquet")
    first = [narrow(f"{tmp_path.name}/p.parquet#{row}".encode()) for row in range(16)]
    assert len(set(first)) < len(first)
    list_work(tmp_path / "p.parquet", tmp_path / "work.arrow", unit_images=3)
    assert entries_of(tmp_path / "work.arrow")["id"].to_pylist() == settled(first)


def test_an_image_that_is_listed_twice_and_an_id_that_is_given_twice_are_refused(tmp_path, narrow_hashes):
    (tmp_path / "list.txt").write_text("a.png\nb.png\na.png\n")
    with pytest.raises(PipelineError, match=r"1 id occurs .*/a\.png and .*/a\.png"):
        list_work(tmp_path / "list.txt", tmp_path / "work.arrow")
    pq.write_table(pa.table({"image": [b"x"] * 3, "id": [4, 5, 4]}), tmp_path / "p.parquet")
    with pytest.raises(PipelineError, match=r"1 id occurs .* 4 for .*#0 and .*#2: .* its own `id`"):
        list_work(tmp_path / "p.parquet", tmp_path / "work.arrow")
    assert not (tmp_path / "work.arrow").exists()


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), max_size=30), st.lists(st.integers(1, 9), min_size=1))
def test_settling_does_not_depend_on_how_the_rows_are_cut(first, sizes):
    column = np.array(first, np.int64)
    tables, start = [], 0
    while start < len(column):
        size = sizes[len(tables) % len(sizes)]
        tables.append(pa.table({"id": column[start : start + size]}))
        start += size
    repeated = np.array([id_ for id_ in set(first) if first.count(id_) > 1], np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "HASH_BITS", 6)
        moved = ids.settle_ids(repeated, lambda: tables)
        found = [table["id"].to_pylist() for table in (ids.with_ids(*pair) for pair in ids.each_moved(tables, moved))]
    assert [id_ for part in found for id_ in part] == settled(first, 6)


def test_two_folders_with_the_same_names_have_different_ids(tmp_path):
    one, two = (write_files(tmp_path / where / name, NAMES) for where, name in (("a", "one"), ("a", "two")))
    copy = write_files(tmp_path / "b" / "one", NAMES)
    assert not set(list_corpus(one)["id"].to_pylist()) & set(list_corpus(two)["id"].to_pylist())
    assert list_corpus(copy)["id"].equals(list_corpus(one)["id"])

    def planned(folder, rule):
        list_work(folder, tmp_path / "work.arrow", ids=rule)
        return entries_of(tmp_path / "work.arrow")["id"].to_pylist()

    assert planned(two, "name:one") == planned(one, "auto") == planned(copy, "name")
    assert not set(planned(one, "uri")) & set(planned(copy, "uri"))


def test_a_file_of_a_folder_has_the_ids_that_it_has_within_the_folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b"):
        pq.write_table(pa.table({"image": [b"x"] * 3}), folder / f"{name}.parquet")
    whole = list_corpus(folder)["id"].to_pylist()
    assert list_corpus(folder / "b.parquet")["id"].to_pylist() == whole[3:]
    uris = ["https://example.org/1.png", "/pictures/2.png", "3.png"]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "list.txt").write_text("\n".join(uris))
    one, two = (list_corpus(tmp_path / name / "list.txt")["id"].to_pylist() for name in ("one", "two"))
    assert (one[:2] == two[:2], one[2] == two[2]) == (True, False)


def test_ids_from_a_column(tmp_path):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [b"x"] * 3, "asset": [30, 10, 20], "id": [1, 2, 3]}), buffer)
    (tmp_path / "p.parquet").write_bytes(buffer.getvalue())

    def planned(rule):
        summary = list_work(tmp_path / "p.parquet", tmp_path / "work.arrow", ids=rule)
        return summary, entries_of(tmp_path / "work.arrow")

    summary, entries = planned("column:asset")
    assert entries["id"].to_pylist() == [30, 10, 20] == entries["asset"].to_pylist()
    assert (summary.ids, summary.name) == ("column:asset", tmp_path.name)
    assert planned("auto")[1]["id"].to_pylist() == [1, 2, 3]
    assert planned("name")[1]["id"].to_pylist() == [
        narrow(f"{tmp_path.name}/p.parquet#{row}".encode(), 63) for row in range(3)
    ]
    with pytest.raises(PipelineError, match="has no column `other` to take ids from"):
        planned("column:other")
    with pytest.raises(ValueError, match=r"ids are made from auto, name, uri, content, .* got 'size'"):
        planned("size")
    with pytest.raises(PipelineError, match="has no column `asset` to take ids from, which only Parquet"):
        list_work(write_files(tmp_path / "photos", NAMES), tmp_path / "work.arrow", ids="column:asset")
