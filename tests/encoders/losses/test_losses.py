import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from hashlight.encoders.losses.dhn import dhn_loss
from hashlight.encoders.losses.hashnet import hashnet_loss
from hashlight.encoders.losses.joint import exponentiated_loss
from hashlight.encoders.losses.pairs import pair_weights


def known_pairs(codes, known):
    return [(i, j) for i in range(len(codes)) for j in range(len(codes)) if i != j and known[i][j]]


def dot(left, right):
    return sum(float(a) * float(b) for a, b in zip(left, right, strict=True))


def loop_loss(codes, similar, known, alpha, weighted, affinity=None):
    """The formula, pair by pair."""
    pairs = known_pairs(codes, known)
    num_similar = sum(bool(similar[i][j]) for i, j in pairs)
    total = 0.0
    for i, j in pairs:
        product = alpha * dot(codes[i], codes[j])
        weight = len(pairs) / (num_similar if similar[i][j] else len(pairs) - num_similar) if weighted else 1.0
        weight *= affinity[i][j] if affinity is not None and similar[i][j] else 1.0
        total += weight * (math.log1p(math.exp(product)) - (product if similar[i][j] else 0.0))
    return total / len(pairs)


def loop_dhn(codes, similar, known, alpha, quantisation):
    units = [value for code in codes for value in code]
    penalty = sum(math.log(math.cosh(abs(value) - 1)) for value in units) / len(units)
    return loop_loss(codes, similar, known, alpha, False) + quantisation * penalty


def loop_exponentiated(codes, similar, known):
    total, pairs = 0.0, known_pairs(codes, known)
    for i, j in pairs:
        sign = 1.0 if similar[i][j] else -1.0
        at_binary = dot([math.copysign(1, x) for x in codes[i]], [math.copysign(1, x) for x in codes[j]]) / len(
            codes[i]
        )
        relaxed = dot(codes[i], codes[j]) / len(codes[i])
        value, slope = math.exp(-sign * at_binary), -sign * math.exp(-sign * at_binary)
        total += value + slope * (relaxed - at_binary)
    return total / len(pairs)


