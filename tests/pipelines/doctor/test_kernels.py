from __future__ import annotations

import numpy as np
import pytest

from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.multi_index.planner import Costs
from hashlight.pipelines.doctor import kernels
from hashlight.pipelines.doctor.findings import Asked
from hashlight.pipelines.doctor.kernels import Rate

ROWS = 5000


@pytest.fixture(scope="module")
def codes():
    return np.random.default_rng(2).integers(2**64, size=(ROWS, 1), dtype=np.uint64)


@pytest.fixture(scope="module")
def index(codes):
    return MultiIndex.build(codes, np.arange(ROWS), bits=64)


def test_right_answers_are_told(index, codes):
    finding = kernels.answers_of(index, codes, codes[:3] ^ np.uint64(3))
    assert finding.state == "ok"
    assert "3 queries" in finding.found


def test_wrong_answers_are_a_problem(index, codes):
    """The oracle is given one code that the index does not have, nearer than any."""
    others = codes.copy()
    others[7] = codes[2] ^ np.uint64(3)
    finding = kernels.answers_of(index, others, codes[2:3] ^ np.uint64(3))
    assert finding.state == "problem"
    assert "trust no answer of this machine" in finding.advice


@pytest.mark.parametrize(
    ("measured", "passed", "expected", "state", "advice"),
    [
        (3000.0, 2900.0, 3100.0, "ok", ""),
        (3000.0, 2900.0, 0.0, "ok", ""),
        (1400.0, 1400.0, 3000.0, "warning", "slower than when it was measured"),
        (3000.0, 1000.0, 3000.0, "warning", "other programs use the cores"),
    ],
)
def test_rates(measured, passed, expected, state, advice):
    finding = kernels.speed_of(Rate("scans", "codes/s", measured, passed, expected))
    assert finding.state == state
    assert advice in finding.advice
    assert ("expected" in finding.found) == bool(expected)


@pytest.mark.parametrize(
    ("alone", "together", "cores", "state"),
    [(1.0, 0.5, 2, "ok"), (1.0, 0.99, 1, "ok"), (1.0, 0.8, 4, "warning"), (1.0, 0.3, 4, "ok")],
)
def test_gain_of_cores(alone, together, cores, state):
    assert kernels.cores_of(alone, together, cores).state == state


def test_rates_are_those_of_the_costs(index, codes):
    """Of 2 ns a code, one half of which a batch shares: 500 million a second alone, nearly 1,000 in a batch."""
    costs = Costs(word_ns=1.0, load_ns=1.0, near_lookup_ns=10.0, far_lookup_ns=10.0, candidate_ns=1e-9, near_ns=1e-9)
    alone, batch, tables = kernels.rates_of(index, codes[:32], costs, 0.04)
    assert alone.expected == pytest.approx(500)
    assert batch.expected == pytest.approx(1000 / (1 + 1 / 32))
    work = index.range_search(codes[:32], kernels.RADIUS, plan="tables", explain=True).explain
    assert tables.expected == pytest.approx(100 * work.probes.sum() / (work.probes.sum() + work.candidates.sum()))
    assert min(alone.measured, batch.measured, tables.measured) > 0


def test_this_machine_is_tested():
    found = list(kernels.kernels(Asked(seconds=0.2)))
    assert [finding.check for finding in found] == ["kernels"] * 6
    assert found[0].state == found[1].state == "ok"
