"""Reading images: a bad entry affects only itself, and a temporary failure of a store costs no image."""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import os
import socket
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hashlight.engine.errors import ReadFailedError
from hashlight.engine.places import failures, folder
from hashlight.engine.places.reading import RetryingFile
from hashlight.pipelines.corpora.corpus import list_corpus, read_images
from hashlight.pipelines.corpora.kinds import idx
from hashlight.pipelines.corpora.kinds.webdataset import read_shard
from hashlight.pipelines.jobs.errors import PipelineError


class FailingFile:
    """A file whose reads raise what `failures` gives, until there are no more."""

    def __init__(self, file, failures):
        self._file, self._failures = file, failures

    def read(self, size=-1):
        if (error := next(self._failures, None)) is not None:
            raise error
        return self._file.read(size)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.fixture
def failing(monkeypatch):
    """Make reads of files, whole or through `RetryingFile`, fail; returns a function that sets how often."""
    monkeypatch.setattr(failures, "_FIRST_WAIT_S", 0.001)

    def fail(times, number=errno.EIO):
        failures = itertools.repeat(OSError(number, "the store is busy"), times)
        opened, local = RetryingFile._open, folder.read_local
        monkeypatch.setattr(RetryingFile, "_open", lambda self: FailingFile(opened(self), failures))

        def read_local(path, max_bytes):
            if (error := next(failures, None)) is not None:
                raise error
            return local(path, max_bytes)

        monkeypatch.setattr(folder, "read_local", read_local)

    return fail


def write_files(folder):
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"image %d" % number)
    return folder


def write_parquet(folder):
    path = folder.with_suffix(".parquet")
    pq.write_table(pa.table({"image": [b"image %d" % number for number in range(3)]}), path, row_group_size=2)
    return path


def write_idx(folder):
    folder.mkdir()
    pixels = np.arange(12, dtype=np.uint8)
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (3, 2, 2))
    (folder / "a-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
    return folder


@pytest.mark.parametrize("write", [write_files, write_parquet, write_idx])
def test_a_temporary_failure_costs_no_image(tmp_path, failing, write):
    entries = list_corpus(write(tmp_path / "corpus"))
    expected = list(read_images(entries))
    assert len(expected) == 3
    assert all(isinstance(image, bytes) for image in expected)
    failing(2)
    assert list(read_images(entries)) == expected
    failing(100)
    with pytest.raises(ReadFailedError, match=r"cannot be read at the moment, after 3 tries: .*the store is busy"):
        list(read_images(entries))


def test_images_that_are_not_decoded_are_entries_of_a_shard_too(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("0.avif", "0.jpg", "1.heic"):
            member = tarfile.TarInfo(name)
            member.size = 6
            tar.addfile(member, io.BytesIO(name.encode()[:6].ljust(6)))
    assert [sample.name for sample in read_shard(str(path))] == ["0.avif", "0.jpg", "1.heic"]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_shards_are_read_through_failures_and_not_truncated_by_them(tmp_path, failing, suffix):
    path = tmp_path / f"a{suffix}"
    with tarfile.open(path, "w:gz" if suffix.endswith("gz") else "w") as tar:
        for number in range(300):
            for name, data in ((f"{number}.png", b"%d" % number * 700), (f"{number}.cls", b"%d" % (number % 7))):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    failing(2)
    samples = [(sample.data, sample.attributes) for sample in read_shard(str(path))]
    assert samples == [(b"%d" % number * 700, {"label": str(number % 7)}) for number in range(300)]
    failing(100)
    with pytest.raises(ReadFailedError):
        list(read_shard(str(path)))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("member", range(1, 10))
def test_a_damaged_header_is_not_taken_for_the_end_of_a_shard(tmp_path, member, compressed):
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for number in range(10):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = 600
            tar.addfile(info, io.BytesIO(b"%d" % number * 600))
    data = bytearray(plain.getvalue())
    data[member * 1536 + 110] ^= 1
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(data) if compressed else data)
    samples = list(read_shard(str(path)))
    assert [sample.name for sample in samples[:-1]] == [f"{number}.png" for number in range(member)]
    assert f"the header at byte {member * 1536} is damaged" in str(samples[-1].data)


def test_a_shard_that_is_gone_is_a_reject(tmp_path):
    (sample,) = read_shard(str(tmp_path / "gone.tar"))
    assert isinstance(sample.data, OSError)
    assert "No such file" in str(sample.data)


def test_folders_and_sockets_in_a_list_cost_no_descriptor(tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        folders = [tmp_path / f"folder {number}" for number in range(50)]
        for folder in folders:
            folder.mkdir()
        (tmp_path / "corpus.txt").write_text("".join(f"{place}\n" for place in (path, *folders)))
        before = len(os.listdir("/proc/self/fd"))
        images = list(read_images(list_corpus(tmp_path / "corpus.txt")))
        assert len(os.listdir("/proc/self/fd")) == before
    assert all(isinstance(image, OSError) and not isinstance(image, ReadFailedError) for image in images)
    assert str(images[0]).endswith("socket is not a file")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("missing.png", "No such file"),
        ("a\0b.png", "null byte"),
        ("nowhere://x/y.png", "no file system for nowhere"),
        ("x" * 5000 + ".png", "name too long"),
        ("/dev/zero", "is not a file"),
        (".", "Is a directory"),
    ],
)
def test_a_bad_entry_costs_only_itself(tmp_path, entry, reason):
    (tmp_path / "good.png").write_bytes(b"good")
    (tmp_path / "corpus.txt").write_text(f"good.png\n{entry}\ngood.png?\n")
    first, bad, _ = read_images(list_corpus(tmp_path / "corpus.txt"))
    assert first == b"good"
    assert isinstance(bad, OSError)
    assert reason in str(bad)


