"""Learning rates, measured on the weights themselves.

The first step of Adam moves every weight with a gradient by the current rate, whatever the size of the gradient, and
a one-cycle schedule starts at a 25th of its peak. In addition, decay shrinks a weight by the rate times `weight_decay`.
"""

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hashlight.encoders.networks.compat import load_torchvision
from hashlight.encoders.networks.stages import stages_of
from hashlight.encoders.training.checkpoints import CHECKPOINT_FILE
from hashlight.encoders.training.train import TrainConfig, train
from tests.encoders.training.test_training import IMAGES, LABELS

FIRST = 1 / 25
# A rate at which nothing moves, to get the initial weights.
STILL = 1e-30
ONE_STEP = {"bits": 8, "batch_size": 32, "epochs": 1, "precision": "float64", "augment": False}
# Buffers of batch normalisation, which no optimizer moves.
STATISTICS = re.compile(r"running_|num_batches")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def state_after(**settings):
    """Return the checkpoint's weights by name after one step of 32 images."""
    config = TrainConfig(**ONE_STEP | {"warmup_epochs": 0} | settings)
    with tempfile.TemporaryDirectory() as folder:
        train(IMAGES[:32], LABELS[:32], config, folder=Path(folder))
        saved = torch.load(Path(folder) / CHECKPOINT_FILE, weights_only=True)
    return {**saved["model"], **{f"objective.{name}": weight for name, weight in saved["objective"].items()}}


def weights_after(**settings):
    """Return the backbone's and the hash layer's matrices and filters after one step, each flattened."""
    state = {name: weight for name, weight in state_after(**settings).items() if not STATISTICS.search(name)}
    state = {name: weight for name, weight in state.items() if weight.ndim > 1}
    parts = [[state[name].flatten() for name in state if name.startswith(part)] for part in ("backbone", "hash_layer")]
    return [torch.cat(part).numpy() for part in parts]


def rates_of(**settings):
    """Return the rates at which backbone and hash layer took their first step."""
    moved = weights_after(**settings, weight_decay=0.0)
    still = weights_after(**settings | {"learning_rate": STILL}, weight_decay=0.0)
    return [float(np.quantile(np.abs(after - before), 0.9)) for after, before in zip(moved, still, strict=True)]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    config = TrainConfig(**ONE_STEP | {"precision": "float32"}, method="lsh", warmup_epochs=1)
    train(IMAGES[:32], LABELS[:32], config).save_backbone(path)
    return str(path)


def test_the_default_rates_of_a_random_backbone():
    assert rates_of() == pytest.approx([5e-4 * FIRST, 10 * 5e-4 * FIRST], rel=0.02)


def test_the_default_rates_of_a_backbone_with_weights(learned):
    assert rates_of(weights=learned) == pytest.approx([1e-4 * FIRST, 50 * 1e-4 * FIRST], rel=0.02)


def test_the_default_rates_after_a_warm_up():
    assert rates_of(warmup_epochs=1) == pytest.approx([1e-4 * FIRST, 50 * 1e-4 * FIRST], rel=0.02)


def test_given_rates_are_used(learned):
    given = {"learning_rate": 2e-3, "hash_multiplier": 3.0}
    for start in ({}, {"weights": learned}, {"warmup_epochs": 1}):
        assert rates_of(**given, **start) == pytest.approx([2e-3 * FIRST, 3 * 2e-3 * FIRST], rel=0.02)
    assert rates_of(hash_multiplier=2.0) == pytest.approx([5e-4 * FIRST, 2 * 5e-4 * FIRST], rel=0.02)


def test_the_warm_up_has_its_own_rate():
    still, default, given = (
        weights_after(method="lsh", warmup_epochs=1, weight_decay=0.0, **rate)[0]
        for rate in ({"warmup_learning_rate": STILL}, {}, {"warmup_learning_rate": 1e-3, "learning_rate": 1.0})
    )
    assert np.quantile(np.abs(default - still), 0.9) == pytest.approx(3e-3 * FIRST, rel=0.02)
    assert np.quantile(np.abs(given - still), 0.9) == pytest.approx(1e-3 * FIRST, rel=0.02)


def test_weights_decay_at_their_rate():
    start = weights_after(learning_rate=STILL)
    plain, decayed = (weights_after(weight_decay=decay) for decay in (0.0, 100.0))
    for before, without, with_decay, rate in zip(start, plain, decayed, (5e-4, 5e-3), strict=True):
        assert np.abs(before).max() > 0.05
        np.testing.assert_allclose(without - with_decay, rate * FIRST * 100 * before, rtol=0, atol=1e-10)


