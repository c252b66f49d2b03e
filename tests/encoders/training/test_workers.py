"""Several processes train like a single one: the oracle is the plain loop, with torch's own batch normalisation."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from hashlight.encoders.data.supervision.pairs import PairList
from hashlight.encoders.losses.hashnet import hashnet_loss
from hashlight.encoders.training.gradients import backward
from hashlight.encoders.training.train import TrainConfig, train
from hashlight.encoders.training.workers import ALONE, Share, Workers
from tests.encoders.training.test_training import IMAGES, LABELS

# Three workers share 16 images as 6, 5 and 5; a chunk of 2 leaves the third worker without images.
WORLD = 3
PAIRS = PairList(np.arange(30), np.arange(30) + 30, np.arange(30) % 2)
# In float32, rounding errors grow so fast that even the plain loop has another curve with another number of threads.
SHORT = {"bits": 8, "batch_size": 16, "epochs": 1, "warmup_epochs": 1, "precision": "float64"}
RUNS = {
    "labels": (SHORT, {"labels": LABELS[:64]}),
    "chunks": (SHORT | {"chunk_size": 7, "method": "csq"}, {"labels": LABELS[:64]}),
    "views": (SHORT | {"epochs": 2, "warmup_epochs": 0, "validation_images": 12}, {"views": True}),
    "pairs": (SHORT | {"epochs": 2, "warmup_epochs": 0}, {"pairs": PAIRS}),
    "a classifier": (SHORT | {"method": "latent"}, {"labels": LABELS[:64]}),
}


def run(name, workers):
    settings, given = RUNS[name]
    losses = []
    encoder = train(
        IMAGES[:64],
        config=TrainConfig(**settings),
        progress=lambda state: losses.append(state.loss),
        workers=workers,
        **given,
    )
    return {"losses": losses, "relaxed": encoder.encode_all(IMAGES[:64]).relaxed, "weights": encoder.fingerprint}


class DropPath(nn.Module):
    """Randomly skips a layer for some images, as EfficientNet does."""

    def forward(self, value):
        return value * (torch.rand([len(value), 1, 1, 1]) < 0.7) + 0.1 * value


class Layers(nn.Sequential):
    """A small network with everything that workers must agree on."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), DropPath(), nn.Dropout2d(0.3), nn.Flatten(),
            nn.Linear(4 * 36, 6), nn.BatchNorm1d(6, momentum=None), nn.Dropout(0.4), nn.Linear(6, 8),
        )  # fmt: skip
        self.double()


def one_step(share):
    """Loss, gradients and running statistics of one batch."""
    network, similar = Layers(), LABELS[:16, None] == LABELS[:16]
    image_BCHW = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 3
    torch.manual_seed(5)
    with share.draws():
        noise_bCHW = torch.rand(len(share.own_b), 1, 8, 8)
    image_bCHW = image_BCHW[share.own_b] + noise_bCHW
    loss, _ = backward(
        network,
        image_bCHW,
        lambda z: hashnet_loss(torch.tanh(z), torch.from_numpy(similar)),
        owner=network,
        share=share,
    )
    return network, loss, torch.get_rng_state()


def step_of(workers, chunk_size):
    network, loss, state = one_step(workers.share(16, chunk_size))
    workers.add_gradients(network, nn.Identity())
    gradients = [weight.grad for weight in network.parameters()]
    return {"loss": loss, "gradients": gradients, "buffers": list(network.buffers()), "random": state}


CHUNKS = (None, 7)


def child(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=WORLD)
    workers = Workers.of_process_group()
    done = {"runs": {name: run(name, workers) for name in RUNS}, "steps": [step_of(workers, size) for size in CHUNKS]}
    torch.save(done, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The results of three processes."""
    folder = tmp_path_factory.mktemp("workers")
    torch.multiprocessing.spawn(child, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", range(len(CHUNKS)))
def test_a_step_of_three_workers_has_the_gradient_of_the_whole_batch(together, number):
    alone = step_of(ALONE, CHUNKS[number])
    for result in together:
        step = result["steps"][number]
        assert torch.equal(step["random"], alone["random"])
        assert torch.allclose(step["loss"], alone["loss"], rtol=1e-12)
        pairs = [
            *zip(step["gradients"], alone["gradients"], strict=True),
            *zip(step["buffers"], alone["buffers"], strict=True),
        ]
        for got, expected in pairs:
            assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12)
    assert max(float(gradient.abs().max()) for gradient in alone["gradients"]) > 1e-3


@pytest.mark.parametrize("name", RUNS)
def test_three_workers_have_the_loss_curve_of_one(together, name):
    alone = run(name, ALONE)
    first = together[0]["runs"][name]
    assert len(alone["losses"]) >= 2
    assert np.ptp(alone["losses"]) > 1e-2
    np.testing.assert_allclose(first["losses"], alone["losses"], atol=1e-8, rtol=0)
    np.testing.assert_allclose(first["relaxed"], alone["relaxed"], atol=1e-5)
    assert {result["runs"][name]["weights"] for result in together} == {first["weights"]}


def test_every_image_goes_to_one_worker():
    for size, chunk_size in ((1, None), (2, 5), (3, 2), (4, None)):
        shares = [Share(Workers(rank, size), 13, chunk_size) for rank in range(size)]
        assert sorted(torch.cat([share.own_b for share in shares]).tolist()) == list(range(13))
        assert {share.num_chunks for share in shares} == {-(-13 // (chunk_size or 13))}


def test_random_numbers_without_a_row_per_image_are_refused():
    share = Share(Workers(1, 2), 8, None)
    torch.manual_seed(0)
    expected = torch.rand(8, 3)[4:], torch.randint(5, (8, 1))[4:], torch.randn(8)[4:]
    torch.manual_seed(0)
    with share.draws():
        got = torch.rand(4, 3), torch.randint(5, (4, 1)), torch.randn(4)
    for left, right in zip(got, expected, strict=True):
        assert torch.equal(left, right)
    with share.draws(), pytest.raises(NotImplementedError, match=r"a row for each of their 4 images, got .*\(5,\)"):
        torch.rand(5)
    with share.draws(), pytest.raises(NotImplementedError, match=r"got aten.randperm.default: .* with one worker"):
        torch.randperm(4)


def test_compile_is_refused_with_several_workers():
    with pytest.raises(ValueError, match="`compile` must be False with several workers, got True with 2"):
        train(IMAGES[:64], LABELS[:64], TrainConfig(compile=True), workers=Workers(0, 2))
