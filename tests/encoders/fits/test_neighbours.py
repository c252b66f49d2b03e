import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.fits import neighbours as module
from hashlight.encoders.fits.itq import ITQ
from hashlight.encoders.fits.neighbours import Neighbours, nearest_by_cosine
from hashlight.encoders.training.train import TrainConfig, train

DIGITS = load_digits().data[np.random.default_rng(0).permutation(1797)]
QUERIES, ITEMS = DIGITS[:200], DIGITS[200:1200]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


def nearest(scores_QN, k):
    return [set(row.tolist()) for row in np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]]


def cosines(queries, items):
    return (queries @ items.T) / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(items, axis=1)


def recall(hasher, k=10):
    """Share of the ten nearest by cosine that are among the ten nearest codes."""
    bits_Q, bits_N = (np.where(hasher.project(rows) > 0, 1, -1) for rows in (QUERIES, ITEMS))
    pairs = zip(nearest(cosines(QUERIES, ITEMS), k), nearest(bits_Q @ bits_N.T, k), strict=True)
    return np.mean([len(wanted & found) / k for wanted, found in pairs])


@pytest.mark.parametrize("bits", [8, 32])
def test_codes_keep_more_neighbours_than_those_of_itq(bits):
    learned = Neighbours.fit(ITEMS, bits, seed=1)
    assert recall(learned) > recall(ITQ.fit(ITEMS, bits, seed=1)) + 0.02
    assert (learned.encode(QUERIES) == Neighbours.fit(ITEMS, bits, seed=1).encode(QUERIES)).all()
    assert (learned.bits, learned.dims) == (bits, 64)


def test_rows_are_drawn_where_there_are_many(monkeypatch):
    monkeypatch.setattr(module, "LEARNED_ROWS", 600)
    drawn = Neighbours.fit(ITEMS, 8, seed=0)
    assert recall(drawn) > recall(ITQ.fit(ITEMS, 8, seed=0)) + 0.02
    assert not np.array_equal(drawn.weight, Neighbours.fit(ITEMS, 8, seed=2).weight)


def test_neighbours_are_the_nearest_other_rows(monkeypatch):
    monkeypatch.setattr(module, "_COMPARED_ROWS", 7)
    rows = np.random.default_rng(2).standard_normal((40, 5)).astype(np.float32)
    cosine_NN = cosines(rows.astype(np.float64), rows.astype(np.float64))
    np.fill_diagonal(cosine_NN, -2)
    got = nearest_by_cosine(rows, 6)
    assert got.shape == (40, 6)
    assert [set(row.tolist()) for row in got] == nearest(cosine_NN, 6)


def test_the_gradient_is_that_of_the_loss():
    rng = np.random.default_rng(3)
    y, weight, bias = rng.standard_normal((30, 6)), rng.standard_normal((6, 4)), rng.standard_normal(4)
    neighbours, batch = nearest_by_cosine(y.astype(np.float32), 3), np.array([4, 9, 2, 17])
    weight_t, bias_t = (torch.tensor(part, requires_grad=True) for part in (weight, bias))
    h = torch.tanh(torch.tensor(y) @ weight_t + bias_t)
    losses = []
    for i in batch.tolist():
        logits = {j: (h[i] @ h[j]) / (0.07 * 4) for j in range(30) if j != i}
        log_sum = torch.logsumexp(torch.stack(list(logits.values())), 0)
        losses += [log_sum - logits[j] for j in neighbours[i].tolist()]
    torch.stack(losses).mean().backward()
    layer = module._Layer(weight.astype(np.float32), bias.astype(np.float32))
    got = module._gradient(layer, y.astype(np.float32), neighbours, batch)
    np.testing.assert_allclose(got.weight, weight_t.grad.numpy(), rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(got.bias, bias_t.grad.numpy(), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("rows", [2, 5, 12])
def test_few_rows_and_equal_rows_give_codes(rows):
    assert np.isfinite(Neighbours.fit(ITEMS[:rows], 8).project(QUERIES)).all()
    assert np.isfinite(Neighbours.fit(np.ones((rows, 9)), 8).project(np.ones((1, 9)))).all()


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="at least 2 rows for neighbours, got 1"):
        Neighbours.fit(ITEMS[:1], 8)
    with pytest.raises(ValueError, match="at most 64 for neighbours on 64-dimensional features, got 65"):
        Neighbours.fit(ITEMS, 65)


@pytest.mark.parametrize(
    ("bits", "rows", "method"),
    [(64, 2000, "neighbours"), (64, 1999, "itq"), (65, 2000, "itq"), (16, 5000, "neighbours")],
)
def test_auto_takes_neighbours_where_they_are_better(bits, rows, method, monkeypatch):
    monkeypatch.setattr(module, "LEARNED_ROWS", 50)
    x = np.random.default_rng(4).standard_normal((rows, 65)).astype(np.float32)
    assert HashEncoder.fit_embeddings(x, bits=bits).config.method == method


def test_training_takes_the_method_that_suits_what_is_known():
    images = np.random.default_rng(5).integers(256, size=(32, 28, 28), dtype=np.uint8)
    config = TrainConfig(method="auto", bits=8, epochs=1, warmup_epochs=0, batch_size=16)
    assert train(images, [0, 1] * 16, config).config.method == "hashnet"
    with pytest.raises(ValueError, match="`method` itq needs a trained backbone"):
        train(images, config=config)
