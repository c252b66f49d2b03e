"""What processes export is what docs/metrics.md lists, in a format that Prometheus reads, at a port of its own."""

from __future__ import annotations

import io
import json
import re
import threading
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hashlight.engine.errors import NotReadyError
from hashlight.engine.results import Coverage
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.door.http_server import Address
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.door.listener import Watched, watching
from hashlight.engine.service.protocol.exposure import split_address
from hashlight.engine.service.telemetry.logs import logging_as
from hashlight.engine.service.telemetry.metrics import Metrics, render
from hashlight.pipelines.serving.serve import bind, watched
from tests import serving
from tests.engine.service.conftest import eventually

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


class HalfThere(CollectionSearcher):
    """A searcher of which a shard can be lost."""

    lost = False

    def reachable(self):
        return super().reachable() if not self.lost else Coverage(3, 2, 500, 300, 1, {"shard-2": "it is at 10.0.0.7"})

    def ready(self):
        return super().ready() if not self.lost else self.reachable()


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return serving.make_collection(tmp_path_factory.mktemp("watched") / "c")


def listed(section):
    text = PAGE.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return {name: kind for name, kind in re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE)}


def families(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def exported(text):
    """Each metric with its type, by the names that the page has."""
    found = {}
    for family in families(text).values():
        if not family.name.endswith("_created"):
            found[family.name + ("_total" if family.type == "counter" else "")] = family.type
    return found


@pytest.fixture(scope="module")
def both(collection):
    """A server of two collections, and the address at which it is watched."""
    searchers = {"cats": HalfThere(collection), "dogs": HalfThere(collection)}
    keys = Keys.load(None, {"HASHLIGHT_API_KEYS": "page search a-key-of-the-page-01"})
    apps = {name: create_app(searcher, keys=keys) for name, searcher in searchers.items()}
    server = bind(apps, Address(port=0), keys)
    with serving.run_server(server) as url, watching("127.0.0.1:0", watched(apps, server)) as watch:
        yield url, watch, searchers, server


def test_the_page_lists_what_a_gateway_exports(both):
    _, watch, *_ = both
    answer = httpx.get(f"{watch}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert exported(answer.text) == listed("Gateways") | listed("Every process")
    units = ("_seconds", "_bytes", "_ratio", "_total", "_info")
    counted = ("_requests", "_images", "_shards", "_version", "_attempts", "_writes", "_keys", "_stale")
    counted += ("_fds", "_threads")
    assert [name for name in exported(answer.text) if not name.endswith(units + counted)] == []


def test_what_happened_is_counted(both):
    url, watch, *_ = both
    allowed = {"Authorization": "Bearer a-key-of-the-page-01"}

    def told():
        found = {}
        for family in families(httpx.get(f"{watch}/metrics").text).values():
            for sample in family.samples:
                found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
        return found

    def of(found, name, **labels):
        return found.get((name, tuple(sorted({"collection": "dogs", **labels}.items()))), 0.0)

    before = told()
    sent = httpx.post(f"{url}/v1/collections/dogs/search", headers=allowed, json={"queries": [{"code": "zz"}]})
    found = httpx.get(f"{url}/v1/collections/dogs/items?limit=3", headers=allowed)
    assert (sent.status_code, found.status_code) == (422, 200)
    # A request is counted when its last byte is out.
    eventually(lambda: of(told(), "hashlight_requests_total", route="/v1/items", status="200") > 0)
    after = told()
    for route, status, received, size in (
        ("/v1/search", "422", len(sent.request.content), len(sent.content)),
        ("/v1/items", "200", 0, len(found.content)),
    ):
        for name, labels, more in (
            ("hashlight_requests_total", {"status": status}, 1),
            ("hashlight_request_seconds_count", {}, 1),
            ("hashlight_request_bytes_total", {}, received),
            ("hashlight_response_bytes_total", {}, size),
        ):
            assert of(after, name, route=route, **labels) - of(before, name, route=route, **labels) == more
        of_cats = (("collection", "cats"), ("route", route), ("status", status))
        assert ("hashlight_requests_total", of_cats) not in after
    assert of(after, "hashlight_served_version") == of(after, "hashlight_published_version") == 1
    assert after["process_resident_memory_bytes", ()] > 1e6


class Slow(int):
    """A number with a thread that runs while something is first subtracted from it."""

    meanwhile = None

    def __sub__(self, other):
        if (thread := self.meanwhile) is not None:
            self.meanwhile = None
            thread.start()
            thread.join(0.2)
        return int(self) - other


def test_two_that_read_the_metrics_at_once_count_nothing_twice():
    metrics, flushes = Metrics(), Slow(5)
    other = threading.Thread(target=lambda: metrics.note_log(0, 0, 0.0, flushes=7, failures=1))
    flushes.meanwhile = other
    metrics.note_log(0, 0, 0.0, flushes=flushes, failures=0)
    other.join()
    metrics.note_log(0, 0, 0.0, flushes=6, failures=0)  # told before, and come later
    told = families(render(metrics).decode())
    counts = (told[f"hashlight_log_{name}"].samples[0].value for name in ("flushes", "flush_failures"))
    assert tuple(counts) == (7, 1)


def test_health_says_what_is_missing_and_whether_that_matters(both):
    _, watch, searchers, _ = both
    assert httpx.get(f"{watch}/health/live").json() == {"status": "live"}
    for path in ("ready", "complete"):
        told = httpx.get(f"{watch}/health/{path}")
        assert (told.status_code, told.json()["status"]) == (200, path)
        assert told.json()["collections"].keys() == {"cats", "dogs"}
    searchers["dogs"].lost = True
    try:
        ready, complete = (httpx.get(f"{watch}/health/{path}") for path in ("ready", "complete"))
        assert ready.status_code == 200
        assert ready.json()["collections"]["dogs"]["missing"] == ["shard-2"]
        assert (complete.status_code, complete.json()["error"]["type"]) == (503, "incomplete")
        assert "10.0.0.7" not in ready.text + complete.text
        ratio = families(httpx.get(f"{watch}/metrics").text)["hashlight_coverage_ratio"]
        assert {one.labels["collection"]: one.value for one in ratio.samples} == {"cats": 1.0, "dogs": 0.6}
    finally:
        searchers["dogs"].lost = False


def test_a_server_that_drains_is_not_ready(both):
    _, watch, _, server = both
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(server), "draining", True)
        assert httpx.get(f"{watch}/health/ready").status_code == 503
        assert httpx.get(f"{watch}/health/live").status_code == 200


def test_nothing_else_is_there(both):
    _, watch, *_ = both
    for path in ("/", "/v1/collection", "/metrics/x"):
        answer = httpx.get(watch + path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found")
    assert httpx.post(f"{watch}/metrics").status_code == 501
    assert httpx.head(f"{watch}/metrics").status_code == 200


def refuse_with(error):
    def check():
        raise error

    return check


def test_errors_of_a_check_have_their_status_and_what_is_broken_is_logged():
    stream = io.StringIO()
    checks = Watched(lambda: b"", refuse_with(NotReadyError("not yet")), refuse_with(RuntimeError("broken")))
    with logging_as("json", stream=stream), watching("127.0.0.1:0", checks) as url:
        assert httpx.get(f"{url}/health/ready").json()["error"]["message"] == "not yet"
        assert httpx.get(f"{url}/health/complete").status_code == 500
    assert "RuntimeError: broken" in " ".join(
        json.loads(line).get("exception", "") for line in stream.getvalue().splitlines()
    )


def test_an_address_that_cannot_be_had_is_refused():
    checks = Watched(lambda: b"", dict, dict)
    with ExitStack() as stack:
        url = stack.enter_context(watching("127.0.0.1:0", checks))
        with pytest.raises(OSError, match=r"cannot listen at 127.0.0.1:\d+: Address already in use"):
            stack.enter_context(watching(url.removeprefix("http://"), checks))
    for wrong in ("", "9090", ":9090", "localhost:", "localhost:x", "localhost:70000", "::1:9090", "localhost:-1"):
        with pytest.raises(ValueError, match="got '"):
            split_address(wrong)
    assert split_address("[::1]:9090") == ("::1", 9090)
    assert split_address("0.0.0.0:0") == ("0.0.0.0", 0)