def test_weights_decay_in_the_warm_up():
    settings = {"method": "lsh", "warmup_epochs": 1}
    start = weights_after(**settings, warmup_learning_rate=STILL)[0]
    plain, decayed = (weights_after(**settings, weight_decay=decay)[0] for decay in (0.0, 100.0))
    np.testing.assert_allclose(plain - decayed, 3e-3 * FIRST * 100 * start, rtol=0, atol=1e-10)


def test_an_objectives_own_weights_learn_with_the_hash_layer():
    still, moved = (
        state_after(method="hashnet-st", weight_decay=0.0, **rate)["objective.classifier.weight"].numpy()
        for rate in ({"learning_rate": STILL}, {})
    )
    assert np.quantile(np.abs(moved - still), 0.9) == pytest.approx(10 * 5e-4 * FIRST, rel=0.02)


def test_biases_and_normalisation_do_not_decay():
    plain, decayed = (state_after(weight_decay=decay) for decay in (0.0, 100.0))
    changed = {name for name in plain if not torch.equal(plain[name], decayed[name])}
    assert changed == {name for name in plain if plain[name].ndim > 1}
    assert len(changed) == 7


def test_frozen_stages_keep_their_weights_and_statistics(learned):
    before, after = (state_after(weights=learned, frozen_stages=2, **rate) for rate in ({"learning_rate": STILL}, {}))
    start = load_file(learned)
    kept = {name for name in after if torch.equal(after[name], before[name])}
    of_backbone = {name for name in kept if name.startswith("backbone.") and not STATISTICS.search(name)}
    # The first two convolutions (a pooling lies behind the first one) and their normalisation.
    first_two = {f"backbone.{place}.{part}" for place in (2, 5) for part in ("weight", "bias")}
    assert of_backbone == {"backbone.0.weight", "backbone.4.weight", *first_two}
    for place, is_frozen in ((2, True), (5, True), (9, False)):
        same = torch.equal(after[f"backbone.{place}.running_mean"], start[f"{place}.running_mean"].double())
        assert same is is_frozen


def test_a_frozen_backbone_leaves_the_hash_layer_to_train(learned):
    before, after = (
        state_after(weights=learned, frozen_stages="all", **rate) for rate in ({"learning_rate": STILL}, {})
    )
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"hash_layer.weight", "hash_layer.bias"}


def test_rates_fall_from_stage_to_stage():
    still, moved = (state_after(stage_decay=0.5, weight_decay=0.0, **rate) for rate in ({"learning_rate": STILL}, {}))
    names = [f"backbone.{place}.weight" for place in (0, 4, 7, 11, 14, 19)]
    steps = [float(np.quantile((moved[name] - still[name]).abs().numpy(), 0.9)) for name in names]
    assert steps == pytest.approx([5e-4 * FIRST * 0.5 ** (5 - number) for number in range(6)], rel=0.05)


def test_what_cannot_be_frozen_is_refused(learned):
    with pytest.raises(ValueError, match="`frozen_stages` must be 0 for a backbone with random weights, got 2"):
        state_after(frozen_stages=2)
    with pytest.raises(ValueError, match="`frozen_stages` must be at most 6 for small-cnn, got 7"):
        state_after(weights=learned, frozen_stages=7)
    with pytest.raises(ValueError, match="`frozen_stages` must be below 6 with a warm-up of 1 epochs, got all"):
        state_after(weights=learned, frozen_stages="all", warmup_epochs=1)
    with pytest.raises(ValueError, match="`frozen_stages` must be 0 or more, or 'all', got 'most'"):
        TrainConfig(frozen_stages="most")
    with pytest.raises(ValueError, match=r"`stage_decay` must be above 0 and at most 1, got 1\.5"):
        TrainConfig(stage_decay=1.5)


def test_stages_of_a_residual_network_and_a_transformer():
    models = load_torchvision().models
    stages = stages_of(models.resnet18(weights=None))
    # A convolution, eight blocks, the classifier.
    assert len(stages) == 10
    for network in (models.resnet18(weights=None), models.vit_b_16(weights=None)):
        stages = stages_of(network)
        weights = [id(weight) for stage in stages for weight in stage.weights]
        assert sorted(weights) == sorted(id(weight) for weight in network.parameters())
    assert any(weight is network.class_token for weight in stages[0].weights)
