from __future__ import annotations

import os
from pathlib import Path

import pytest

from hashlight.engine.cache.size import VARIABLE
from hashlight.pipelines.doctor import disks
from hashlight.pipelines.doctor.disks import Speed
from hashlight.pipelines.doctor.findings import GIB, Asked


@pytest.mark.parametrize(
    ("free", "total", "inodes", "state", "advice"),
    [
        (500, 1000, 1.0, "ok", ""),
        (9, 50, 1.0, "ok", ""),
        (9, 1000, 1.0, "warning", "as much again"),
        (0.5, 4, 1.0, "problem", "hashlight prune"),
        (500, 1000, 0.005, "problem", "inode"),
    ],
)
def test_room(free, total, inodes, state, advice):
    finding = disks.room_of("caches", int(free * GIB), int(total * GIB), inodes)
    assert finding.state == state
    assert advice in finding.advice
    assert f"{free:,.1f} GiB of {total:,.1f} GiB are free for caches" in finding.found


@pytest.mark.parametrize(("reads_s", "state"), [(90_000.0, "ok"), (2_000.0, "ok"), (1_999.0, "warning")])
def test_random_reads(reads_s, state):
    finding = disks.speed_of(Speed(reads_s, True), Path("/data"))
    assert finding.state == state
    assert f"{reads_s:,.0f} random reads a second in /data" in finding.found
    assert "had some in memory" in disks.speed_of(Speed(reads_s, False), Path("/data")).found


def test_reads_are_counted_in_the_largest_file_or_in_one_made_and_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "_TRIAL_BYTES", 2**20)
    (tmp_path / "small").write_bytes(b"x" * 1000)
    opened = []
    measure = disks.measure
    monkeypatch.setattr(disks, "measure", lambda path: opened.append(path) or measure(path, 0.05))
    assert disks.speed_of_folder(tmp_path).numbers["reads_s"] > 0
    assert opened[0].parent == tmp_path
    assert os.listdir(tmp_path) == ["small"]
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "large").write_bytes(bytes(2**20))
    disks.speed_of_folder(tmp_path)
    assert opened[1] == tmp_path / "below" / "large"


@pytest.mark.parametrize("size", [0, 5, 4096, 10_000])
def test_files_of_any_size_are_read(tmp_path, size):
    (tmp_path / "file").write_bytes(bytes(size))
    assert disks.measure(tmp_path / "file", 0.0).reads_s > 0, "also if this process was not run in that time"


def test_a_folder_that_cannot_be_measured_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "_TRIAL_BYTES", 2**20)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disks.os, "fsync", full)
    finding = disks.speed_of_folder(tmp_path)
    assert (finding.state, finding.found) == ("warning", f"{tmp_path} cannot be measured: No space left on device")


def test_folders_of_caches_are_writable_or_not(tmp_path):
    (tmp_path / "file").write_text("in the way")
    good, bad = disks.folders_of([tmp_path / "new" / "cache", tmp_path / "file" / "cache"])
    assert (good.state, bad.state) == ("ok", "problem")
    assert f"{tmp_path / 'file' / 'cache'} cannot be written" in bad.found
    assert "XDG_CACHE_HOME" in bad.advice


@pytest.mark.parametrize(
    ("text", "state", "found"),
    [
        ("20GB", "ok", "0.0 GiB of collections in buckets are kept, of at most 18.6 GiB"),
        ("lots", "problem", "HASHLIGHT_CACHE_SIZE: a size is a number of bytes"),
        ("5MB", "warning", "of at most 0.0 GiB"),
    ],
)
def test_the_limit_of_the_cache(tmp_path, monkeypatch, text, state, found):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, text)
    [finding] = disks.kept()
    assert finding.state == state
    assert found in finding.found


def test_what_is_kept_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "2GB")
    shard = tmp_path / "hashlight" / "collections" / "c" / "shards" / "one"
    shard.mkdir(parents=True)
    (shard / "codes").write_bytes(bytes(12_345))
    [finding] = disks.kept()
    assert finding.numbers == {"held": 12_345, "limit": 2_000_000_000}


def test_this_machine_is_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "_TRIAL_BYTES", 2**20)
    found = list(disks.disks(Asked(collection=str(tmp_path))))
    assert "the collection" in " ".join(finding.found for finding in found[:-1])
    assert str(tmp_path) in found[-1].found
    assert {finding.check for finding in [*found, *disks.cache(Asked())]} == {"disk", "cache"}
