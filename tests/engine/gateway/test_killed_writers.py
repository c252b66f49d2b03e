"""A server that is killed while it writes: what it answered is there, once, and what it refused is not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import httpx
import numpy as np

from hashlight.engine.collection.collection import Collection

WRITERS = 3


def start(path):
    command = [sys.executable, "-P", "-m", "hashlight", "serve", str(path), "--port", "0", "--writable"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "HASHLIGHT_API_KEYS": ""})
    line = server.stdout.readline()
    found = re.search(r"at (http://\S+)", line)
    assert found, line
    return server, found[1]


class Writer(threading.Thread):
    """Writes without a pause until its server is gone; remembers what it sent and what was answered.

    It owns the ids that leave a remainder, and stores in each item the number of the write that made it.
    """

    def __init__(self, url, remainder, enough):
        super().__init__(daemon=True)
        self.url, self.remainder, self.enough = url, remainder, enough
        self.states = {}  # id -> what it may be now: the last value that was answered, and those sent since
        self.refused = 0

    def run(self):
        with httpx.Client(base_url=self.url, timeout=60) as http:
            number = 0
            while True:
                number += 1
                id_ = WRITERS * (number % 7) + self.remainder
                deletes = number % 5 == 4
                value = None if deletes else number
                self.states.setdefault(id_, [None]).append(value)
                try:
                    if deletes:
                        answer = http.request("DELETE", "/v1/items", json={"ids": [id_]})
                    else:
                        body = {"items": [{"id": id_, "code": "00", "attributes": {"number": number}}]}
                        answer = http.post("/v1/items", json=body)
                    assert answer.status_code == 200, answer.text
                    self.states[id_] = [value]
                    bad = {"items": [{"id": 1000 + id_, "code": "00", "attributes": {"number": "x"}}]}
                    assert http.post("/v1/items", json=bad).status_code == 422
                    self.refused += 1
                except httpx.HTTPError:
                    return
                if number % 4 == 0:
                    self.enough.release()


def test_a_killed_server_has_made_what_it_answered(tmp_path):
    path = tmp_path / "c"
    Collection.create(path, np.zeros((0, 1), np.uint64), bits=8, attributes={"number": np.zeros(0, np.int64)})
    server, url = start(path)
    try:
        enough = threading.Semaphore(0)
        writers = [Writer(url, remainder, enough) for remainder in range(WRITERS)]
        for writer in writers:
            writer.start()
        for _ in range(2 * WRITERS):
            assert enough.acquire(timeout=120)
    finally:
        server.kill()
        server.communicate()
    for writer in writers:
        writer.join()
    for writer in writers:
        assert writer.refused > 0
    found = Collection.open(path, verify=True)
    stored = found.scan().read_all()
    ids = stored["id"].to_pylist()
    assert len(set(ids)) == len(ids) == len(found)
    there = dict(zip(ids, stored["number"].to_pylist(), strict=True))
    assert there
    states = {id_: state for writer in writers for id_, state in writer.states.items()}
    assert set(there) <= set(states)
    for id_, state in states.items():
        assert there.get(id_) in state, (id_, state)
    with found.transaction() as change:  # nothing that the server has left stands in the way
        change.upsert(np.zeros((1, 1), np.uint64), np.array([5]))
        change.commit()
