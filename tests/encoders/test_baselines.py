import numpy as np
import pytest

from encoders.baselines import ITQ, LSH
from encoders.metrics import distance_histograms, mean_average_precision
from encoders.packing import unpack_bits


def clusters(rng, rows=300, dims=20):
    labels = rng.integers(4, size=rows)
    return (rng.standard_normal((4, dims))[labels] * 2 + rng.standard_normal((rows, dims)) * 0.5 + 3.0), labels


@pytest.mark.parametrize("method", [ITQ, LSH])
def test_codes_find_their_cluster(method):
    features, labels = clusters(np.random.default_rng(0))
    hasher = method.fit(features[:200], 16, seed=1)
    codes = hasher.encode(features)
    relevant = labels[200:, None] == labels[None, :200]
    assert mean_average_precision(*distance_histograms(codes[200:], codes[:200], relevant, 16)) > 0.8
    assert (codes == method.fit(features[:200], 16, 1).encode(features)).all()
    assert (unpack_bits(codes, 16) == (hasher.project(features) > 0)).all()
    assert hasher.encode(features[:0]).shape == (0, 1)


def test_itq_rotation_is_orthonormal_and_loses_less_than_plain_components():
    features, _ = clusters(np.random.default_rng(2))

    def loss(iterations):
        hasher = ITQ.fit(features, 8, seed=0, iterations=iterations)
        projected = hasher.project(features)
        assert np.allclose(hasher.weight.T @ hasher.weight, np.eye(8))
        return ((np.where(projected > 0, 1, -1) - projected) ** 2).sum()

    assert loss(50) < 0.99 * loss(0)


def test_refusals_give_the_reason():
    features, _ = clusters(np.random.default_rng(0))
    with pytest.raises(ValueError, match="at most 20 for ITQ on 20-dimensional features, got 21"):
        ITQ.fit(features, 21)
    with pytest.raises(ValueError, match=r"shape \(N, 20\).* got \(300, 19\)"):
        LSH.fit(features, 40).encode(features[:, :19])
    with pytest.raises(ValueError, match="finite, got 1 "):
        LSH.fit(np.array([[np.nan, 1.0]]), 4)
