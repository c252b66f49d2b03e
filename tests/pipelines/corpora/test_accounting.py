"""Every file of a corpus is an entry, describes one, or is counted as left out, by kind; whatever the files are."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from hashlight.pipelines.corpora.corpus import list_corpus, open_listing, read_images
from hashlight.pipelines.corpora.kinds import webdataset
from hashlight.pipelines.corpora.kinds.webdataset import read_shard
from hashlight.pipelines.corpora.listing import SHARDS
from hashlight.pipelines.corpora.work import list_work
from hashlight.pipelines.decoding.images import readable_images
from hashlight.pipelines.jobs.errors import PipelineError

STEMS = ("a", "b", "IMG_2020.01.01", "IMG_2020.01.02", "IMG_2020.02", "v1.2 final", "é")
IMAGES = (".png", ".PNG", ".jpeg", ".heic")
OTHERS = (".txt", ".NPY", ".cls", ".json", ".tar.part", "")
FOLDERS = ("", "d/", "d.1/e/", "d.1/", ".h/", "d/.git/", "d/.git/objects/")

names = st.builds(
    lambda folder, hidden, stem, suffix: folder + hidden + stem + suffix,
    st.sampled_from(FOLDERS),
    st.sampled_from(("", "", "", ".")),
    st.sampled_from(STEMS),
    st.sampled_from(IMAGES + OTHERS),
)
files = st.lists(names, unique=True, max_size=25)
local_runs = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
bucket_runs = settings(deadline=None, max_examples=6, suppress_health_check=list(HealthCheck))


def is_image(name):
    return name.lower().endswith(tuple(suffix.lower() for suffix in IMAGES))


def kind(name):
    base = name.rpartition("/")[2]
    return "*." + base.rpartition(".")[2].lower() if "." in base else "without a suffix"


def hidden_root(name):
    """The name up to the first part that begins with a dot, or None."""
    parts = name.split("/")
    return next(("/".join(parts[: n + 1]) for n, part in enumerate(parts) if part.startswith(".")), None)


def expected_of_folder(names):
    """The images of a folder of images, and what is left out: a hidden folder counts once, whatever is in it."""
    visible = [name for name in names if hidden_root(name) is None]
    skipped = Counter(kind(name) for name in visible if not is_image(name))
    skipped["hidden"] = len({hidden_root(name) for name in names} - {None})
    return sorted(name for name in visible if is_image(name)), +skipped


def seen(corpus):
    """What a listing has: the names of its entries, their bytes by name, and the counts of what is left out."""
    listing = open_listing(corpus)
    entries = [row for chunk in listing.chunks() for row in chunk.to_pylist()]
    if listing.kind == SHARDS:
        samples = [sample for entry in entries for sample in read_shard(entry["__source"], skipped=listing.skipped)]
        return samples, listing.skipped
    return entries, listing.skipped


class Local:
    """A place on this machine, for one example."""

    def __init__(self, folder):
        self.folder = folder

    def put(self, name, data):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def uri(self, name=""):
        return str(self.folder / name)


class Prefix:
    """A prefix of a bucket, for one example."""

    def __init__(self, bucket):
        self.bucket, self.prefix = bucket, uuid.uuid4().hex

    def put(self, name, data):
        self.bucket.put(f"{self.prefix}/{name}", data)

    def uri(self, name=""):
        return self.bucket.uri(f"{self.prefix}/{name}".rstrip("/"))


def check_folder(place, names):
    images, skipped = expected_of_folder(names)
    for name in names:
        place.put(name, name.encode())
    if not any(not name.endswith(".heic") for name in images):
        with pytest.raises(PipelineError, match=r"no corpus at|has no images"):
            open_listing(place.uri())
        return
    entries, left_out = seen(place.uri())
    root = place.uri().partition("?")[0]
    assert sorted(entry["uri"].removeprefix(f"{root}/") for entry in entries) == images
    assert left_out == skipped
    assert list_work(place.uri(), place.uri("../list.arrow") if isinstance(place, Local) else
                     place.bucket.uri(f"{place.prefix}-list.arrow")).skipped == skipped  # fmt: skip
    # Seen = entries + left out, where a hidden folder is seen as one.
    assert len(entries) + left_out.total() == len({hidden_root(name) or name for name in names})
    data = {entry["uri"].removeprefix(f"{root}/"): entry for entry in entries}
    read = read_images(pa.Table.from_pylist(entries))
    assert dict(zip(data, read, strict=True)) == {name: name.encode() for name in images}


@local_runs
@given(names=files)
@example(names=["d/IMG_2020.01.01.png", "d/.git/a.png", "d/.git/b.png", "d/a.txt", "b"])
def test_folders(tmp_path, names):
    place = Local(tmp_path / uuid.uuid4().hex / "photos")
    place.folder.mkdir(parents=True)
    check_folder(place, names)


@bucket_runs
@given(names=files)
@example(names=["d/IMG_2020.01.01.png", "d/.git/a.png", "d/.git/b.png", "d/a.txt", "b"])
def test_folders_in_a_bucket(bucket, names):
    check_folder(Prefix(bucket), names)


links = st.lists(
    st.tuples(
        st.sampled_from(("in", "in/p", "in/p/q", "in/r", "out", "out/s", "out/s/.h")),
        st.sampled_from(("in", "in/p", "in/p/q", "in/r", "out", "out/s", "out/s/.h", "")),
    ),
    max_size=6,
)


def reached(folder, seen):
    """The real folders that are reached from one through visible folders and links, by a plain search."""
    seen.add(folder.resolve())
    for child in folder.iterdir():
        if child.is_dir() and not child.name.startswith(".") and child.resolve() not in seen:
            reached(child, seen)
    return seen


@local_runs
@given(links=links)
@example(links=[("in/p", "in"), ("in/r", "in/p")])
@example(links=[("in/p/q", "in/r"), ("in/r", "in/p")])
@example(links=[("in", "out/s"), ("in/r", "out"), ("out/s", "in")])
@example(links=[("in", "out/s"), ("in", "out/s/.h")])
def test_links_are_followed_and_each_folder_is_listed_once(tmp_path, links):
    top = tmp_path / uuid.uuid4().hex
    for number, folder in enumerate(("in/p/q", "in/p", "in/r", "in", "out/s/.h", "out/s", "out")):
        (top / folder).mkdir(parents=True, exist_ok=True)
        (top / folder / f"{number}.png").write_bytes(b"%d" % number)
    for number, (where, to) in enumerate(links):
        (top / where / f"link {number}").symlink_to(top / to, target_is_directory=True)
    entries, left_out = seen(top / "in")
    folders = reached(top / "in", set())
    expected = [file for folder in folders for file in folder.iterdir() if file.suffix]
    found = [Path(entry["uri"]) for entry in entries]
    assert sorted(file.resolve() for file in found) == sorted(expected)
    own = [file for file in found if file.is_relative_to(top / "in") and file.resolve() == file]
    assert len(own) == 4, "what lies below the folder has its own name, whatever links lead there"
    # A folder is come to once from outside, by its parent or a link; all other ways to it are counted.
    ways = sum(child.is_dir() and child.name[0] != "." for folder in folders for child in folder.iterdir())
    hidden = sum(child.name[0] == "." for folder in folders for child in folder.iterdir())
    assert left_out == +Counter({"folders that are listed already": ways - len(folders) + 1, "hidden": hidden})


def test_folders_that_link_to_each_other_are_walked_once(tmp_path):
    """Each of twelve has links to all others: along every path they would be walked a hundred million times."""
    for number in range(12):
        (tmp_path / "photos" / f"{number}").mkdir(parents=True)
        (tmp_path / "photos" / f"{number}" / "a.png").write_bytes(b"1")
        for other in set(range(12)) - {number}:
            os.symlink(tmp_path / "photos" / f"{other}", tmp_path / "photos" / f"{number}" / f"to {other}")
    entries, left_out = seen(tmp_path / "photos")
    assert len(entries) == 12
    assert left_out == {"folders that are listed already": 12 * 11}


def test_a_folder_behind_a_link_is_a_class(tmp_path):
    (tmp_path / "all" / "cats").mkdir(parents=True)
    (tmp_path / "all" / "cats" / "1.png").write_bytes(b"1")
    (tmp_path / "photos").mkdir()
    os.symlink(tmp_path / "all" / "cats", tmp_path / "photos" / "cat")
    for name, to in (("broken.png", "nowhere"), ("self.png", "self.png"), ("loop", ".")):
        os.symlink(to, tmp_path / "photos" / name)
    entries = list_corpus(tmp_path / "photos")
    assert [uri.removeprefix(f"{tmp_path}/") for uri in entries["uri"].to_pylist()] == [
        "photos/broken.png",
        "photos/cat/1.png",
        "photos/self.png",
    ]
    assert entries["label"].to_pylist() == [None, "cat", None]
    broken, good, looped = read_images(entries)
    assert good == b"1"
    assert isinstance(broken, FileNotFoundError)
    assert isinstance(looped, OSError)


def tar_of(members, mode="w", **options):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.LNKTYPE, "elsewhere"
                tar.addfile(member)
            else:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def expected_of_shard(members):
    """The images of a shard as (name, bytes or None, attributes), the number of texts used, and what is left out."""
    skipped = Counter()
    wanted = []
    for name, data in members:
        if any(part.startswith(".") and part != "." for part in name.split("/")):
            skipped["hidden"] += 1
        elif is_image(name):
            wanted.append((name, data))
        elif data is None:
            skipped["links and devices"] += 1
        elif name.lower().endswith((".txt", ".cls", ".json")):
            wanted.append((name, data))
        else:
            skipped[kind(name)] += 1
    samples = []
    for name, data in wanted:
        folder, _, base = name.rpartition("/")
        key = (folder, base.partition(".")[0])
        if not samples or samples[-1][0] != key:
            samples.append((key, []))
        samples[-1][1].append((name, data))
    images, described = [], 0
    for (folder, first), of_sample in samples:
        used = set()
        shared = f"{folder}/{first}" if folder else first
        for name, data in of_sample:
            if not is_image(name):
                continue
            attributes = {}
            for stem in (shared, name.rpartition(".")[0]):
                for other, text in of_sample:
                    if not is_image(other) and other.rpartition(".")[0] == stem:
                        attributes[other.rpartition(".")[2].lower().replace("cls", "label")] = text.decode()
                        used.add(other)
            images.append((name, data, attributes))
        described += len(used)
        skipped.update(
            f"{kind(name)} without an image" for name, _ in of_sample if not is_image(name) and name not in used
        )
    return images, described, skipped


members = st.lists(
    st.tuples(st.one_of(names, names.map(lambda name: f"./{name}")), st.sampled_from((b"1", b"22", b"333", None))),
    unique_by=lambda member: (member[0].lower().removeprefix("./"),),
    max_size=25,
).map(lambda found: sorted(found, key=lambda member: member[0].rpartition("/")))


def check_shard(place, name, members, mode):
    place.put(f"shards/{name}", tar_of(members, mode))
    place.put("shards/notes.md", b"")
    images, described, skipped = expected_of_shard(members)
    samples, left_out = seen(place.uri("shards"))
    assert [
        (sample.name, sample.data if isinstance(sample.data, bytes) else None, sample.attributes) for sample in samples
    ] == images
    assert left_out == skipped + Counter({"*.md": 1})
    assert len(samples) + described + left_out.total() == len(members) + 1
    return images


PHOTOS = [(f"IMG_2020.01.{number:02d}.png", b"%d" % number) for number in range(1, 11)]
CLASSES = [(f"IMG_2020.01.{number:02d}.cls", b"class %d" % number) for number in range(1, 11)]


@local_runs
@given(members=members, compressed=st.booleans())
@example(members=PHOTOS, compressed=False)
@example(members=sorted(PHOTOS + CLASSES), compressed=True)
@example(
    members=[("1.left.jpeg", b"1"), ("1.cls", b"x"), ("1.right.jpeg", b"2"), ("1.right.cls", b"y")], compressed=False
)
def test_shards(tmp_path, members, compressed):
    place = Local(tmp_path / uuid.uuid4().hex)
    check_shard(place, "0.tar.gz" if compressed else "0.tar", members, "w:gz" if compressed else "w")


@bucket_runs
@given(members=members)
@example(members=PHOTOS)
def test_shards_in_a_bucket(bucket, members):
    check_shard(Prefix(bucket), "0.tar", members, "w")


def test_photographs_of_one_day_are_as_many_images(tmp_path):
    """Up to the first dot they have one name, so that WebDataset itself takes them for one sample."""
    images = check_shard(Local(tmp_path), "0.tar", sorted(PHOTOS + CLASSES), "w")
    assert [(name, attributes["label"]) for name, _, attributes in images] == [
        (f"IMG_2020.01.{number:02d}.png", f"class {number}") for number in range(1, 11)
    ]
    entries = list_corpus(tmp_path / "shards")
    assert entries["label"].to_pylist() == [f"class {number}" for number in range(1, 11)]
    assert list(read_images(entries)) == [b"%d" % number for number in range(1, 11)]


def test_a_sample_with_many_images_is_not_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "_MAX_SAMPLE_BYTES", 3)
    members = [("x.cls", b"all"), *sorted([*((f"x.{n}.png", b"12") for n in range(9)), ("x.4.cls", b"own")])]
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    skipped = Counter()
    samples = list(read_shard(str(tmp_path / "0.tar"), skipped=skipped))
    assert [(sample.name, sample.attributes) for sample in samples] == [
        (f"x.{n}.png", {"label": "own" if n == 4 else "all"}) for n in range(9)
    ]
    assert not skipped


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_text_that_comes_after_many_images_describes_those_before_it(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(webdataset, "_MAX_SAMPLE_BYTES", 3)
    first = [
        *((f"x.{n}.png", b"12") for n in range(5)),
        ("x.4.cls", b"own"),
        ("x.cls", b"all"),
        ("x.txt", b"text"),
        ("x.1.cls", b"late"),
    ]
    second = [("y.0.png", b"1234"), ("y.cls", b"y"), ("y.1.png", b"1234"), ("z.cls", b"z"), ("z.png", b"1")]
    name = "0.tar" if mode == "w" else "0.tar.gz"
    (tmp_path / name).write_bytes(tar_of([*first, *second, *(("x.9.png", b"1"), ("x.cls", b"later"))], mode))
    skipped = Counter()
    samples = list(read_shard(str(tmp_path / name), skipped=skipped))
    assert [(sample.name, sample.attributes) for sample in samples] == [
        *((f"x.{n}.png", {"label": {4: "own", 1: "late"}.get(n, "all"), "txt": "text"}) for n in range(5)),
        ("y.0.png", {"label": "y"}),
        ("y.1.png", {"label": "y"}),
        ("z.png", {"label": "z"}),
        ("x.9.png", {"label": "later"}),
    ]
    assert not skipped


def test_a_long_text_is_left_out_and_counted(tmp_path):
    members = [("1.json", b"x" * 1_000_001), ("1.png", b"1"), ("1.txt", b"y" * 1_000_000)]
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    skipped = Counter()
    (sample,) = read_shard(str(tmp_path / "0.tar"), skipped=skipped)
    assert list(sample.attributes) == ["txt"]
    assert skipped == {"*.json above 1,000,000 bytes": 1}


def test_a_name_in_a_shard_that_is_not_utf8_is_stored_with_escapes(tmp_path):
    plain = tar_of([("cafX.png", b"1"), ("cafX.cls", b"bar")])
    (tmp_path / "0.tar").write_bytes(damaged_names(plain))
    entries = list_corpus(tmp_path / "0.tar")
    assert entries["uri"].to_pylist() == [f"{tmp_path}/0.tar#caf\\xe9.png"]
    assert entries["label"].to_pylist() == ["bar"]


def damaged_names(data):
    """Replace X by a byte that is not UTF-8 in the names of a tar's members, with headers that still hold."""
    blocks = [bytearray(data[start : start + 512]) for start in range(0, len(data), 512)]
    for block in blocks:
        if block[257:262] == b"ustar":
            block[:100] = block[:100].replace(b"X", b"\xe9")
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


