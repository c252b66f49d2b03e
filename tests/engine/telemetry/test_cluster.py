"""What a query leaves behind on its way through a gateway, a router and shard servers: ids, traces, metrics."""

from __future__ import annotations

import io
import json
import re
from contextlib import ExitStack, closing

import httpx
import numpy as np
import pytest

import hashlight
from hashlight.engine.errors import IncompleteError
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.protocol.wire import Request
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.engine.service.telemetry.cluster import RouterCollector, ShardMetrics
from hashlight.engine.service.telemetry.logs import logging_as
from hashlight.engine.service.telemetry.metrics import render
from hashlight.engine.service.telemetry.requests import Handled, Trace, context, told_by, working_for
from tests import serving
from tests.engine.service.conftest import Corpus, eventually
from tests.engine.service.conftest import serving as shard_serving
from tests.engine.telemetry.test_metrics import exported, families, listed

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("observed") / "collection", np.random.default_rng(6), rows=600)


@pytest.fixture
def cluster(corpus):
    """Three groups of one shard server, and a router over them."""
    with shard_serving(corpus.path) as (servers, found), closing(ClusterRouter(found)) as router:
        eventually(lambda: all(replica["state"] == "connected" for replica in router.stats()["replicas"]))
        yield [group[0] for group in servers], router


def code_of(corpus):
    return corpus.codes[0].tobytes()[:9].hex()


def values(text):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families(text).values()
        for sample in family.samples
    }


def test_what_a_shard_server_is_told_comes_back_and_what_it_does_not_know_is_ignored():
    first, other = Handled("id-1", Trace.parse(GIVEN)), Handled("id-2", Trace.begin())
    with working_for([first, other]):
        assert told_by(context()) == [Handled("id-1", Trace.parse(GIVEN)), Handled("id-2")]
        assert told_by(context() + "\nlater: something") == told_by(context())
    assert context() == ""
    for nothing in ("", "x", "a: b", "request_id: ", 'request_id: a"b', "traceparent: 00-1-2-3", ": \n\n: "):
        assert told_by(nothing) == []
    assert told_by(f"traceparent: {GIVEN}") == [Handled("", Trace.parse(GIVEN))]


