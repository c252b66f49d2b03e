"""How many rows are at each distance from a query: of all rows, and of those that a mask allows, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from hashlight.engine.indexes import histogram
from hashlight.engine.indexes.histogram import Countable, count_by_distance
from hashlight.engine.indexes.masks import RowMask
from hashlight.engine.indexes.stopping import Stop, StoppedError, stoppable
from tests.oracles import clustered_codes, distance_histograms

SHARES = {"all": None, "most": 0.9, "half": 0.5, "few": 0.01, "none": 0.0}


def unaligned(codes):
    """The same codes where a shard's file has them, behind a header of 33 bytes."""
    held = np.zeros(33 + codes.nbytes, np.uint8)
    held[33:] = np.ascontiguousarray(codes).view(np.uint8).reshape(-1)
    return held[33:].view(np.uint64).reshape(codes.shape)


def expected(queries, codes, may, bits):
    nobody = np.zeros((len(queries), may.sum()), bool)
    return distance_histograms(queries, codes[may], nobody, bits)[0]


@pytest.mark.parametrize("bits", [1, 60, 64, 72, 128, 200, 256, 512, 1024])
@pytest.mark.parametrize("share", SHARES)
def test_rows_are_counted_at_their_distances(bits, share):
    rng = np.random.default_rng(bits)
    for rows, queries in ((1, 1), (63, 3), (64, 1), (65, 5), (2200, 1), (2200, 2)):
        codes = clustered_codes(rng, rows, bits)
        asked = np.concatenate([codes[:1], clustered_codes(rng, queries - 1, bits)])
        may = np.ones(rows, bool) if SHARES[share] is None else rng.random(rows) < SHARES[share]
        mask = None if SHARES[share] is None else RowMask.of(may)
        found = count_by_distance([Countable(unaligned(codes), np.arange(rows), mask)], asked, bits=bits)
        assert found.dtype == np.int64
        assert found.tolist() == expected(asked, codes, may, bits).tolist()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("num_parts", [1, 3, 20])
def test_the_counts_do_not_depend_on_threads_parts_and_batches(share, num_parts, monkeypatch):
    monkeypatch.setattr(histogram, "_ROWS_A_THREAD", 128)
    monkeypatch.setattr(histogram, "_COUNTER_BYTES", 3 * 8 * 4 * 73)  # three queries at once
    rng = np.random.default_rng(7)
    codes, asked = clustered_codes(rng, 3001, 72), clustered_codes(rng, 7, 72)
    may = rng.random(3001) < (1 if SHARES[share] is None else SHARES[share])
    parts = []
    for run in np.array_split(np.arange(3001), num_parts):
        mask = None if SHARES[share] is None else RowMask.of(may[run])
        parts.append(Countable(codes[run], run, mask))
    wanted = expected(asked, codes, may, 72).tolist()
    for threads in (1, 2, 5, None):
        assert count_by_distance(parts, asked, bits=72, threads=threads).tolist() == wanted


def test_nothing_is_counted_of_nothing():
    codes = np.zeros((0, 2), np.uint64)
    assert count_by_distance([], np.ones((2, 2), np.uint64), bits=65).tolist() == [[0] * 66] * 2
    assert count_by_distance([Countable(codes, np.arange(0), None)], np.ones((1, 2), np.uint64), bits=65).sum() == 0
    some = Countable(np.ones((4, 2), np.uint64), np.arange(4), None)
    assert count_by_distance([some], codes, bits=65).shape == (0, 66)


@pytest.mark.parametrize("share", ["all", "most"])
def test_a_count_that_nobody_waits_for_ends(share):
    rng = np.random.default_rng(1)
    codes = clustered_codes(rng, 500, 64)
    mask = None if share == "all" else RowMask.of(rng.random(500) < SHARES[share])
    stop, counted = Stop(), []

    def count():
        with stoppable(stop):
            stop.flag_1[0] = 1
            counted.append(count_by_distance([Countable(codes, np.arange(500), mask)], codes[:1], bits=64, threads=1))
            stop.set(StoppedError("given up"))

    with pytest.raises(StoppedError, match="given up"):
        count()
    assert counted[0].sum() == 0, "the kernel goes on after the flag is set"