HEADS = {
    "a header that is cut off": bytes([0, 0, 8, 3, 0, 0]),
    "no rows of bytes": bytes([0, 0, 8, 3]) + np.array([2, 0, 3], ">u4").tobytes(),
    "rows larger than memory": bytes([0, 0, 8, 3]) + np.array([2, 2**32 - 1, 2**32 - 1], ">u4").tobytes(),
    "five channels": bytes([0, 0, 8, 4]) + np.array([1, 1, 1, 5], ">u4").tobytes() + bytes(5),
}


@pytest.mark.parametrize("case", HEADS)
@pytest.mark.parametrize("name", ["a.idx", "a.idx.gz"])
def test_an_idx_file_of_another_shape_is_refused(tmp_path, case, name):
    data = HEADS[case]
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(PipelineError, match=rf"/{name} (cannot be read|has the shape)"):
        list_corpus(tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"\x1f\x8b\x08" + b"\xff" * 50, gzip.compress(bytes(40))[:-20], b"no gzip"],
    ids=["damaged", "cut off", "no gzip"],
)
def test_a_damaged_idx_file_is_refused_by_name(tmp_path, data):
    (tmp_path / "a.idx.gz").write_bytes(data)
    with pytest.raises(PipelineError, match=r"/a\.idx\.gz cannot be read"):
        list_corpus(tmp_path)


def test_rows_of_an_idx_file_are_read_some_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "_READ_BYTES", 9)
    folder = write_idx(tmp_path / "corpus")
    read = []
    values = idx.RowReader.read_values
    monkeypatch.setattr(idx.RowReader, "read_values", lambda self, *args: read.append(args[1:]) or values(self, *args))
    images = list(read_images(list_corpus(folder)))
    assert read == [(0, 2), (2, 3)]
    pixels = [np.asarray(Image.open(io.BytesIO(image))).tolist() for image in images]
    assert pixels == np.arange(12).reshape(3, 2, 2).tolist()