def test_an_id_goes_down_to_the_shard_servers(cluster, corpus, monkeypatch):
    _, router = cluster
    seen, stream, decode = [], io.StringIO(), Request.decode.__func__

    def reading(cls, frame):
        request = decode(cls, frame)
        seen.append(request.context)
        return request

    monkeypatch.setattr(Request, "decode", classmethod(reading))
    with (
        logging_as("json", "debug", stream=stream),
        serving.running(create_app(router)) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        headers = {"X-Request-Id": "id-1", "traceparent": GIVEN}
        body = {"queries": [{"code": code_of(corpus)}], "k": 3}
        answer = http.post("/v1/search", json=body, headers=headers)
        assert answer.status_code == 200
        http.get("/v1/items/999999", headers={"X-Request-Id": "id-2"})
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    told = [line for line in lines if line["logger"] == "hashlight.engine.service.shards.server" and "kind" in line]
    for kind, id_, rows in (("search", "id-1", 1), ("get", "id-2", 1)):
        found = [line for line in told if line["kind"] == kind]
        assert [line["request_id"] for line in found] == [id_] * 3
        assert {(line["status"], line["rows"], line["version"]) for line in found} == {("ok", rows, 1)}
        assert all(line["bytes_out"] > 0 and line["ms"] > 0 for line in found)
    ours = answer.headers["traceparent"]
    assert seen.count(f"request_id: id-1\ntraceparent: {ours}") == 3
    [access] = [line for line in lines if line["logger"] == "hashlight.access" and line["request_id"] == "id-1"]
    assert access["coverage"] == 1.0


def test_a_trace_goes_through_router_and_shard_servers_to_their_kernels(cluster, corpus):
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import SpanKind

    from hashlight.engine import tracing

    _, router = cluster
    exporter, provider = InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with (
        tracing.recording_to(provider),
        serving.running(create_app(router)) as url,
        hashlight.SearchClient(url) as client,
    ):
        client.search(corpus.codes[:1], 3)
        eventually(lambda: len(exporter.get_finished_spans()) >= 11)
    found = exporter.get_finished_spans()
    by_id = {span.context.span_id: span for span in found}

    def path(span):
        return [span.name] if span.parent is None else [*path(by_id[span.parent.span_id]), span.name]

    server = ["hashlight.search", "POST /v1/search"]
    fan_out = [*server, "search", "fan_out"]
    assert sorted(path(span) for span in found) == sorted(
        [
            ["hashlight.search"],
            server,
            [*server, "read"],
            [*server, "search"],
            fan_out,
            *[[*fan_out, "shard search"]] * 3,
            *[[*fan_out, "shard search", "kernels"]] * 3,
        ]
    )
    [asking] = [span for span in found if span.name == "fan_out"]
    assert asking.kind is SpanKind.CLIENT
    assert (asking.attributes["hashlight.groups"], asking.attributes["hashlight.answered"]) == (3, 3)
    assert {span.kind for span in found if span.name == "shard search"} == {SpanKind.SERVER}


def test_the_page_lists_what_routers_and_shard_servers_export(cluster):
    servers, router = cluster
    every = listed("Every process")
    assert exported(render(RouterCollector(router.stats)).decode()) == listed("Gateways over shard servers") | every
    assert exported(render(ShardMetrics(servers[0].stats)).decode()) == listed("Shard servers") | every
    assert exported(render(RouterCollector(dict)).decode()) == every


def test_what_happened_is_counted(cluster, corpus):
    servers, router = cluster
    counted = [ShardMetrics(server.stats) for server in servers]
    for server, metrics in zip(servers, counted, strict=True):
        server.observe_by(metrics.observe)
    for _ in range(5):
        router.search(corpus.queries[:2], 3)
    router.get(corpus.ids[:1])
    found = values(render(RouterCollector(router.stats)).decode())
    assert found["hashlight_router_queries_total",] == 6
    assert found["hashlight_router_calls_total",] == 18
    assert found["hashlight_router_groups",] == 3
    assert found["hashlight_router_replicas", "connected"] == 3
    assert sum(value for (name, *_), value in found.items() if name == "hashlight_router_replicas") == 3
    assert found["hashlight_router_retries_total",] == found["hashlight_router_breakers_opened_total",] == 0
    for server, metrics in zip(servers, counted, strict=True):
        eventually(lambda server=server: server.stats()["in_flight_requests"] == 0)
        told = values(render(metrics).decode())
        assert told["hashlight_shard_requests_total", "search", "ok"] == 5
        assert told["hashlight_shard_requests_total", "get", "ok"] == 1
        assert told["hashlight_shard_request_seconds_count", "search"] == 5
        assert told["hashlight_shard_wait_seconds_count",] == 6
        assert told["hashlight_shard_sent_bytes_total",] > 5 * 2 * 3 * 12
        # Each search has two codes of two words.
        assert told["hashlight_shard_received_bytes_total",] > 5 * 2 * 16
        assert (told["hashlight_shard_served_version",], told["hashlight_shard_published_version",]) == (1, 1)
        assert (told["hashlight_shard_open_shards",], told["hashlight_shard_draining",]) == (2, 0)


def test_failures_are_counted_too(cluster, corpus):
    servers, router = cluster
    metrics = ShardMetrics(servers[0].stats)
    servers[0].observe_by(metrics.observe)
    [replica] = [one for one in router._replicas.values() if one.address == servers[0].address]
    for _ in range(3):
        replica.failed()
    assert router.stats()["breakers_opened"] == 1
    assert values(render(RouterCollector(router.stats)).decode())["hashlight_router_replicas", "shut"] == 1
    with pytest.raises(ValueError, match="is not an attribute"):
        router.count("nothing == 1")
    servers[0].drain()
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(Exception, match=re.escape(servers[0].address)))
        router.search(corpus.queries[:1], 3, allow_partial=False)
    told = values(render(metrics).decode())
    assert told["hashlight_shard_requests_total", "count", "error"] == 1
    assert told["hashlight_shard_draining",] == 1


def test_refusals_are_counted_too(cluster, corpus):
    servers, router = cluster
    metrics = ShardMetrics(servers[0].stats)
    servers[0].observe_by(metrics.observe)
    servers[0].drop(router._view.map.manifest)
    with pytest.raises(IncompleteError, match="does not have these shards"):
        router.search(corpus.queries[:1], 3, allow_partial=False, timeout_s=20)
    told = values(render(metrics).decode())
    assert told["hashlight_shard_requests_total", "search", "refused"] == 1
    assert (told["hashlight_shard_served_versions",], told["hashlight_shard_open_shards",]) == (0, 0)


def test_the_age_of_the_map_is_since_it_was_last_read(corpus):
    with shard_serving(corpus.path) as (_, found):
        broken = False

        def directory():
            if broken:
                raise OSError("no answer")
            return found

        with closing(ClusterRouter(directory, refresh_s=0.05)) as router:
            before = router._read_s
            eventually(lambda: router._read_s > before)
            broken = True
            eventually(lambda: router._asks_in_vain)
            age_s = router.stats()["map_age_s"]
            eventually(lambda: router.stats()["map_age_s"] > age_s + 0.2)
