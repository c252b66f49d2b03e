"""Every request has one id, in its answer, in its error, and in all that is logged about it."""

from __future__ import annotations

import io
import json
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.api.collections import Collections
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.door.hosts import KnownHosts
from hashlight.engine.service.door.http_server import Address, HttpServer
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.telemetry.logs import logging_as
from hashlight.engine.service.telemetry.requests import Trace
from tests import serving
from tests.engine.telemetry.together import Held, ask_together

# Of the W3C's recommendation, "Trace Context", section 3.2.
GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
KEY, OTHER_KEY = "a-key-of-the-page-01", "an-unknown-key-00002"
HEX = set("0123456789abcdef")


class Failing(CollectionSearcher):
    """A searcher that logs and fails in the middle of an answer when it is asked for 3."""

    def answer(self, queries, query, **more):
        logging.getLogger("hashlight.test").warning("searching")
        if query.k == 3:
            raise RuntimeError("broken")
        return super().answer(queries, query, **more)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return serving.make_collection(tmp_path_factory.mktemp("observed") / "c")


@pytest.fixture(scope="module")
def searcher(collection):
    return Failing(collection)


def code_of(collection, row=0):
    [shard, *_] = collection.shards
    return np.ascontiguousarray(shard.codes_NW[row]).tobytes()[:8].hex()


def served(app, lines=None, *, slow_query_s=None, level="info"):
    """Serve an application; what is logged meanwhile is put into `lines` at the end."""
    stack, stream = ExitStack(), io.StringIO()
    if lines is not None:
        stack.callback(lambda: lines.extend(map(json.loads, stream.getvalue().splitlines())))
    stack.enter_context(logging_as("json", level, stream=stream))
    url = stack.enter_context(serving.run_server(HttpServer(app, Address(port=0), slow_query_s=slow_query_s)))
    return stack, stack.enter_context(httpx.Client(base_url=url, timeout=60))


def refusal_of(answer):
    return answer.json()["error"]


def test_an_id_that_is_given_comes_back_and_one_is_made_otherwise(searcher):
    stack, http = served(create_app(searcher))
    with stack:
        for good in ("a", "req-7:b/c_d.e+f=@g", "x" * 128):
            assert http.get("/health/live", headers={"X-Request-Id": good}).headers["x-request-id"] == good
        made = set()
        for wrong in ("", "x" * 129, "a b", "a,b", 'a"b', "é".encode()):
            id_ = http.get("/health/live", headers={"X-Request-Id": wrong}).headers["x-request-id"]
            assert len(id_) == 32
            assert set(id_) <= HEX
            made.add(id_)
        made.add(http.get("/health/live").headers["x-request-id"])
        assert len(made) == 7


def test_a_trace_goes_on_under_a_span_of_its_own(searcher):
    stack, http = served(create_app(searcher))
    with stack:
        version, trace, span, flags = http.get("/", headers={"traceparent": GIVEN}).headers["traceparent"].split("-")
        assert (version, trace, flags) == ("00", *GIVEN.split("-")[1::2])
        assert span != GIVEN.split("-")[2]
        assert len(span) == 16
        for wrong in (None, GIVEN.upper(), GIVEN + "-00", "ff" + GIVEN[2:], GIVEN.replace("0", "", 1)):
            headers = {} if wrong is None else {"traceparent": wrong}
            told = http.get("/health/live", headers=headers).headers["traceparent"]
            assert Trace.parse(told) is not None
            assert told.split("-")[1] != GIVEN.split("-")[1]


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (GIVEN, True),
        (GIVEN.replace("00-", "01-", 1) + "-what-comes-later", True),
        (GIVEN.replace("00-", "01-", 1) + ".what-comes-later", False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01", False),
        ("", False),
        (GIVEN[:-1], False),
        (GIVEN + "\n", False),
    ],
)
def test_what_a_valid_traceparent_is(text, valid):
    assert (Trace.parse(text) is not None) == valid


