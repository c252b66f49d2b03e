import tracemalloc

import numpy as np
import pytest

from hashlight.engine.collection import rerank as rerank_module
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.rerank import FEATURE_METRICS as METRICS
from hashlight.engine.collection.rerank import Rerank, rerank_pool
from hashlight.engine.errors import IdNotFoundError
from tests import oracles


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
def test_pools_are_sorted_by_their_features(metric, k):
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((6, 9)).astype(np.float32)
    # Few distinct features, so that there are ties, which are ordered by id.
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
    with pytest.raises(ValueError, match="`metric` must be one of l2, cosine, asymmetric, got 'dot'"):
        Rerank(radius=3, metric="dot")
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\) .* got \(2, 3, 5\)"):
        rerank_pool(np.zeros((2, 4)), np.zeros((2, 3), np.int64), np.zeros((2, 3, 5)), 1)


@pytest.fixture
def stored(tmp_path):
    rng = np.random.default_rng(1)
    codes, ids = oracles.clustered_codes(rng, 200, 40), rng.permutation(500)[:200]
    features = rng.standard_normal((200, 6)).astype(np.float16)
    collection = Collection.create(tmp_path / "c", codes, ids=ids, bits=40, shards=3, features=features)
    return collection, codes, ids, features


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("how", [{"pool": 20}, {"pool": 300}, {"radius": 3}, {"radius": 8}])
def test_a_collection_reranks_its_nearest(stored, how, metric):
    collection, codes, ids, features = stored
    rng = np.random.default_rng(2)
    queries = codes[:5] ^ np.array([[0], [1], [3], [7], [255]], np.uint64)
    query_features = rng.standard_normal((5, 6))
    got = collection.search(queries, 7, rerank=Rerank(**how, metric=metric), features=query_features)
    row_of = {id_: row for row, id_ in enumerate(ids.tolist())}
    if "pool" in how:
        pools = [row[row >= 0] for row in oracles.knn(queries, codes, ids, how["pool"])[1]]
    else:
        answers = oracles.within_radius(queries, codes, ids, how["radius"])[0]
        pools = [np.array([id_ for _, id_ in pairs], np.int64) for pairs in answers]
    assert sum(map(len, pools)) > 5
    assert got.coverage is not None
    assert (got.coverage.searched, got.coverage.complete) == (200, True)
    for q, pool in enumerate(pools):
        rows = [row_of[id_] for id_ in pool.tolist()]
        expected = loop(query_features[q], pool, features[rows].reshape(-1, 6), 7, metric)
        assert got.ids[q, : len(expected)].tolist() == [id_ for _, id_ in expected]
        assert (got.ids[q, len(expected) :] == -1).all()


def test_features_come_back_by_id(stored, tmp_path):
    collection, codes, ids, features = stored
    assert (collection.features_of(ids[[5, 0, 5]]) == features[[5, 0, 5]]).all()
    assert (Collection.open(collection.path, verify=True).features_of(ids) == features).all()
    with pytest.raises(IdNotFoundError, match="1 of 2 ids was not found: 900"):
        collection.features_of(np.array([ids[0], 900]))
    bare = Collection.create(tmp_path / "bare", codes, bits=40)
    with pytest.raises(ValueError, match="has no fine features: encode with `--features`"):
        bare.search(codes[:1], rerank=Rerank(pool=15), features=features[:1])
    with pytest.raises(ValueError, match=r"float16 or float32 of shape \(200, F\), one row per code, got float64"):
        Collection.create(tmp_path / "wrong", codes, bits=40, features=features.astype(np.float64))


def test_a_large_batch_is_read_in_parts(tmp_path):
    rng = np.random.default_rng(3)
    codes, features = oracles.clustered_codes(rng, 150, 40), rng.standard_normal((150, 4000)).astype(np.float16)
    collection = Collection.create(tmp_path / "c", codes, bits=40, shards=2, features=features)
    queries, rows = codes[:100], np.arange(100)
    got = collection.search(queries, 1, rerank=Rerank(pool=150), features=features[:100].astype(np.float32))
    # All 150 codes are in each pool, 60 million numbers in all; only the query's own features have distance 0.
    assert got.ids[:, 0].tolist() == rows.tolist()
    assert (got.distances == 0).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("values", [1, 50, 700])
