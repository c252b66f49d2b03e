"""A server that is killed while it writes: what it answered is there, once, and what it refused is not."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import uuid

import httpx
import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection

KILLS = int(os.environ.get("HASHLIGHT_TEST_KILLS", "50"))

WRITERS = 3


def start(path, log):
    command = [sys.executable, "-P", "-m", "hashlight", "serve", str(path), "--port", "0", "--writable"]
    command += ["--write-log", str(log)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "HASHLIGHT_API_KEYS": ""})
    line = server.stdout.readline()
    found = re.search(r"at (http://\S+)", line)
    assert found, line
    return server, found[1]


class Writer:
    """Writes without a pause until its server is gone; remembers what it sent and what was answered.

    It owns the ids that leave a remainder, and stores in each item the number of the write that made it. What was not
    answered it sends again to the next server.
    """

    def __init__(self, remainder):
        self.remainder, self.number = remainder, 0
        self.states = {}  # id -> what it may be now: the last value that was answered, and those sent since
        self.refused = 0
        self.unanswered = None

    def run(self, url, answered):
        with httpx.Client(base_url=url, timeout=60) as http:
            try:
                while True:
                    if self.unanswered is None:
                        self.unanswered = self.next()
                    id_, value, request = self.unanswered
                    self.states.setdefault(id_, [None]).append(value)
                    answer = http.request(url="/v1/items", **request)
                    assert answer.status_code == 200, answer.text
                    self.states[id_], self.unanswered = [value], None
                    bad = {"items": [{"id": 1000 + id_, "code": "00", "attributes": {"number": "x"}}]}
                    assert http.post("/v1/items", json=bad).status_code == 422
                    self.refused += 1
                    answered.release()
            except httpx.HTTPError:
                return

    def next(self):
        self.number += 1
        number, id_ = self.number, WRITERS * (self.number % 7) + self.remainder
        more = {
            "headers": {"Idempotency-Key": uuid.uuid4().hex},
            "params": {"wait": "visible"} if number % 9 == 0 else {},
        }
        if number % 5 == 4:
            return id_, None, {"method": "DELETE", "json": {"ids": [id_]}, **more}
        item = {"id": id_, "code": "00", "attributes": {"number": number}}
        if self.states.get(id_, [None]) != [None] and number % 5 == 2:
            del item["code"]
            return id_, number, {"method": "PATCH", "json": {"items": [item]}, **more}
        return id_, number, {"method": "POST", "json": {"items": [item]}, **more}


def check(items, writers):
    """Compare what is stored, id -> number, with what the writers know."""
    states = {id_: state for writer in writers for id_, state in writer.states.items()}
    assert set(items) <= set(states)
    for id_, state in states.items():
        assert items.get(id_) in state, (id_, state)
    for writer in writers:
        for id_ in writer.states:
            writer.states[id_] = [items.get(id_)]


def stored(url):
    answer = httpx.get(f"{url}/v1/items", params={"limit": 1000}, timeout=60).json()
    ids = [item["id"] for item in answer["items"]]
    assert len(set(ids)) == len(ids)
    return {item["id"]: item["attributes"]["number"] for item in answer["items"]}


@pytest.mark.parametrize("kills", [2, pytest.param(KILLS, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_a_killed_server_has_made_what_it_answered(tmp_path, kills):
    path, log, rng = tmp_path / "c", tmp_path / "log", random.Random(kills)
    Collection.create(path, np.zeros((0, 1), np.uint64), bits=8, attributes={"number": np.zeros(0, np.int64)})
    writers = [Writer(remainder) for remainder in range(WRITERS)]
    for _ in range(kills):
        server, url = start(path, log)
        try:
            check(stored(url), writers)
            answered = threading.Semaphore(0)
            threads = [threading.Thread(target=writer.run, args=(url, answered), daemon=True) for writer in writers]
            for thread in threads:
                thread.start()
            for _ in range(rng.randint(1, 60)):
                assert answered.acquire(timeout=120)
            time.sleep(rng.random() / 20)
        finally:
            server.kill()
            server.communicate()
        for thread in threads:
            thread.join()
    assert all(writer.refused for writer in writers)
    server, url = start(path, log)
    try:
        check(stored(url), writers)
        for writer in writers:  # whatever was not answered, perhaps made, is made once more to no effect
            if writer.unanswered is not None:
                id_, value, request = writer.unanswered
                answers = [httpx.request(url=f"{url}/v1/items", timeout=60, **request) for _ in range(2)]
                assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
                assert answers[0].json()["sequence"] == answers[1].json()["sequence"]
                writer.states[id_] = [value]
        check(stored(url), writers)
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=120)
    found = Collection.open(path, verify=True)
    table = found.scan().read_all()
    check(dict(zip(table["id"].to_pylist(), table["number"].to_pylist(), strict=True)), writers)
    assert not list(log.rglob("*.log"))  # all of it is committed
    with found.transaction() as change:  # nothing that the server has left stands in the way
        change.upsert(np.zeros((1, 1), np.uint64), np.array([5]))
        change.commit()