tables = st.lists(st.integers(0, 5), min_size=1, max_size=4)


def idx(values):
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def check_rows(place, rows, others, kind_of_corpus):
    """Rows are what is seen in files of rows; other files beside them are left out."""
    expected = Counter(kind(name) for name in others)
    for name in others:
        place.put(name, b"?")
    for number, count in enumerate(rows):
        if kind_of_corpus == "parquet":
            buffer = io.BytesIO()
            pq.write_table(pa.table({"image": pa.array([b"%d" % n for n in range(count)], pa.binary())}), buffer)
            place.put(f"p/{number}.parquet", buffer.getvalue())
        else:
            place.put(f"{number}-images-idx3-ubyte", idx(np.zeros((count, 2, 2), np.uint8)))
            labels = idx(np.zeros(count, np.uint8))
            suffix, data = (".gz", gzip.compress(labels)) if number % 2 else ("", labels)
            place.put(f"{number}-labels-idx1-ubyte{suffix}", data)
    if kind_of_corpus == "idx":
        # Labels with another suffix than their images belong to none.
        expected["IDX files of neither images nor their labels"] = len(rows) // 2
    entries, left_out = seen(place.uri())
    assert len(entries) == sum(rows)
    assert left_out == +expected


no_corpora = st.lists(st.sampled_from(("a.md", "b.csv", "d/c.CSV", "LICENSE")), unique=True)


