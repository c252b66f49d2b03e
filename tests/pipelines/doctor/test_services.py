"""Findings about a collection and a gateway, each a real one in the situation it is in."""

from __future__ import annotations

import contextlib
import shutil
import socket

import httpx
import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import NotReadyError
from hashlight.engine.machine import Memory
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.api.collections import Collections
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.door.keys import Keys
from hashlight.pipelines.doctor import services
from hashlight.pipelines.doctor.checks import checks_of
from hashlight.pipelines.doctor.findings import GIB, Asked
from hashlight.pipelines.doctor.running import run_check
from tests import serving
from tests.certificates import issue

LINES = "page search searching-is-all-0001\nscraper metrics scraping-only-0004\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("doctor") / "c"
    Collection.create(path, np.arange(300, dtype=np.uint64)[:, None], bits=16)
    return path


@pytest.fixture(scope="module")
def searcher(folder):
    return CollectionSearcher(folder)


def states(findings):
    return [finding.state for finding in findings]


def ask(url, **more):
    return list(services.gateway(Asked(gateway=url, **more)))


def test_a_collection_that_is_there(folder):
    found = list(services.collection(Asked(collection=str(folder))))
    assert states(found) == ["ok", "ok", "ok"]
    assert "is at version 1: 300 codes of 16 bits in 1 shard," in found[0].found


def test_a_collection_that_is_not_there_or_damaged(folder, tmp_path):
    [gone] = services.collection(Asked(collection=str(tmp_path / "nothing")))
    assert gone.state == "problem"
    assert str(tmp_path / "nothing") in gone.found
    shutil.copytree(folder, tmp_path / "damaged")
    [manifest] = (tmp_path / "damaged" / "manifests").iterdir()
    manifest.write_bytes(manifest.read_bytes().replace(b"300", b"301"))
    [damaged] = services.collection(Asked(collection=str(tmp_path / "damaged")))
    assert damaged.state == "problem"
    assert "is damaged" in damaged.found
    assert "hashlight verify" in damaged.advice


