"""Compaction on Ray: a task for each group of shards, and nothing half-done whatever dies."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing import policy
from hashlight.pipelines.building.compact import compact_collection
from tests import oracles
from tests.engine.collection.contents import contents
from tests.pipelines import elsewhere

pytestmark = pytest.mark.usefixtures("ray_session")

BITS = 40
CODES = np.random.default_rng(3).integers(2**BITS, size=(240, 1), dtype=np.uint64)

DRIVER = """
import sys
from hashlight.engine.collection.writing import policy
from hashlight.pipelines.building.compact import compact_collection
policy.TARGET_ROWS = 90
print(compact_collection(sys.argv[1], full=True, workers=2))
"""


@pytest.fixture
def path(tmp_path):
    """Six shards of 40 rows, of which a few are deleted."""
    made = Collection.create(
        tmp_path / "c", CODES, attributes={"n": list(range(240))}, bits=BITS, shards=6, tables=False
    )
    made.delete([0, 50, 51, 239])
    return tmp_path / "c"


def read(path):
    return contents(lambda name: (path / name).read_bytes())


def check(path, before, *, shards):
    assert read(path) == before
    opened = Collection.open(path, verify=True)
    assert len(opened.shards) == shards
    ids = np.array(sorted(before))
    assert opened.search(CODES[:4], k=7).ids.tolist() == oracles.knn(CODES[:4], CODES[ids], ids, 7)[1].tolist()


def test_each_group_is_a_task_and_a_version(path, monkeypatch):
    before = read(path)
    monkeypatch.setattr(policy, "TARGET_ROWS", 90)
    seen = []
    done = compact_collection(path, full=True, workers=2, progress=lambda *counts: seen.append(counts))
    assert done == (5, 6, 3, 236)
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    check(path, before, shards=3)
    assert Collection.open(path).manifest.dead_rows == 0
    monkeypatch.setattr(policy, "TARGET_ROWS", 1000)
    assert compact_collection(path, full=True) == (6, 3, 1, 236), "one group is merged in this process"
    assert compact_collection(path, full=True) == (6, 0, 0, 0)


def compact_elsewhere(path, faults, rule):
    return elsewhere.run_program(DRIVER, [path], faults, rule)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ({"step": "aside", "key": "CURRENT", "do": "kill", "skip": 1}, 0),
        ({"step": "published", "key": "CURRENT", "do": "kill", "skip": 1}, 0),
        ({"step": "published", "key": "CURRENT", "do": "kill-driver"}, -signal.SIGKILL),
    ],
    ids=lambda value: f"{value['step']}-{value['do']}" if isinstance(value, dict) else "",
)
def test_whatever_dies_the_same_command_goes_on(path, tmp_path, rule, code):
    before = read(path)
    done = compact_elsewhere(path, tmp_path / "faults", rule)
    assert done.returncode == code, done.stderr
    assert read(path) == before
    assert (tmp_path / "faults" / "passed-0").stat().st_size > rule.get("skip", 0), "the fault never came"
    again = compact_elsewhere(path, tmp_path / "again", {"step": "none", "do": "log"})
    assert again.returncode == 0, again.stderr
    check(path, before, shards=3)
    pruned = Collection.open(path).prune(keep=1).prune(keep=1)
    assert len(list((path / "shards").iterdir())) == 3, pruned
    assert not list((path / "intents").glob("[0-9a-f]*"))
