"""The write log: what was appended is there again, whatever was lost that was never safe."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine.errors import CollectionBusyError, CorruptDataError, PlaceError
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.writing.log import WriteLog
from hashlight.engine.writing.records import Key, Logged, decode, encode
from hashlight.engine.writing.writes import Delete, DeleteWhere, Put, Update
from tests.engine.power_loss import Disk, restore

COLLECTION = "c" * 32


def opened(folder, collection=COLLECTION):
    return WriteLog(folder, collection=collection)


def records_in(folder):
    log = opened(folder)
    log.close()
    return log.recovered


def segments(folder):
    return sorted(path.name for path in folder.glob("*.log"))


def test_what_is_appended_is_there_again(tmp_path):
    log = opened(tmp_path / "log")
    assert log.append([b"one"]) == 1
    assert log.append([b"", b"three", bytes(100_000)]) == 4
    log.rotate()
    assert log.append([b"five"]) == 5
    log.close()
    assert segments(tmp_path / "log") == ["0000000000000001.log", "0000000000000005.log"]
    again = opened(tmp_path / "log")
    assert again.recovered == [(1, b"one"), (2, b""), (3, b"three"), (4, bytes(100_000)), (5, b"five")]
    assert (again.id, again.last) == (log.id, 5)
    assert again.append([b"six"]) == 6
    again.close()
    assert records_in(tmp_path / "log")[-1] == (6, b"six")


def test_segments_go_when_all_that_they_have_is_committed(tmp_path):
    log = opened(tmp_path / "log")
    log.append([b"1", b"2"])
    log.trim(1)
    assert segments(tmp_path / "log") == ["0000000000000001.log"]
    log.rotate()
    log.append([b"3"])
    log.trim(2)
    assert segments(tmp_path / "log") == ["0000000000000003.log"]
    log.append([b"4"])
    log.trim(3)
    log.trim(4)
    assert segments(tmp_path / "log") == []
    assert log.append([b"5"]) == 5
    log.close()
    assert records_in(tmp_path / "log") == [(5, b"5")]


def test_numbers_go_on_above_those_that_are_committed(tmp_path):
    log = opened(tmp_path / "log")
    log.append([b"1"])
    log.begin_after(7)
    assert log.append([b"8"]) == 8
    log.close()
    assert records_in(tmp_path / "log") == [(8, b"8")]


def test_a_last_write_that_is_torn_at_any_byte_is_cut_off(tmp_path):
    log = opened(tmp_path / "log")
    log.append([b"first", b"second"])
    safe = (tmp_path / "log" / "0000000000000001.log").stat().st_size
    log.append([b"third", b"fourth"])
    log.close()
    whole = (tmp_path / "log" / "0000000000000001.log").read_bytes()
    for size in range(len(whole)):
        copy = tmp_path / f"copy-{size}"
        shutil.copytree(tmp_path / "log", copy)
        os.truncate(copy / "0000000000000001.log", size)
        again = opened(copy)
        expected = [(1, b"first"), (2, b"second")] if size >= safe else []
        assert again.recovered == expected, size
        number = again.append([b"next"])
        again.close()
        assert records_in(copy) == [*expected, (number, b"next")]
        shutil.rmtree(copy)
    for at in range(safe, len(whole)):  # bytes that never arrived, in the middle of the last write
        copy = tmp_path / f"flipped-{at}"
        shutil.copytree(tmp_path / "log", copy)
        data = bytearray(whole)
        data[at] ^= 0x40
        (copy / "0000000000000001.log").write_bytes(data)
        assert records_in(copy) == [(1, b"first"), (2, b"second")]
        shutil.rmtree(copy)


def test_damage_before_later_writes_is_an_error(tmp_path):
    log = opened(tmp_path / "log")
    log.append([b"first"])
    log.append([b"second"])
    log.close()
    path = tmp_path / "log" / "0000000000000001.log"
    whole = path.read_bytes()
    for at in range(len(whole) // 2):
        data = bytearray(whole)
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptDataError, match=r"damaged at byte 0, .*truncate -s 0"):
            opened(tmp_path / "log")
    path.write_bytes(whole)
    log = opened(tmp_path / "log")
    log.rotate()
    log.append([b"third"])
    log.rotate()
    log.append([b"fourth"])
    log.close()
    (tmp_path / "log" / "0000000000000003.log").unlink()
    with pytest.raises(CorruptDataError, match="lacks records 3 to 3"):
        opened(tmp_path / "log")


def test_every_state_after_a_power_failure_has_what_was_answered(tmp_path, monkeypatch):
    root, answered, states = tmp_path / "root", [], []
    root.mkdir()
    disk = Disk(root)

    def check(_step):
        states.extend((tree, list(answered)) for tree in disk.after_power_loss(samples=4))

    with monkeypatch.context() as patch:
        disk.watch(patch, check)
        log = opened(root / "log")
        for number in range(1, 5):
            log.append([f"{number}".encode()])
            answered.append((number, f"{number}".encode()))
            if number % 2 == 0:
                log.rotate()
        log.close()
    assert len(states) > 40
    for tree, promised in states:
        target = tmp_path / "state"
        restore(tree, target)
        found = records_in(target / "log")
        assert found[: len(promised)] == promised
        assert len(found) <= len(promised) + 1
        shutil.rmtree(target)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_disk_that_fails_refuses_the_write_alone(tmp_path, monkeypatch, call):
    log = opened(tmp_path / "log")
    log.append([b"before"])
    function = getattr(os, call)

    def fail(descriptor, *data):
        if data:
            function(descriptor, data[0][:5])  # a part arrives
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        for _ in range(2):
            with pytest.raises(OSError, match="no space"):
                log.append([b"refused"])
        assert log.last == 1
    assert log.append([b"after"]) == 2
    log.close()
    assert records_in(tmp_path / "log") == [(1, b"before"), (2, b"after")]


def test_a_log_that_cannot_be_cut_back_accepts_nothing(tmp_path, monkeypatch):
    log = opened(tmp_path / "log")
    log.append([b"before"])

    def fail(*_):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(OSError, match="broken"):
            log.append([b"refused"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(OSError, match="broken"):
            log.append([b"refused, too"])
    assert log.append([b"after"]) == 2
    log.close()
    assert records_in(tmp_path / "log") == [(1, b"before"), (2, b"after")]


def test_folders_that_are_not_this_log_are_refused(tmp_path):
    log = opened(tmp_path / "log")
    with pytest.raises(CollectionBusyError, match="in use by another server"):
        opened(tmp_path / "log")
    log.close()
    with pytest.raises(PlaceError, match=rf"of collection {COLLECTION}, expected one of {'d' * 32}"):
        opened(tmp_path / "log", "d" * 32)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(PlaceError, match="not a write log and not empty"):
        opened(tmp_path / "other")
    (tmp_path / "log" / "log.json").write_text("{")
    with pytest.raises(CorruptDataError, match="is damaged"):
        opened(tmp_path / "log")


def test_a_killed_process_leaves_no_lock(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from hashlight.engine.writing.log import WriteLog; "
        f"log = WriteLog(Path(sys.argv[1]), collection={COLLECTION!r}); log.append([b'1']); "
        "print('ready', flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script, str(tmp_path / "log")], capture_output=True, text=True)
    assert done.stdout == "ready\n", done.stderr
    assert records_in(tmp_path / "log") == [(1, b"1")]


def same(one, other):
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        return bool((one == other).all())
    return one is other if one is None or other is None else bool(one.equals(other))


ATTRIBUTES = pa.table(
    {
        "id number": pa.array([1, None], pa.int16()),
        "features": pa.array([["a"], None], pa.list_(pa.string())),
        "code ": pa.array([{"x": 1}, {"x": None}], pa.struct([("x", pa.int64())])),
    }
)


@pytest.mark.parametrize("values", [np.float16, np.float32])
@pytest.mark.parametrize("with_more", [True, False])
def test_writes_come_back_as_they_were(with_more, values):
    ids = np.array([5, 2**62], np.int64)
    codes = np.array([[1, 2**63], [3, 4]], np.uint64)
    features = np.array([[0.1, -1.0, 2.0]] * 2, values) if with_more else None
    thumbnails = pa.array([b"\x89PNG", None]) if with_more else None
    put = Put(
        codes, ids, ATTRIBUTES if with_more else None, features, thumbnails, not with_more, "e" if with_more else None
    )
    key = Key("k", "d" * 64) if with_more else None
    found = decode(9, encode(Logged(9, put, (128, "enc"), 12.5, key, 4)))
    assert (found.number, found.codes, found.written_s, found.key, found.deleted) == (9, (128, "enc"), 12.5, key, 4)
    for name in ("codes", "ids", "attributes", "features", "thumbnails"):
        assert same(getattr(put, name), getattr(found.write, name)), name
    assert not with_more or found.write.features.dtype == values
    assert (found.write.replaces, found.write.encoder) == (put.replaces, put.encoder)


def test_other_writes_come_back_as_they_were():
    found = decode(1, encode(Logged(1, Delete(np.array([3, 1])), (8, None)))).write
    assert isinstance(found, Delete)
    assert found.ids.tolist() == [3, 1]
    parts = [(np.array([7, 8]), ATTRIBUTES), (np.array([9]), ATTRIBUTES.slice(1).select(["code "]))]
    found = decode(1, encode(Logged(1, Update(parts), (8, None)))).write
    assert isinstance(found, Update)
    for (ids, table), (found_ids, found_table) in zip(parts, found.parts, strict=True):
        assert ids.tolist() == found_ids.tolist()
        assert table.equals(found_table)
    where = DeleteWhere("id in :some", Parameters({"some": [4, 2]}))
    assert decode(1, encode(Logged(1, where, (8, None)))).write == where
    with pytest.raises(CorruptDataError, match="record 3 of the write log"):
        decode(3, b"\x10\0\0\0{}")
