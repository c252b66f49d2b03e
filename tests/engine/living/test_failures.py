"""A writer that is killed at any step, or whose disk fails, harms nothing, and the next write sweeps."""

from __future__ import annotations

import errno
import io
import itertools
import os
import resource
import shutil
import subprocess
import sys

import pytest

from hashlight.engine.collection.collection import Collection
from tests.engine.living.operations import OPERATIONS, described, make, reader
from tests.engine.living.test_power_loss import leftovers, opened
from tests.engine.power_loss import STEPS

# Steps and calls from one that fails to the next; with 1, the slow tests take an hour.
EVERY = int(os.environ.get("HASHLIGHT_TEST_EVERY", "11"))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "c"
    make(path)
    return path


def check_and_write(path, before, after):
    """Check that a collection is as before or after, that the next write works, and that it sweeps; return which."""
    found = described(reader(path))
    assert found in (before, after)
    assert opened(path) == found[0]
    Collection.open(path).tag("next")
    assert leftovers(path) == set()
    assert described(reader(path))[0] == found[0] | {found[3] + 1: found[0][found[3]]}
    return found == after


def after_of(start, name, tmp_path):
    shutil.copytree(start, tmp_path / "after")
    OPERATIONS[name](tmp_path / "after")
    return described(reader(tmp_path / "after"))


def check_kills(start, names, tmp_path, *, skip=0):
    (tmp_path / "killed").mkdir()
    command = [sys.executable, "-m", "tests.engine.living.killing", start, tmp_path / "killed", str(skip), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    before = described(reader(start))
    for name in names:
        after = after_of(start, name, tmp_path)
        copies = sorted((tmp_path / "killed").glob(f"{name}-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        made = [check_and_write(copy, before, after) for copy in copies]
        assert made == sorted(made), "a step after which it is made, and none before"
        assert {True, False} == set(made)
        shutil.rmtree(tmp_path / "after")


def test_writers_are_killed_at_some_steps(start, tmp_path):
    check_kills(start, ["several", "prune", "compact"], tmp_path, skip=23)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_writers_of_every_kind_are_killed(start, tmp_path):
    check_kills(start, list(OPERATIONS), tmp_path, skip=EVERY - 1)


class FailingDisk:
    """The calls of this process that change a disk, of which one or all from one on fail with an error.

    Files that are opened for writing fail, too, and what Arrow writes by itself fails as soon as it is fsynced.
    """

    def __init__(self, monkeypatch, wanted, number, *, for_good):
        self.calls = 0
        self.failed = False
        self._wanted, self._error, self._for_good = wanted, number, for_good
        for module, name in STEPS:
            monkeypatch.setattr(module, name, self._failing(getattr(module, name)))
        real = io.open

        def open_file(file, mode="r", *arguments, **options):
            if set(mode) & set("wax+"):
                self._step(file)
            return real(file, mode, *arguments, **options)

        monkeypatch.setattr(io, "open", open_file)

    def _step(self, path=None):
        self.calls += 1
        if self.calls == self._wanted or (self._for_good and self.calls > self._wanted):
            self.failed = True
            raise OSError(self._error, os.strerror(self._error), path)

    def _failing(self, function):
        def call(path, *arguments, **options):
            self._step(None if isinstance(path, int) else path)
            return function(path, *arguments, **options)

        return call


def check_failures(start, name, error, tmp_path, *, for_good, step=1):
    before, after = described(reader(start)), after_of(start, name, tmp_path)
    for wanted in itertools.count(1, step):
        copy = tmp_path / str(wanted)
        shutil.copytree(start, copy)
        raised = None
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, wanted, error, for_good=for_good)
            try:
                OPERATIONS[name](copy)
            except OSError as caught:
                raised = caught
        made = check_and_write(copy, before, after)
        if raised is None:
            assert made, "a write that is not made says so"
        else:
            assert os.strerror(error) in str(raised)
        shutil.rmtree(copy)
        if not disk.failed:
            return wanted
    return None


@pytest.mark.parametrize(("name", "error", "for_good"), [
    ("several", errno.ENOSPC, True), ("delete", errno.EIO, False), ("compact", errno.ENOSPC, False),
    ("prune", errno.EIO, True)])  # fmt: skip
def test_a_disk_fails_at_some_calls(start, name, error, for_good, tmp_path):
    assert check_failures(start, name, error, tmp_path, for_good=for_good, step=15) > 15


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("error", "for_good"), [(errno.ENOSPC, True), (errno.EIO, False)], ids=["full", "once"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_disk_fails_at_calls_of_every_kind(start, name, error, for_good, tmp_path):
    check_failures(start, name, error, tmp_path, for_good=for_good, step=EVERY)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_folder_that_is_read_only_is_said_to_be_so(start, name, tmp_path, monkeypatch):
    shutil.copytree(start, tmp_path / "c")
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patch:
        FailingDisk(patch, 1, errno.EROFS, for_good=True)
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)) as caught:
            OPERATIONS[name](tmp_path / "c")
        assert str(tmp_path) in str(caught.value), "which file"
        assert Collection.open(tmp_path / "c").version == described(reader(start))[3]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("limit", [0, 100, 700, 1500])
@pytest.mark.parametrize("name", ["several", "compact"])
def test_no_file_can_grow(start, name, limit, tmp_path):
    """The kernel refuses what goes beyond a limit, whoever writes it, as a full disk does."""
    before, after = described(reader(start)), after_of(start, name, tmp_path)
    shutil.copytree(start, tmp_path / "c")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"large|limit"):
            OPERATIONS[name](tmp_path / "c")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert check_and_write(tmp_path / "c", before, after) is False
