"""Every index gives the answers of the oracle."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hashlight.engine.indexes import scan
from hashlight.engine.indexes.base import Index
from hashlight.engine.indexes.faiss.flat import FaissFlatIndex
from hashlight.engine.indexes.faiss.multi_hash import FaissMultiHashIndex
from hashlight.engine.indexes.multi_index import index as multi
from hashlight.engine.indexes.multi_index import probe
from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.scan import ScanIndex
from tests import oracles

BITS = [16, 32, 48, 64, 72, 128, 129, 192, 256, 320, 448, 512, 1000, 1024]
KINDS = [ScanIndex, MultiIndex, FaissFlatIndex, FaissMultiHashIndex]
relaxed = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])


def make_case(seed, rows, bits, queries=5):
    """Codes with many ties, shuffled ids, and queries of which some are stored codes."""
    rng = np.random.default_rng(seed)
    codes = oracles.clustered_codes(rng, rows + queries, bits)
    ids = rng.permutation(3 * rows + 1)[:rows].astype(np.int64)
    return codes[:rows], ids, codes[rows:]


def row_order(index, ids):
    """The position in `ids` of each of the index's rows."""
    place = {int(id_): n for n, id_ in enumerate(ids)}
    return np.array([place[int(id_)] for id_ in index.ids_N], np.int64)


def assert_search(result, queries, codes, ids, k):
    distances, found = np.full((len(queries), k), 2**31 - 1), np.full((len(queries), k), -1)
    if len(codes):
        distances, found = oracles.knn(queries, codes, ids, k)
    assert result.distances.dtype == np.int32
    assert result.ids.dtype == np.int64
    np.testing.assert_array_equal(result.distances, distances)
    np.testing.assert_array_equal(result.ids, found)


def assert_range(result, queries, codes, ids, radius, limit=None):
    answers, cut = [[]] * len(queries), [False] * len(queries)
    if len(codes):
        answers, cut = oracles.within_radius(queries, codes, ids, radius, limit)
    assert [result.lims.dtype, result.distances.dtype, result.ids.dtype] == [np.int64, np.int32, np.int64]
    got = [
        list(zip(result.distances[a:b].tolist(), result.ids[a:b].tolist(), strict=True))
        for a, b in zip(result.lims, result.lims[1:], strict=False)
    ]
    assert got == answers
    assert result.truncated.tolist() == cut


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
@relaxed
@given(data=st.data())
def test_answers_equal_the_oracle(kind, bits, data):
    rows = data.draw(st.sampled_from([1, 2, 7, 60, 300]), label="rows")
    codes, ids, queries = make_case(data.draw(st.integers(0, 2**32), label="seed"), rows, bits)
    index = kind.build(codes, ids, bits=bits)
    assert isinstance(index, Index)
    assert len(index) == rows
    k = data.draw(st.sampled_from([1, 3, 10, rows, rows + 5]), label="k")
    assert_search(index.search(queries, k, threads=1), queries, codes, ids, k)
    radius = data.draw(
        st.sampled_from([0, 1, 2, 3, 5, 8, 12, bits // 2, bits]).filter(lambda r: r <= bits), label="radius"
    )
    limit = data.draw(st.sampled_from([None, 1, 4, rows, 10 * rows]), label="limit")
    assert_range(index.range_search(queries, radius, limit, threads=1), queries, codes, ids, radius, limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [32, 64, 128, 256, 1024])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.8, 1.0])
def test_masked_rows_are_left_out_before_ranking(kind, bits, share):
    codes, ids, queries = make_case(5, 400, bits)
    index = kind.build(codes, ids, bits=bits)
    order = row_order(index, ids)
    mask = np.random.default_rng(1).random(400) < share
    may = order[mask]
    for some in (queries, queries[:1]):
        assert_search(index.search(some, 6, mask=mask), some, codes[may], ids[may], 6)
        assert_range(index.range_search(some, 5, mask=mask), some, codes[may], ids[may], 5)
        assert_range(index.range_search(some, 5, 3, mask=mask), some, codes[may], ids[may], 5, 3)
        assert_range(index.range_search(some, bits, mask=mask), some, codes[may], ids[may], bits)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [1, 4, 9])
