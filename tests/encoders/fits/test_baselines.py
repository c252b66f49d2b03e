import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from hashlight.encoders.fits import anchors, ksh, sdh
from hashlight.encoders.fits.itq import ITQ
from hashlight.encoders.fits.itq_cca import ITQCCA
from hashlight.encoders.fits.ksh import KSH
from hashlight.encoders.fits.lsh import LSH
from hashlight.encoders.fits.sdh import SDH
from hashlight.encoders.fits.sh import SH
from hashlight.encoders.metrics import mean_average_precision
from hashlight.encoders.networks.heads import build_head, head_of
from hashlight.encoders.packing import unpack_bits
from tests.oracles import distance_histograms


def clusters(rng, rows=300, dims=20):
    labels = rng.integers(4, size=rows)
    return (rng.standard_normal((4, dims))[labels] * 2 + rng.standard_normal((rows, dims)) * 0.5 + 3.0), labels


def overlapping(rng, rows=400, dims=20):
    """Classes that differ only in three dimensions of little variance, so that finding them takes labels."""
    labels = rng.integers(4, size=rows)
    features = rng.standard_normal((rows, dims)) * 3.0
    features[:, :3] = rng.standard_normal((4, 3))[labels] * 2 + rng.standard_normal((rows, 3)) * 0.4
    return features, labels


def one_hot(labels):
    return (labels[:, None] == np.arange(4)).astype(int)


FITS = {
    "lsh": lambda features, bits, seed, classes: LSH.fit(features, bits, seed),
    "sh": lambda features, bits, seed, classes: SH.fit(features, bits, seed),
    "itq": lambda features, bits, seed, classes: ITQ.fit(features, bits, seed),
    "itq-cca": lambda features, bits, seed, classes: ITQCCA.fit(features, bits, seed, class_NC=classes),
    "sdh": lambda features, bits, seed, classes: SDH.fit(features, bits, seed, class_NC=classes, anchors=100),
    "ksh": lambda features, bits, seed, classes: KSH.fit(features, bits, seed, class_NC=classes, anchors=80),
}
each_method = pytest.mark.parametrize("name", FITS)


def quality(codes, labels, split, bits):
    relevant = labels[split:, None] == labels[None, :split]
    return mean_average_precision(*distance_histograms(codes[split:], codes[:split], relevant, bits))


@each_method
def test_codes_find_their_cluster(name):
    features, labels = clusters(np.random.default_rng(0))
    hasher = FITS[name](features[:200], 16, 1, one_hot(labels[:200]))
    codes = hasher.encode(features)
    assert quality(codes, labels, 200, 16) > (0.7 if name == "sh" else 0.8)
    assert (codes == FITS[name](features[:200], 16, 1, one_hot(labels[:200])).encode(features)).all()
    assert (unpack_bits(codes, 16) == (hasher.project(features) > 0)).all()
    assert hasher.encode(features[:0]).shape == (0, 1)
    assert (hasher.bits, hasher.dims) == (16, 20)


@pytest.mark.parametrize("name", ["itq-cca", "sdh", "ksh"])
def test_labels_find_directions_of_little_variance(name):
    features, labels = overlapping(np.random.default_rng(3))
    supervised, plain = (
        quality(FITS[method](features[:300], 12, 0, one_hot(labels[:300])).encode(features), labels, 300, 12)
        for method in (name, "itq")
    )
    assert supervised > 0.7
    assert plain < 0.4


@each_method
def test_the_head_equals_its_hasher(name):
    features, labels = clusters(np.random.default_rng(4), rows=120)
    hasher = FITS[name](features, 8, 0, one_hot(labels))
    kind, head = head_of(hasher)
    expected = hasher.project(features)
    with torch.inference_mode():
        got = head(torch.from_numpy(features).float()).numpy()
    assert np.allclose(got, expected, atol=1e-3 * np.abs(expected).max())
    empty = build_head(kind, 20, 8, len(getattr(hasher, "anchors", ())))
    empty.load_state_dict(head.state_dict())


def test_itq_rotation_is_orthonormal_and_lowers_the_quantisation_error():
    features, _ = clusters(np.random.default_rng(2))

    def loss(iterations):
        hasher = ITQ.fit(features, 8, seed=0, iterations=iterations)
        projected = hasher.project(features)
        assert np.allclose(hasher.weight.T @ hasher.weight, np.eye(8))
        return ((np.where(projected > 0, 1, -1) - projected) ** 2).sum()

    assert loss(50) < 0.99 * loss(0)


def test_lsh_draws_hyperplanes_through_the_mean():
    features = np.random.default_rng(9).standard_normal((50, 40)) + 7
    hasher = LSH.fit(features, 200, seed=3)
    assert np.abs(hasher.project(features.mean(axis=0, keepdims=True))).max() < 1e-9
    assert abs(hasher.weight.mean()) < 0.05
    assert hasher.weight.std() == pytest.approx(1, abs=0.05)
    assert (hasher.weight != LSH.fit(features, 200, seed=4).weight).all()


