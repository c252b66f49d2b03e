"""A published file survives a crash of the machine: the order of writes, fsyncs and renames in system calls."""

from __future__ import annotations

import os

import pytest

from hashlight.engine.places.files import folder_written_aside, written_aside
from hashlight.engine.places.opening import open_place


@pytest.fixture
def calls(monkeypatch):
    """The relevant calls, in order: (call, its target), with the names of temporary files shortened to `aside`."""
    made = []

    def name_of(path):
        name = os.path.basename(os.fspath(path))
        return "aside" if name.endswith(".tmp") else name

    def watch(name, describe):
        real = getattr(os, name)

        def call(*arguments, **options):
            made.append((name, *describe(*arguments)))
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    def synced(descriptor):
        # Data must have been written to the kernel before the fsync.
        return name_of(os.readlink(f"/proc/self/fd/{descriptor}")), os.fstat(descriptor).st_size

    watch("fsync", synced)
    watch("replace", lambda source, target: (name_of(source), name_of(target)))
    watch("rename", lambda source, target: (name_of(source), name_of(target)))
    watch("rmdir", lambda path: (name_of(path),))
    watch("link", lambda source, target: (name_of(source), name_of(target)))
    return made


def without_sizes(calls, folders):
    """Drop the sizes of folders, which depend on the file system."""
    return [call[:2] if call[0] == "fsync" and call[1] in folders else call for call in calls]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "there"
    path.mkdir()
    return path


PUBLISHED = [("fsync", "aside", 4), ("replace", "aside", "a"), ("fsync", "there")]


def test_a_file_is_fsynced_before_its_name_and_both_before_the_call_returns(folder, calls):
    open_place(folder).put("a", b"data")
    assert without_sizes(calls, {"there"}) == PUBLISHED


def test_put_new_fsyncs_too(folder, calls):
    place = open_place(folder)
    assert place.put_new("a", b"data")
    assert without_sizes(calls, {"there"}) == [("fsync", "aside", 4), ("link", "aside", "a"), ("fsync", "there")]


def test_a_large_file_is_fsynced_too(folder, calls):
    place = open_place(folder)
    with place.scratch("a") as path:
        path.write_bytes(b"data")
        place.put_file("a", path)
    with written_aside(folder / "a") as aside:
        aside.write_bytes(b"data")
    assert without_sizes(calls, {"there"}) == PUBLISHED * 2


def test_new_parent_folders_are_fsynced_too(folder, calls):
    open_place(folder / "x" / "y").put("z/a", b"data")
    synced = [call[:2] for call in calls]
    assert sorted(synced[:3]) == sorted([("fsync", "there"), ("fsync", "x"), ("fsync", "y")])
    assert synced[3:] == [("fsync", "aside"), ("replace", "aside"), ("fsync", "z")]


def test_the_name_of_a_new_folder_is_fsynced(folder, calls):
    with open_place(folder).new_folder("a") as path:
        path.mkdir()
    assert without_sizes(calls, {"there"}) == [("fsync", "there")]


def test_a_folder_is_fsynced_before_it_replaces_another(folder, calls):
    (folder / "old").mkdir()
    (folder / "old" / "b").write_bytes(b"old")
    with folder_written_aside(folder / "old") as aside:
        aside.mkdir()
        (aside / "b").write_bytes(b"data")
    assert without_sizes(calls, {"there", "aside"}) == [
        ("fsync", "b", 4),
        ("fsync", "aside"),
        ("rename", "old", "aside"),
        ("rename", "aside", "old"),
        ("fsync", "there"),
        ("rmdir", "aside"),
    ]
    assert (folder / "old" / "b").read_bytes() == b"data"
    assert [path.name for path in folder.iterdir()] == ["old"]
