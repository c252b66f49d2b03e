import numpy as np
import pytest

from engine.rerank import METRICS, Rerank, rerank_pool


def loop(query, ids, features, k, metric):
    rows = []
    for id_, feature in zip(ids.tolist(), features.astype(np.float64), strict=True):
        if metric == "l2":
            distance = ((feature - query) ** 2).sum() ** 0.5
        else:
            distance = 1 - feature @ query / ((feature @ feature) * (query @ query)) ** 0.5
        if id_ != -1:
            rows.append((distance, id_))
    return sorted(rows)[:k]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 5, 20])
def test_pools_come_in_the_order_of_their_features(metric, k):
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((6, 9)).astype(np.float32)
    # The same few features again and again: ties, in the order of ids.
    features = rng.standard_normal((4, 9)).astype(np.float16)[rng.integers(4, size=(6, 12))]
    ids = np.argsort(rng.random((6, 12)), axis=1) + 100
    ids[2, 3:] = -1
    ids[4, :] = -1
    got = rerank_pool(queries, ids, features, k, metric=metric)
    assert (got.distances.dtype, got.ids.dtype, got.ids.shape) == (np.float32, np.int64, (6, k))
    for q in range(6):
        expected = loop(queries[q].astype(float), ids[q], features[q], k, metric)
        assert got.distances[q, : len(expected)] == pytest.approx([d for d, _ in expected], abs=1e-5)
        assert got.ids[q, : len(expected)].tolist() == [id_ for _, id_ in expected]
        assert (got.ids[q, len(expected) :] == -1).all()
        assert np.isinf(got.distances[q, len(expected) :]).all()


def test_settings_and_shapes_are_checked():
    assert Rerank(pool=10).metric == "l2"
    with pytest.raises(ValueError, match="one of `pool` and `radius`, got pool None and radius None"):
        Rerank()
    with pytest.raises(ValueError, match="got pool 3 and radius 4"):
        Rerank(pool=3, radius=4)
    with pytest.raises(ValueError, match="`pool` must be at least 1, got 0"):
        Rerank(pool=0)
    with pytest.raises(ValueError, match="`metric` must be one of l2, cosine, got 'dot'"):
        Rerank(radius=3, metric="dot")
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\) .* got \(2, 3, 5\)"):
        rerank_pool(np.zeros((2, 4)), np.zeros((2, 3), np.int64), np.zeros((2, 3, 5)), 1)