@pytest.mark.parametrize("how", [{"pool": 60}, {"radius": 8}])
def test_pools_read_in_any_parts_are_ordered_the_same(stored, monkeypatch, how, values, metric):
    """One query at a time, parts of one pool at a time, or several queries together."""
    collection, codes, _, _ = stored
    queries, features = codes[:9], np.random.default_rng(4).standard_normal((9, 6))
    expected = collection.search(queries, 11, rerank=Rerank(**how, metric=metric), features=features)
    monkeypatch.setattr(rerank_module, "_VALUES_AT_ONCE", values)
    got = collection.search(queries, 11, rerank=Rerank(**how, metric=metric), features=features)
    assert got.ids.tolist() == expected.ids.tolist()
    np.testing.assert_allclose(got.distances, expected.distances, rtol=1e-6)


def test_one_crowded_query_does_not_make_the_batch_large(tmp_path):
    """Padding every pool to the largest would take 40,000 x 20,000 numbers."""
    codes = np.full((40_000, 1), 2**47, np.uint64)
    codes[:20_000, 0] = 0
    codes[20_000:, 0] += np.arange(20_000, dtype=np.uint64) << np.uint64(8)
    features = np.random.default_rng(0).standard_normal((40_000, 2)).astype(np.float16)
    collection = Collection.create(tmp_path / "c", codes, bits=48, features=features)
    queries = np.concatenate([codes[:1], np.full((20_000, 1), 2**48 - 1, np.uint64)])
    asked = np.zeros((len(queries), 2))
    collection.search(queries[:2], 2, rerank=Rerank(radius=0), features=asked[:2])
    tracemalloc.start()
    found = collection.search(queries, 2, rerank=Rerank(radius=0), features=asked)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    lengths = np.linalg.norm(features[:20_000].astype(np.float64), axis=1)
    assert found.ids[0].tolist() == np.lexsort((np.arange(20_000), lengths))[:2].tolist()
    assert (found.ids[1:] == -1).all()
    assert peak < 64e6


@pytest.mark.parametrize("how", [{"pool": 101}, {"radius": 40}])
def test_pools_have_a_largest_size(stored, monkeypatch, how):
    collection, codes, _, features = stored
    monkeypatch.setattr(rerank_module, "MAX_POOL", 100)
    with pytest.raises(ValueError, match="`rerank` takes at most 100 codes a query, got"):
        collection.search(codes[:3], 4, rerank=Rerank(**how), features=features[:3])
    found = collection.search(codes[:30], 4, rerank=Rerank(pool=100), features=features[:30])
    assert found.ids.shape == (30, 4)


@pytest.mark.parametrize("metric", METRICS)
def test_stored_features_that_are_undefined_come_last(metric):
    """They are refused today, and older collections may have them: their images are still answers."""
    features = np.array([[[np.nan, 1], [1, 1], [np.inf, 0], [2, 1], [0, 0]]], np.float16)
    found = rerank_pool(np.ones((1, 2)), np.array([[1, 2, 3, 4, -1]]), features, 5, metric=metric)
    assert found.ids[0].tolist() == [2, 4, 1, 3, -1]


def test_an_empty_pool_is_answered(stored):
    collection, codes, _, features = stored
    far = np.bitwise_not(codes[:2]) & np.uint64(2**40 - 1)
    got = collection.search(far, 3, rerank=Rerank(radius=0), features=features[:2], explain=True)
    assert got.ids.tolist() == [[-1] * 3] * 2
    assert np.isinf(got.distances).all()
    assert len(got.explain.plans) == 2
    none = collection.search(codes[:0], 3, rerank=Rerank(pool=4), features=features[:0])
    assert none.ids.shape == none.distances.shape == (0, 3)


