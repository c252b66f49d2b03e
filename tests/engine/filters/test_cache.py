"""The cache of what filters select: bounded, not thrashing, one evaluation of equal filters at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hashlight.engine.filters import cache
from hashlight.engine.filters.cache import FilterCache


class Asked:
    """A cache of values of 10 bytes, and what was made for it."""

    def __init__(self, max_bytes):
        self.cache, self.made = FilterCache(max_bytes), []

    def get(self, key, size=10):
        return self.cache.get(key, lambda: self.made.append(key) or np.zeros(size, np.uint8))


def test_values_are_made_once_while_there_is_room():
    asked = Asked(30)
    assert [len(asked.get(key)) for key in "abcabcab"] == [10] * 8
    assert asked.made == ["a", "b", "c"]


def test_filters_of_one_use_do_not_evict_those_that_repeat():
    asked = Asked(30)
    for _ in range(3):
        asked.get("hot"), asked.get("warm")
    for number in range(1000):
        asked.get(number)
    asked.made.clear()
    asked.get("hot"), asked.get("warm")
    assert asked.made == []


def test_a_cycle_of_more_filters_than_there_is_room_for_finds_some_again():
    asked = Asked(50)
    for _ in range(20):
        for number in range(8):
            asked.get(number)
    assert len(asked.made) == 5 + 3 * 20


def test_what_becomes_frequent_takes_the_place_of_what_is_no_longer():
    asked = Asked(20)
    for _ in range(5):
        asked.get("old"), asked.get("older")
    for _ in range(7):
        asked.get("new")
    assert asked.made.count("new") == 6  # kept once it was asked for more often
    asked.made.clear()
    asked.get("new"), asked.get("older")
    assert asked.made == []


def test_frequencies_fade(monkeypatch):
    monkeypatch.setattr(cache, "_REMEMBERED", 100)
    asked = Asked(10)
    for _ in range(50):
        asked.get("old")
    for number in range(1000):
        asked.get(number)
    asked.made.clear()
    for _ in range(3):
        asked.get("new")
    assert asked.made.count("new") < 3


def test_bytes_are_bounded_and_a_value_that_is_too_large_is_not_kept():
    asked = Asked(25)
    for key in "aabb":
        asked.get(key)
    assert len(asked.get("large", 26)) == 26
    assert len(asked.get("large", 26)) == 26
    assert asked.made == ["a", "b", "large", "large"]
    assert asked.cache._bytes == 20


@pytest.mark.parametrize("failing", [False, True])
def test_equal_filters_at_once_are_evaluated_once(failing):
    kept, started, go = FilterCache(100), threading.Event(), threading.Event()
    made = []

    def make():
        made.append(1)
        started.set()
        assert go.wait(30)
        if failing:
            raise ValueError("no such column")
        return np.zeros(10, np.uint8)

    def ask():
        try:
            return kept.get("filter", make)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask)
        assert started.wait(30)
        others = [pool.submit(ask) for _ in range(3)]
        while sum(kept._requests.values()) < 4:
            threading.Event().wait(0.001)
        go.set()
        answers = [future.result(30) for future in [first, *others]]
    assert made == [1]
    assert all(answer is answers[0] or answer == "no such column" for answer in answers)
    if failing:  # an error is not kept
        go.clear(), go.set()
        assert ask() == "no such column"
        assert made == [1, 1]
