"""Every file that is read back, mutated under right checksums; see `fuzz`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.storage.fuzz import KINDS, NEVER_REFUSED

PROGRAM = "tests.engine.storage.fuzz"
MUTATIONS = int(os.environ.get("HASHLIGHT_TEST_MUTATIONS", "500"))  # of each kind
ROOT = Path(__file__).parents[3]
# Any float16 is a feature, so that only its file's beginning and its size can be wrong.
MOSTLY_FREE = {"features.npy", "thumbnails.arrow", "attributes.arrow"}


def run_fuzz(program, folder, first, count, *kinds):
    """Run the mutations of a program in a process of its own; return how many were refused and answered, by kind."""
    (folder / "cache").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", program, folder, str(first), str(count), *kinds],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
    )
    tried = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"after {tried}, exit code {done.returncode}: {done.stderr[-3000:]}"
    outcomes = json.loads(tried[0])
    return {kind: (outcomes.get(f"{kind} refused", 0), outcomes.get(f"{kind} answered", 0)) for kind in kinds}


def check(outcomes, count):
    for kind, (refused, answered) in outcomes.items():
        assert refused + answered == count
        assert (refused == 0) if kind in NEVER_REFUSED else refused > count // (20 if kind in MOSTLY_FREE else 2), kind


def test_a_few_mutations_of_every_file_are_refused_by_name_or_answered_rightly(tmp_path):
    check(run_fuzz(PROGRAM, tmp_path, 1000, 8, *KINDS), 8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutations_of_every_file_are_refused_by_name_or_answered_rightly(tmp_path, kind):
    check(run_fuzz(PROGRAM, tmp_path, 0, MUTATIONS, kind), MUTATIONS)
