import dataclasses
import json

import numpy as np
import pytest
import torch

import hashlight.encoders.training.checkpoints
from hashlight.encoders.data.supervision.labels import LabelSupervision
from hashlight.encoders.data.supervision.pairs import PairList
from hashlight.encoders.data.supervision.views import NoSupervision, ViewSupervision
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.metrics import mean_average_precision
from hashlight.encoders.training.train import TrainConfig, train
from hashlight.encoders.training.validation import hold_out, validation_map
from tests.encoders.training.test_training import IMAGES, LABELS, QUERIES
from tests.oracles import distance_histograms

SHORT = {"bits": 8, "batch_size": 16, "epochs": 2, "warmup_epochs": 1}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def each_step_kept(monkeypatch):
    monkeypatch.setattr(hashlight.encoders.training.checkpoints, "CHECKPOINT_S", 0.0)


class StopError(Exception):
    pass


def stop_at(number):
    seen = []

    def progress(step):
        seen.append(step)
        if len(seen) == number:
            raise StopError

    return progress


# 64 images in batches of 16 are 4 steps per epoch: 4 of warm-up, 8 of hashing.
@pytest.mark.parametrize("step", [1, 3, 4, 5, 8, 9, 11, 12])
def test_stopped_anywhere_and_resumed_it_is_the_same_encoder(tmp_path, each_step_kept, step):
    config = TrainConfig(**SHORT)
    whole = train(IMAGES[:64], LABELS[:64], config)
    with pytest.raises(StopError):
        train(IMAGES[:64], LABELS[:64], config, folder=tmp_path, progress=stop_at(step))
    torch.manual_seed(step)
    steps = []
    resumed = train(IMAGES[:64], LABELS[:64], config, folder=tmp_path, progress=steps.append)
    assert len(steps) == 12 - (step - 1)
    assert resumed.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({"method": "latent"}, {"labels": LABELS[:64]}),
        ({"method": "csq", "chunk_size": 6}, {"labels": LABELS[:64]}),
        ({"method": "hashnet", "warmup_epochs": 0}, {"views": True}),
        ({"method": "hashnet", "warmup_epochs": 0, "validation_images": 16}, {"views": True}),
        ({"method": "hashnet", "validation_images": 16, "epochs": 3}, {"labels": LABELS[:64]}),
        ({"method": "dhn", "precision": "bfloat16"}, {"labels": LABELS[:64]}),
        ({"method": "itq", "warmup_epochs": 2}, {"labels": LABELS[:64]}),
    ],
)
def test_every_kind_of_training_resumes(tmp_path, each_step_kept, settings, given):
    config = TrainConfig(**SHORT | settings)
    whole = train(IMAGES[:64], config=config, **given)
    for step in (6, 1):
        with pytest.raises(StopError):
            train(IMAGES[:64], config=config, folder=tmp_path, progress=stop_at(step), **given)
    assert train(IMAGES[:64], config=config, folder=tmp_path, **given).fingerprint == whole.fingerprint


def test_without_a_due_checkpoint_it_resumes_at_the_epoch(tmp_path):
    config = TrainConfig(**SHORT)
    with pytest.raises(StopError):
        train(IMAGES[:64], LABELS[:64], config, folder=tmp_path, progress=stop_at(7))
    steps = []
    resumed = train(IMAGES[:64], LABELS[:64], config, folder=tmp_path, progress=steps.append)
    assert len(steps) == 8
    assert resumed.fingerprint == train(IMAGES[:64], LABELS[:64], config).fingerprint


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    with pytest.raises(StopError):
        train(IMAGES[:64], LABELS[:64], TrainConfig(**SHORT), folder=tmp_path, progress=stop_at(6))
    others = [
        (IMAGES[:64], LABELS[:64], TrainConfig(**SHORT, seed=1)),
        (IMAGES[:64], LABELS[1:65], TrainConfig(**SHORT)),
        (IMAGES[:80], LABELS[:80], TrainConfig(**SHORT)),
    ]
    for images, labels, config in others:
        with pytest.raises(EncoderError, match="belongs to a run with other settings"):
            train(images, labels, config, folder=tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(EncoderError, match=r"is not a readable checkpoint .*: delete it to start over"):
        train(IMAGES[:64], LABELS[:64], TrainConfig(**SHORT), folder=tmp_path)


def test_the_log_has_one_line_per_epoch(tmp_path, each_step_kept):
    config = TrainConfig(**SHORT)
    with pytest.raises(StopError):
        train(IMAGES[:64], LABELS[:64], config, folder=tmp_path, progress=stop_at(9))
    train(IMAGES[:64], LABELS[:64], config, folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["epoch"]) for line in lines] == [("warm-up", 1), ("hashing", 1), ("hashing", 2)]
    assert 20 < lines[2]["beta"] <= 30
    assert 1 < lines[2]["imbalance"] < 10
    assert 0 < lines[2]["bit_balance"] <= 0.5
    assert lines[2]["loss"] > 0
    assert lines[2]["images_per_s"] > 0