def test_rerank_and_features_must_match(stored):
    collection, codes, _, features = stored
    with pytest.raises(ValueError, match="go together: pass `features`, those of the queries"):
        collection.search(codes[:2], rerank=Rerank(pool=15))
    with pytest.raises(ValueError, match="go together: pass `rerank`, how to use them"):
        collection.search(codes[:2], features=features[:2])
    with pytest.raises(ValueError, match=r"must have shape \(2, F\), one row per query, got \(3, 6\)"):
        collection.search(codes[:2], rerank=Rerank(pool=15), features=features[:3])
    with pytest.raises(TypeError, match="array of floats, got int64"):
        collection.search(codes[:2], rerank=Rerank(pool=15), features=features[:2].astype(np.int64))
    with pytest.raises(ValueError, match="`features` must have 6 columns, as those of the collection, got 4"):
        collection.search(codes[:2], rerank=Rerank(pool=15), features=features[:2, :4])
    with pytest.raises(ValueError, match="`rerank` must have a `pool` of at least `k`, 10, got 9"):
        collection.search(codes[:2], rerank=Rerank(pool=9), features=features[:2])
    spoilt = features[:2].copy()
    spoilt[1, 3] = np.nan
    with pytest.raises(ValueError, match="`features` must be finite, got nan or inf in 1 places"):
        collection.search(codes[:2], rerank=Rerank(pool=15), features=spoilt)


def test_a_pool_larger_than_the_collection_is_the_whole_collection(stored):
    collection, codes, _, features = stored
    whole, more = (
        collection.search(codes[:3], 4, rerank=Rerank(pool=pool), features=features[:3]) for pool in (200, 2**31 - 1)
    )
    assert more.ids.tolist() == whole.ids.tolist()


def test_k_above_the_number_of_codes_is_padded_up_to_a_limit(stored):
    collection, codes, _, _ = stored
    assert (collection.search(codes[:1], 10_000).ids[0, 200:] == -1).all()
    with pytest.raises(
        ValueError,
        match=r"`k` must be at least 1 and at most 10000 .there are 200 codes; short answers are padded., got",
    ):
        collection.search(codes[:1], 10_001)


def unpack_bits(codes, bits):
    return np.unpackbits(codes.astype("<u8").view(np.uint8), axis=1, bitorder="little")[:, :bits].astype(bool)


