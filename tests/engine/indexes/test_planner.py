"""The planner: its choices, its explanations, and where its costs come from."""

import doctest
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from hashlight.engine.indexes import threads
from hashlight.engine.indexes.multi_index import planner, probe, tables
from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.multi_index.planner import Costs, Span, likely_radius, split_by_cost
from hashlight.engine.indexes.multi_index.tables import choose_widths, sketch_runs
from hashlight.engine.kernels.arguments import Prices
from hashlight.engine.kernels.compiling import cache_folder
from tests import oracles
from tests.costs import FIXED_COSTS
from tests.engine.indexes.test_indexes_exact import assert_range, assert_search

ROWS = 200_000
CHEAP_TABLES = Costs(word_ns=1e3, load_ns=1e3, near_lookup_ns=1e-3, far_lookup_ns=1e-3, candidate_ns=1e-3)
CHEAP_SCAN = Costs(word_ns=1e-6, load_ns=1e-6, near_lookup_ns=1e3, far_lookup_ns=1e3, candidate_ns=1e3)


@pytest.fixture(scope="module")
def uniform():
    rng = np.random.default_rng(0)
    codes = rng.integers(2**64, size=(ROWS, 1), dtype=np.uint64)
    queries = codes[:20] ^ np.uint64(0b10101)
    return MultiIndex.build(codes, np.arange(ROWS), bits=64), queries


def use_costs(monkeypatch, costs):
    monkeypatch.setattr(planner, "_costs", costs)
    monkeypatch.setattr(planner, "_stored_costs_read", costs is not None)


@pytest.mark.parametrize("module", [planner, probe, tables, threads])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


def test_narrow_queries_use_tables_and_wide_ones_the_scan(uniform, monkeypatch):
    index, queries = uniform
    use_costs(monkeypatch, Costs())
    assert set(index.range_search(queries, 2, explain=True).explain.plans) == {"tables"}
    assert set(index.range_search(queries, 30, explain=True).explain.plans) == {"scan"}
    assert set(index.search(queries, 1, explain=True).explain.plans) == {"tables"}
    assert set(index.search(queries, 100_000, explain=True).explain.plans) <= {"scan", "tables, then scan"}


@pytest.mark.parametrize("costs", [CHEAP_TABLES, CHEAP_SCAN])
def test_costs_change_the_plan_and_never_the_answer(uniform, monkeypatch, costs):
    index, queries = uniform
    expected = index.range_search(queries, 9, plan="scan"), index.search(queries, 12, plan="scan")
    use_costs(monkeypatch, costs)
    within, near = index.range_search(queries, 9, explain=True), index.search(queries, 12, explain=True)
    np.testing.assert_array_equal(within.ids, expected[0].ids)
    np.testing.assert_array_equal(near.ids, expected[1].ids)
    plan = {"tables"} if costs is CHEAP_TABLES else {"scan", "tables, then scan"}
    assert set(within.explain.plans) <= plan
    assert set(near.explain.plans) <= plan


def test_a_query_in_a_crowd_is_scanned_and_an_isolated_one_is_not(monkeypatch):
    rng = np.random.default_rng(1)
    crowd = np.uint64(0xABCDEF) ^ rng.integers(2**30, size=(190_000, 1), dtype=np.uint64)
    codes = np.concatenate([crowd, rng.integers(2**64, size=(10_000, 1), dtype=np.uint64)])
    index = MultiIndex.build(codes, np.arange(200_000), bits=64)
    queries = np.concatenate([crowd[:6], codes[-6:]])
    use_costs(monkeypatch, Costs(word_ns=0.1, load_ns=0.25, near_lookup_ns=6.0, far_lookup_ns=6.0, candidate_ns=8.0))
    found = index.range_search(queries, 3, explain=True)
    assert found.explain.plans == ("scan",) * 6 + ("tables",) * 6
    assert (found.explain.candidates[:6] == 200_000).all()
    assert (found.explain.candidates[6:] < 1000).all()
    assert (found.explain.probes[6:] > 0).all()
    assert (found.explain.seconds > 0).all()
    assert_range(found, queries, codes, np.arange(200_000), 3)