@pytest.mark.parametrize("kind_of_corpus", ["parquet", "idx"])
def test_files_of_rows(tmp_path, kind_of_corpus):
    @local_runs
    @given(rows=tables, others=no_corpora)
    def check(rows, others):
        check_rows(Local(tmp_path / uuid.uuid4().hex), rows, others, kind_of_corpus)

    check()


@pytest.mark.parametrize("kind_of_corpus", ["parquet", "idx"])
def test_files_of_rows_in_a_bucket(bucket, kind_of_corpus):
    check_rows(Prefix(bucket), [3, 0, 2], ["a.md", "d/c.CSV"], kind_of_corpus)


@local_runs
@given(
    lines=st.lists(
        st.sampled_from(("a.png", "b.JPG", "c.xyz", "d", "s3://b/x.png", "nowhere://x")), unique=True, min_size=1
    )
)
def test_lists(tmp_path, lines):
    """Every line is an image, whatever its suffix: who lists it says so."""
    place = Local(tmp_path / uuid.uuid4().hex)
    place.put("list.txt", "\n\n".join(lines).encode())
    entries, left_out = seen(place.uri("list.txt"))
    assert [entry["uri"].removeprefix(f"{place.folder}/") for entry in entries] == lines
    assert not left_out


def test_kinds_without_end_are_counted_as_others(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    for number in range(70):
        Path(tmp_path, f"x.{number}").write_bytes(b"")
    left_out = seen(tmp_path)[1]
    assert left_out.total() == 70
    assert (len(left_out), left_out["others"]) == (51, 20)


def test_a_corpus_of_other_files_says_which(tmp_path):
    for name in ("a.txt", "b.txt", "c.svg", ".d.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(PipelineError, match=r"has no images: .* got 4 files: 2 \*\.txt, 1 hidden, 1 \*\.svg"):
        list_corpus(tmp_path)


def test_jobs_that_read_a_corpus_themselves_say_what_they_leave_out(tmp_path, caplog):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "c.png").symlink_to("nowhere")
    (tmp_path / "notes.txt").write_bytes(b"")
    entries, encoded = readable_images(list_corpus(tmp_path))
    assert len(entries) == len(encoded) == 1
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == f"{tmp_path}: left out 1 file: 1 *.txt"
    assert told[-1] == "left out 2 of 3 images: 1 format, 1 missing"