def test_every_error_has_the_id_of_its_request(searcher, collection):
    code = code_of(collection)
    app = create_app(searcher, keys=Keys.load(None, {"HASHLIGHT_API_KEYS": f"page search {KEY}"}))
    stack, http = served(Collections({"a": app}, Keys()))
    allowed = {"Authorization": f"Bearer {KEY}"}
    with stack:
        asked = [
            (401, "POST", "/v1/search", {}, {}),
            (403, "GET", "/metrics", allowed, None),
            (404, "GET", "/v1/nothing", allowed, None),
            (404, "GET", "/v1/collections/none/search", {}, None),
            (405, "GET", "/v1/search", allowed, None),
            (422, "POST", "/v1/search", allowed, {"queries": [{"code": "zz"}]}),
            (500, "POST", "/v1/search", allowed, {"queries": [{"code": code}], "k": 3}),
            (404, "GET", "/v1/items/999999", allowed, None),
        ]
        for number, (status, method, path, headers, body) in enumerate(asked):
            answer = http.request(method, path, headers={**headers, "X-Request-Id": f"id-{number}"}, json=body)
            assert answer.status_code == status
            assert answer.headers["x-request-id"] == refusal_of(answer)["request_id"] == f"id-{number}"


def test_requests_for_another_host_and_above_all_limits_have_it_too(searcher):
    stack, http = served(KnownHosts(create_app(searcher), ["127.0.0.1"]))
    with stack:
        refused = http.get("/health/live", headers={"Host": "evil.example.com", "X-Request-Id": "id-1"})
        assert refused.status_code == 400
        assert refusal_of(refused)["request_id"] == refused.headers["x-request-id"] == "id-1"
        assert "127.0.0.1" in refusal_of(refused)["message"]
    server = HttpServer(create_app(searcher, limits=Limits(in_flight=1)), Address(port=0), max_connections=1)
    with (
        serving.run_server(server) as url,
        socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as one,
    ):
        # One that is in the middle of its request, and so is not closed to make room.
        head = b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n"
        one.sendall(head + b"Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n")
        assert one.recv(100).startswith(b"HTTP/1.1 100 ")
        answer = httpx.post(f"{url}/v1/search", json={}, headers={"X-Request-Id": "id-2"})
        assert (answer.status_code, refusal_of(answer)["type"]) == (503, "overloaded")
        assert refusal_of(answer)["request_id"] == answer.headers["x-request-id"] == "id-2"


def test_all_that_is_logged_about_a_request_has_its_id(searcher, collection):
    lines, code = [], code_of(collection)
    stack, http = served(create_app(searcher, encoder=serving.AverageHash()), lines)
    with stack, ThreadPoolExecutor(8) as pool:

        def ask(number):
            body = {"queries": [{"code": code}], "k": 3 if number == 7 else 5}
            return http.post("/v1/search", json=body, headers={"X-Request-Id": f"id-{number}"}).status_code

        assert sorted(pool.map(ask, range(40))) == [200] * 39 + [500]
    wanted = {f"id-{number}" for number in range(40)}
    assert {line["request_id"] for line in lines if line["logger"] == "hashlight.access"} == wanted
    searching = [line["request_id"].split(",") for line in lines if line["logger"] == "hashlight.test"]
    assert sorted(id_ for ids in searching for id_ in ids) == sorted(wanted)
    [failed] = [line for line in lines if "exception" in line]
    assert failed["request_id"] == "id-7"
    assert "RuntimeError: broken" in failed["exception"]


def test_what_is_logged_about_several_requests_has_all_their_ids(collection, monkeypatch):
    class Logging(Held):
        def answer(self, queries, query, **more):
            logging.getLogger("hashlight.test").warning("searching")
            return super().answer(queries, query, **more)

    lines, held = [], Logging(collection)
    stack, http = served(create_app(held), lines)
    with stack:
        ask_together(str(http.base_url), held, code_of(collection), 6, monkeypatch)
    told = [set(line["request_id"].split(",")) for line in lines if line["logger"] == "hashlight.test"]
    assert told == [{"id-0"}, {f"id-{number}" for number in range(1, 6)}]
    plans = [line["coverage"] for line in lines if line["logger"] == "hashlight.access" and line["level"] == "info"]
    assert plans == [1.0] * 6


