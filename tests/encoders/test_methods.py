import dataclasses
import math

import numpy as np
import pytest
import torch

from hashlight.encoders.data.supervision.pairs import PairList
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.methods import METHODS
from hashlight.encoders.metrics import mean_average_precision
from hashlight.encoders.training.train import TrainConfig, train
from tests.encoders.training.test_training import IMAGES, LABELS, QUERIES, QUERY_LABELS
from tests.oracles import distance_histograms

# Each image has the label of its bar, and one of two labels for the upper and the lower half.
SEVERAL = np.hstack([LABELS[:, None] == np.arange(4), LABELS[:, None] // 2 == np.arange(2)])
MULTI_ONLY = ("hashnet-c",)
NEED_LABELS = ("hashnet-st", "latent", "joint", "csq", "orthohash", "itq-cca", "sdh", "ksh")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def labels_for(method):
    """Labels to learn: bars that are not adjacent are similar, which the features alone do not show."""
    groups = LABELS[:, None] % 2 == np.arange(2)
    return np.hstack([LABELS[:, None] == np.arange(4), groups]) if method in MULTI_ONLY else LABELS % 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A backbone that has learned to distinguish the classes, from which all methods start."""
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    train(IMAGES, LABELS, TrainConfig(method="lsh", bits=8, batch_size=32, warmup_epochs=3)).save_backbone(path)
    return str(path)


@pytest.fixture(scope="module")
def encoders(weights):
    """Every method, trained once."""

    def one(method):
        config = TrainConfig(method=method, bits=16, batch_size=32, epochs=4, warmup_epochs=0, weights=weights)
        return train(IMAGES, labels_for(method), config)

    return {method: one(method) for method in METHODS}


def quality(encoder):
    queries, items = encoder.encode(QUERIES), encoder.encode(IMAGES)
    return mean_average_precision(*distance_histograms(queries, items, QUERY_LABELS[:, None] % 2 == LABELS % 2, 16))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(encoders, method):
    encoder = encoders[method]
    # The initial features distinguish the four bars, but do not show which two are similar.
    assert quality(encoders["lsh"]) < 0.8
    if METHODS[method].objective is not None or METHODS[method].reads_classes:
        assert quality(encoder) > quality(encoders["lsh"]) + 0.1
    assert encoder.config.method == method
    assert encoder.config.training["title"] == METHODS[method].title


@pytest.mark.parametrize("method", METHODS)
def test_every_method_saves_and_loads(encoders, method, tmp_path):
    encoders[method].save(tmp_path / "encoder")
    loaded = HashEncoder.load(tmp_path / "encoder")
    assert loaded.fingerprint == encoders[method].fingerprint
    whole = encoders[method].encode_all(QUERIES)
    single = [loaded.encode_all(QUERIES[i : i + 1]) for i in range(10)]
    assert (whole.codes[:10] == np.concatenate([one.codes for one in single])).all()
    assert (whole.relaxed[:10] == np.concatenate([one.relaxed for one in single])).all()
    assert np.isfinite(whole.relaxed).all()
    assert 0.05 < np.abs(whole.relaxed).mean() <= 1.0


def test_the_reconstruction_is_labelled_as_one_everywhere(encoders):
    assert "reconstruction" in METHODS["joint"].title
    assert "reconstruction" in encoders["joint"].config.training["title"]


@pytest.mark.parametrize("method", [name for name in METHODS if name not in (*NEED_LABELS, *MULTI_ONLY)])
def test_methods_without_labels_accept_pairs_and_views(weights, method):
    config = TrainConfig(method=method, bits=8, batch_size=16, epochs=1, weights=weights)
    pairs = PairList([0, 1, 2, 3], [4, 5, 6, 7], [1, 0, 1, 0])
    by_pairs, by_views = train(IMAGES[:32], pairs=pairs, config=config), train(IMAGES[:32], config=config, views=True)
    assert by_pairs.encode(QUERIES[:3]).shape == by_views.encode(QUERIES[:3]).shape == (3, 1)


@pytest.mark.parametrize("method", NEED_LABELS)
def test_methods_that_read_labels_need_them(method):
    config = TrainConfig(method=method, bits=8, epochs=1)
    with pytest.raises(ValueError, match=f"{method} learns from labels or multi-labels, got nothing: .*label"):
        train(IMAGES, config=config)
    with pytest.raises(ValueError, match="got pairs"):
        train(IMAGES, pairs=PairList([0, 2], [1, 3], [1, 0]), config=config)
    with pytest.raises(ValueError, match="got views"):
        train(IMAGES, views=True, config=config)


@pytest.mark.parametrize("method", NEED_LABELS)
def test_methods_that_read_labels_accept_several_per_image(weights, method):
    config = TrainConfig(method=method, bits=8, batch_size=16, epochs=1, warmup_epochs=0, weights=weights)
    encoder = train(IMAGES[:48], SEVERAL[:48], config)
    assert encoder.config.training["supervision"] == "6 labels, several per image"


def test_bad_combinations_are_refused_with_their_reason(weights):
    for labels in (LABELS, LABELS[:, None] == np.arange(4)):
        with pytest.raises(ValueError, match="hashnet-c learns from multi-labels, got labels: with one label per"):
            train(IMAGES, labels, TrainConfig(method="hashnet-c"))
    with pytest.raises(ValueError, match="must vary for SH to find 8 bits, got 20 equal rows"):
        train(np.zeros((20, 28, 28), np.uint8), config=TrainConfig(method="sh", bits=8, weights=weights))
    with pytest.raises(ValueError, match=r"`method` must be one of auto, hashnet, .* got 'fruit'"):
        TrainConfig(method="fruit")
    with pytest.raises(ValueError, match="`validation_images` must be 0 for itq, which has no epochs, got 10"):
        TrainConfig(method="itq", validation_images=10)


@pytest.mark.parametrize(
    ("method", "bits", "message"),
    [
        ("itq", 300, "at most 256 for ITQ on 256-dimensional features, got 300"),
        ("itq-cca", 300, "at most 256 for ITQ-CCA on 256-dimensional features, got 300"),
        ("csq", 1, "each of 4 classes its own code, got 1"),
        ("orthohash", 1, "each of 4 classes its own code, got 1"),
    ],
)
def test_impossible_bits_are_refused_before_the_warm_up(tmp_path, method, bits, message):
    steps = []
    settings = {"method": method, "batch_size": 16, "epochs": 1, "warmup_epochs": 1}
    with pytest.raises(ValueError, match=message):
        train(IMAGES[:32], LABELS[:32], TrainConfig(bits=bits, **settings), folder=tmp_path, progress=steps.append)
    assert not steps
    again = train(IMAGES[:32], LABELS[:32], TrainConfig(bits=8, **settings), folder=tmp_path, progress=steps.append)
    assert steps
    assert again.bits == 8


@pytest.mark.parametrize("method", ["lsh", "itq", "ksh", "joint"])
def test_features_of_random_weights_are_not_hashed(method):
    with pytest.raises(ValueError, match=f"{method} needs a trained backbone, .*: pass `weights`"):
        train(IMAGES, LABELS, TrainConfig(method=method, bits=8, warmup_epochs=0))
    if not METHODS[method].reads_classes:
        with pytest.raises(ValueError, match="random weights and no warm-up"):
            train(IMAGES, config=TrainConfig(method=method, bits=8))


@pytest.mark.parametrize(
    ("method", "betas"),
    [
        ("hashnet", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]),
        ("hashnet-ste", [1]),
        ("hashnet-sgn", [1]),
        ("hashnet-sharp", [512]),
        ("hashnet-st", [1]),
    ],
)
def test_beta_rises_only_with_continuation(weights, method, betas):
    seen = []
    config = TrainConfig(
        method=method, bits=8, batch_size=32, epochs=4, warmup_epochs=0, weights=weights, final_beta=512.0
    )
    encoder = train(IMAGES, LABELS, config, progress=lambda step: seen.append(step.beta))
    assert sorted(set(seen)) == pytest.approx(betas)
    assert encoder.config.beta == max(betas)


@pytest.mark.parametrize(("schedule", "last"), [("stages", 30.0), ("released", math.sqrt(50)), ("constant", 30.0)])
def test_each_schedule_ends_at_its_own_final_beta(weights, schedule, last):
    config = TrainConfig(method="hashnet", bits=8, batch_size=16, epochs=1, weights=weights, warmup_epochs=0)
    encoder = train(IMAGES[:32], LABELS[:32], dataclasses.replace(config, schedule=schedule))
    assert encoder.config.beta == pytest.approx(last)
    assert encoder.config.training["settings"]["final_beta"] == pytest.approx(last)


def test_classification_comes_first_for_the_joint_method_whatever_the_weights(weights):
    phases = []
    config = TrainConfig(method="joint", bits=8, batch_size=32, epochs=1, weights=weights)
    train(IMAGES[:32], LABELS[:32], config, progress=lambda step: phases.append(step.phase))
    assert phases == ["warm-up"] * 12 + ["hashing"]


def test_an_artifact_with_an_unknown_head_is_refused(encoders):
    with pytest.raises(ValueError, match="`head` must be one of linear, kernel, spectral, median, got 'neural'"):
        dataclasses.replace(encoders["itq"].config, head="neural")
    with pytest.raises(ValueError, match="`anchors` must be above 0 for a kernel head and 0 for others, got 5"):
        dataclasses.replace(encoders["itq"].config, anchors=5)
