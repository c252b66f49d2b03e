"""Spans of one query hang together from the client to the kernels, and cost nothing where nobody records them."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading

import httpx
import numpy as np
import pytest

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import hashlight
from hashlight.engine import tracing
from hashlight.engine.client.errors import InvalidRequestError
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.telemetry.exporting import exporter_of
from tests import serving
from tests.engine.telemetry.together import Held, ask_together

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return serving.make_collection(tmp_path_factory.mktemp("traced") / "c")


@pytest.fixture
def spans():
    """What is recorded, by name; read it after the server has ended."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with tracing.recording_to(provider):
        yield exporter.get_finished_spans
    provider.shutdown()


def named(found, name):
    return [span for span in found if span.name == name]


def test_a_query_is_one_trace_from_the_client_to_the_kernels(spans, collection):
    picture = serving.png(serving.make_pictures(1)[0])
    with (
        serving.running(create_app(CollectionSearcher(collection), encoder=serving.AverageHash())) as url,
        hashlight.SearchClient(url) as client,
    ):
        client.search(picture, 3)
    found = spans()
    assert len({span.context.trace_id for span in found}) == 1
    by_id = {span.context.span_id: span for span in found}

    def path(span):
        return [span.name] if span.parent is None else [*path(by_id[span.parent.span_id]), span.name]

    assert sorted(path(span) for span in found) == sorted(
        [
            ["hashlight.search"],
            ["hashlight.search", "POST /v1/search"],
            *(["hashlight.search", "POST /v1/search", name] for name in ("read", "decode", "encode", "encode_batch")),
            ["hashlight.search", "POST /v1/search", "search"],
            ["hashlight.search", "POST /v1/search", "search", "kernels"],
        ]
    )
    [client_span], [server] = named(found, "hashlight.search"), named(found, "POST /v1/search")
    assert (client_span.kind, server.kind) == (SpanKind.CLIENT, SpanKind.SERVER)
    told = dict(server.attributes)
    assert (told["http.response.status_code"], told["http.route"], told["hashlight.coverage"]) == (
        200,
        "/v1/search",
        1.0,
    )
    [kernels] = named(found, "kernels")
    assert dict(kernels.attributes) == {"hashlight.queries": 1, "hashlight.shards": 3}
    assert all(span.status.status_code is not StatusCode.ERROR for span in found)


def test_a_trace_that_is_given_goes_on_and_failures_are_marked(spans, collection):
    with serving.running(create_app(CollectionSearcher(collection))) as url:
        answer = httpx.get(f"{url}/v1/items/999999", headers={"traceparent": GIVEN, "X-Request-Id": "id-1"})
        with hashlight.SearchClient(url) as client, pytest.raises(InvalidRequestError) as refused:
            client.search(np.zeros((1, 1), np.uint64), 3, filter="nothing ==")
        httpx.get(f"{url}/health/live")
        httpx.get(f"{url}/metrics")
    found = spans()
    [server] = named(found, "GET /v1/items/{id}")
    assert format(server.context.trace_id, "032x") == GIVEN.split("-")[1]
    assert format(server.parent.span_id, "016x") == GIVEN.split("-")[2]
    assert answer.headers["traceparent"].split("-")[2] == format(server.context.span_id, "016x")
    assert server.attributes["hashlight.request_id"] == "id-1"
    [client_span] = named(found, "hashlight.search")
    assert client_span.status.status_code is StatusCode.ERROR
    assert refused.value.request_id == named(found, "POST /v1/search")[0].attributes["hashlight.request_id"]
    assert {span.name for span in found if span.kind is SpanKind.SERVER} == {"GET /v1/items/{id}", "POST /v1/search"}


def test_a_batch_is_linked_to_all_its_requests(spans, collection, monkeypatch):
    code, held = collection.shards[0].codes_NW[0].tobytes()[:8].hex(), Held(collection)
    with serving.running(create_app(held)) as url:
        ask_together(url, held, code, 6, monkeypatch)
    found = spans()
    id_of = {span.context.span_id: span.attributes["hashlight.request_id"] for span in named(found, "POST /v1/search")}
    batches = sorted(named(found, "search"), key=lambda span: len(span.links))
    served = [{id_of[one.parent.span_id], *(id_of[link.context.span_id] for link in one.links)} for one in batches]
    assert served == [{"id-0"}, {f"id-{number}" for number in range(1, 6)}]
    assert [span.attributes["hashlight.requests"] for span in batches] == [1, 5]


@pytest.mark.parametrize(
    ("environment", "exporter"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "x"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, None),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, None),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "otlp"),
    ],
)
def test_the_environment_says_whether_traces_are_exported(environment, exporter):
    assert exporter_of(environment) == exporter


def test_exporters_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="OTEL_TRACES_EXPORTER must be otlp, console or none, got 'zipkin'"):
        exporter_of({"OTEL_TRACES_EXPORTER": "zipkin"})
    with pytest.raises(ValueError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, .* got 'grpc'"):
        exporter_of({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


class Collector(http.server.BaseHTTPRequestHandler):
    """What takes spans over OTLP/HTTP."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


EXPORT = """
import os
from hashlight.engine.service.telemetry.exporting import exporting_traces
from hashlight.engine.tracing import span
with exporting_traces("hashlight-gateway"):
    with span("outer"), span("inner", {"hashlight.queries": 3}):
        pass
os._exit(0)  # without what the interpreter does at its end
"""


@pytest.mark.parametrize(("more", "service"), [({}, "hashlight-gateway"), ({"OTEL_SERVICE_NAME": "mine"}, "mine")])
def test_spans_arrive_at_a_collector(more, service):
    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        server.taken = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **more}
        subprocess.run([sys.executable, "-c", EXPORT], check=True, env=environment, timeout=120)
        server.shutdown()
    [(path, request)] = server.taken
    [resource] = request.resource_spans
    assert path == "/v1/traces"
    assert {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"] == service
    inner, outer = resource.scope_spans[0].spans
    assert (inner.name, outer.name, inner.parent_span_id) == ("inner", "outer", outer.span_id)


def test_nothing_of_opentelemetry_is_loaded_where_nobody_records():
    program = (
        "import sys; from hashlight.engine.service.telemetry.exporting import exporting_traces; "
        "from hashlight.engine import tracing; "
        "exporting_traces('x').__enter__(); "
        "tracing.span('a').__enter__(); tracing.inject({}); assert tracing.traceparent() is None; "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    subprocess.run([sys.executable, "-c", program], check=True, env=bare, timeout=120)
