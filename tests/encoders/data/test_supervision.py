"""What batches hold, and which of their pairs are known, against plain loops over labels and pairs."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import torch
from scipy import sparse

from hashlight.encoders.data.supervision.labels import IMAGES_OF_A_CLASS, LabelSupervision
from hashlight.encoders.data.supervision.pairs import PairList, PairSupervision
from hashlight.encoders.training.train import TrainConfig, train
from tests.encoders.training.test_training import IMAGES, LABELS, QUICK, quality


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def many_classes(num_images=3_000, num_classes=1_000, seed=0):
    return np.random.default_rng(seed).integers(num_classes, size=num_images)


def share_with_a_similar_image(batches, labels):
    """Return the share of the images in batches whose label another image of the batch has."""
    met = [
        np.isin(labels[batch], [one for one in labels[batch] if (labels[batch] == one).sum() > 1]) for batch in batches
    ]
    return np.concatenate(met).mean()


def test_batches_of_many_classes_hold_several_images_of_each(caplog):
    labels = many_classes()
    plain = LabelSupervision(labels, len(labels))
    with caplog.at_level(logging.WARNING):
        grouped = plain.with_similar(64)
    assert "in a random batch of 64 images one would have 0.063" in caplog.text
    torch.manual_seed(0)
    assert share_with_a_similar_image([batch.numpy() for batch in plain.batches(64)], labels) < 0.25
    batches = [batch.numpy() for batch in grouped.batches(64)]
    assert len(batches) == grouped.batches_per_epoch(64) == plain.batches_per_epoch(64) == 46
    assert {len(batch) for batch in batches} == {64}
    shown = np.concatenate(batches)
    assert len(np.unique(shown)) == len(shown), "an epoch shows an image once"
    # 1 in 20 images has a label of its own, and what classes have left over may be cut apart.
    assert share_with_a_similar_image(batches, labels) > 0.85
    whole = [np.unique(labels[batch], return_counts=True)[1] % IMAGES_OF_A_CLASS == 0 for batch in batches]
    assert sum(of_batch.all() for of_batch in whole) > 10
    again = [batch.numpy() for batch in grouped.batches(64)]
    assert any((one != other).any() for one, other in zip(batches, again, strict=True)), "another epoch, another order"


def test_batches_by_class_are_of_the_images_that_are_left():
    labels = many_classes(num_images=600, num_classes=200)
    left = torch.arange(0, 600, 2)
    grouped = LabelSupervision(labels, 600).restricted_to(left).with_similar(16)
    shown = torch.cat(list(grouped.batches(16)))
    assert set(shown.tolist()) <= set(left.tolist())
    assert len(shown) == 288


def test_several_labels_are_drawn_one_at_a_time():
    rng = np.random.default_rng(1)
    labels = rng.random((900, 600)) < 0.001
    labels[np.arange(900), rng.integers(600, size=900)] = True
    plain = LabelSupervision(labels, 900)
    grouped = plain.with_similar(32)
    assert grouped is not plain
    shared = [
        np.mean([any(grouped.pairs_within(batch)[0][i, j] for j in range(32) if i != j) for i in range(32)])
        for batch in itertools.islice(grouped.batches(32), 10)
    ]
    assert np.mean(shared) > 0.7


def test_batches_of_few_classes_are_drawn_at_random():
    plain = LabelSupervision(np.arange(100) % 10, 100)
    assert plain.with_similar(16) is plain
    assert plain.with_similar(8) is not plain


def test_training_draws_by_class_only_where_images_are_compared(caplog):
    labels = np.arange(48) // 4
    for method, draws in (("hashnet", True), ("csq", False)):
        caplog.clear()
        train(IMAGES[:48], labels, TrainConfig(method=method, bits=8, batch_size=8, epochs=1, warmup_epochs=1))
        assert ("each batch has up to 4 images of each label" in caplog.text) is draws


def test_sparse_and_dense_labels_are_the_same():
    rng = np.random.default_rng(2)
    dense = rng.random((50, 12)) < 0.2
    dense[np.arange(50), rng.integers(12, size=50)] = True
    index = torch.from_numpy(rng.permutation(50)[:20])
    from_dense, from_sparse = (LabelSupervision(labels, 50) for labels in (dense, sparse.coo_array(dense)))
    assert from_dense.digest() == from_sparse.digest()
    shared = np.array([[(dense[i] & dense[j]).sum() for j in index] for i in index])
    either = np.array([[(dense[i] | dense[j]).sum() for j in index] for i in index])
    for supervision in (from_dense, from_sparse):
        assert (supervision.pairs_within(index)[0].numpy() == (shared > 0)).all()
        np.testing.assert_allclose(supervision.affinity_within(index).numpy(), shared / either, rtol=1e-6)
        assert (supervision.classes_of(index).numpy() == dense[index]).all()


def test_many_labels_take_memory_by_image_and_not_by_image_and_class():
    labels = np.arange(200_000)
    supervision = LabelSupervision(labels, 200_000)
    parts = supervision.classes.data, supervision.classes.indices, supervision.classes.indptr
    assert sum(part.nbytes for part in parts) < 24 * 200_000


def test_similar_pairs_alone_are_completed_by_the_other_images_of_a_batch(caplog):
    # 0-1-2 and 3-4 are chains; 5 is in no pair.
    with caplog.at_level(logging.WARNING):
        supervision = PairSupervision(PairList([0, 2, 3], [1, 1, 4], [1, 1, 1]), 6)
    assert "all 3 pairs are similar: images of a batch that no chain of them joins count as dissimilar" in caplog.text
    batch = [4, 0, 2, 5, 1]
    chain = {0: "a", 1: "a", 2: "a", 3: "b", 4: "b", 5: "c"}
    listed = {(0, 1), (1, 2), (3, 4)}
    similar, known = supervision.pairs_within(torch.tensor(batch))
    for i, j in itertools.product(range(5), range(5)):
        pair = tuple(sorted((batch[i], batch[j])))
        assert similar[i, j].item() == (pair in listed), pair
        assert known[i, j].item() == (pair in listed or chain[batch[i]] != chain[batch[j]]), pair
    assert supervision.describe() == "3 pairs, 3 similar, others of a batch dissimilar"


def test_similar_pairs_alone_learn_codes_that_differ():
    rng = np.random.default_rng(4)
    first = rng.integers(192, size=200)
    second = np.array([rng.choice(np.flatnonzero((LABELS[one] == LABELS) & (np.arange(192) != one))) for one in first])
    config = TrainConfig(**QUICK, learning_rate=2e-3)
    encoder = train(IMAGES, pairs=PairList(first, second, np.ones(200, int)), config=config)
    assert quality(encoder)[0] > 0.9
    assert len(np.unique(encoder.encode(IMAGES))) >= 4


def test_pairs_that_teach_nothing_are_refused():
    with pytest.raises(ValueError, match="must hold dissimilar pairs: the 3 given are all similar and join all"):
        PairSupervision(PairList([0, 1, 2], [1, 2, 3], [1, 1, 1]), 9)
    with pytest.raises(ValueError, match="must hold a similar pair, got 2 dissimilar ones"):
        PairSupervision(PairList([0, 1], [1, 2], [0, 0]), 9)