def asymmetric_loop(projections, query, pool, codes, ids, k, bits):
    """(Hamming distance, id) of the first of a pool, by inner product with signs, then (Hamming distance, id)."""
    rows = []
    for id_ in pool.tolist():
        code = codes[ids.tolist().index(id_)]
        bit = [int(code[i // 64]) >> (i % 64) & 1 for i in range(bits)]
        asked = [int(query[i // 64]) >> (i % 64) & 1 for i in range(bits)]
        product = sum(z if b else -z for z, b in zip(projections.tolist(), bit, strict=True))
        hamming = sum(a != b for a, b in zip(asked, bit, strict=True))
        rows.append((-product, hamming, id_))
    return [row[1:] for row in sorted(rows)[:k]]


def asked_for(rng, codes, bits):
    """Queries near some codes, with projections that have their signs; whole numbers, so that products are exact."""
    size = rng.integers(1, 4, size=(len(codes), bits))
    return np.where(unpack_bits(codes, bits), size, -size).astype(np.float32)


@pytest.mark.parametrize("how", [{"pool": 25}, {"pool": 300}, {"radius": 6}])
@pytest.mark.parametrize("bits", [13, 40, 64, 130])
def test_a_pool_is_ordered_by_asymmetric_distance(tmp_path, how, bits):
    rng = np.random.default_rng(4)
    codes, ids = oracles.clustered_codes(rng, 200, bits), rng.permutation(500)[:200]
    collection = Collection.create(tmp_path / "c", codes, ids=ids, bits=bits, shards=3)
    queries = codes[:6].copy()
    queries[:, 0] ^= np.array([0, 1, 3, 7, 255, 2], np.uint64)
    projections = asked_for(rng, queries, bits)
    got = collection.search(queries, 7, rerank=Rerank(**how, metric="asymmetric"), projections=projections)
    assert (got.distances.dtype, got.ids.shape) == (np.int32, (6, 7))
    changed = 0
    for q in range(6):
        if "pool" in how:
            pool = oracles.knn(queries[q : q + 1], codes, ids, how["pool"])[1][0]
            pool = pool[pool >= 0]
        else:
            pairs = oracles.within_radius(queries[q : q + 1], codes, ids, how["radius"])[0][0]
            pool = np.array([id_ for _, id_ in pairs], np.int64)
        expected = asymmetric_loop(projections[q], queries[q], pool, codes, ids, 7, bits)
        assert list(zip(got.distances[q].tolist(), got.ids[q].tolist(), strict=True))[: len(expected)] == expected
        assert (got.ids[q, len(expected) :] == -1).all()
        assert (got.distances[q, len(expected) :] == 2**31 - 1).all()
        changed += expected != sorted(expected)
    assert changed


def test_asymmetric_order_does_not_depend_on_the_batch_or_its_parts(stored, monkeypatch):
    collection, codes, _, _ = stored
    rng = np.random.default_rng(5)
    projections = rng.standard_normal((60, 40)).astype(np.float32)
    queries = codes[rng.integers(200, size=60)]
    whole = collection.search(queries, 5, rerank="asymmetric", projections=projections)
    for q in range(0, 60, 7):
        one = slice(q, q + 1)
        alone = collection.search(queries[one], 5, rerank="asymmetric", projections=projections[one])
        assert (alone.ids == whole.ids[one]).all()
    monkeypatch.setattr(rerank_module, "_VALUES_AT_ONCE", 40 * 33)
    monkeypatch.setattr(rerank_module, "_TABLE_VALUES", 256 * 5 * 2)
    parts = collection.search(queries, 5, rerank="asymmetric", projections=projections)
    assert (parts.ids == whole.ids).all()
    assert (parts.distances == whole.distances).all()


def test_signs_alone_give_hamming_order(stored):
    collection, codes, _, _ = stored
    signs = np.where(unpack_bits(codes[:9], 40), 1.0, -1.0).astype(np.float32)
    plain = collection.search(codes[:9], 12)
    got = collection.search(codes[:9], 12, rerank="asymmetric", projections=signs)
    assert (got.ids == plain.ids).all()
    assert (got.distances == plain.distances).all()


def test_the_size_of_an_asymmetric_pool():
    assert [Rerank.asymmetric(k).pool for k in (1, 10, 11, 500)] == [100, 100, 110, 5000]
    assert [Rerank.asymmetric(k, most=50).pool for k in (1, 80)] == [50, 80]


def test_projections_must_fit(stored):
    collection, codes, _, features = stored
    z = np.ones((2, 40), np.float32)
    with pytest.raises(ValueError, match="go together: pass `projections`, those of the queries"):
        collection.search(codes[:2], rerank="asymmetric")
    with pytest.raises(ValueError, match=r"`projections` must have shape \(2, 40\), one row per query, got \(2, 39\)"):
        collection.search(codes[:2], rerank="asymmetric", projections=z[:, :39])
    with pytest.raises(ValueError, match="`features` have no use in `rerank` by asymmetric"):
        collection.search(codes[:2], rerank="asymmetric", features=features[:2])
    with pytest.raises(ValueError, match="`projections` have no use in Hamming order"):
        collection.search(codes[:2], projections=z)
    with pytest.raises(ValueError, match="must be a Rerank or 'asymmetric', got 'symmetric'"):
        collection.search(codes[:2], rerank="symmetric", projections=z)
    with pytest.raises(ValueError, match="`projections` must be finite, got nan or inf in 80 places"):
        collection.search(codes[:2], rerank="asymmetric", projections=z * np.inf)
