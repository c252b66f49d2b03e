import math

import pytest
import torch

from hashlight.encoders.losses.centres import class_centres
from hashlight.encoders.losses.classification import class_loss
from hashlight.encoders.losses.csq import centres_of_images, csq_loss
from hashlight.encoders.losses.latent import latent_loss
from hashlight.encoders.losses.orthohash import orthohash_loss


def draw(seed, batch=6, bits=8, classes=4):
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(batch, bits, generator=generator, dtype=torch.float64)
    target = (torch.rand(batch, classes, generator=generator) < 0.4).double()
    target[torch.arange(batch), torch.randint(classes, (batch,), generator=generator)] = 1
    weight = torch.randn(classes, bits, generator=generator, dtype=torch.float64)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    return z, target, weight, bias


def loop_cross_entropy(logits, targets):
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        total += sum(-has / sum(target) * (value - log_sum) for value, has in zip(row, target, strict=True))
    return total / len(logits)


def dot(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_latent_equals_the_loop(seed):
    z, target, weight, bias = draw(seed)
    sigmoids = [[1 / (1 + math.exp(-value)) for value in row] for row in z.tolist()]
    logits = [[dot(row, w) + b for w, b in zip(weight.tolist(), bias.tolist(), strict=True)] for row in sigmoids]
    expected = loop_cross_entropy(logits, target.tolist())
    assert latent_loss(z, weight, bias, target).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("quantisation", [1e-4, 0.5])
def test_csq_equals_the_loop(seed, quantisation):
    z, target, weight, _ = draw(seed)
    centres = centres_of_images(weight.sign(), target)
    total = 0.0
    for row, centre in zip(z.tolist(), centres.tolist(), strict=True):
        for value, aim in zip(row, centre, strict=True):
            share, wanted = (math.tanh(value) + 1) / 2, (aim + 1) / 2
            total -= wanted * math.log(share) + (1 - wanted) * math.log(1 - share)
            total += quantisation * math.log(math.cosh(abs(math.tanh(value)) - 1))
    got = csq_loss(z, centres, quantisation=quantisation)
    assert got.item() == pytest.approx(total / z.numel(), abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("scale", "margin"), [(8.0, 0.2), (3.0, 0.0)])
def test_orthohash_equals_the_loop(seed, scale, margin):
    z, target, weight, _ = draw(seed)
    centres = weight.sign()
    logits = [
        [
            scale * (dot(row, centre) / math.sqrt(dot(row, row) * dot(centre, centre)) - margin * has)
            for centre, has in zip(centres.tolist(), targets, strict=True)
        ]
        for row, targets in zip(z.tolist(), target.tolist(), strict=True)
    ]
    expected = loop_cross_entropy(logits, target.tolist())
    got = orthohash_loss(z, centres, target, scale=scale, margin=margin)
    assert got.item() == pytest.approx(expected, abs=1e-10)


def test_with_one_class_per_image_it_is_the_plain_cross_entropy():
    z, _, weight, _ = draw(5)
    logits, classes = z @ weight.T, torch.tensor([0, 3, 1, 1, 2, 0])
    target = torch.nn.functional.one_hot(classes, 4)
    assert torch.allclose(class_loss(logits, target), torch.nn.functional.cross_entropy(logits, classes), atol=1e-12)


LOSSES = {
    "latent": lambda z, target, weight, bias: latent_loss(z, weight, bias, target),
    "csq": lambda z, target, weight, bias: csq_loss(z, centres_of_images(weight.sign(), target)),
    "orthohash": lambda z, target, weight, bias: orthohash_loss(z, weight.sign(), target),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@each_loss
def test_gradient(loss):
    z, target, weight, bias = draw(3)
    assert torch.autograd.gradcheck(lambda value: loss(value, target, weight, bias), z.requires_grad_())


@each_loss
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
def test_large_outputs_stay_finite(loss, kind):
    z, target, weight, bias = (value.to(kind) for value in draw(4))
    z = (1e4 * z.sign()).requires_grad_()
    value = loss(z, target, weight, bias)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()


@each_loss
def test_an_empty_batch_is_zero_with_a_gradient(loss):
    z, target, weight, bias = draw(0)
    z = z[:0].requires_grad_()
    value = loss(z, target[:0], weight, bias)
    value.backward()
    assert value.item() == 0.0
    assert z.grad.shape == (0, 8)


@pytest.mark.parametrize(("bits", "classes"), [(16, 10), (16, 32), (64, 100)])
def test_centres_of_a_power_of_two_are_orthogonal_or_opposite(bits, classes):
    centres = class_centres(classes, bits)
    products = centres @ centres.T
    products.fill_diagonal_(0)
    assert set(products.unique().tolist()) <= {0.0, float(-bits)}
    assert set(centres.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(("bits", "classes", "least"), [(12, 10, 4), (48, 10, 18), (48, 1000, 6), (24, 2, 12)])
def test_centres_of_other_lengths_are_balanced_and_far_apart(bits, classes, least):
    centres = class_centres(classes, bits, seed=1)
    assert (centres.sum(dim=1) == 0).all()
    distances = (bits - centres @ centres.T) / 2
    distances.fill_diagonal_(bits)
    assert distances.min() >= least
    assert torch.equal(centres, class_centres(classes, bits, seed=1))
    assert not torch.equal(centres, class_centres(classes, bits, seed=2))


def test_with_as_many_classes_as_codes_all_centres_differ():
    assert len(class_centres(60, 6).unique(dim=0)) == 60
    assert len(class_centres(5000, 33).unique(dim=0)) == 5000
    with pytest.raises(ValueError, match="9 classes its own code, got 3"):
        class_centres(9, 3)


def test_no_bit_of_ten_hadamard_centres_is_constant():
    assert sum((class_centres(10, 64, seed).float().mean(dim=0).abs() == 1).sum() for seed in range(3)) < 3


@pytest.mark.parametrize("seed", range(4))
def test_the_halves_of_hadamard_centres_are_not_copies_of_each_other(seed):
    """A Hadamard matrix is built by doubling; equal halves would be redundant in a search by substrings."""
    centres = class_centres(40, 64, seed)
    for width in (8, 16, 32):
        bands = centres.reshape(40, -1, width)
        repeats = (bands[:, :-1] * bands[:, 1:]).sum(dim=2).abs() == width
        assert repeats.float().mean() < 0.1


def test_an_image_of_several_classes_gets_the_majority():
    centres = torch.tensor([[1.0, 1, -1], [1, -1, -1], [-1, -1, -1]])
    target = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 1]])
    assert centres_of_images(centres, target).tolist() == [[1, 1, -1], [1, -1, -1], [-1, -1, -1]]
