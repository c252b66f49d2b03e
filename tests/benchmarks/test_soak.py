"""The soak's oracle finds planted faults; a short soak finds none."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.soak import Answer, Ledger, parser, slopes, soak

CODES = np.array([0b0, 0b1, 0b11, 0b111], np.uint64)


def answer(version, pairs, *, radius=2, is_complete=True):
    return Answer(0, radius, version, is_complete, pairs, 0)


@pytest.fixture
def ledger():
    """Four rows in version 1; one more since version 3, and row 0 deleted in version 5 or 6."""
    made = Ledger(CODES, 1)
    made.end(3, is_repeated=False, put=[(9, 0b10)])
    made.end(4, is_repeated=False)
    made.end(6, is_repeated=True, delete=[0])
    return made


@pytest.mark.parametrize(
    ("version", "pairs"),
    [
        (2, [(0, 0), (1, 1), (2, 2)]),
        (3, [(0, 0), (1, 1), (1, 9), (2, 2)]),
        (5, [(0, 0), (1, 1), (1, 9), (2, 2)]),
        (5, [(1, 1), (1, 9), (2, 2)]),
        (6, [(1, 1), (1, 9), (2, 2)]),
    ],
)
def test_an_answer_is_what_its_version_holds(ledger, version, pairs):
    assert ledger.fault_of(answer(version, pairs)) is None
    assert ledger.fault_of(answer(version, pairs[:-1])), "one is missing, and it does not say so"
    assert ledger.fault_of(answer(version, pairs[:-1], is_complete=False)) is None
    assert ledger.fault_of(answer(version, [(0, 7), *pairs], is_complete=False)), "there is none"


def test_a_write_is_in_no_version_before_its_own_and_in_all_after(ledger):
    assert ledger.fault_of(answer(2, [(0, 0), (1, 1), (1, 9), (2, 2)]))
    assert ledger.fault_of(answer(4, [(1, 1), (1, 9), (2, 2)])), "deleted too early"
    assert ledger.fault_of(answer(6, [(0, 0), (1, 1), (1, 9), (2, 2)])), "deleted and there"


def test_slopes_are_those_of_all_processes_of_a_kind():
    def life(level, per_s):
        measured = {"threads": 3, "descriptors": 5}
        return [("shard", float(age_s), {"memory": level + per_s * age_s, **measured}) for age_s in range(0, 100, 10)]

    found = slopes({1: life(50, 0.01), 2: life(80, 0.01), 3: [("gateway", 0.0, {})]}, 20)
    assert found.keys() == {"shard"}
    assert found["shard"]["memory"]["per_hour"] == pytest.approx(36)
    assert found["shard"]["threads"]["per_hour"] == 0
    assert (found["shard"]["processes"], found["shard"]["longest_s"]) == (2, 90)


@pytest.mark.slow
def test_no_answer_is_wrong_while_processes_are_killed():
    words = "--seconds 40 --rows 2000 --rate 10 --writes 2 --kill-every 7 --roll-every 15 --drain 0.5 --sample 1"
    found = soak(parser().parse_args(words.split()))
    assert found["wrong"] == []
    counts = found["counts"]
    assert min(counts[name] for name in ("kills", "writes", "complete")) > 0, counts
    assert counts["checked"] == counts["complete"] + counts.get("partial", 0)