def test_a_store_that_does_not_answer(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        asked = Asked(collection="s3://bucket/c")
        [check] = [check for check in checks_of(asked) if check.name == "collection"]
        [finding] = run_check(check, asked)
    assert finding.state == "problem"
    assert "s3://bucket/c" in finding.found or "did not end within" in finding.found


def test_many_deleted_rows_are_told(tmp_path):
    collection = Collection.create(tmp_path / "c", np.arange(300, dtype=np.uint64)[:, None], bits=16)
    collection.delete(np.arange(200))
    first, *_ = services.collection(Asked(collection=str(tmp_path / "c")))
    assert (first.state, "200 deleted rows" in first.found, "hashlight compact" in first.advice) == (
        "warning", True, True,
    )  # fmt: skip


@pytest.mark.parametrize(("seconds", "state"), [(0.003, "ok"), (0.8, "warning")])
def test_how_fast_a_store_answers(seconds, state):
    assert services.store_of(seconds).state == state


@pytest.mark.parametrize(("gibibytes", "state"), [(12, "ok"), (13, "warning")])
def test_whether_a_collection_stays_in_memory(gibibytes, state):
    assert services.room_for(gibibytes * GIB, Memory(16 * GIB, GIB, False)).state == state


def test_a_gateway_that_is_well(searcher):
    with serving.running(create_app(searcher)) as url:
        found = ask(url)
    assert states(found) == ["ok", "ok", "ok"]
    assert "it serves version 1, 300 codes of 16 bits" in found[2].found


def test_a_gateway_of_several_collections(searcher):
    with serving.running(Collections({"a": create_app(searcher), "b": create_app(searcher)}, Keys())) as url:
        assert states(ask(url)) == ["ok", "ok", "ok"]


@pytest.mark.parametrize(
    ("key", "state", "found"),
    [
        ("searching-is-all-0001", "ok", "it serves version 1"),
        ("not-a-key-of-them-05", "warning", "it refuses the key of HASHLIGHT_API_KEY"),
        ("scraping-only-0004", "warning", "it refuses the key of HASHLIGHT_API_KEY"),
        (None, "warning", "it refuses whoever has no key"),
    ],
)
def test_keys_of_a_gateway(searcher, monkeypatch, key, state, found):
    monkeypatch.delenv("HASHLIGHT_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("HASHLIGHT_API_KEY", key)
    with serving.running(create_app(searcher, keys=Keys.load(None, {"HASHLIGHT_API_KEYS": LINES}))) as url:
        findings = ask(url)
    assert states(findings) == ["ok", "ok", state]
    assert found in findings[2].found
    assert key is None or not any(key in finding.found + finding.advice for finding in findings)


def test_a_gateway_that_is_not_ready(folder, monkeypatch):
    searcher = CollectionSearcher(folder)

    def refuse():
        raise NotReadyError("no shard server answers")

    monkeypatch.setattr(searcher, "reachable", refuse)
    with serving.running(create_app(searcher)) as url:
        findings = ask(url)
    assert states(findings) == ["ok", "problem", "ok"]
    assert "not ready (status 503): no shard server answers" in findings[1].found


@pytest.mark.parametrize(
    ("document", "state", "found"),
    [
        ({"status": "ready", "missing": [], "pending": None}, "ok", "with every shard"),
        ({"status": "ready", "missing": ["b", "a"], "pending": None}, "warning", "2 shards cannot be searched: a, b"),
        (
            {"status": "ready", "missing": [], "pending": {"version": 9, "attempts": 3, "retry_s": 1}},
            "warning",
            "cannot serve version 9",
        ),
        ({"status": "ready", "collections": {"x": {"missing": ["a"], "pending": None}}}, "warning", "1 shard cannot"),
        (None, "ok", None),
    ],
)
def test_what_a_gateway_says_of_its_readiness(document, state, found):
    if document is None:
        assert services.ready_of(200, None).state == "problem"
        return
    finding = services.ready_of(200, document)
    assert finding.state == state
    assert found in finding.found


def test_nobody_there(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        [finding] = ask(f"http://127.0.0.1:{free.getsockname()[1]}")
    assert finding.state == "problem"
    assert "does not answer" in finding.found


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/x", "http://", "http://[::1"])
def test_what_is_not_a_url(url):
    [finding] = ask(url)
    assert finding.state == "problem"


def test_whoever_accepts_and_never_answers_does_not_hold_up_the_doctor(monkeypatch):
    monkeypatch.setattr(services, "_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        [finding] = ask(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert finding.state == "problem"
    assert "does not answer: timed out" in finding.found


def test_somebody_else_there():
    async def other(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"<html>hello</html>"})

    with serving.running(other) as url:
        [finding] = ask(url)
    assert (finding.state, "not as a gateway does" in finding.found) == ("problem", True)


@contextlib.contextmanager
def over_https(searcher, tmp_path, days):
    pair = issue("server", days=days)
    certificate, key = pair.write(tmp_path, "server")
    with serving.running(create_app(searcher), certificate=certificate, private_key=key) as url:
        yield url, certificate


@pytest.mark.parametrize(("days", "state"), [(100.5, "ok"), (3.5, "warning")])
def test_certificates_are_renewed_in_time(searcher, tmp_path, monkeypatch, days, state):
    with over_https(searcher, tmp_path, days) as (url, certificate):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        findings = ask(url)
    assert states(findings) == ["ok", "ok", "ok", state]
    assert f"good for {int(days)} more days" in findings[3].found


@pytest.mark.parametrize("days", [100.5, -2.0])
def test_certificates_that_are_not_trusted(searcher, tmp_path, monkeypatch, days):
    with over_https(searcher, tmp_path, days) as (url, certificate):
        if days < 0:
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        [finding] = ask(url)
    assert finding.state == "problem"
    assert "certificate" in finding.found
    assert "SSL_CERT_FILE" in finding.advice


def test_an_answer_that_says_too_little():
    answer = httpx.Response(500, text="oops", request=httpx.Request("GET", "http://host/"))
    assert services.described_of(answer, has_key=False).state == "problem"
