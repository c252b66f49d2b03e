import pytest
import torch
from torch import nn

from hashlight.encoders.losses.hashnet import hashnet_loss
from hashlight.encoders.networks.backbones import SMALL_CNN, build_backbone
from hashlight.encoders.networks.model import HashModel
from hashlight.encoders.training.gradients import backward

LABELS = torch.arange(12) % 3
SIMILAR = LABELS[:, None] == LABELS


def loss_of(z):
    return hashnet_loss(torch.tanh(z), SIMILAR)


def gradients(module):
    return [weight.grad.clone() for weight in module.parameters()]


def fresh(dropout):
    torch.manual_seed(0)
    hidden = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 8))
    return hidden.double()


@pytest.mark.parametrize("chunk_size", [2, 5, 12])
def test_chunks_give_the_gradient_of_all_pairs(chunk_size):
    images = torch.randn(12, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole, chunked = fresh(0.0), fresh(0.0)
    loss_of(whole(images)).backward()
    loss, output = backward(chunked, images, loss_of, chunk_size=chunk_size, owner=chunked)
    assert torch.allclose(loss, loss_of(whole(images)).detach())
    assert torch.allclose(output, whole(images).detach())
    for expected, got in zip(gradients(whole), gradients(chunked), strict=True):
        assert expected.abs().max() > 1e-4
        assert torch.allclose(expected, got, rtol=1e-10, atol=1e-12)


def test_summing_over_chunks_gives_another_gradient():
    images = torch.randn(12, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole, apart = fresh(0.0), fresh(0.0)
    loss_of(whole(images)).backward()
    for rows in torch.arange(12).split(4):
        (hashnet_loss(torch.tanh(apart(images[rows]).float()), SIMILAR[rows][:, rows]) / 3).backward()
    assert not torch.allclose(gradients(whole)[0], gradients(apart)[0], rtol=0.05)


def test_both_passes_drop_the_same_units():
    images = torch.randn(12, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, chunked = fresh(0.5), fresh(0.5)
    torch.manual_seed(7)
    loss_of(torch.cat([expected(part) for part in images.split(4)])).backward()
    after = torch.rand(3)
    torch.manual_seed(7)
    backward(chunked, images, loss_of, chunk_size=4, owner=chunked)
    assert torch.equal(torch.rand(3), after)
    for left, right in zip(gradients(expected), gradients(chunked), strict=True):
        assert torch.allclose(left, right, rtol=1e-10, atol=1e-12)


def test_running_statistics_see_each_chunk_once():
    def model():
        torch.manual_seed(0)
        return HashModel(build_backbone(SMALL_CNN), 8).train()

    images = torch.randn(12, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    expected, chunked = model(), model()
    torch.manual_seed(3)
    for part in images.split(4):
        expected(part)
    torch.manual_seed(3)
    backward(lambda batch: chunked(batch)[1], images, loss_of, chunk_size=4, owner=chunked)
    for left, right in zip(expected.buffers(), chunked.buffers(), strict=True):
        assert torch.equal(left, right)


def test_weights_of_the_loss_get_their_gradient():
    images = torch.randn(12, 10, dtype=torch.float64)
    network, classifier = fresh(0.0), nn.Linear(8, 3).double()
    backward(
        network,
        images,
        lambda z: nn.functional.cross_entropy(classifier(z), LABELS),
        chunk_size=5,
        owner=network,
    )
    assert all(gradient.abs().max() > 0 for gradient in gradients(classifier))
