"""Processes that write to one collection at the same time lose nothing, and readers see only what was committed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from tests.engine.collection.contents import contents
from tests.engine.living.processes import BITS, codes_of

SECONDS = float(os.environ.get("HASHLIGHT_TEST_SECONDS", "120"))
WRITERS, READERS, READS = 4, 2, 4


@pytest.fixture(params=["folder", "bucket"])
def where(request, tmp_path):
    """A location, and a function that reads a file there."""
    if request.param == "folder":
        return str(tmp_path / "c"), lambda name: (tmp_path / "c" / name).read_bytes()
    bucket = request.getfixturevalue("bucket")
    return bucket.uri("c"), lambda name: bucket.get(f"c/{name}")


def run_processes(location, folder, seconds, least):
    """Let writers and readers run for so long, and for so many steps each; return what they have logged."""
    roles = [("write", number) for number in range(1, WRITERS + 1)] + [("read", 90 + n) for n in range(READERS)]
    running = []
    for role, number in roles:
        log = folder / f"{role}-{number}.log"
        steps = least if role == "write" else READS * least  # reading is faster, and is to go on while others write
        command = [
            sys.executable,
            "-m",
            "tests.engine.living.processes",
            role,
            str(number),
            location,
            str(seconds),
            str(steps),
            log,
        ]
        with open(folder / f"{role}-{number}.err", "w") as errors:
            running.append((log, subprocess.Popen(command, stderr=errors)))
    lines = []
    for log, process in running:
        code = process.wait(timeout=seconds * 3 + 600)
        assert code == 0, log.with_suffix(".err").read_text()
        lines.append([json.loads(line) for line in log.read_text().splitlines()])
        assert lines[-1][-1]["ended"]
    return lines


class Replay:
    """What each version holds: the acknowledged writes in the order of their versions. Compaction changes nothing."""

    def __init__(self, rows, writes):
        self._rows, self._next_id = dict(rows), max(rows) + 1
        changing = [write for write in writes if write["added"] or write["deleted"] or write["stamps"]]
        numbers = [write["version"] for write in changing]
        assert len(numbers) == len(set(numbers)), "each write is a version of its own"
        self.versions = {1: dict(rows)}
        # A write that changes nothing is told the live version.
        for write in sorted(writes, key=lambda write: (write["version"], write not in changing)):
            self._apply(write)
            self.versions[write["version"]] = dict(self._rows)

    def _apply(self, write):
        kind, ids = write["kind"], write["ids"]
        if kind == "number":
            ids = range(self._next_id, self._next_id + len(ids))
        there = len(self._rows.keys() & set(ids))
        if kind in ("delete", "where"):
            self._rows = {id_: stamp for id_, stamp in self._rows.items() if id_ not in ids}
            assert (write["added"], write["deleted"]) == (0, there), write
            return
        if kind == "update":
            assert there == len(ids), write
        else:
            assert (write["added"], write["deleted"]) == (len(ids), there), write
        self._rows |= dict(zip(ids, write["stamps"], strict=True))
        self._next_id = max(self._next_id, 1 + max(ids, default=-1))

    def at(self, version):
        """Return {id: stamp} of a version."""
        return self.versions[max(number for number in self.versions if number <= version)]


def check_processes(where, tmp_path, seconds, least):
    location, read = where
    Collection.create(location, codes_of([0]), ids=np.array([900]), bits=BITS, tables=False,
                      attributes={"stamp": [0]})  # fmt: skip
    lines = run_processes(location, tmp_path, seconds, least)
    written = [line for log in lines for line in log if "version" in line]
    assert not [line for log in lines for line in log if "wrong" in line]
    assert not [line for log in lines for line in log if "no longer be told" in line.get("refused", "")]
    replay = Replay({900: 0}, written)
    for version in Collection.open(location).versions():
        found = contents(read, version.file_name)
        stamps = {id_: item["stamp"] for id_, (_, item, _) in found.items()}
        assert stamps == replay.at(version.version), version.version
    seen = [line for log in lines for line in log if "read" in line]
    for line in seen:
        assert dict(map(tuple, line["rows"])) == replay.at(line["read"]), line["read"]
    assert len(seen) >= READERS
    return written, seen


def test_writers_at_once_lose_nothing(where, tmp_path):
    check_processes(where, tmp_path, 1, 5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_writers_at_once_lose_nothing_for_long(where, tmp_path):
    written, seen = check_processes(where, tmp_path, SECONDS, 40)
    assert len(written) > 100
    assert len({line["read"] for line in seen}) > 20
