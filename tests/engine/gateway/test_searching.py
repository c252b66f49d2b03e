"""Searches in threads."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.query import Query
from hashlight.engine.service.api.searching import SearchThreads
from hashlight.engine.service.asking.retrieval import Ask
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
