"""An encode job that is killed at any point, or runs out of space, ends with the same bytes and does no unit twice."""

from __future__ import annotations

import io
import json
import random
import signal
import sys
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest

from hashlight.pipelines.encoding.encode import encode_corpus
from tests.pipelines import elsewhere

UNITS = 12
SETTINGS = {"unit_images": 25, "batch_size": 8, "actors": 1, "features": True, "thumbnail": 16}
OPTIONS = ["--unit-images", "25", "--batch-size", "8", "--features", "--thumbnails", "16"]


class Job:
    """Runs `hashlight encode` in processes of its own, with faults, and counts what it did."""

    def __init__(self, folder, corpus, encoder, output=None):
        self.folder, self.output = folder, output or str(folder / "codes")
        arguments = ["--input", str(corpus), "--encoder", str(encoder), "--output", self.output, *OPTIONS]
        self._command = [sys.executable, "-P", "-m", "hashlight", "encode", *arguments]
        self.faults = folder / "faults"
        self.faults.mkdir()

    def start(self, *rules, actors=2):
        watched = [{"step": step, "do": "log"} for step in ("unit", "published")]
        return elsewhere.Run([*self._command, "--actors", str(actors)], self.faults, [*rules, *watched])

    def run(self, *rules, actors=2):
        done = self.start(*rules, actors=actors).wait()
        return done.returncode, done.stderr

    def steps(self):
        log = self.faults / "steps.log"
        return [line.split(" ", 1) for line in log.read_text().splitlines()] if log.exists() else []

    def assert_no_unit_was_done_twice(self):
        """After a unit's sidecar was published it was never begun again.

        If two actors had begun it before that, of which one was thought dead, both may publish it, with the same bytes.
        An actor that is killed may have published a unit, and not yet logged it.
        """
        whole = Counter()
        for step, key in self.steps():
            if step == "unit":
                assert not whole[int(key)], f"unit {key} was begun after it was finished"
            elif key.endswith(".json") and key[0].isdigit():
                whole[int(key.partition(".")[0])] += 1
        assert len(whole) >= UNITS - 2, "each of the actors publishes one unit at a time"


def outputs(folder):
    names = ["codes.json", "rejects.parquet", "job.json", "plan.arrow"]
    files = {name: (folder / name).read_bytes() for name in names}
    parts = {path.name: path.read_bytes() for path in sorted((folder / "parts").iterdir())}
    assert len(parts) == UNITS
    return files | parts


@pytest.fixture(scope="module")
def undisturbed(corpus, encoder, ray_session, tmp_path_factory):
    """What the job writes when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed") / "codes"
    encode_corpus(corpus, encoder, folder, **SETTINGS | {"batch_size": 50})
    return outputs(folder)


def part_of(undisturbed, unit):
    """The name of a unit's part, which ends with a hash of its bytes."""
    (name,) = (name for name in undisturbed if name.startswith(f"{unit:05d}-"))
    return name


@pytest.fixture
def job(tmp_path, corpus, encoder):
    return Job(tmp_path, corpus, encoder)


@pytest.mark.slow
def test_killed_at_chosen_steps_and_out_of_space(job, undisturbed):
    """One job: the driver dies, the disk is full, then actors and a decoder die."""
    code, _ = job.run({"step": "published", "key": part_of(undisturbed, 1), "do": "kill-driver"}, actors=1)
    assert code == -signal.SIGKILL
    done = {path.stem for path in (job.folder / "codes" / "sidecars").glob("*.json")}
    undone = part_of(undisturbed, min(set(range(UNITS)) - set(map(int, done))))
    code, errors = job.run({"step": "aside", "key": undone, "do": "no-space"}, actors=1)
    assert code == 1
    assert "No space left on device" in errors
    assert "Traceback" not in errors
    code, errors = job.run(
        {"step": "unit", "do": "kill"}, {"step": "encoded", "skip": 1, "do": "kill"}, {"step": "decode", "do": "kill"}
    )
    assert code == 0, errors
    assert outputs(job.folder / "codes") == undisturbed
    job.assert_no_unit_was_done_twice()
    assert not list((job.folder / "codes").rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("fault", [pytest.param("no-space", marks=pytest.mark.long), "kill"])
def test_a_start_that_fails_is_tried_again(job, undisturbed, fault):
    code, errors = job.run({"step": "start", "times": 2, "do": fault})
    assert code == 0, errors
    assert outputs(job.folder / "codes") == undisturbed
    assert len([step for step, _ in job.steps() if step == "start"]) >= 3, "two of them failed"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 5))])
