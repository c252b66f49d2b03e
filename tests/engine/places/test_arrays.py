"""Arrays in files: a full disk is an error that says so, maps hold no descriptors, and headers are not trusted."""

from __future__ import annotations

import errno
import io
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hashlight.engine.errors import CorruptDataError
from hashlight.engine.features import Features
from hashlight.engine.places.arrays import map_array, map_file, parse_array, write_array, write_parts
from hashlight.engine.storage.shard import write_shard

ARRAYS = [
    np.arange(10),
    np.empty(0, np.uint32),
    np.arange(12, dtype=np.float16).reshape(6, 2),
    np.arange(12, dtype=np.uint64).reshape(6, 2).T,  # not contiguous
    np.arange(20)[::2],
]


@pytest.mark.parametrize("number", range(len(ARRAYS)))
def test_files_are_those_of_numpy(tmp_path, number):
    array = ARRAYS[number]
    np.save(tmp_path / "theirs.npy", np.ascontiguousarray(array))
    write_array(tmp_path / "ours.npy", array)
    write_parts(
        tmp_path / "parts.npy", (array[at : at + 2] for at in range(0, len(array), 2)), array.dtype, array.shape
    )
    theirs = (tmp_path / "theirs.npy").read_bytes()
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "parts.npy").read_bytes() == theirs
    mapped = map_array(tmp_path / "ours.npy", array.dtype, array.shape, at_random=True)
    np.testing.assert_array_equal(mapped, np.load(tmp_path / "theirs.npy"))
    assert not mapped.flags.writeable


def test_a_map_outlives_its_file_and_holds_no_descriptor(tmp_path):
    write_array(tmp_path / "a.npy", np.arange(100_000))
    before = os.listdir("/proc/self/fd")
    mapped = map_array(tmp_path / "a.npy", np.int64, (100_000,), at_random=True)
    assert os.listdir("/proc/self/fd") == before
    (tmp_path / "a.npy").unlink()
    np.testing.assert_array_equal(mapped, np.arange(100_000))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_map_to_be_read_at_random_is_advised_so(tmp_path):
    write_array(tmp_path / "a.npy", np.arange(100_000))
    for at_random in (False, True):
        data = map_file(tmp_path / "a.npy", at_random=at_random)
        (about,) = [part for part in mappings() if part.startswith(f"{data.address:x}-")]
        flags = next(line for line in about.splitlines() if line.startswith("VmFlags:")).split()
        assert ("rr" in flags) == at_random


def mappings():
    """Split /proc/self/smaps into its maps."""
    parts = []
    for line in Path("/proc/self/smaps").read_text().splitlines(keepends=True):
        if "-" in line.split()[0] and not line.startswith(" ") and ":" not in line.split()[0]:
            parts.append("")
        parts[-1] += line
    return parts


def header(text, version=b"\x01\x00"):
    padded = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + len(padded).to_bytes(2, "little") + padded


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04" + b"\0" * 200,
        header("{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }", version=b"\x03\x00"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"),
        header("{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (3,), }"),
        header("{'descr': '<i8', 'fortran_order': True, 'shape': (3,), }"),
        header("{'descr': '<i8', 'fortran_order': False, 'shape': (-3,), }"),
        header("{'descr': '<i8', 'fortran_order': False, 'shape': (), }"),
        header("(" * 3000),
        header("{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }")[:-1] + b"x",
    ],
)
def test_headers_that_are_not_ours_are_refused(head):
    with pytest.raises(CorruptDataError, match=r"^name does not begin as a \.npy file of numbers does"):
        parse_array("name", head + bytes(24), np.int64, (3,))


@pytest.mark.parametrize("shape", [(3, 1), (4,), (2,), (10**30,), (0, 10**30)])
@pytest.mark.parametrize("dtype", ["<i8", "<f8", "<i4"])
def test_arrays_of_another_type_or_shape_are_refused(shape, dtype):
    head = header(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}")
    with pytest.raises(CorruptDataError, match=r"name: expected int64 of shape \(3\), got"):
        parse_array("name", head + bytes(24), np.int64, (3,))


def test_an_array_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CorruptDataError, match=r"a\.npy is missing"):
        map_array(tmp_path / "a.npy", np.int64, (1,))


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    write_array(tmp_path / "a.npy", np.arange(3))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_free = os.open(os.devnull, os.O_RDONLY)
    os.close(next_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files") as caught:
            map_array(tmp_path / "a.npy", np.int64, (3,))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caught.value.errno == errno.EMFILE


@pytest.mark.parametrize("rows", [10, 1000, 1_000_000])
def test_a_file_that_does_not_fit_is_an_error_that_says_so(tmp_path, rows):
    """Writing stops at a limit on the size of files, which fails as a full disk does."""
    array = np.arange(rows)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (128 + array.nbytes - 1, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/a\.npy'") as caught:
            write_array(tmp_path / "a.npy", array)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG


# Each of these does not fit on a disk of 1 MiB.
FULL = """
import sys
from pathlib import Path
import numpy as np
from hashlight.engine.features import Features, write_features
from hashlight.engine.storage.shard import write_codes, write_ids
rows, disk = 200_000, Path(sys.argv[1])
for write in (
    lambda: write_features(disk / "features.npy", Features.of(np.ones((rows, 4), np.float16)), np.arange(rows)),
    lambda: write_ids(disk, np.arange(rows)),
    lambda: write_codes(disk, np.arange(rows, dtype=np.uint64)[:, None], bits=64, tables=False),
):
    try:
        write()
    except OSError as error:
        print(error.errno)
    for file in disk.iterdir():
        file.unlink()
"""


def test_a_full_disk_does_not_kill_the_writer(tmp_path):
    mounted = f"mount -t tmpfs -o size=1M none {tmp_path} 2>&1 || exit 77"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{mounted}; exec "$@"', "sh"]
    try:
        done = subprocess.run([*inside, sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs `unshare`")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"needs a file system of its own: {done.stdout}{done.stderr}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(errno.ENOSPC)] * 3


WRITE_AND_WATCH = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa
from hashlight.engine.features import Features
from hashlight.engine.storage.shard import write_shard
stores = []
sys.addaudithook(lambda event, given: stores.append(given) if event == "mmap.__new__" and given[2] != 1 else None)
rows = 3000
write_shard(
    Path(sys.argv[1]), np.arange(rows, dtype=np.uint64)[:, None], np.arange(rows), pa.table({"label": np.arange(rows)}),
    bits=64, features=Features.of(np.ones((rows, 4), np.float16)),
)
print(stores)
"""


def test_no_file_is_written_through_a_map(tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITE_AND_WATCH, tmp_path / "s"], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_stored_arrays_are_what_was_given(tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.integers(2**60, size=(2000, 1), dtype=np.uint64)
    ids, features = rng.permutation(2000), rng.normal(size=(2000, 3)).astype(np.float16)
    write_shard(tmp_path / "s", codes, ids, None, bits=64, features=Features.of(features))
    order = np.argsort(codes[:, 0], kind="stable")
    np.testing.assert_array_equal(np.load(tmp_path / "s" / "features.npy"), features[order])
    np.testing.assert_array_equal(np.load(io.BytesIO((tmp_path / "s" / "ids.npy").read_bytes())), ids[order])
