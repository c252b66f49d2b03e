"""Requests that are certainly answered together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx

from hashlight.engine.service.api import searching
from hashlight.engine.service.asking.searcher import CollectionSearcher
from tests.engine.service.conftest import eventually


class Held(CollectionSearcher):
    """A searcher whose first answer waits until `go_on` is set."""

    def __init__(self, collection):
        super().__init__(collection)
        self.go_on = threading.Event()

    def answer(self, queries, query, **more):
        assert self.go_on.wait(60)
        return super().answer(queries, query, **more)


def ask_together(url, searcher, code, count, monkeypatch):
    """Send requests `id-0` to `id-N`: the first is answered alone, and all others in one batch."""
    monkeypatch.setattr(searching, "_PATIENCE_S", None)

    def in_flight():
        [line] = [line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith(IN_FLIGHT)]
        return int(float(line.split()[1]))

    def ask(number):
        body = {"queries": [{"code": code}], "k": 5, "timeout_ms": 60_000}
        httpx.post(
            f"{url}/v1/search", json=body, headers={"X-Request-Id": f"id-{number}"}, timeout=60
        ).raise_for_status()

    with ThreadPoolExecutor(count) as pool:
        first = pool.submit(ask, 0)
        eventually(lambda: in_flight() == 1)
        others = [pool.submit(ask, number) for number in range(1, count)]
        eventually(lambda: in_flight() == count)
        searcher.go_on.set()
        for asked in (first, *others):
            asked.result()


IN_FLIGHT = "hashlight_in_flight_requests "