def test_itq_rotates_the_directions_of_largest_variance():
    features, _ = overlapping(np.random.default_rng(10))
    hasher = ITQ.fit(features, 6, seed=1)
    components = np.linalg.svd(features - features.mean(axis=0))[2][:6]
    np.testing.assert_allclose(hasher.weight @ hasher.weight.T, components.T @ components, atol=1e-9)
    np.testing.assert_allclose(hasher.mean, features.mean(axis=0))


@pytest.mark.parametrize("bits", [2, 5])
def test_itq_cca_rotates_the_directions_that_correlate_with_the_labels(bits):
    """Against the textbook's canonical directions: eigenvectors of Cxx^-1 Cxy Cyy^-1 Cyx, times their correlation."""
    features, labels = overlapping(np.random.default_rng(11))
    classes = one_hot(labels)
    hasher = ITQCCA.fit(features, bits, seed=2, class_NC=classes)
    left, right = (given - given.mean(axis=0) for given in (features, classes))

    def covariance(centred):
        matrix = centred.T @ centred / len(centred)
        return matrix + 1e-4 * np.trace(matrix) / len(matrix) * np.eye(len(matrix))

    between = left.T @ right / len(left)
    product = np.linalg.inv(covariance(left)) @ between @ np.linalg.inv(covariance(right)) @ between.T
    values, vectors = np.linalg.eig(product)
    order = np.argsort(-values.real)[:bits]
    directions = vectors[:, order].real
    directions /= np.sqrt(np.einsum("db,de,eb->b", directions, covariance(left), directions))
    # A rotation does not change the sum of the squares of the directions.
    expected = directions * values.real[order] @ directions.T
    np.testing.assert_allclose(hasher.weight @ hasher.weight.T, expected, atol=1e-6)


def test_spectral_hashing_takes_the_smoothest_waves_along_the_components():
    box = np.random.default_rng(12).random((3000, 3)) * [9.0, 4.0, 1.0]
    components = np.linalg.svd(box - box.mean(axis=0), full_matrices=False)[2]
    along = box @ components.T
    length = np.ptp(along, axis=0)
    waves = sorted((mode / length[axis], axis, mode) for axis in range(3) for mode in range(1, 9))[:8]
    place = (along - along.min(axis=0)) / length
    expected = np.stack([np.cos(mode * np.pi * place[:, axis]) for _, axis, mode in waves], axis=1)
    got = SH.fit(box, 8).project(box)
    # The sign of a component is arbitrary, and flips the sign of some waves.
    np.testing.assert_allclose(np.abs(got), np.abs(expected), atol=1e-6)


def test_spectral_hashing_cuts_a_line_into_halves_and_then_quarters():
    line = np.linspace(3.0, 11.0, 801)[:, None] * [[0.6, 0.8]]
    bits = unpack_bits(SH.fit(line, 2).encode(line), 2)
    changes = [np.flatnonzero(np.diff(column.astype(int))).tolist() for column in bits.T]
    assert changes[0][0] == pytest.approx(400, abs=1)
    assert changes[1] == pytest.approx([200, 600], abs=1)


def test_spectral_hashing_gives_longer_directions_more_bits():
    rng = np.random.default_rng(0)
    box = rng.random((4000, 2)) * [9.0, 1.5]
    hasher = SH.fit(box, 6)
    across = np.abs(hasher.weight).argmax(axis=0)
    assert (across == 0).sum() == 5


def test_sdh_iterations_lower_the_objective():
    features, labels = clusters(np.random.default_rng(5), rows=150)
    classes = one_hot(labels)

    def left_over(iterations):
        hasher = SDH.fit(features, 8, 0, class_NC=classes, anchors=60, iterations=iterations)
        codes = np.where(hasher.project(features) > 0, 1, -1)
        classifier = np.linalg.lstsq(codes, classes, rcond=None)[0]
        return ((classes - codes @ classifier) ** 2).sum()

    assert left_over(5) < 0.5 * left_over(0)


def slow_sdh(features, classes, bits, seed, iterations, ridge, fidelity):
    """Minimise SDH's objective as the paper writes it down, weighing both values of each bit of each image.

    All images are anchors, so that the only random draw that matters is that of the initial codes.
    """
    squares = np.array([[((left - right) ** 2).sum() for right in features] for left in features])
    kernel = np.exp(-squares / (2 * squares.mean()))
    rng = np.random.default_rng(seed)
    rng.permutation(len(features))
    codes = np.where(rng.standard_normal((len(features), bits)) > 0, 1.0, -1.0)

    def mapped(codes):
        ridge = 1e-6 * np.mean(np.diag(kernel.T @ kernel))
        return kernel @ np.linalg.inv(kernel.T @ kernel + ridge * np.eye(len(kernel))) @ kernel.T @ codes

    def cost(row, code, classifier, aim):
        return ((classes[row] - code @ classifier) ** 2).sum() + fidelity * ((code - aim[row]) ** 2).sum()

    for _ in range(iterations):
        classifier = np.linalg.inv(codes.T @ codes + ridge * np.eye(bits)) @ codes.T @ classes
        aim = mapped(codes)
        for _ in range(10):
            for bit in range(bits):
                for row, code in enumerate(codes):
                    flipped = code * np.where(np.arange(bits) == bit, -1, 1)
                    if cost(row, flipped, classifier, aim) < cost(row, code, classifier, aim):
                        codes[row] = flipped
    return mapped(codes)