def test_with_more_rows_than_codes_a_mask_may_leave_fewer_than_asked_for(kind, bits):
    codes = np.random.default_rng(6).integers(0, 2**bits, (700, 1)).astype(np.uint64)
    ids, queries = np.arange(700), codes[:3]
    index = kind.build(codes, ids, bits=bits)
    order = row_order(index, ids)
    mask = np.arange(700) % 100 == 0
    may = order[mask]
    assert_search(index.search(queries, 9, mask=mask, threads=1), queries, codes[may], ids[may], 9)
    assert_search(index.search(queries, 9, mask=mask & False, threads=1), queries, codes[:0], ids[:0], 9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [64, 72])
def test_an_empty_index_answers_nothing(kind, bits):
    codes, ids, queries = make_case(1, 4, bits)
    index = kind.build(codes[:0], ids[:0], bits=bits)
    assert len(index) == 0
    assert_search(index.search(queries, 3), queries, codes[:0], ids[:0], 3)
    assert_range(index.range_search(queries, bits, 3), queries, codes[:0], ids[:0], bits, 3)
    assert_range(index.range_search(queries, bits), queries, codes[:0], ids[:0], bits)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_gets_an_empty_answer(kind):
    codes, ids, queries = make_case(1, 9, 64)
    index = kind.build(codes, ids, bits=64)
    assert index.search(queries[:0], 3).ids.shape == (0, 3)
    assert index.range_search(queries[:0], 3).lims.tolist() == [0]
    assert index.range_search(queries[:0], 3, 2).lims.tolist() == [0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [64, 256])
def test_neither_batches_nor_threads_change_an_answer(kind, bits):
    codes, ids, queries = make_case(3, 5000, bits, queries=37)
    index = kind.build(codes, ids, bits=bits)
    near, within = index.search(queries, 9, threads=1), index.range_search(queries, 6, threads=1)
    assert_search(near, queries, codes, ids, 9)
    assert_range(within, queries, codes, ids, 6)
    for threads in (2, 3, 8, None):
        assert_search(index.search(queries, 9, threads=threads), queries, codes, ids, 9)
        assert_range(index.range_search(queries, 6, threads=threads), queries, codes, ids, 6)
        assert_range(index.range_search(queries, 6, 5, threads=threads), queries, codes, ids, 6, 5)
    for size in (1, 2, 5):
        parts = [index.search(queries[a : a + size], 9) for a in range(0, 37, size)]
        np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), near.ids)
        parts = [index.range_search(queries[a : a + size], 6) for a in range(0, 37, size)]
        np.testing.assert_array_equal(np.concatenate([part.ids for part in parts]), within.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_flipping_one_bit_everywhere_changes_nothing(kind):
    codes, ids, queries = make_case(8, 500, 64)
    index = kind.build(codes, ids, bits=64)
    for bit in (0, 17, 42, 63):
        flip = np.uint64(1 << bit)
        flipped = kind.build(codes ^ flip, ids, bits=64)
        np.testing.assert_array_equal(flipped.search(queries ^ flip, 20).ids, index.search(queries, 20).ids)
        np.testing.assert_array_equal(flipped.range_search(queries ^ flip, 7).ids, index.range_search(queries, 7).ids)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("plan", ["auto", "scan", "tables", "gather"])
@relaxed
@given(data=st.data())
def test_every_plan_answers_the_same(bits, plan, data):
    codes, ids, queries = make_case(data.draw(st.integers(0, 2**32), label="seed"), 200, bits)
    index = MultiIndex.build(codes, ids, bits=bits)
    k = data.draw(st.sampled_from([1, 5, 200, 210]), label="k")
    radius = data.draw(st.integers(0, min(bits, 40)), label="radius")
    limit = data.draw(st.sampled_from([None, 1, 7, 300]), label="limit")
    share = data.draw(st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0]), label="share")
    mask = np.random.default_rng(radius).random(200) < share
    may = row_order(index, ids)[mask]
    got = index.search(queries, k, plan=plan, mask=mask, explain=True)
    assert_search(got, queries, codes[may], ids[may], k)
    got = index.range_search(queries, radius, limit, plan=plan, mask=mask, explain=True)
    assert_range(got, queries, codes[may], ids[may], radius, limit)
    if plan != "auto":
        assert got.explain.plans == (plan,) * len(queries)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [64, 192])