def test_queries_that_the_tables_give_up_are_scanned(uniform, monkeypatch):
    index, queries = uniform
    use_costs(monkeypatch, Costs(word_ns=0.001, load_ns=0.001, near_lookup_ns=1.0, far_lookup_ns=1.0, candidate_ns=1.0))
    near = index.search(queries, 40, explain=True)
    assert "tables, then scan" in near.explain.plans
    assert_search(near, queries, index.codes_NW, index.ids_N, 40)


CANDIDATES = Prices(
    lookups_ns=0.0, candidate_ns=1.0, read_ns=0.0, near_ns=0.0, scan_ns=0.0, shared_scan_ns=0.0
)  # only candidates have a cost


def test_counted_candidates_equal_those_met(uniform):
    index, queries = uniform
    met = index.range_search(queries, 3, plan="tables", explain=True).explain.candidates
    np.testing.assert_array_equal(index.probe.price_radius(queries, 3, CANDIDATES), met)
    met = index.range_search(queries, 11, plan="tables", explain=True).explain.candidates
    np.testing.assert_allclose(index.probe.price_radius(queries, 11, CANDIDATES), met, rtol=0.3)


def unpacked(codes, bits):
    return np.unpackbits(codes.view(np.uint8), axis=1, bitorder="little")[:, :bits]


@pytest.mark.parametrize("bits", [64, 128])
def test_near_candidates_are_estimated_from_a_sample(bits):
    rng = np.random.default_rng(2)
    centre = rng.integers(2, size=bits)
    flips = rng.random((4000, bits)) < 4 / bits
    codes = np.packbits(centre ^ flips, axis=1, bitorder="little").view(np.uint64)
    index = MultiIndex.build(codes, np.arange(4000), bits=bits)
    radius = 7
    reach = index.probe.plan(radius).reach
    stored = unpacked(np.unique(codes, axis=0), bits)
    near = np.zeros(20)
    top = bits
    for width, most in zip(index.tables.widths, reach, strict=True):
        part = slice(top - width, top)
        top -= width
        apart = oracles.hamming_distances(unpacked(codes[:20], bits)[:, part], stored[:, part])
        whole = oracles.hamming_distances(unpacked(codes[:20], bits), stored)
        near += ((apart <= most) & (whole <= radius)).sum(axis=1)
    only_near = CANDIDATES._replace(candidate_ns=0.0, near_ns=1.0, scan_ns=np.inf)
    candidates = index.probe.price_radius(codes[:20], radius, CANDIDATES)
    estimate = index.probe.price_radius(codes[:20], radius, only_near)
    # Four standard deviations of a share of 16.
    assert (np.abs(estimate - near) <= 4 * np.sqrt(0.25 / 16) * candidates).all()
    np.testing.assert_allclose(estimate.mean(), near.mean(), rtol=0.2)


def test_the_most_expensive_queries_share_a_scan():
    costs = Costs(word_ns=1.0, load_ns=9.0)
    by_tables = split_by_cost(np.array([1.0, 5000.0, 2.0, 6000.0]), costs, Span(1000, 1000), words=1)
    assert by_tables.tolist() == [True, True, True, True]  # a scan for two would cost 5,500 each
    by_tables = split_by_cost(np.array([1.0, 5600.0, 2.0, 6000.0]), costs, Span(1000, 1000), words=1)
    assert by_tables.tolist() == [True, False, True, False]


@pytest.mark.parametrize("bits", [1, 5, 16, 48, 64, 72, 128, 1000, 1024])
@pytest.mark.parametrize("distinct", [0, 1, 300, 10**6, 10**9])
def test_substrings_fit_and_sketches_avoid_them(bits, distinct):
    widths = choose_widths(bits, distinct)
    assert len(widths) <= 16
    assert sum(widths) <= bits
    assert min(widths) >= 1
    top = bits
    sketch_bits = 64 - max(distinct, 2).bit_length()
    for width, runs in zip(widths, sketch_runs(bits, widths, sketch_bits).tolist(), strict=True):
        held = {*range(runs[0], runs[0] + runs[1]), *range(runs[2], runs[2] + runs[3])}
        assert len(held) == runs[1] + runs[3] <= sketch_bits
        assert held <= set(range(bits)) - set(range(top - width, top))
        top -= width


