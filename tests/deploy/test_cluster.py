"""The units' own commands make a cluster: it answers, says how it is, and finds a shard server again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hashlight import SearchClient
from hashlight.engine.collection.collection import Collection
from tests import oracles

from .files import DEPLOY, ROOT
from .processes import under_systemd

PORTS = ("8000", "8815", "9090")
KEY = "searching-is-all-0001"
WAIT_S = 240  # far longer than anything here takes


@pytest.fixture
def ports():
    """A free port in the place of each: free on every address of this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in PORTS]
        for one in sockets:
            one.bind(("0.0.0.0", 0))
        return {port: str(one.getsockname()[1]) for port, one in zip(PORTS, sockets, strict=True)}


@pytest.fixture
def machine(tmp_path, ports):
    """A root in which the files are that the units name; returns what makes a text of theirs one of this machine."""

    def here(text):
        text = re.sub(rf"(?<![\d.])({'|'.join(PORTS)})\b", lambda found: ports[found[1]], text)
        return re.sub(r"^/(srv|etc)/", f"{tmp_path}/\\1/", text)

    (tmp_path / "etc" / "hashlight").mkdir(parents=True)
    (tmp_path / "etc" / "hashlight" / "keys").write_text(f"web search {KEY}\n")
    (tmp_path / "etc" / "hashlight" / "map.json").write_text(here((DEPLOY / "systemd" / "map.json").read_text()))
    codes = np.random.default_rng(0).integers(1 << 12, size=(600, 1), dtype=np.uint64)
    made = Collection.create(tmp_path / "srv" / "hashlight" / "collection", codes, bits=48, shards=4)
    made.search(codes[:1], 5)  # compiles what a query needs
    return here, codes


def start(words, here):
    command = [sys.executable, "-m", "hashlight", *map(here, words)]
    environment = {**os.environ, "HASHLIGHT_SHARD_TOKEN": "a-token-for-this-test"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(condition):
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if condition():
                return
        time.sleep(0.2)
    raise AssertionError(f"nothing came of it in {WAIT_S} s")


def status(address, path):
    return httpx.get(f"http://{address}{path}", timeout=10).status_code


def test_the_units_commands_make_a_cluster(machine, ports):
    here, codes = machine
    first, *others = under_systemd()
    gateway, *servers = [f"{next(iter(process.hosts))}:{ports['9090']}" for process in (first, *others)]
    front = start(first.words, here)
    running = [front]
    try:
        wait_for(lambda: status(gateway, "/health/ready") == 503)
        running = [*(start(process.words, here) for process in others), front]
        for address in (gateway, *servers):
            wait_for(lambda address=address: status(address, "/health/complete") == 200)
            assert status(address, "/health/live") == status(address, "/health/ready") == 200
        distances, ids = oracles.knn(codes[:5], codes, np.arange(len(codes)), 10)
        with SearchClient(f"http://127.0.0.1:{ports['8000']}", api_key=KEY) as client:
            found = client.search(codes[:5], k=10, allow_partial=False)
            assert [[hit.id for hit in hits] for hits in found] == ids.tolist()
            assert [[hit.distance for hit in hits] for hits in found] == distances.tolist()
        for address in (gateway, *servers):
            text = httpx.get(f"http://{address}/metrics", timeout=10).text
            names = {family.name for family in text_string_to_metric_families(text)}
            assert {"process_open_fds", "process_resident_memory_bytes"} <= names
        running[1].kill()
        running[1].wait()
        wait_for(lambda: status(gateway, "/health/complete") == 503)
        assert status(gateway, "/health/ready") == 200
        running[1] = start(others[1].words, here)
        wait_for(lambda: status(gateway, "/health/complete") == 200)
        assert status(servers[1], "/health/ready") == 200
        for process in running:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(WAIT_S) for process in running] == [0, 0, 0]
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_texts_of_the_units_become_those_of_this_machine(machine, ports):
    here, _ = machine
    words = [here(word) for process in under_systemd() for word in process.words]
    assert not [word for word in words if word.startswith(("/srv", "/etc"))]
    assert f"127.0.1.2:{ports['8815']}" in words
    assert json.loads(here('{"groups": [["127.0.1.1:8815"]]}')) == {"groups": [[f"127.0.1.1:{ports['8815']}"]]}


def test_the_lines_of_the_page_give_an_answer(tmp_path):
    """The first block of docs/deploying.md runs as it stands, but for its ports."""
    bash = shutil.which("bash")
    if bash is None or shutil.which("curl") is None or shutil.which("openssl") is None:
        pytest.skip("bash, curl or openssl is not installed: Debian's packages of these names have them")
    block, *_ = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "deploying.md").read_text(), flags=re.DOTALL)
    named = sorted(set(re.findall(r"(?<=[: ])(?:8000|88\d\d|909\d)\b", block)))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in named]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        free = {name: str(one.getsockname()[1]) for name, one in zip(named, sockets, strict=True)}
    assert len(named) == 6
    lines = re.sub("|".join(named), lambda found: free[found[0]], block)
    codes = np.random.default_rng(0).integers(1 << 12, size=(600, 1), dtype=np.uint64)
    Collection.create(tmp_path / "photos", codes, bits=48, shards=4).search(codes[:1], 5)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "hashlight"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m hashlight "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    shell = subprocess.Popen(
        [bash, "-euc", f"{lines}\nkill $(jobs -p)\nwait"], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = shell.communicate(timeout=WAIT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    [answer] = [json.loads(line) for line in said.splitlines() if '"results"' in line]
    distances, ids = oracles.knn(codes[7:8], codes, np.arange(len(codes)), 3)
    expected = [(int(d), int(i)) for d, i in zip(distances[0], ids[0], strict=True)]
    found = [(hit["distance"], hit["id"]) for hit in answer["results"][0]["hits"]]
    assert found == expected
