import collections

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

import hashlight.encoders.training.loop
from hashlight.encoders.data.augment import flip_and_shift, random_view
from hashlight.encoders.data.pixels import PixelSource
from hashlight.encoders.data.supervision.labels import LabelSupervision
from hashlight.encoders.data.supervision.pairs import PairList, PairSupervision
from hashlight.encoders.data.supervision.views import ViewSupervision
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.metrics import average_precision_of_scores, mean_average_precision
from hashlight.encoders.networks.backbones import build_backbone
from hashlight.encoders.networks.model import HashModel
from hashlight.encoders.training.checkpoints import TrainingFolder
from hashlight.encoders.training.loop import Loop, LoopSettings
from hashlight.encoders.training.train import TrainConfig, train
from hashlight.encoders.training.workers import forked_random, random_state, set_random_state
from tests.oracles import distance_histograms


def pictures(num_images, seed):
    """Noisy bars at four heights: four classes that a small network tells apart in seconds."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=num_images)
    images = rng.integers(0, 90, (num_images, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3 + 6 * label : 7 + 6 * label, 4:24] += 120
    return images, labels


IMAGES, LABELS = pictures(192, 0)
QUERIES, QUERY_LABELS = pictures(40, 1)
QUICK = {"bits": 16, "batch_size": 32, "epochs": 4}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Steps this small take longer on two threads than on one, and much longer beside another busy process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained():
    steps = []
    encoder = train(IMAGES, LABELS, TrainConfig(**QUICK, warmup_epochs=3), progress=steps.append)
    return encoder, steps


def quality(encoder):
    queries, items = encoder.encode_all(QUERIES), encoder.encode_all(IMAGES)
    relevant = QUERY_LABELS[:, None] == LABELS
    signs = mean_average_precision(*distance_histograms(queries.codes, items.codes, relevant, encoder.bits))
    return signs, np.mean(average_precision_of_scores(queries.relaxed @ items.relaxed.T, relevant))


def test_training_on_labels_learns(trained):
    signs, relaxed = quality(trained[0])
    assert signs > 0.85
    assert abs(signs - relaxed) < 0.1


def test_progress_is_reported(trained):
    _, steps = trained
    assert [step.phase for step in steps] == ["warm-up"] * 18 + ["hashing"] * 24
    last = steps[-1]
    assert (last.epoch, last.epochs, last.step, last.steps, last.beta) == (4, 4, 24, 24, 30.0)
    assert last.loss < steps[18].loss
    assert 1.5 < last.imbalance < 6
    assert 0.1 < last.bit_balance <= 0.5
    assert last.images_per_s > 0


def test_the_same_seed_gives_the_same_encoder_and_another_seed_another(trained):
    torch.manual_seed(99)
    again = train(IMAGES, LABELS, TrainConfig(**QUICK, warmup_epochs=3))
    assert again.fingerprint == trained[0].fingerprint
    short = {**QUICK, "epochs": 1, "warmup_epochs": 0}
    fingerprints = {train(IMAGES, LABELS, TrainConfig(**short, seed=seed)).fingerprint for seed in (0, 1)}
    assert len(fingerprints) == 2


def test_training_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(IMAGES[:32], LABELS[:32], TrainConfig(bits=8, batch_size=16, epochs=1, warmup_epochs=0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_states_are_restored_on_any_gpu():
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    torch.manual_seed(5)
    state = random_state(device)
    expected = torch.rand(3, device=device), torch.rand(3)
    set_random_state(state, device)
    with forked_random(device):
        torch.manual_seed(9)
        torch.rand(3, device=device)
    assert torch.equal(torch.rand(3, device=device), expected[0])
    assert torch.equal(torch.rand(3), expected[1])


def test_training_on_pairs_learns():
    rng = np.random.default_rng(3)
    first = rng.integers(192, size=1_500)
    second = (first + rng.integers(1, 192, size=1_500)) % 192
    pairs = PairList(first, second, LABELS[first] == LABELS[second])
    config = TrainConfig(**QUICK | {"epochs": 5, "learning_rate": 2e-3})
    signs, _ = quality(train(IMAGES, pairs=pairs, config=config))
    assert signs > 0.7


class Folder:
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return Image.fromarray(IMAGES[index]).resize((40, 50))


def test_a_dataset_of_images_and_a_torchvision_backbone():
    config = TrainConfig(bits=8, backbone="shufflenet_v2_x0_5", batch_size=4, epochs=1, warmup_epochs=0)

    class Few(Folder):
        def __len__(self):
            return 8

    encoder = train(Few(), np.arange(8) % 2, config)
    assert encoder.encode(Few()).shape == (8, 1)
    assert encoder.config.batch_size == 8


def test_pairs_of_a_batch_are_looked_up_in_either_order():
    supervision = PairSupervision(PairList([0, 5, 5], [3, 1, 0], [1, 0, 1]), 6)
    similar, known = supervision.pairs_within(torch.tensor([5, 0, 1, 3]))
    assert known.int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert similar.int().tolist() == [[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    # Two pairs at a time would make two batches; so few images fit into one, with all pairs.
    shown = [sorted(batch.tolist()) for batch in supervision.batches(4)]
    assert len(shown) == supervision.batches_per_epoch(4)
    assert shown == [[0, 1, 3, 5]]


@given(data=st.data(), images=st.integers(3, 12))
def test_pairs_of_any_batch_equal_those_of_the_list(data, images):
    every = [(a, b) for a in range(images) for b in range(a)]
    known = data.draw(st.dictionaries(st.sampled_from(every), st.booleans(), min_size=2))
    assume(len(set(known.values())) == 2)
    flipped = data.draw(st.lists(st.booleans(), min_size=len(known), max_size=len(known)))
    first, second = zip(*[pair[::-1] if flip else pair for pair, flip in zip(known, flipped, strict=True)], strict=True)
    batch = data.draw(st.lists(st.integers(0, images - 1), max_size=8))
    supervision = PairSupervision(PairList(first, second, list(known.values())), images)
    similar, there = supervision.pairs_within(
        torch.tensor(batch, dtype=data.draw(st.sampled_from([torch.int64, torch.int32])))
    )
    pairs = [[(max(a, b), min(a, b)) for b in batch] for a in batch]
    assert there.tolist() == [[pair in known for pair in row] for row in pairs]
    assert similar.tolist() == [[known.get(pair, False) for pair in row] for row in pairs]


def test_dense_pairs_are_shown_by_drawing_images():
    first, second = np.triu_indices(40, 1)
    dense = PairSupervision(PairList(first + 5, second + 5, first % 2), 60)
    shown = [batch.tolist() for batch in dense.batches(16)]
    assert [len(batch) for batch in shown] == [16, 16]
    assert len(shown) == dense.batches_per_epoch(16)
    assert len({image for batch in shown for image in batch}) == 32
    assert {image for batch in shown for image in batch} <= set(range(5, 45))


def test_sparse_pairs_are_shown_once_each():
    # A random batch of 16 would contain 3 known pairs by chance; drawing pairs gives 8.
    sparse = PairSupervision(PairList(np.arange(0, 40, 2), np.arange(1, 40, 2), np.arange(20) % 2), 60)
    shown = [set(batch.tolist()) for batch in sparse.batches(16)]
    assert len(shown) == sparse.batches_per_epoch(16) == 3
    assert [sum({i, i + 1} <= batch for batch in shown) for i in range(0, 40, 2)] == [1] * 20


def test_training_on_views_learns_to_find_copies():
    rng = np.random.default_rng(0)
    images = np.kron(rng.integers(0, 256, (192, 4, 4)), np.ones((7, 7))).astype(np.uint8)
    copies = np.roll((images * 0.7 + 20).astype(np.uint8), 1, axis=2)

    def found(epochs, rate):
        config = TrainConfig(
            bits=32, batch_size=64, epochs=epochs, learning_rate=rate, schedule="constant", final_beta=1.0
        )
        encoder = train(images, config=config, views=True)
        codes = encoder.encode(copies), encoder.encode(images)
        return mean_average_precision(*distance_histograms(*codes, np.eye(192, dtype=bool), 32))

    assert found(epochs=1, rate=1e-9) < 0.15
    assert found(epochs=12, rate=1e-3) > 0.4


def test_views_of_one_image_are_similar_and_differ():
    supervision = ViewSupervision(20)
    batches = list(supervision.batches(8))
    assert len(batches) == supervision.batches_per_epoch(8) == 5
    assert [len(set(batch.tolist())) for batch in batches] == [4] * 5
    similar, known = supervision.pairs_within(batches[0])
    assert similar.int().sum(dim=1).tolist() == [2] * 8
    assert known.all()
    image = torch.rand(1, 1, 28, 28).expand(6, 1, 28, 28)
    views = random_view(image)
    assert views.shape == image.shape
    assert (views[0] - views[1:]).abs().flatten(1).mean(dim=1).min() > 0.05


def relaxed(**settings):
    config = TrainConfig(bits=8, batch_size=16, epochs=1, warmup_epochs=0, augment=settings.pop("augment"))
    return train(IMAGES[:32], config=config, **settings).encode_all(QUERIES).relaxed


def test_augmentation_can_be_left_out_but_not_of_views():
    assert (relaxed(labels=LABELS[:32], augment=True) != relaxed(labels=LABELS[:32], augment=False)).any()
    assert (relaxed(views=True, augment=True) == relaxed(views=True, augment=False)).all()


@pytest.mark.parametrize(
    ("settings", "trained_weights", "augmented"),
    [
        ({"warmup_epochs": 2, "epochs": 9}, False, [True] * 4 + [False] * 7),
        ({"warmup_epochs": 1, "epochs": 2}, False, [True] + [False] * 2),
        ({"warmup_epochs": 1, "epochs": 2, "augment": False}, False, [False] * 3),
        ({"warmup_epochs": 0, "epochs": 3}, False, [True] * 3),
        ({"epochs": 3}, True, [True] * 3),
    ],
)
def test_the_last_epochs_after_a_warm_up_show_images_as_they_are(
    tmp_path, monkeypatch, settings, trained_weights, augmented
):
    weights = tmp_path / "backbone.safetensors"
    save_file(build_backbone("small-cnn", None).network.state_dict(), weights)
    start = {"weights": str(weights)} if trained_weights else {}
    shown = []

    def watch(image_NCHW):
        shown.append(len(steps))
        return flip_and_shift(image_NCHW)

    monkeypatch.setattr(hashlight.encoders.training.loop, "flip_and_shift", watch)
    steps = []
    config = TrainConfig(bits=4, batch_size=8, **start, **settings)
    train(IMAGES[:8], LABELS[:8], config, progress=steps.append)
    assert [step in shown for step in range(len(steps))] == augmented


@pytest.mark.parametrize("views", [False, True])
def test_labelled_images_are_shifted_and_views_fully_augmented(views):
    supervision = ViewSupervision(8) if views else LabelSupervision(np.arange(8) % 2, 8)
    backbone = build_backbone("small-cnn", None)
    loop = Loop(
        HashModel(backbone, 8),
        PixelSource(np.full((8, 28, 28), 100, np.uint8), backbone.preprocessing),
        supervision,
        LoopSettings(
            batch_size=8, chunk_size=None, precision="float32", device="cpu", compile=False, weight_decay=0.0,
            augment=True, seed=0, patience=None,
        ),
        folder=TrainingFolder(None, {}),
        held_out_V=torch.arange(0),
        progress=None,
    )  # fmt: skip
    plain, changed = (loop.inputs(torch.arange(8), augment=augment) for augment in (False, True))
    assert len(plain.unique()) == 1
    # Mirroring and shifting leave a uniform grey image unchanged; light and noise do not.
    assert torch.equal(plain, changed) is not views
    assert len(changed.unique()) == 1 or len(changed.unique()) > 1000


def test_images_that_share_one_of_several_labels_are_similar():
    supervision = LabelSupervision(np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 1]]), 4)
    index = torch.arange(4)
    similar, known = supervision.pairs_within(index)
    assert similar.int().tolist() == [[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]]
    assert known.all()
    expected = [[1, 1 / 2, 0, 2 / 3], [1 / 2, 1, 0, 1 / 3], [0, 0, 1, 1 / 3], [2 / 3, 1 / 3, 1 / 3, 1]]
    assert torch.allclose(supervision.affinity_within(index), torch.tensor(expected))
    assert (supervision.num_classes, supervision.kind) == (3, "multi-labels")
    assert LabelSupervision(np.array([1, 2]), 2).affinity_within(index[:2]) is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([[1, 0], [2, 0]]), "must be 0 or 1 in 2 rows.* values 0 to 2"),
        (np.array([[1, 0], [1, 0]]), "at least 2 different labels .* got 1"),
        (np.array([[1, 1], [0, 0]]), "at least one label, 1 have none"),
        (np.array([[1, 1]]), r"in 2 rows.* shape \(1, 2\)"),
    ],
)
def test_bad_lists_of_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        LabelSupervision(labels, 2)


def test_labels_need_not_start_at_zero():
    supervision = LabelSupervision(np.array([7, -2, 7]), 3)
    assert supervision.classes_of(torch.tensor([0, 1, 2])).tolist() == [[0, 1], [1, 0], [0, 1]]
    similar, known = supervision.pairs_within(torch.tensor([0, 2, 1]))
    assert similar.int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert known.all()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (PairList([0], [9], [1]), "images 0 to 5, got 0 to 9"),
        (PairList([0, 2], [1, 2], [1, 0]), "image 2 with itself in row 1"),
        (PairList([0, 1], [1, 0], [1, 0]), "images 1 and 0 both similar and dissimilar"),
        (PairList([0], [1], [2]), "0 or 1, got"),
        (PairList([], [], []), "at least 1"),
        (PairList([0.5], [1], [1]), "integers, got float64"),
    ],
)
def test_bad_pairs_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        PairSupervision(pairs, 6)


def test_bad_supervision_is_refused(tmp_path):
    weights = tmp_path / "backbone.safetensors"
    save_file(build_backbone("small-cnn", None).network.state_dict(), weights)
    pairs = PairList([0, 2], [1, 3], [1, 0])
    with pytest.raises(ValueError, match="hashnet learns from labels or multi-labels or pairs or views, got nothing"):
        train(IMAGES)
    with pytest.raises(ValueError, match="got `labels` and `pairs`"):
        train(IMAGES, LABELS, pairs=pairs)
    with pytest.raises(ValueError, match="got `labels` and `views`"):
        train(IMAGES, LABELS, views=True)
    with pytest.raises(ValueError, match=r"192 integers, one per image, got int64 of shape \(5,\)"):
        train(IMAGES, LABELS[:5])
    with pytest.raises(ValueError, match="at least 2 different labels"):
        train(IMAGES, np.zeros(192, int))
    with pytest.raises(ValueError, match="at least 2 images to make a pair, got 0"):
        train(IMAGES[:0], LABELS[:0])
    with pytest.raises(ValueError, match="`warmup_epochs` must be 0 or None when training on pairs, got 3"):
        train(IMAGES, pairs=pairs, config=TrainConfig(warmup_epochs=3))
    with pytest.raises(ValueError, match="`compile` must be False if no network is trained, got True: itq"):
        train(IMAGES, config=TrainConfig(method="itq", weights=str(weights), compile=True, bits=8))


@pytest.mark.parametrize(
    ("settings", "supervised", "trained_weights", "phases"),
    [
        ({}, "labels", False, {"warm-up": 20, "hashing": 7}),
        ({}, "labels", True, {"hashing": 15}),
        ({}, "views", False, {"hashing": 15}),
        ({"warmup_epochs": 2}, "labels", False, {"warm-up": 2, "hashing": 7}),
        ({"epochs": 3}, "labels", False, {"warm-up": 20, "hashing": 3}),
        ({"warmup_epochs": 0}, "labels", False, {"hashing": 15}),
        ({"method": "joint"}, "labels", True, {"warm-up": 12, "hashing": 15}),
        ({"method": "itq"}, "labels", False, {"warm-up": 20}),
    ],
)
def test_epochs_left_open_suit_what_the_network_knows(tmp_path, settings, supervised, trained_weights, phases):
    weights = tmp_path / "backbone.safetensors"
    save_file(build_backbone("small-cnn", None).network.state_dict(), weights)
    given = {"labels": LABELS[:8]} if supervised == "labels" else {"views": True}
    start = {"weights": str(weights)} if trained_weights else {}
    steps = []
    encoder = train(
        IMAGES[:8], config=TrainConfig(bits=4, batch_size=8, **start, **settings), progress=steps.append, **given
    )
    per_epoch = 2 if supervised == "views" else 1
    assert collections.Counter(step.phase for step in steps) == {
        phase: epochs * per_epoch for phase, epochs in phases.items()
    }
    told = encoder.config.training["settings"]
    assert (told["warmup_epochs"], told["epochs"]) == (phases.get("warm-up", 0), phases.get("hashing", 0))


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 0},
        {"bits": 2000},
        {"epochs": 0},
        {"batch_size": 2},
        {"schedule": "up"},
        {"seed": -1},
        {"seed": 2**32},
        {"device": "tpu"},
    ],
)
def test_bad_settings_are_refused(change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"`{name}` must be .* got {value!r}"):
        TrainConfig(**change)


def test_encoder_is_an_encoder(trained):
    assert isinstance(trained[0], HashEncoder)
    assert trained[0].config.training["supervision"] == "4 labels"