def test_driver_killed_at_random_moments(job, undisturbed, seed):
    rng = random.Random(seed)
    whole = rng.randrange(UNITS - 4)
    sidecars = job.folder / "codes" / "sidecars"
    run = job.start()
    while not (any(step == "unit" for step, _ in job.steps()) and len(list(sidecars.glob("*.json"))) >= whole):
        assert run.process.poll() is None, run.wait().stderr
        time.sleep(0.05)
    run.process.kill()
    assert run.wait().returncode == -signal.SIGKILL
    assert not (job.folder / "codes" / "codes.json").exists(), "it was killed while at work"
    assert len(list(sidecars.glob("*.json"))) < UNITS, "units were left to do"
    code, errors = job.run()
    assert code == 0, errors
    assert outputs(job.folder / "codes") == undisturbed
    job.assert_no_unit_was_done_twice()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 5))])
def test_actor_killed_at_random_steps(job, undisturbed, seed):
    rng = random.Random(seed)
    step = rng.choice(["unit", "encoded", "aside", "published"])
    code, errors = job.run(kill_at(step, rng, undisturbed))
    assert code == 0, errors
    assert outputs(job.folder / "codes") == undisturbed
    job.assert_no_unit_was_done_twice()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["aside", pytest.param("published", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "step",
    [
        *(pytest.param(name, marks=pytest.mark.long) for name in ("job.json", "plan.arrow", "rejects.parquet")),
        pytest.param("stats.json", marks=pytest.mark.long),
        "codes.json",
    ],
)
def test_driver_killed_at_every_step_of_its_own(job, undisturbed, step, when):
    code, _ = job.run({"step": when, "key": step, "do": "kill"})
    assert code == -signal.SIGKILL
    code, errors = job.run()
    assert code == 0, errors
    assert outputs(job.folder / "codes") == undisturbed
    job.assert_no_unit_was_done_twice()


def kill_at(step, rng, undisturbed):
    unit = rng.randrange(UNITS)
    if step in ("unit", "encoded"):
        return {"step": step, "key": unit, "do": "kill"}
    return {"step": step, "key": rng.choice([f"{unit:05d}.json", part_of(undisturbed, unit)]), "do": "kill"}


@pytest.mark.slow
def test_a_killed_upload_leaves_no_half_unit(tmp_path, corpus, encoder, bucket, undisturbed):
    job = Job(tmp_path, corpus, encoder, bucket.uri("codes"))
    code, errors = job.run({"step": "aside", "key": "sidecars/00003.json", "do": "kill-driver"}, actors=1)
    assert code == -signal.SIGKILL, errors
    for key in bucket.keys("codes/sidecars/"):
        said = json.loads(bucket.get(key))
        part = key.replace("sidecars", "parts").replace(".json", f"-{said['sha256'][:16]}.parquet")
        assert len(bucket.get(part)) == said["bytes"]
    assert "codes/codes.json" not in bucket.keys("codes/")
    encode_corpus(corpus, encoder, job.output, **SETTINGS)
    parts = {key.rpartition("/")[2]: bucket.get(key) for key in bucket.keys("codes/parts/")}
    assert parts == {name: data for name, data in undisturbed.items() if name[0].isdigit()}
    assert bucket.get("codes/codes.json") == undisturbed["codes.json"]
    assert pq.read_table(io.BytesIO(bucket.get("codes/rejects.parquet"))).num_rows == 0
