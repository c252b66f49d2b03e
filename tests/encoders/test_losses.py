import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from encoders.losses import HashNetLoss, HashNetLossConfig, hashnet_loss, pair_weights


def loop_loss(codes, similar, known, alpha, weighted):
    """The formula, pair by pair."""
    pairs = [(i, j) for i in range(len(codes)) for j in range(len(codes)) if i != j and known[i][j]]
    if not pairs:
        return 0.0
    num_similar = sum(bool(similar[i][j]) for i, j in pairs)
    total = 0.0
    for i, j in pairs:
        product = alpha * sum(float(a) * float(b) for a, b in zip(codes[i], codes[j], strict=True))
        weight = len(pairs) / (num_similar if similar[i][j] else len(pairs) - num_similar) if weighted else 1.0
        total += weight * (math.log1p(math.exp(product)) - (product if similar[i][j] else 0.0))
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


def test_two_similar_codes_by_hand():
    codes = torch.ones(2, 4, dtype=torch.float64)
    loss = hashnet_loss(codes, torch.ones(2, 2, dtype=torch.bool))
    assert loss.detach().item() == pytest.approx(math.log1p(math.exp(10)) - 10, abs=1e-12)


def test_is_weighted_binary_cross_entropy_of_the_scaled_products():
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


def test_gradient():
    codes, similar, known = draw(3, batch=5, bits=6)
    assert torch.autograd.gradcheck(lambda h: hashnet_loss(h, similar, known), codes.requires_grad_())


@pytest.mark.parametrize("batch", [1, 4])
def test_no_known_pairs_is_zero_with_a_gradient(batch):
    codes = torch.randn(batch, 8, requires_grad=True)
    pairs = torch.zeros(batch, batch, dtype=torch.bool)
    loss = hashnet_loss(codes, pairs, pairs)
    loss.backward()
    assert loss.detach().item() == 0.0
    assert (codes.grad == 0).all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_large_logits_stay_finite(kind):
    codes = torch.tensor([[100.0], [100.0], [-100.0]], dtype=kind, requires_grad=True)
    similar = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
    loss = hashnet_loss(codes, similar, alpha=1.0)
    loss.backward()
    assert loss.detach().item() > 1e3
    assert torch.isfinite(loss)
    assert torch.isfinite(codes.grad).all()


def test_order_of_the_batch_does_not_matter():
    codes, similar, known = draw(6)
    order = torch.tensor(np.random.default_rng(0).permutation(7))
    shuffled = hashnet_loss(codes[order], similar[order][:, order], known[order][:, order])
    assert torch.allclose(shuffled, hashnet_loss(codes, similar, known), atol=1e-12)


def test_the_diagonal_is_no_pair():
    codes, similar, known = draw(7)
    without = known & ~torch.eye(7, dtype=torch.bool)
    assert torch.equal(hashnet_loss(codes, similar, known), hashnet_loss(codes, similar, without))


def test_module_uses_its_settings():
    codes, similar, known = draw(8)
    module = HashNetLoss(HashNetLossConfig(alpha=0.2, weighted=False))
    assert torch.equal(module(codes, similar, known), hashnet_loss(codes, similar, known, alpha=0.2, weighted=False))


def test_bad_input_is_refused():
    codes, similar, _ = draw(0)
    with pytest.raises(TypeError, match=r"`similar_BB` must be bool, got torch\.float32"):
        hashnet_loss(codes, similar.float(), similar)
    with pytest.raises(ValueError, match=r"shape \(7, 7\) for 7 codes, got \(6, 6\)"):
        hashnet_loss(codes, similar[:6, :6])
    with pytest.raises(ValueError, match="`alpha` must be above 0"):
        HashNetLossConfig(alpha=0.0)