# Between the extremes, at which codes follow only the labels or only the kernel map, both terms matter.
@pytest.mark.parametrize("fidelity", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("ridge", [1.0, 30.0])
def test_sdh_descends_on_the_papers_objective(ridge, fidelity):
    features, labels = overlapping(np.random.default_rng(8), rows=60)
    classes = one_hot(labels)
    settings = {"iterations": 3, "ridge": ridge}
    hasher = SDH.fit(features, 6, 4, class_NC=classes, anchors=60, fidelity=fidelity, **settings)
    expected = slow_sdh(features, classes, 6, 4, fidelity=fidelity, **settings)
    np.testing.assert_allclose(hasher.project(features), expected, atol=1e-4)
    others = (value for value in (0.0, 0.02, 1.0) if value != fidelity)
    for other in others:
        assert np.abs(slow_sdh(features, classes, 6, 4, fidelity=other, **settings) - expected).max() > 0.1


def test_kernel_bits_approach_the_similarities():
    features, labels = clusters(np.random.default_rng(6), rows=150)
    similar = np.where(labels[:, None] == labels, 1, -1)

    def left_over(bits):
        hasher = KSH.fit(features, bits, 0, class_NC=one_hot(labels), anchors=60)
        codes = np.where(hasher.project(features) > 0, 1, -1)
        return ((codes @ codes.T / bits - similar) ** 2).mean()

    # Four codes cannot all be opposite: at best their products are -1/3, an error of (2/3)^2 for 3/4 of the pairs.
    assert left_over(2) > 0.4
    assert 0.3 < left_over(12) < 0.35


def test_several_classes_per_image_are_accepted():
    features, labels = clusters(np.random.default_rng(7), rows=150)
    classes = one_hot(labels) | one_hot((labels + 1) % 4)
    for name in ("itq-cca", "sdh", "ksh"):
        assert FITS[name](features, 6, 0, classes).encode(features).shape == (150, 1)


def test_refusals_give_the_reason():
    features, labels = clusters(np.random.default_rng(0))
    with pytest.raises(ValueError, match="at most 20 for ITQ on 20-dimensional features, got 21"):
        ITQ.fit(features, 21)
    with pytest.raises(ValueError, match="at most 20 for ITQ-CCA on 20-dimensional features, got 32"):
        ITQCCA.fit(features, 32, class_NC=one_hot(labels))
    with pytest.raises(ValueError, match="must vary for SH to find 8 bits, got 50 equal rows"):
        SH.fit(np.ones((50, 3)), 8)
    with pytest.raises(ValueError, match=r"0 or 1 in 300 rows.* got int64 of shape \(299, 4\)"):
        KSH.fit(features, 8, class_NC=one_hot(labels[1:]))
    with pytest.raises(ValueError, match=r"shape \(N, 20\).* got \(300, 19\)"):
        LSH.fit(features, 40).encode(features[:, :19])
    with pytest.raises(ValueError, match="finite, got 1 "):
        LSH.fit(np.array([[np.nan, 1.0]]), 4)
    with pytest.raises(ValueError, match="1 to 1024, got 0"):
        SDH.fit(features, 0, class_NC=one_hot(labels))


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.mark.parametrize(("rows", "is_small"), [(60, True), (90, False)])
@pytest.mark.parametrize(("module", "step"), [(ksh, "_best_direction"), (sdh, "_descend_cyclically")])
def test_many_products_of_few_numbers_are_computed_on_one_thread(monkeypatch, module, step, rows, is_small):
    seen, real = [], getattr(module, step)

    def watched(*arguments):
        seen.append(blas_threads())
        return real(*arguments)

    monkeypatch.setattr(module, step, watched)
    monkeypatch.setattr(anchors, "_SMALL", 60 * 60)
    features, labels = clusters(np.random.default_rng(5), rows=rows)
    # SDH's matrix has a row for each image and a column for each bit, KSH's a column for each image.
    bits = 60 if module is sdh else 2
    with threadpool_limits(2, user_api="blas"):
        several = blas_threads()  # some of the libraries in this process may take one in any case
        assert 2 in several
        FITS[module.__name__.rpartition(".")[2]](features, bits, 0, one_hot(labels))
        assert seen
        assert all(threads == ({1} if is_small else several) for threads in seen)
        assert blas_threads() == several
