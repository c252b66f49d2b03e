"""Servers seen from outside: their logs, their metrics and their health."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import httpx
import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from tests.engine.service.conftest import eventually
from tests.pipelines.cli.test_cli import run

KEY = "a-key-of-the-page-01"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("observed") / "c"
    Collection.create(path, np.arange(40, dtype=np.uint64)[:, None], ids=np.arange(40), bits=64, shards=4)
    return path


class Server:
    """A command that serves, logs lines of JSON, and is watched at a port of its own."""

    def __init__(self, log, *command):
        self._log = log
        command = [*map(str, command), "--log-format", "json", "--metrics-listen", "127.0.0.1:0"]
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "hashlight", *command], stdout=subprocess.PIPE, stderr=stderr,
                text=True, env={**os.environ, "HASHLIGHT_API_KEYS": f"page search {KEY}"},
            )  # fmt: skip
        line = self._process.stdout.readline()
        found = re.search(r" at (\w+://\S+)", line)
        assert found, line + log.read_text()
        self.url = found[1]
        [self.watch] = [
            found[1] for line in self.lines() if (found := re.search(r"metrics and health at (\S+)", line["message"]))
        ]  # fmt: skip

    def lines(self):
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def metrics(self):
        return httpx.get(f"{self.watch}/metrics", timeout=60).text

    def end(self):
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=60)
        return self._process.returncode


@contextlib.contextmanager
def started(log, *command):
    server = Server(log, *command)
    try:
        yield server
    finally:
        server.end()


def search(url):
    body = {"queries": [{"code": "0000000000000007"}], "k": 3}
    return httpx.post(f"{url}/v1/search", json=body, headers={"X-API-Key": KEY, "X-Request-Id": "id-1"}, timeout=60)


def test_a_server_logs_lines_of_json_and_is_watched_at_a_port_of_its_own(path, tmp_path):
    log = tmp_path / "log"
    with started(log, "serve", path, "--port", 0, "--slow-query", 0, "--drain-delay", 0) as server:
        assert search(server.url).status_code == 200
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert httpx.get(f"{server.watch}/health/ready").status_code == 200
        assert httpx.get(f"{server.watch}/health/complete").json()["collections"]["c"]["shards"] == 4
        wanted = 'hashlight_requests_total{collection="c",route="/v1/search",status="200"} 1.0'
        eventually(lambda: wanted in server.metrics())
    lines = server.lines()
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    [access] = [line for line in lines if line["logger"] == "hashlight.access"]
    assert (access["request_id"], access["key"], access["status"], access["coverage"]) == ("id-1", "page", 200, 1.0)
    [slow] = [line for line in lines if line["logger"] == "hashlight.slow"]
    assert slow["explain"][0]["plan"] == access["plan"]
    assert KEY not in log.read_text()


def test_shard_servers_and_gateways_are_seen_too(path, tmp_path):
    with contextlib.ExitStack() as stack:
        shards = [
            stack.enter_context(
                started(
                    tmp_path / f"shard-{group}", "shard-server", path, "--group", f"{group}/2", "--listen",
                    "127.0.0.1:0", "--drain-delay", 0, "--log-level", "debug",
                )
            )
            for group in (1, 2)
        ]  # fmt: skip
        servers = {"groups": [[shard.url.removeprefix("grpc://")] for shard in shards]}
        (tmp_path / "map.json").write_text(json.dumps(servers))
        gateway = stack.enter_context(
            started(tmp_path / "log", "gateway", "--map", tmp_path / "map.json", "--port", 0, "--drain-delay", 0)
        )
        assert search(gateway.url).status_code == 200
        for server in (*shards, gateway):
            for check in ("live", "ready", "complete"):
                assert httpx.get(f"{server.watch}/health/{check}", timeout=60).json()["status"] == check
        assert 'hashlight_router_replicas{collection="collection",state="connected"} 2.0' in gateway.metrics()
        assert 'hashlight_coverage_ratio{collection="collection"} 1.0' in gateway.metrics()
        for shard in shards:
            assert 'hashlight_shard_requests_total{kind="search",status="ok"} 1.0' in shard.metrics()
            assert "hashlight_shard_open_shards 2.0" in shard.metrics()
            assert [line["request_id"] for line in shard.lines() if line.get("kind") == "search"] == ["id-1"]
        assert shards[0].end() == 0


def test_wrong_options_are_refused(path):
    for options, message in (
        (["--log-format", "xml"], "'text', 'json'"),
        (["--log-level", "loud"], "'debug', 'info', 'warning', 'error'"),
        (["--slow-query", "-1"], "greater than or equal to 0"),
        (["--metrics-listen", "9090"], "expected HOST:PORT"),
    ):
        result = run("serve", path, *options)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.replace("│", " ").split())
    refused = run("serve", path, "--port", "0", "--metrics-listen", "192.0.2.1:0")
    assert refused.exit_code == 1
    assert "cannot listen at 192.0.2.1:0" in refused.stderr
