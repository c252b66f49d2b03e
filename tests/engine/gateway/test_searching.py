"""Searches in threads."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import numpy as np
import pytest

from hashlight.engine.errors import OverloadedError
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.query import Query
from hashlight.engine.service.api.searching import SearchThreads
from hashlight.engine.service.asking import retrieval
from hashlight.engine.service.asking.retrieval import Ask
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.telemetry.metrics import Metrics


def test_a_list_of_ids_is_not_kept_beyond_its_search(searcher, collection):
    lists = Parameters({"seen": [1, 2, 3]})
    kept = weakref.ref(lists)
    query = Query(k=3, filter="id not in :seen", parameters=lists)
    ask = Ask(codes=collection.shards[0].codes_NW[:1], query=query)

    async def search(threads, ask):
        until_s = time.monotonic() + 30
        return await threads.search(ask, deadline_s=until_s, arrow=False, timing_ms={}, hold=lambda size: None)

    threads = SearchThreads(searcher, threads=1, metrics=Metrics())
    try:
        assert b'"hits":[{' in asyncio.run(search(threads, ask)).first
        del lists, query, ask
        gc.collect()
        assert kept() is None
    finally:
        threads.close()


def asks_within(collection):
    """Requests of one query each: whatever is alike, of some there are many answers, of others few or none."""
    first, others = collection.shards[0].codes_NW[:1], collection.shards[1].codes_NW
    far = others[np.argmax(np.bitwise_count(others ^ first))][None]
    codes = [first, far ^ np.uint64(0x5A5A5A5A5A5A5A), far, np.zeros((1, 1), np.uint64)]
    query = Query(radius=20, limit=400)
    return [Ask(codes=code, query=query, include=frozenset({"attributes", "code"})) for code in codes]


@pytest.mark.parametrize("items_at_once", [3, 5000])
def test_requests_that_are_answered_together_are_charged_for_their_own_answers(
    searcher, collection, monkeypatch, items_at_once
):
    monkeypatch.setattr(retrieval, "_ITEMS", items_at_once)
    asks = asks_within(collection)
    alone, together = [], [[] for _ in asks]
    for ask in asks:
        sizes = []
        retrieval.answer(searcher, ask, timeout_s=60, hold=sizes.append)
        alone.append(sizes[-1])
    found = retrieval.answer_each(searcher, asks, [sizes.append for sizes in together], timeout_s=60)
    assert max(alone) > 20 * (min(alone) + 100)
    for one, size, sizes in zip(found, alone, together, strict=True):
        assert sizes == sorted(sizes)
        assert abs(sizes[-1] - size) <= 0.1 * size + 8 * len(one.ids)


class Reading(CollectionSearcher):
    """A searcher that keeps the ids that were read."""

    def __init__(self, collection):
        super().__init__(collection)
        self.read = []

    def get(self, ids, **options):
        self.read.extend(ids.tolist())
        return super().get(ids, **options)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.95])
def test_a_request_that_is_refused_costs_no_other_its_answer(searcher, collection, share):
    asks, reading = asks_within(collection), Reading(collection)
    sizes, given = [], []
    retrieval.answer(searcher, asks[0], timeout_s=60, hold=sizes.append)
    room = share * sizes[-1]

    def refuse(size):
        if size > room:
            raise OverloadedError("too much", retry_after_s=1)
        given.append(size)

    expected = [retrieval.answer(searcher, ask, timeout_s=60) for ask in asks]
    first, *rest = retrieval.answer_each(reading, asks, [refuse, *[[].append] * 3], timeout_s=60)
    assert isinstance(first, OverloadedError)
    assert given[-1] == 0, "what it had is given back"
    for one, same in zip(rest, expected[1:], strict=True):
        assert one.ids.tolist() == same.ids.tolist()
        assert str(one.items.to_pylist()) == str(same.items.to_pylist())
    assert set(expected[0].ids.tolist()) - {id_ for one in rest for id_ in one.ids.tolist()}
    if share == 0:  # refused before anything was read for it
        assert set(reading.read) == {id_ for one in rest for id_ in one.ids.tolist()}
    assert retrieval.answer_each(reading, asks[:1], [refuse], timeout_s=60)[0].args == ("too much",)


def test_a_batch_fails_only_those_that_may_not_have_their_answer(searcher, collection):
    [_, _, ask, _] = asks_within(collection)

    def refuse(size):
        if size:
            raise OverloadedError("too much", retry_after_s=1)

    async def search(threads):
        until_s = time.monotonic() + 60
        holds = [refuse if number % 3 == 0 else [].append for number in range(30)]
        waiting = [threads.search(ask, deadline_s=until_s, arrow=False, timing_ms={}, hold=hold) for hold in holds]
        return await asyncio.gather(*waiting, return_exceptions=True)

    threads = SearchThreads(searcher, threads=1, metrics=Metrics())
    try:
        found = asyncio.run(search(threads))
    finally:
        threads.close()
    assert [isinstance(one, OverloadedError) for one in found] == [number % 3 == 0 for number in range(30)]
    assert all(b'"attributes"' in one.first for one in found if not isinstance(one, Exception))