def test_a_line_of_the_access_log_says_who_asked_for_what_and_what_they_got(searcher, collection):
    lines, code = [], code_of(collection)
    keys = Keys.load(None, {"HASHLIGHT_API_KEYS": f"page search {KEY}"})
    stack, http = served(create_app(searcher, keys=keys), lines)
    with stack:
        body = json.dumps({"queries": [{"code": code}] * 2, "k": 4, "include": ["explain"]}).encode()
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", "traceparent": GIVEN}
        answer = http.post("/v1/search?secret=hidden", content=body, headers=headers)
        assert answer.status_code == 200
        http.get("/health/live")
        http.get("/v1/items/1", headers={"X-API-Key": OTHER_KEY})
    found, refused = [line for line in lines if line["logger"] == "hashlight.access"]
    plans = {one["explain"]["plan"] for one in answer.json()["results"]}
    assert found["ms"] > 0
    assert {name: found[name] for name in found.keys() - {"time", "ms", "message"}} == {
        "level": "info", "logger": "hashlight.access", "request_id": answer.headers["x-request-id"], "method": "POST",
        "path": "/v1/search", "status": 200, "bytes_in": len(body), "bytes_out": len(answer.content), "key": "page",
        "queries": 2, "version": collection.version, "coverage": 1.0, "plan": ", ".join(sorted(plans)),
        "trace_id": GIVEN.split("-")[1],
    }  # fmt: skip
    assert (refused["status"], refused["path"]) == (401, "/v1/items/1")
    assert "key" not in refused
    text = json.dumps(lines)
    for secret in (KEY, OTHER_KEY, "hidden", code):
        assert secret not in text


def test_what_counts_and_lists_items_says_its_coverage_too(searcher, collection):
    lines = []
    stack, http = served(create_app(searcher), lines)
    with stack:
        assert http.post("/v1/count", json={}).status_code == 200
        assert http.post("/v1/facets", json={"column": "label"}).status_code == 200
        assert http.get("/v1/items?limit=3").status_code == 200
    told = [(line["path"], line["version"], line["coverage"]) for line in lines if line["logger"] == "hashlight.access"]
    assert told == [(path, collection.version, 1.0) for path in ("/v1/count", "/v1/facets", "/v1/items")]


def test_probes_are_logged_only_on_request(searcher):
    lines = []
    stack, http = served(create_app(searcher), lines, level="debug")
    with stack:
        http.get("/health/live")
    assert [line["level"] for line in lines if line["logger"] == "hashlight.access"] == ["debug"]


def test_a_slow_query_is_logged_with_how_it_was_answered(searcher, collection):
    lines, code = [], code_of(collection)
    stack, http = served(create_app(searcher), lines, slow_query_s=0.0)
    with stack:
        asked = {"queries": [{"code": code}] * 12, "radius": 3, "limit": 7, "filter": "label == 0"}
        plain = http.post("/v1/range_search", json=asked)
        explained = http.post("/v1/range_search", json={**asked, "include": ["explain"]})
        http.get("/v1/collection")
    assert "explain" not in plain.text
    slow = [line for line in lines if line["logger"] == "hashlight.slow"]
    assert [line["level"] for line in slow] == ["warning", "warning"]
    for line in slow:
        assert (line["radius"], line["limit"], line["filter"]) == (3, 7, "label == 0")
        assert line["timing_ms"]["search"] > 0
        told = [(one["plan"], one["probes"], one["candidates"]) for one in line["explain"]]
        shown = [one["explain"] for one in explained.json()["results"]]
        expected = [(one["plan"], one["probes"], one["candidates"]) for one in shown]
        assert told == expected[:10]
    lines.clear()
    stack, http = served(create_app(searcher), lines, slow_query_s=3600.0)
    with stack:
        assert http.post("/v1/range_search", json=asked).status_code == 200
    assert [line for line in lines if line["logger"] == "hashlight.slow"] == []
