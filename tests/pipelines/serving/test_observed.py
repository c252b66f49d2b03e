"""`hashlight serve` seen from outside: its log, its metrics and its health."""

from __future__ import annotations

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
from tests.pipelines.cli.test_cli import run

KEY = "a-key-of-the-page-01"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("observed") / "c"
    Collection.create(path, np.arange(40, dtype=np.uint64)[:, None], ids=np.arange(40), bits=64, shards=2)
    return path


def test_a_server_logs_lines_of_json_and_is_watched_at_a_port_of_its_own(path, tmp_path):
    command = [
        "serve",
        path,
        "--port",
        "0",
        "--log-format",
        "json",
        "--slow-query",
        "0",
        "--metrics-listen",
        "127.0.0.1:0",
    ]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "hashlight", *map(str, command)], stdout=subprocess.PIPE, stderr=stderr,
            text=True, env={**os.environ, "HASHLIGHT_API_KEYS": f"page search {KEY}"},
        )  # fmt: skip
        try:
            url = re.search(r"at (http://\S+)", server.stdout.readline())[1]
            [watch] = [
                found[1] for line in log.read_text().splitlines()
                if (found := re.search(r"metrics and health at (http://\S+)", json.loads(line)["message"]))
            ]  # fmt: skip
            allowed = {"X-API-Key": KEY, "X-Request-Id": "id-1"}
            body = {"queries": [{"code": "0000000000000007"}], "k": 3}
            assert httpx.post(f"{url}/v1/search", json=body, headers=allowed, timeout=60).status_code == 200
            assert httpx.get(f"{url}/metrics").status_code == 401
            assert httpx.get(f"{watch}/health/ready").status_code == 200
            assert httpx.get(f"{watch}/health/complete").json()["collections"]["c"]["shards"] == 2
            assert (
                'hashlight_requests_total{collection="c",route="/v1/search",status="200"} 1.0'
                in httpx.get(f"{watch}/metrics").text
            )
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    [access] = [line for line in lines if line["logger"] == "hashlight.access"]
    assert (access["request_id"], access["key"], access["status"], access["coverage"]) == ("id-1", "page", 200, 1.0)
    [slow] = [line for line in lines if line["logger"] == "hashlight.slow"]
    assert slow["explain"][0]["plan"] == access["plan"]
    assert KEY not in log.read_text()


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