@pytest.mark.parametrize(("bits", "k"), [(16, 3), (64, 1), (64, 50), (1024, 5)])
def test_likely_radius_is_that_of_uniform_codes(bits, k):
    rng = np.random.default_rng(0)
    codes = oracles.hamming_distances(
        rng.integers(2, size=(20, bits)).astype(bool), rng.integers(2, size=(5000, bits)) > 0
    )
    assert abs(likely_radius(bits, 5000, k) - np.sort(codes, axis=1)[:, k - 1].mean()) < 0.02 * bits


def test_neither_tests_nor_their_subprocesses_measure_this_machine():
    assert asdict(planner.current_costs(planner.WORTH_MEASURING)) == asdict(FIXED_COSTS)
    program = """
from dataclasses import asdict
from hashlight.engine.indexes.multi_index import planner
planner._measure = None
print(asdict(planner.current_costs(planner.WORTH_MEASURING)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"{asdict(FIXED_COSTS)}\n"


def test_costs_are_measured_once_and_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(planner, "FAR_ROWS", 2**17)
    use_costs(monkeypatch, None)
    assert asdict(planner.current_costs(10)) == asdict(Costs())
    assert not planner.has_stored_costs()
    measured = planner.current_costs(planner.WORTH_MEASURING)
    assert planner.has_stored_costs()
    use_costs(monkeypatch, None)
    assert asdict(planner.current_costs(10)) == asdict(measured)
    stored = next((tmp_path / "hashlight").glob("costs-*.json"))
    stored.write_text('{"word_ns": -1.0}')
    use_costs(monkeypatch, None)
    assert asdict(planner.current_costs(10)) == asdict(Costs())


def test_costs_that_cannot_be_stored_apply_to_this_process(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setattr(planner.platformdirs, "user_cache_dir", lambda name: str(tmp_path / "file" / name))
    monkeypatch.setattr(planner, "FAR_ROWS", 2**17)
    use_costs(monkeypatch, None)
    costs = planner.calibrate()
    assert "cannot be stored" in caplog.text
    assert planner.current_costs(10) == costs


def test_two_processes_warm_up_at_once(tmp_path):
    warm_two_processes(cache_folder().parent, tmp_path)


@pytest.mark.slow
@pytest.mark.slow
def test_two_processes_warm_up_an_empty_cache(tmp_path):
    warm_two_processes(tmp_path / "cache", tmp_path)


def warm_two_processes(cache, home):
    program = "from hashlight.engine.indexes.warmup import warm; warm(costs=False)"
    environment = {"NUMBA_CACHE_DIR": str(cache), "PATH": "/usr/bin:/bin", "HOME": str(home)}
    running = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]


def test_clustered_codes_answer_exactly_at_every_radius(monkeypatch):
    rng = np.random.default_rng(7)
    codes = oracles.clustered_codes(rng, 3000, 64, centres=30, flips=6)
    ids = rng.permutation(3000)
    index = MultiIndex.build(codes, ids, bits=64)
    queries = codes[:8]
    for costs in (Costs(), CHEAP_TABLES, CHEAP_SCAN):
        use_costs(monkeypatch, costs)
        for radius in (0, 4, 9, 20):
            assert_range(index.range_search(queries, radius), queries, codes, ids, radius)


def test_one_query_is_answered_within_its_budget_or_not_at_all(monkeypatch):
    rng = np.random.default_rng(5)
    crowd = np.uint64(0xABCDEF) ^ rng.integers(2**12, size=(30_000, 1), dtype=np.uint64)
    index = MultiIndex.build(crowd, np.arange(30_000), bits=64)
    first = np.zeros(1, np.intp)
    for query in (crowd[:1], ~crowd[:1]):
        met = int(index.probe.within(query, first, 6, None)[1].candidates_Q[0])
        expected = np.flatnonzero(np.bitwise_count(index.codes_NW[:, 0] ^ query[0, 0]) <= 6)
        (_, (_, rows, _)), *more = index.probe.within_budget(query, first, 6, None, met)
        rows = np.concatenate([rows, *(hits[1] for _, hits in more)])
        np.testing.assert_array_equal(np.sort(rows), expected)
        if met:
            assert index.probe.within_budget(query, first, 6, None, met - 1) is None
    for costs in (Costs(), CHEAP_TABLES, CHEAP_SCAN):
        use_costs(monkeypatch, costs)
        for query in (crowd[:1], ~crowd[:1]):
            assert_range(index.range_search(query, 6), query, crowd, np.arange(30_000), 6)