def draw(seed, batch=7, bits=12):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.tanh(torch.randn(batch, bits, generator=generator, dtype=torch.float64))
    labels = torch.randint(3, (batch,), generator=generator)
    known = torch.rand(batch, batch, generator=generator) < 0.6
    return codes, labels[:, None] == labels, known | known.T


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("alpha", [None, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_double_loop(seed, alpha, weighted):
    codes, similar, known = draw(seed)
    expected = loop_loss(codes.tolist(), similar.tolist(), known.tolist(), alpha or 10 / 12, weighted)
    got = hashnet_loss(codes, similar, known, alpha=alpha, weighted=weighted)
    assert expected > 0.1
    assert got.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_with_affinities_it_equals_the_double_loop(seed, weighted):
    codes, similar, known = draw(seed)
    affinity = torch.rand(7, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = loop_loss(codes.tolist(), similar.tolist(), known.tolist(), 10 / 12, weighted, affinity.tolist())
    got = hashnet_loss(codes, similar, known, affinity_BB=affinity, weighted=weighted)
    assert got.item() == pytest.approx(expected, abs=1e-10)
    assert abs(got.item() - hashnet_loss(codes, similar, known, weighted=weighted).item()) > 0.01


@pytest.mark.parametrize(("alpha", "quantisation"), [(None, 0.1), (0.3, 2.0), (0.3, 0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_dhn_equals_the_double_loop(seed, alpha, quantisation):
    codes, similar, known = draw(seed)
    expected = loop_dhn(codes.tolist(), similar.tolist(), known.tolist(), alpha or 10 / 12, quantisation)
    got = dhn_loss(codes, similar, known, alpha=alpha, quantisation=quantisation)
    assert got.item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_exponentiated_equals_the_double_loop(seed):
    codes, similar, known = draw(seed)
    expected = loop_exponentiated(codes.tolist(), similar.tolist(), known.tolist())
    assert exponentiated_loss(codes, similar, known).item() == pytest.approx(expected, abs=1e-10)


def test_exponentiated_equals_the_exponential_at_binary_codes():
    codes, similar, known = draw(4)
    binary = codes.sign()
    off = known & ~torch.eye(7, dtype=torch.bool)
    sign = torch.where(similar, 1.0, -1.0).double()
    expected = torch.exp(-sign * (binary @ binary.T) / 12)[off].mean()
    assert torch.allclose(exponentiated_loss(binary, similar, known), expected)


def test_two_similar_codes_by_hand():
    codes = torch.ones(2, 4, dtype=torch.float64)
    loss = hashnet_loss(codes, torch.ones(2, 2, dtype=torch.bool))
    assert loss.detach().item() == pytest.approx(math.log1p(math.exp(10)) - 10, abs=1e-12)


def test_hashnet_is_weighted_binary_cross_entropy_of_the_scaled_products():
    codes, similar, known = draw(5)
    off = known & ~torch.eye(7, dtype=torch.bool)
    logits = 10 / 12 * codes @ codes.T
    weights = pair_weights(similar, off, dtype=torch.float64)
    expected = functional.binary_cross_entropy_with_logits(logits[off], similar[off].double(), weight=weights[off])
    assert torch.allclose(hashnet_loss(codes, similar, known), expected, atol=1e-12)


def test_weights_balance_similar_and_dissimilar_pairs():
    _, similar, known = draw(2)
    known &= ~torch.eye(7, dtype=torch.bool)
    weights = pair_weights(similar, known)
    assert float(weights[similar].sum()) == pytest.approx(float(weights[~similar].sum()))
    assert (weights[~known] == 0).all()


PAIR_LOSSES = {
    "hashnet": hashnet_loss,
    "hashnet-c": lambda h, s, k=None: hashnet_loss(h, s, k, affinity_BB=torch.full(s.shape, 0.3)),
    "hashnet-w": lambda h, s, k=None: hashnet_loss(h, s, k, weighted=False),
    "dhn": dhn_loss,
    "exponentiated": exponentiated_loss,
}
each_loss = pytest.mark.parametrize("loss", PAIR_LOSSES.values(), ids=PAIR_LOSSES)


@each_loss
def test_gradient(loss):
    codes, similar, known = draw(3, batch=5, bits=6)
    assert torch.autograd.gradcheck(lambda h: loss(h, similar, known), codes.requires_grad_())


@each_loss
@pytest.mark.parametrize("batch", [1, 4])
def test_no_known_pairs_is_zero_with_a_gradient(loss, batch):
    codes = torch.randn(batch, 8, requires_grad=True)
    pairs = torch.zeros(batch, batch, dtype=torch.bool)
    value = loss(codes, pairs, pairs)
    value.backward()
    assert value.detach().item() == 0.0
    assert (codes.grad == 0).all()


@each_loss
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_large_logits_stay_finite(loss, kind):
    # Products of 1e4 and -1e4, ten times that as logits with one bit.
    codes = torch.tensor([[100.0], [100.0], [-100.0]], dtype=kind, requires_grad=True)
    similar = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
    value = loss(codes, similar)
    value.backward()
    assert value.detach().item() > 1e3
    assert torch.isfinite(value)
    assert torch.isfinite(codes.grad).all()


@each_loss
def test_order_of_the_batch_does_not_matter(loss):
    codes, similar, known = draw(6)
    order = torch.tensor(np.random.default_rng(0).permutation(7))
    shuffled = loss(codes[order], similar[order][:, order], known[order][:, order])
    assert torch.allclose(shuffled, loss(codes, similar, known), atol=1e-12)


@each_loss
def test_the_diagonal_is_not_a_pair(loss):
    codes, similar, known = draw(7)
    without = known & ~torch.eye(7, dtype=torch.bool)
    assert torch.equal(loss(codes, similar, known), loss(codes, similar, without))


@each_loss
def test_bad_input_is_refused(loss):
    codes, similar, _ = draw(0)
    with pytest.raises(TypeError, match=r"`similar_BB` must be bool, got torch\.float32"):
        loss(codes, similar.float(), similar)
    with pytest.raises(ValueError, match=r"shape \(7, 7\) for 7 codes, got \(6, 6\)"):
        loss(codes, similar[:6, :6])
