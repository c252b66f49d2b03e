"""Training on Ray: two workers against one, a worker killed on the way, and what is refused."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.training.train import TrainConfig
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.codes.encoder import load_encoder
from hashlight.pipelines.corpora.fashion_mnist import as_corpus
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.training.train import train_encoder

pytestmark = pytest.mark.usefixtures("ray_session", "quick_notice")
SHORT = TrainConfig(bits=16, batch_size=32, epochs=3, warmup_epochs=1, precision="float64")
# Long enough that what is killed at its first hashing step, as seen from here, is far from its last.
CONFIG = dataclasses.replace(SHORT, epochs=20)


@pytest.fixture(scope="module")
def quick_notice():
    """Notice lost workers at once; and train on one thread here, as a worker does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def images(pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.parquet"
    pq.write_table(as_corpus(pictures[0][:96], pictures[1][:96], np.arange(96)), path)
    return path


def trained(images, output, config, **options):
    """Train; return the encoder, and the loss of each step."""
    losses = []
    encoder = train_encoder(images, output, config, progress=lambda *state: losses.append(state[2].loss), **options)
    return encoder, losses


@pytest.fixture(scope="module")
def two_workers(images, tmp_path_factory):
    """An undisturbed run of two workers: its encoder and its losses."""
    return trained(images, tmp_path_factory.mktemp("two") / "encoder", CONFIG, workers=2)


def test_two_workers_have_the_loss_curve_of_the_plain_loop(images, tmp_path):
    alone, plain = trained(images, tmp_path / "alone", SHORT)
    encoder, losses = trained(images, tmp_path / "two", SHORT, workers=2)
    assert len(plain) == 3 * 4
    assert np.ptp(plain) > 0.1
    np.testing.assert_allclose(losses, plain, atol=1e-4, rtol=0)
    # Of weights that differ by rounding, the exported networks differ too.
    inputs = [dataclasses.replace(config.input, onnx=None) for config in (encoder.config, alone.config)]
    assert dataclasses.replace(encoder.config, input=inputs[0]) == dataclasses.replace(alone.config, input=inputs[1])


@pytest.mark.slow
@pytest.mark.long
def test_one_worker_is_the_plain_loop(images, tmp_path):
    config = TrainConfig(bits=16, batch_size=32, epochs=1, warmup_epochs=1)
    alone = train_encoder(images, tmp_path / "alone", config)
    options = ("--bits", 16, "--batch-size", 32, "--epochs", 1, "--warmup-epochs", 1, "--workers", 1)
    arguments = ["train", "--input", images, "--output", tmp_path / "worker", *options]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert HashEncoder.load(tmp_path / "worker").fingerprint == alone.fingerprint
    assert (tmp_path / "worker" / "training.jsonl").is_file()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_worker_changes_nothing(images, tmp_path, two_workers):
    steps_seen, workers_seen, killed = set(), set(), []

    def kill_one(step, steps, state):
        steps_seen.add((state.phase, step))
        workers_seen.update(workers_of_this_process())
        if state.phase == "hashing" and not killed:
            killed.append(workers_of_this_process()[-1])
            os.kill(killed[0], signal.SIGKILL)

    encoder = train_encoder(images, tmp_path / "encoder", CONFIG, workers=2, progress=kill_one)
    assert killed
    assert len(workers_seen) > 2, "the killed worker was not replaced before the end"
    assert len(steps_seen) == len(two_workers[1])
    assert encoder.fingerprint == two_workers[0].fingerprint


@pytest.mark.slow
def test_what_no_attempt_can_fix_ends_the_run(images, tmp_path):
    config = TrainConfig(bits=16, batch_size=32, epochs=1, learning_rate=1e30, warmup_epochs=0)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train_encoder(images, tmp_path / "encoder", config, workers=1)
    with pytest.raises(PipelineError, match="3 workers need 3 CPUs, the cluster has 2: ask for fewer"):
        train_encoder(images, tmp_path / "encoder", CONFIG, workers=3, overwrite=True)
    with pytest.raises(ValueError, match="`address` goes with `workers`"):
        train_encoder(images, tmp_path / "other", CONFIG, address="auto")


@pytest.mark.slow
@pytest.mark.long
def test_an_interrupted_run_resumes(images, tmp_path, two_workers):
    def interrupt(step, steps, state):
        if (state.phase, step) == ("hashing", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_encoder(images, tmp_path / "encoder", CONFIG, workers=2, progress=interrupt)
    steps = []
    encoder = train_encoder(images, tmp_path / "encoder", CONFIG, workers=2, progress=lambda *s: steps.append(s[0]))
    assert steps[0] > 1
    assert encoder.fingerprint == two_workers[0].fingerprint


@pytest.mark.slow
@pytest.mark.long
def test_workers_of_a_cluster_train_into_a_bucket(images, tmp_path, two_workers, bucket, monkeypatch):
    """The checkpoint is there, too, where any machine resumes from it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def interrupt(step, steps, state):
        if (state.phase, step) == ("hashing", 5):
            raise KeyboardInterrupt

    output, steps = bucket.uri("some/encoder"), []
    with pytest.raises(KeyboardInterrupt):
        train_encoder(images, output, CONFIG, workers=2, address="auto", progress=interrupt)
    kept = {f"some/.encoder.training/{name}" for name in ("checkpoint.pt", "job.json", "training.jsonl")}
    assert set(bucket.keys()) - {"some/.encoder.training/.lock"} == kept
    encoder = train_encoder(
        images, output, CONFIG, workers=2, address="auto", progress=lambda *state: steps.append(state[0])
    )
    assert steps[0] > 1
    assert encoder.fingerprint == load_encoder(output).fingerprint == two_workers[0].fingerprint
    assert {key.rpartition("/")[0] for key in bucket.keys("")} == {"some/encoder"}
    assert not list(tmp_path.glob("hashlight/training"))


@pytest.mark.slow
def test_a_killed_driver_loses_nothing(images, tmp_path, two_workers):
    options = {"bits": 16, "batch-size": 32, "epochs": 20, "warmup-epochs": 1, "precision": "float64", "workers": 2}
    command = [sys.executable, "-P", "-m", "hashlight", "train", "--input", images, "--output", tmp_path / "e"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    log = tmp_path / ".e.training" / "training.jsonl"
    with subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL) as driver:
        while not (log.is_file() and "hashing" in log.read_text()):
            assert driver.poll() is None
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
    assert not (tmp_path / "e").exists()
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    assert HashEncoder.load(tmp_path / "e").fingerprint == two_workers[0].fingerprint


def workers_of_this_process():
    """Process ids of the Ray Train workers among the descendants of this process."""
    parent, name = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            name[int(folder.name)] = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parent[int(folder.name)] = int(fields[1])

    def is_ours(pid):
        while pid in parent and pid != os.getpid():
            pid = parent[pid]
        return pid == os.getpid()

    return sorted(pid for pid in parent if b"RayTrainWorker" in name[pid] and is_ours(pid))


def test_what_else_ends_training_is_raised_as_it_is(images, tmp_path, monkeypatch):
    def fail(_trainer):
        raise OSError("no space left for Ray")

    monkeypatch.setattr("ray.train.torch.TorchTrainer.fit", fail)
    with pytest.raises(OSError, match="no space left for Ray"):
        train_encoder(images, tmp_path / "encoder", CONFIG, workers=2)