def test_any_nonzero_byte_of_a_mask_is_true(kind, bits):
    codes, ids, queries = make_case(6, 400, bits)
    index = kind.build(codes, ids, bits=bits)
    flags = np.random.default_rng(2).choice(np.array([0, 4, 255], np.uint8), 400)
    mask = flags.view(np.bool_)
    may = row_order(index, ids)[flags > 0]
    for some in (queries, queries[:1]):
        assert_search(index.search(some, 6, mask=mask), some, codes[may], ids[may], 6)
        assert_range(index.range_search(some, bits // 2, mask=mask), some, codes[may], ids[may], bits // 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [1, 255, 256, 300, 2047, 2048, 4000])
def test_limits_beyond_the_initial_room_cut_the_same(kind, limit):
    codes, ids, _ = make_case(7, 6000, 64)
    far = np.random.default_rng(3).integers(2**64, size=(3, 1), dtype=np.uint64)
    queries = np.concatenate([codes[:2], far[:1], codes[2:4], far[1:]])
    index = kind.build(codes, ids, bits=64)
    answers = index.range_search(queries, 12, limit, threads=1)
    assert_range(answers, queries, codes, ids, 12, limit)
    assert len(set(np.diff(answers.lims).tolist())) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_is_farther_than_farthest(kind):
    codes, ids, queries = make_case(8, 500, 64, queries=9)
    index = kind.build(codes, ids, bits=64)
    farthest = np.array([0, 1, 2, 5, 9, 20, 40, 64, 2**31 - 1], np.int32)
    given = farthest.copy()
    found = index.search(queries, 70, farthest_Q=farthest)
    np.testing.assert_array_equal(farthest, given)
    for q in range(9):
        distances = oracles.hamming_distances(queries[q : q + 1], codes)[0]
        near = distances <= farthest[q]
        expected = oracles.knn(queries[q : q + 1], codes[near], ids[near], 70)
        np.testing.assert_array_equal(found.distances[q], expected[0][0])
        np.testing.assert_array_equal(found.ids[q], expected[1][0])


def test_small_scratch_does_not_change_answers(monkeypatch):
    """Every way of resuming, on small cases: scratch space that fills up, buffers that grow, batches that are cut."""
    monkeypatch.setattr(probe, "SCRATCH_BUCKETS", 3)
    monkeypatch.setattr(probe, "SCRATCH_CANDIDATES", 8)
    monkeypatch.setattr(probe, "FIRST_HITS", 1)
    monkeypatch.setattr(scan, "FIRST_HITS", 1)
    for module in (scan, multi):
        monkeypatch.setattr(module, "MAX_HEAP_PLACES", 20)
        monkeypatch.setattr(module, "MAX_COUNTERS", 40)
    for bits in (16, 64, 129, 256):
        codes, ids, queries = make_case(bits, 900, bits, queries=7)
        index = MultiIndex.build(codes, ids, bits=bits)
        for plan in ("tables", "scan"):
            assert_search(index.search(queries, 11, plan=plan), queries, codes, ids, 11)
            for radius in (0, 3, 9, bits):
                assert_range(index.range_search(queries, radius, plan=plan), queries, codes, ids, radius)


@relaxed
@given(data=st.data())
def test_tables_alone_answer_like_the_oracle(data):
    bits = data.draw(st.sampled_from([8, 16, 40, 64, 100, 129, 192]), label="bits")
    rows = data.draw(st.sampled_from([1, 2, 40, 300]), label="rows")
    codes, ids, queries = make_case(data.draw(st.integers(0, 2**32), label="seed"), rows, bits)
    index = MultiIndex.build(codes, ids, bits=bits)
    k = data.draw(st.sampled_from([1, 5, rows, rows + 3]), label="k")
    assert_search(index.search(queries, k, plan="tables"), queries, codes, ids, k)
    radius = data.draw(st.integers(0, min(bits, 40)), label="radius")
    assert_range(index.range_search(queries, radius, plan="tables"), queries, codes, ids, radius)
