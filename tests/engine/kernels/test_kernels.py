"""Single kernels against plain Python, including what answers do not show, such as unnecessary work."""

import math

import numpy as np
import pytest

from hashlight.engine.indexes.answers import empty_heaps
from hashlight.engine.indexes.arrays import BEFORE_ALL, read_only
from hashlight.engine.indexes.masks import RowMask, allowed_rows, mask_words
from hashlight.engine.indexes.multi_index import index as multi_index
from hashlight.engine.indexes.multi_index import planner
from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.multi_index.planner import Costs, Span
from hashlight.engine.kernels import multi_index as kernels
from hashlight.engine.kernels.arguments import Budget, Prices, Rows, Scratch, Step, TableArrays
from hashlight.engine.kernels.order import unpack_rows
from hashlight.engine.kernels.scan import knn_scan
from hashlight.engine.kernels.select import FEW, order_ids
from tests import oracles

ROWS = 3000


class Searched:
    """An index of distinct or repeated codes, the arguments of its kernels, and its codes as plain integers."""

    def __init__(self, bits, *, distinct):
        rng = np.random.default_rng(bits)
        codes = rng.integers(2**64, size=(ROWS, bits // 64), dtype=np.uint64)
        if not distinct:
            codes[::3] = codes[1::3]
        self.index = MultiIndex.build(codes, np.arange(ROWS), bits=bits)
        self.codes = [as_integer(code) for code in self.index.codes_NW]
        self.rows = Rows(*self.index.probe._rows)
        self.tables = TableArrays(*self.index.probe._arrays)
        self.scratch = Scratch(*(array.copy() for array in self.index.probe._scratch()))
        self.query_W = read_only(self.index.codes_NW[ROWS // 2 : ROWS // 2 + 1] ^ np.uint64(0b1010010001))[0]
        self.query = as_integer(self.query_W)

    def part(self, code, table):
        return code >> int(self.tables.low_T[table]) & ((1 << int(self.tables.width_T[table])) - 1)

    def sketch_distance(self, code, table):
        low_a, width_a, low_b, width_b = self.tables.sketch_T4[table].tolist()
        mask = ((1 << width_a) - 1) << low_a | ((1 << width_b) - 1) << low_b
        return ((code ^ self.query) & mask).bit_count()

    def bucket(self, table, value):
        """Return the first rows of the distinct codes whose substring is `value`, by checking all codes."""
        return [
            row for row, code in enumerate(self.codes)
            if self.part(code, table) == value and (row == 0 or self.codes[row - 1] != code)
        ]  # fmt: skip


def as_integer(code_W):
    return sum(int(word) << (64 * place) for place, word in enumerate(code_W))


@pytest.fixture(scope="module", params=[(64, True), (64, False), (256, True)], ids=str)
def searched(request):
    bits, distinct = request.param
    return Searched(bits, distinct=distinct)


def masks_of(width, ones):
    return sorted(value for value in range(1 << width) if value.bit_count() == ones)


def test_lookups_keep_nonempty_buckets_and_resume_where_they_stopped(searched):
    for table in range(len(searched.tables.width_T)):
        width = int(searched.tables.width_T[table])
        value = searched.part(searched.query, table)
        mask, kept_sizes, probes = np.uint64(3), [], 0
        while mask < 2**width:
            mask, kept, looked = kernels.look_up(
                searched.rows, searched.tables, table, np.uint64(value), mask, searched.scratch
            )
            assert looked <= len(searched.scratch.from_P)
            kept_sizes += (searched.scratch.to_P[:kept] - searched.scratch.from_P[:kept]).tolist()
            probes += looked
        sizes = [len(searched.bucket(table, value ^ mask)) for mask in masks_of(width, 2)]
        assert probes == math.comb(width, 2)
        assert kept_sizes == [size for size in sizes if size]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("places", [8, 13, 256])
def test_only_candidates_whose_sketch_is_near_enough_are_read(searched, places, masked):
    # In the middle of the distances of sketches, where one bit makes a difference of many candidates.
    radius, scratch = 26, searched.scratch._replace(row_C=np.empty(places, np.int64))
    mask = RowMask.of(np.arange(ROWS) % 3 == 0) if masked else None
    # Of codes that are repeated only the first row is listed, which tells nothing of the others.
    left_out = np.zeros(ROWS, np.bool_) if mask is None or len(searched.tables.start_D) else ~mask.bools()
    read = 0
    for table in range(len(searched.tables.width_T)):
        value = searched.part(searched.query, table)
        sketch = kernels.query_sketch(searched.query_W, searched.tables.sketch_T4[table])
        for reach in (0, 1):
            buckets = [
                searched.bucket(table, value ^ mask) for mask in masks_of(int(searched.tables.width_T[table]), reach)
            ]
            expected = [row for bucket in buckets for row in bucket if is_read(searched, table, row, radius, reach)]
            passed = len(expected)
            expected = [row for row in expected if not left_out[row]]
            start = np.uint64((1 << reach) - 1)
            _, kept, _ = kernels.look_up(searched.rows, searched.tables, table, np.uint64(value), start, scratch)
            scratch.place_2[:] = 0, scratch.from_P[0]
            listed, seen, barred = [], 0, 0
            while scratch.place_2[0] < kept:
                size, refused, met = kernels.dismiss(
                    searched.rows,
                    searched.tables,
                    mask_words(mask),
                    searched.query_W,
                    sketch,
                    radius,
                    Step(0, table, reach),
                    kept,
                    scratch,
                )
                listed += scratch.row_C[:size].tolist()
                seen += met
                barred += refused
            assert listed == expected
            assert barred == passed - len(expected)
            assert seen == sum(map(len, buckets))
            read += len(listed)
    assert read > 0


def is_read(searched, table, row, radius, reach):
    """Tell whether a candidate should be read; table 0 compares whole codes if they have one word and are distinct."""
    if table > 0:
        return searched.sketch_distance(searched.codes[row], table) <= radius - reach
    if searched.rows.num_words == 1 and not len(searched.tables.start_D) and row + 8 <= ROWS:
        return (searched.codes[row] ^ searched.query).bit_count() <= radius
    return True


def test_a_row_was_met_if_a_table_was_probed_far_enough(searched):
    num_tables = len(searched.tables.width_T)
    seen = [-1, 3, 4, *[-1] * num_tables][:num_tables]
    met = 0
    for row in range(0, ROWS, 7):
        apart = [
            (searched.part(searched.codes[row] ^ searched.query, table)).bit_count() for table in range(num_tables)
        ]
        expected = any(distance <= far for distance, far in zip(apart, seen, strict=True))
        seen_T = np.array(seen)
        assert kernels.met_before(searched.rows, searched.tables, row, searched.query_W, seen_T) == expected
        met += expected
    assert 0 < met < ROWS // 7


def nearest(index, queries, k, budget, bound=None, mask=None):
    bound_Q = np.full(len(queries), index.bits if bound is None else bound, np.int32)
    heaps = empty_heaps(len(queries), k)
    done_Q, work = index.probe.nearest(queries, bound_Q, mask, heaps, budget)
    return done_Q, bound_Q, heaps, work


def test_a_query_that_is_given_up_leaves_a_bound_that_contains_its_answer(searched):
    index, k = searched.index, 4
    queries = index.codes_NW[::100] ^ np.uint64(0b1010010001)
    expected = oracles.knn(queries, index.codes_NW, index.ids_N, k)[0][:, -1]
    steps = Budget(
        mask_ns=1.0, candidate_ns=0.0, tested_ns=0.0, read_ns=0.0, scan_ns=0.0, trial_ns=30.0, likely_radius=index.bits
    )
    done_Q, bound_Q, heaps, _ = nearest(index, queries, k, steps)
    assert not done_Q.any()
    assert (bound_Q >= expected).all()
    assert (bound_Q == np.minimum(heaps[0][:, 0], index.bits)).all()
    never = steps._replace(scan_ns=np.inf)
    done_Q, _, heaps, _ = nearest(index, queries, k, never)
    assert done_Q.all()
    assert (heaps[0][:, 0] == expected).all()


def test_a_trial_is_not_overspent(searched):
    index = searched.index
    queries = index.codes_NW[:20].copy()
    for trial in (0.0, 1.0, 25.0, 400.0):
        budget = Budget(
            mask_ns=1.0,
            candidate_ns=0.0,
            tested_ns=0.0,
            read_ns=0.0,
            scan_ns=0.0,
            trial_ns=trial,
            likely_radius=index.bits,
        )
        work = nearest(index, queries, 900, budget)[3]
        assert (work.probes_Q <= trial).all()
        if trial:
            assert (work.probes_Q > 0).all()


def test_a_query_whose_steps_cost_less_than_a_scan_is_never_given_up(searched):
    index = searched.index
    budget = Budget(
        mask_ns=1.0, candidate_ns=1.0, tested_ns=0.0, read_ns=1.0, scan_ns=1e18, trial_ns=0.0, likely_radius=index.bits
    )
    assert nearest(index, index.codes_NW[:20].copy(), 3, budget)[0].all()


def test_looking_rows_up_in_the_mask_is_spent_until_k_are_found():
    index = Searched(64, distinct=True).index
    queries, mask = index.codes_NW[1::150].copy(), RowMask.of(np.arange(ROWS) % 3 == 0)
    steps = Budget(
        mask_ns=0.0, candidate_ns=0.0, tested_ns=1.0, read_ns=0.0, scan_ns=1.0, trial_ns=ROWS / 2, likely_radius=64
    )
    done_Q, _, _, never_found = nearest(index, queries, ROWS, steps, mask=mask)
    assert not done_Q.any()
    assert (never_found.candidates_Q <= ROWS / 2).all()
    found = nearest(index, queries, 1, steps, mask=mask)[3]
    assert found.candidates_Q.sum() > 1.5 * never_found.candidates_Q.sum()
    assert nearest(index, queries, ROWS, steps._replace(tested_ns=0.0), mask=mask)[0].all()


def test_steps_end_at_the_bound(searched):
    index = searched.index
    budget = Budget(
        mask_ns=1.0, candidate_ns=1.0, tested_ns=0.0, read_ns=1.0, scan_ns=1e18, trial_ns=0.0, likely_radius=index.bits
    )
    for bound in (0, 1, 5):
        work = nearest(index, ~index.codes_NW[:5], 3, budget, bound=bound)[3]
        widths = index.tables.widths
        steps = [(step // len(widths), step % len(widths)) for step in range(bound + 1)]
        assert set(work.probes_Q.tolist()) == {sum(math.comb(widths[table], reach) for reach, table in steps)}


def test_codes_are_sampled_for_a_price_only_if_it_can_decide(searched):
    queries = searched.index.codes_NW[:9].copy()
    plan = searched.index.probe.plan(6)
    base = Prices(lookups_ns=3.0, candidate_ns=2.0, read_ns=0.5, near_ns=7.0, scan_ns=1e9, shared_scan_ns=0.0)
    met = np.array([searched.index.probe.within(queries[q : q + 1], np.zeros(1, np.intp), 6, None)[1].candidates_Q[0]
                    for q in range(9)])  # fmt: skip
    assert plan.lookups > 0
    blind = 3.0 + 2.0 * met
    for prices in (base._replace(scan_ns=0.0), base._replace(shared_scan_ns=1e9)):
        np.testing.assert_allclose(searched.index.probe.price_radius(queries, 6, prices), blind)
    inspected = searched.index.probe.price_radius(queries, 6, base)
    assert (inspected >= blind).all()
    assert (inspected > blind).any()


def test_prices_by_hand():
    costs = Costs(word_ns=0.1, load_ns=0.5, near_lookup_ns=4.0, far_lookup_ns=16.0, candidate_ns=1.0, near_ns=20.0)
    every = Span(1000, 1000)
    assert costs.scan_ns(every, 2, 5) == pytest.approx(1000 * 2 * (0.1 + 0.1))
    assert costs.scan_ns(every, 2, 0) == pytest.approx(1000 * 2 * 0.6)
    assert costs.lookup_ns(1) == costs.lookup_ns(2**16) == 4.0
    assert costs.lookup_ns(2**19) == pytest.approx(10.0)
    assert costs.lookup_ns(2**22) == costs.lookup_ns(2**30) == 16.0
    assert costs.read_ns(2**16, 1) == 4.0
    assert costs.read_ns(2**16, 5) == 8.0
    budget = planner.plan_nearest(costs, every, 2**16, 2, 5, 9)
    assert budget.tested_ns == 0.0
    assert planner.plan_nearest(costs, Span(1000, 500, "mask"), 2**16, 2, 5, 9).tested_ns == 2.0
    assert (budget.mask_ns, budget.candidate_ns, budget.read_ns, budget.likely_radius) == (4.0, 1.0, 5.0, 9)
    assert budget.scan_ns == pytest.approx(400.0)
    assert budget.trial_ns == pytest.approx(0.07 * 400.0)


def test_prices_of_a_scan_of_some_rows_by_hand():
    costs = Costs(word_ns=0.1, load_ns=0.5, pick_ns=2.0, gather_ns=6.0)
    few, some, most = Span(64_000, 100, "list"), Span(64_000, 8000, "mask"), Span(64_000, 32_000, "mask")
    assert costs.scan_ns(few, 1, 1) == pytest.approx(100 * (0.1 + 6.0))
    assert costs.scan_ns(few, 3, 4) == pytest.approx(100 * (0.3 + (6.0 + 1.0) / 4))
    assert costs.scan_ns(some, 1, 1) == pytest.approx(8000 * (0.1 + 0.5 + 2.0) + 640)
    assert costs.scan_ns(most, 2, 1) == pytest.approx(64_000 * 2 * 0.6)  # all are read where they are
    assert costs.scan_ns(most, 2, 10) == pytest.approx(32_000 * (0.2 + (1.0 + 2.0) / 10) + 64)
    assert Span.of(RowMask.of(np.arange(6400) < 200), 6400) == (6400, 200, "list")
    assert Span.of(RowMask.of(np.arange(6400) < 201), 6400) == (6400, 201, "mask")
    assert Span.of(None, 6400) == (6400, 6400, "row")


def test_the_trial_budget_of_a_radius_search_by_hand(searched):
    # A scan of a million one-word codes costs 600 us; 90 us may be spent, minus 4 ns per lookup, 25 per candidate.
    costs = Costs(word_ns=0.1, load_ns=0.5, near_lookup_ns=4.0, far_lookup_ns=4.0, candidate_ns=1.0, near_ns=20.0)
    probe = searched.index.probe
    long, short = Span(1_000_000, 1_000_000), Span(100_000, 100_000)
    assert planner.trial_budget(probe, 4, costs, long, 1) == (90_000 - 4 * probe.plan(4).lookups) // 25
    assert planner.trial_budget(probe, 4, costs, short, 1) == 0  # the scan is too short to be worth a trial


def test_the_likely_radius_counts_only_allowed_rows(monkeypatch):
    asked = []
    monkeypatch.setattr(multi_index, "likely_radius", lambda bits, rows, k: asked.append((bits, rows, k)) or 5)
    index = MultiIndex.build(np.arange(1000, dtype=np.uint64)[:, None], np.arange(1000), bits=64)
    index.search(index.codes_NW[:2].copy(), 3, mask=np.arange(1000) % 4 == 0)
    index.search(index.codes_NW[:2].copy(), 3000)
    assert asked == [(64, 250, 3), (64, 1000, 1000)]


def test_only_long_unsorted_runs_are_left_to_numpy():
    ends = np.cumsum([FEW, FEW + 1, FEW + 1])
    ids = np.concatenate([np.arange(FEW)[::-1], np.arange(FEW + 1), np.arange(FEW + 1)[::-1]])
    unsorted = np.empty((2, 2), np.int64)
    assert order_ids(ends.reshape(1, 3).copy(), np.empty(len(ids), np.int32), ids, unsorted) == 1
    assert unsorted[0].tolist() == [ends[1], ends[2]]
    assert ids[: ends[1]].tolist() == [*range(FEW), *range(FEW + 1)]


def test_packed_rows_that_share_a_key_are_counted():
    packed = np.array([5 << 3 | 2, 5 << 3 | 4, 6 << 3 | 0, 7 << 3 | 1, 7 << 3 | 3], np.uint64)
    order = np.empty(5, np.int64)
    assert unpack_rows(packed, 3, order) == 4
    assert order.tolist() == [2, 4, 0, 1, 3]


def test_a_scan_respects_the_bound_of_each_query(searched):
    index = searched.index
    queries = read_only(index.codes_NW[:5] ^ np.uint64(1))
    bound_Q = np.array([0, 1, index.bits, 0, 1], np.int32)
    heaps = empty_heaps(5, 3)
    going_on_1 = np.zeros(1, np.uint8)
    block = np.empty((index.codes_NW.shape[1], 256), np.uint64), np.empty(256, np.uint32), np.empty(256, np.uint64)
    allowed = allowed_rows(None, len(index), listed=False)
    knn_scan(index.probe._rows, allowed, queries, bound_Q, BEFORE_ALL, (*block, going_on_1), heaps)
    distances = oracles.hamming_distances(queries, index.codes_NW)
    for query in range(5):
        within = np.sort(distances[query][distances[query] <= bound_Q[query]])[:3]
        found = np.sort(heaps[0][query][heaps[1][query] >= 0])
        assert found.tolist() == within.tolist()