def test_imbalance_covers_the_whole_epoch_and_is_never_infinite(tmp_path):
    # Two pairs per batch, so that one of two batches has no similar pair and an infinite imbalance of its own.
    pairs = PairList(np.arange(0, 8, 2), np.arange(1, 8, 2), [1, 0, 0, 0])
    config = TrainConfig(bits=8, batch_size=4, epochs=1)
    steps = []
    train(IMAGES[:40], pairs=pairs, config=config, folder=tmp_path, progress=steps.append)
    assert max(step.imbalance for step in steps) == float("inf")
    text = (tmp_path / "training.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [line["imbalance"] for line in lines] == [3.0]


def test_the_best_epoch_on_validation_images_is_kept(tmp_path):
    config = TrainConfig(bits=8, batch_size=16, epochs=5, warmup_epochs=2, validation_images=40, learning_rate=2e-3)
    encoder = train(IMAGES, LABELS, config, folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    values = [line["validation_map"] for line in lines if line["phase"] == "hashing"]
    best = int(np.argmax(values))
    assert encoder.config.training["epoch"].startswith(f"{best + 1}, best on 40 validation images")
    assert encoder.config.beta == [line["beta"] for line in lines if line["phase"] == "hashing"][best]
    _, held_out = hold_out(LabelSupervision(LABELS, 192), 40, seed=0)
    codes, labels = encoder.encode(IMAGES[held_out]), LABELS[held_out]
    total, relevant = distance_histograms(codes, codes, labels[:, None] == labels, 8)
    total[:, 0] -= 1
    relevant[:, 0] -= 1
    assert mean_average_precision(total, relevant) == pytest.approx(max(values), abs=1e-9)


def test_patience_stops_a_training_that_does_not_improve():
    phases = []
    config = TrainConfig(
        bits=4, batch_size=16, epochs=30, warmup_epochs=0, validation_images=20, patience=2, learning_rate=1e-9
    )
    encoder = train(IMAGES[:64], LABELS[:64], config, progress=lambda step: phases.append(step.epoch))
    assert max(phases) < 30
    assert encoder.config.training["epoch"].startswith(f"{max(phases) - 2}, best")


def test_validation_images_are_never_trained_on():
    supervision, held_out = hold_out(LabelSupervision(LABELS, 192), 50, seed=3)
    assert len(set(held_out.tolist())) == 50
    shown = torch.cat(list(supervision.batches(8))).tolist()
    assert len(set(shown)) > 130
    assert not set(shown) & set(held_out.tolist())
    _, views = hold_out(ViewSupervision(192), 50, seed=3)
    assert torch.equal(views, torch.cat([held_out, held_out]))
    with pytest.raises(ValueError, match="at most half of 192 images, got 97"):
        hold_out(LabelSupervision(LABELS, 192), 97, seed=0)


def test_pairs_cannot_be_held_out():
    pairs = PairList([0, 1], [2, 3], [1, 0])
    with pytest.raises(ValueError, match="without losing most of its pairs"):
        train(IMAGES[:8], pairs=pairs, config=TrainConfig(bits=4, validation_images=2))


def test_validation_ranks_every_image_by_every_other():
    z = torch.tensor([[1.0, 1], [1, 1], [-1, 1], [-1, -1]])
    supervision = LabelSupervision(np.array([0, 0, 1, 1]), 4)
    # The first two rank each other first; for the third, one of three tied images is relevant; the last has it first.
    tie = (1 + 1 / 2 + 1 / 3) / 3
    assert validation_map(z, supervision, torch.arange(4)) == pytest.approx((1 + 1 + tie + 1) / 4)
    assert np.isnan(validation_map(z[:2], NoSupervision(2), torch.arange(2)))


def test_validation_settings_are_checked():
    with pytest.raises(ValueError, match="must include two similar images, the 8 drawn do not"):
        train(IMAGES[:32], np.arange(32), TrainConfig(bits=8, validation_images=8, warmup_epochs=0))
    with pytest.raises(ValueError, match="`validation_images` must be 0, or at least 2, got 1"):
        TrainConfig(validation_images=1)
    with pytest.raises(ValueError, match=r"`patience` must be None, or at least 1 with `validation_images`.*got 3"):
        TrainConfig(patience=3)
    with pytest.raises(ValueError, match="`precision` must be one of float32, bfloat16, float64, got 'float8'"):
        TrainConfig(precision="float8")


def test_mixed_precision_trains_and_encodes_in_full():
    config = TrainConfig(bits=16, batch_size=32, epochs=1, warmup_epochs=1, precision="bfloat16")
    encoder = train(IMAGES[:96], LABELS[:96], config)
    assert encoder.encode_all(QUERIES).features.dtype == np.float32
    assert (
        encoder.fingerprint
        != train(IMAGES[:96], LABELS[:96], dataclasses.replace(config, precision="float32")).fingerprint
    )
