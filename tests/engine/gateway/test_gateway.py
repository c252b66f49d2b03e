"""The HTTP interface as programs see it: documents, statuses, invalid fields, keys, limits."""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine.errors import IncompleteError, NoShardError, NotReadyError
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.engine.service.telemetry.metrics import Metrics
from tests import oracles, serving
from tests.engine.service.conftest import eventually
from tests.engine.service.conftest import serving as shard_servers

CODE = "0f" * 7 + "0f"
IMAGE = serving.png(serving.make_pictures(3)[2])
ARROW = "application/vnd.apache.arrow.stream"


def b64(data):
    return base64.b64encode(data).decode()


def arrow_body(codes):
    batch = pa.record_batch({"code": pa.array([code.tobytes() for code in codes], pa.binary(8))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def error(response):
    document = response.json()
    assert set(document) == {"error"}
    assert response.headers["content-type"] == "application/json"
    return response.status_code, document["error"]["type"], document["error"]["field"]


def test_a_search_by_code_as_json(http, collection):
    query = collection.shards[0].codes_NW[0].tobytes()
    told = collection.get(collection.search(np.frombuffer(query, np.uint64).reshape(1, 1), 2).ids[0]).to_pylist()
    for code in (query.hex(), b64(query)):
        answer = http.post(
            "/v1/search", json={"queries": [{"code": code}], "k": 2, "include": ["attributes", "code", "explain"]}
        )
        assert answer.status_code == 200
        document = answer.json()
        assert set(document) == {"results", "order", "coverage", "version", "timing_ms"}
        (result,) = document["results"]
        assert result["truncated"] is False
        assert result["explain"]["plan"]
        for hit, stored in zip(result["hits"], told, strict=True):
            assert (hit["id"], bytes.fromhex(hit["code"])) == (stored["id"], stored["code"])
            assert hit["attributes"]["label"] == stored["label"]
            assert set(hit["attributes"]) == {"label", "name", "price"}
        assert document["coverage"] == {
            "shards": 3, "answered": 3, "codes": 500, "searched": 500, "complete": True, "degraded": {}
        }  # fmt: skip
        assert document["version"] == 1
        assert {"read", "search", "items"} <= set(document["timing_ms"])


def test_nan_becomes_null(http, collection):
    answer = http.post("/v1/search", json={"queries": [{"code": CODE}], "k": 500, "include": ["attributes"]})
    prices = [hit["attributes"]["price"] for hit in answer.json()["results"][0]["hits"]]
    assert prices.count(None) == 46


def test_a_form_with_an_image(http):
    as_json = http.post(
        "/v1/range_search",
        json={
            "queries": [{"image": b64(IMAGE)}],
            "radius": 20,
            "limit": 3,
            "filter": "label == 2",
            "include": ["code"],
        },
    )
    fields = {"radius": "20", "limit": "3", "filter": "label == 2", "include": "code"}
    as_form = http.post("/v1/range_search", data=fields, files={"image": ("a.png", IMAGE)})
    assert as_form.status_code == 200
    assert as_form.json()["results"] == as_json.json()["results"]
    assert len(as_form.json()["results"][0]["hits"]) == 3
    assert as_form.json()["results"][0]["truncated"] is True
    pooled = http.post("/v1/search", data={"rerank": '{"pool": 50}', "k": "2"}, files={"image": ("a.png", IMAGE)})
    named = http.post("/v1/search", data={"rerank": "hamming", "k": "2"}, files={"image": ("a.png", IMAGE)})
    assert named.json()["order"] == "hamming"
    assert [hit["distance"] > 100 for hit in pooled.json()["results"][0]["hits"]] == [False, True]


def test_a_batch_as_arrow(http, collection):
    ids = np.concatenate([shard.ids_N for shard in collection.shards])
    codes = np.concatenate([shard.codes_NW for shard in collection.shards])
    queries = codes[:200]
    params, headers = {"k": 4, "include": "attributes"}, {"content-type": ARROW}
    answer = http.post("/v1/search", params=params, content=arrow_body(queries), headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, ARROW)
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table.column_names == ["query", "id", "distance", "label", "name", "price"]
    distances, expected = oracles.knn(queries, codes, ids, 4)
    assert table["id"].to_numpy().reshape(-1, 4).tolist() == expected.tolist()
    assert table["distance"].to_numpy().reshape(-1, 4).tolist() == distances.tolist()
    assert table["query"].to_pylist() == [number for number in range(200) for _ in range(4)]


def test_encode_items_and_collection(http, collection):
    encoder = serving.AverageHash()
    expected = encoder.encode([encoder.decode(IMAGE, 10**6)]).codes[0].tobytes().hex()
    for answer in (
        http.post("/v1/encode", json={"images": [b64(IMAGE)]}),
        http.post("/v1/encode", files={"image": ("a.png", IMAGE)}),
    ):
        assert answer.json()["codes"] == [expected]
        assert (answer.json()["bits"], answer.json()["fingerprint"]) == (60, "average-hash")
    id_ = int(collection.shards[0].ids_N[0])
    item = http.get(f"/v1/items/{id_}").json()
    assert (item["id"], item["code"]) == (id_, collection.shards[0].codes_NW[0].tobytes().hex())
    assert http.get("/v1/items", params={"ids": f"{id_},{id_}"}).json() == {"items": [item, item]}
    told = http.get("/v1/collection").json()
    assert told["attributes"] == {"label": "int64", "name": "string", "price": "double"}
    assert told["encodes_images"] is True
    assert told["limits"]["k"] == 10_000


def test_thumbnails_of_items_only(http, collection):
    ids = collection.shards[0].ids_N[:50]
    pictures = collection.thumbnails_of(ids)
    assert 20 < sum(picture is not None for picture in pictures) < 50
    for id_, picture in zip(ids.tolist(), pictures, strict=True):
        answer = http.get(f"/v1/items/{id_}/thumbnail")
        if picture is None:
            assert error(answer) == (404, "not_found", "id")
        else:
            assert (answer.content, answer.headers["content-type"]) == (picture, "image/png")
    assert error(http.get("/v1/items/999999/thumbnail"))[:2] == (404, "id_not_found")


def test_health_and_metrics(http):
    assert http.get("/health/live").json() == {"status": "live"}
    told = {"status": "ready", "version": 1, "shards": 3, "missing": [], "pending": None}
    assert http.get("/health/ready").json() == told
    assert http.get("/health/complete").json() == {**told, "status": "complete"}
    http.post("/v1/search", json={"queries": [{"image": b64(IMAGE)}], "include": ["attributes"]})
    text = http.get("/metrics").text
    for stage in ("read", "decode", "encode", "wait", "search", "items", "render"):
        assert f'hashlight_stage_seconds_count{{stage="{stage}"}}' in text
    assert 'hashlight_requests_total{route="/v1/search",status="200"}' in text
    assert "hashlight_served_version 1.0" in text
    assert "hashlight_coverage_ratio 1.0" in text
    assert "hashlight_encode_batch_images_count" in text


def test_stages_of_a_router_reach_the_metrics(collection):
    metrics = Metrics()
    with (
        shard_servers(collection.path) as (_, cluster_map),
        contextlib.closing(ClusterRouter(cluster_map, observe=metrics.observe)) as router,
        serving.running(create_app(router, metrics=metrics)) as url,
    ):
        assert httpx.post(f"{url}/v1/range_search", json=QUERY, timeout=60).status_code == 200
        text = httpx.get(f"{url}/metrics").text
    for stage in ("fan_out", "shard", "merge"):
        assert f'hashlight_stage_seconds_count{{stage="{stage}"}}' in text


def test_every_answer_has_strict_headers(http):
    for path in ("/v1/collection", "/health/live", "/v1/items/999999", "/v1/nothing"):
        headers = http.get(path).headers
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_a_page_is_served_under_a_strict_policy(searcher, tmp_path):
    (tmp_path / "index.html").write_text("<title>page</title>")
    with serving.running(create_app(searcher, page=tmp_path)) as url:
        answer = httpx.get(f"{url}/")
        assert answer.text == "<title>page</title>"
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert httpx.get(f"{url}/../serving.py").status_code == 404
        assert httpx.get(f"{url}/v1/collection").status_code == 200


QUERY = {"queries": [{"code": CODE}]}


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("search", {}, (422, "invalid_request", "queries")),
        ("search", {"queries": []}, (422, "invalid_request", "queries")),
        ("search", {"queries": [{}]}, (422, "invalid_request", "queries.0")),
        ("search", {"queries": [{"code": None}]}, (422, "invalid_request", "queries.0")),
        ("search", {"queries": [{"code": CODE, "id": 3}]}, (422, "invalid_request", "queries.0")),
        ("search", {"queries": [{"code": CODE}, {"code": "0f"}]}, (422, "invalid_request", "queries.1.code")),
        ("search", {"queries": [{"code": "xyz" * 4}]}, (422, "invalid_request", "queries.0.code")),
        ("search", {"queries": [{"code": "ff" * 8}]}, (422, "invalid_request", "queries")),
        ("search", {"queries": [{"image": "!"}]}, (422, "invalid_request", "queries.0.image")),
        ("search", {"queries": [{"image": b64(b"text")}]}, (422, "invalid_request", "queries.0.image")),
        ("search", {"queries": [{"id": 999999}]}, (404, "id_not_found", "queries.0.id")),
        ("search", {"queries": [{"id": -1}]}, (422, "invalid_request", "queries.0.id")),
        ("search", {"queries": [{"id": 2**63}]}, (422, "invalid_request", "queries.0.id")),
        ("search", {"queries": [{"url": "https://127.0.0.1/a.png"}]}, (422, "invalid_request", "queries.0.url")),
        ("search", {**QUERY, "k": 0}, (422, "invalid_request", "k")),
        ("search", {**QUERY, "k": "10"}, (422, "invalid_request", "k")),
        ("search", {**QUERY, "k": 10.5}, (422, "invalid_request", "k")),
        ("search", {**QUERY, "k": True}, (422, "invalid_request", "k")),
        ("search", {**QUERY, "k": 10_001}, (422, "invalid_request", "k")),
        ("search", {**QUERY, "colour": 1}, (422, "invalid_request", "colour")),
        ("search", {**QUERY, "radius": 1}, (422, "invalid_request", "radius")),
        ("search", {**QUERY, "filter": "colour == 3"}, (422, "invalid_request", "filter")),
        ("search", {**QUERY, "filter": "x" * 20_000}, (422, "invalid_request", "filter")),
        ("search", {**QUERY, "include": ["colour"]}, (422, "invalid_request", "include.0")),
        ("search", {**QUERY, "timeout_ms": 0}, (422, "invalid_request", "timeout_ms")),
        ("search", {**QUERY, "timeout_ms": 10**9}, (422, "invalid_request", "timeout_ms")),
        ("search", {**QUERY, "rerank": {"pool": 10}}, (422, "invalid_request", "queries.0.code")),
        ("search", {"queries": [{"id": 1}], "rerank": {}}, (422, "invalid_request", "rerank.pool")),
        ("search", {"queries": [{"id": 1}], "rerank": {"pool": 10**6}}, (422, "invalid_request", "rerank.pool")),
        ("range_search", {**QUERY, "radius": 61}, (422, "invalid_request", "radius")),
        ("range_search", {**QUERY, "radius": -1}, (422, "invalid_request", "radius")),
        ("range_search", {**QUERY, "limit": 0}, (422, "invalid_request", "limit")),
        ("range_search", {"queries": [{"code": CODE}] * 200, "limit": 9000}, (422, "invalid_request", "limit")),
        ("search", {"queries": [{"code": CODE}] * 10_001}, (422, "invalid_request", "queries")),
        ("search", {"queries": [{"image": b64(IMAGE)}] * 65}, (422, "invalid_request", "queries")),
        ("encode", {"images": []}, (422, "invalid_request", "images")),
        ("encode", {"images": [b64(IMAGE)] * 65}, (422, "invalid_request", "images")),
        ("encode", {"images": [b64(IMAGE), b64(b"x")]}, (422, "invalid_request", "images.1")),
    ],
)
def test_the_field_at_fault(http, path, body, expected):
    assert error(http.post(f"/v1/{path}", json=body)) == expected


@pytest.mark.parametrize(
    ("fields", "files", "field"),
    [
        ({}, {"other": ("a", IMAGE)}, "other"),
        ({"k": "3"}, {}, None),
        ({"k": "ten"}, {"image": ("a", IMAGE)}, "k"),
        ({"k": ["3", "4"]}, {"image": ("a", IMAGE)}, "k"),
        ({"include": "colour"}, {"image": ("a", IMAGE)}, "include.0"),
        ({"rerank": "{"}, {"image": ("a", IMAGE)}, "rerank"),
        ({"rerank": "[" * 9000}, {"image": ("a", IMAGE)}, "rerank"),
        ({"queries": "[]"}, {"image": ("a", IMAGE)}, "queries"),
        ({}, {"image": ("a", b"")}, "image"),
        ({}, {"image": ("a", b"text")}, "image"),
    ],
)
def test_the_field_of_a_form_at_fault(http, fields, files, field):
    answer = http.post("/v1/search", data=fields, files=files)
    if files:
        assert error(answer) == (422, "invalid_request", field)
    else:
        assert error(answer) == (415, "unsupported_media_type", "content-type")


def test_statuses_of_wrong_addresses_and_methods(http):
    assert error(http.get("/v1/nothing"))[:2] == (404, "not_found")
    assert error(http.get("/v1/search"))[:2] == (405, "method_not_allowed")
    assert error(http.get("/v1/items/abc")) == (422, "invalid_request", "id")
    assert error(http.get("/v1/items", params={"ids": "1,x"})) == (422, "invalid_request", "ids")
    assert error(http.get("/v1/items", params={"ids": "1", "after": 3})) == (422, "invalid_request", "after")
    assert error(http.get("/v1/items", params={"limit": 10_001})) == (422, "invalid_request", "limit")
    assert error(http.post("/v1/facets", json={"column": "colour"})) == (422, "invalid_request", "column")
    after = {"distance": 3, "id": 7}
    both = {"queries": [{"id": 1}, {"id": 2}], "after": after}
    assert error(http.post("/v1/range_search", json=both)) == (422, "invalid_request", "after")
    gone = {"queries": [{"code": "0" * 16}], "after": {**after, "version": 99}}
    assert error(http.post("/v1/range_search", json=gone))[:2] == (410, "version_gone")


def test_without_an_encoder_images_are_refused(searcher):
    with serving.running(create_app(searcher)) as url, httpx.Client(base_url=url) as http:
        assert error(http.post("/v1/search", json={"queries": [{"image": b64(IMAGE)}]})) == (
            422, "no_encoder", "queries"
        )  # fmt: skip
        assert http.get("/v1/collection").json()["encodes_images"] is False
        assert http.post("/v1/search", json=QUERY).status_code == 200


def test_another_encoder_is_never_used(searcher):
    class Other(serving.AverageHash):
        fingerprint = "other"

    with serving.running(create_app(searcher, encoder=Other())) as url:
        answer = httpx.post(f"{url}/v1/search", json={"queries": [{"image": b64(IMAGE)}]})
    assert error(answer)[:2] == (503, "not_ready")
    assert "average-hash" in answer.text


def test_keys_and_scopes(searcher, tmp_path):
    lines = "page search searching-is-all-0001\nops admin,search administering-0002\nload write writing-only-000003\n"
    (tmp_path / "keys").write_text(lines)
    app = create_app(searcher, keys=Keys.load(tmp_path / "keys"))
    with serving.running(app) as url, httpx.Client(base_url=url) as http:
        for path in ("/health/live", "/health/ready"):
            assert http.get(path).status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic searching-is-all-0001"}):
            answer = http.post("/v1/search", json=QUERY, headers=headers)
            assert error(answer)[:2] == (401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert error(http.get("/metrics", headers=headers))[0] == 401
        for headers in ({"Authorization": "Bearer searching-is-all-0001"}, {"X-API-Key": "searching-is-all-0001"}):
            assert http.post("/v1/search", json=QUERY, headers=headers).status_code == 200
            assert error(http.get("/metrics", headers=headers))[:2] == (403, "forbidden")
        assert error(http.get("/v1/collection", headers={"X-API-Key": "writing-only-000003"}))[0] == 403
        assert http.get("/metrics", headers={"X-API-Key": "administering-0002"}).status_code == 200
        assert "searching-is-all" not in http.get("/metrics", headers={"X-API-Key": "administering-0002"}).text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/replicas"), ("POST", "/v1/replicas"), ("POST", "/v1/search"), ("GET", "/v1/search"),
        ("GET", "/v1/nothing"), ("GET", "/v1/items/abc"), ("GET", "/v1/items"), ("GET", "/v1"), ("GET", "/v1/"),
        ("PUT", "/v1/replicas/"), ("GET", "/metrics/"), ("POST", "/metrics"), ("OPTIONS", "/v1/search"),
        ("GET", "/v1/..%2fopenapi.json"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", [b"{", b"1," * 50_000])
def test_the_key_is_checked_before_anything_else(searcher, method, path, body):
    """Also before the body is read, of which only the head arrives here."""
    keys = Keys.load(None, {"HASHLIGHT_API_KEYS": "page search searching-is-all-0001"})
    headers = {"content-type": "application/json", "content-length": str(len(body) + 1)}
    with serving.running(create_app(searcher, keys=keys, scale=pytest.fail)) as url:
        parts = httpx.URL(url)
        with socket.create_connection((parts.host, parts.port), timeout=60) as connection:
            head = "".join(f"{name}: {value}\r\n" for name, value in {"host": parts.host, **headers}.items())
            connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 401")


def test_refused_keys_are_logged_without_the_key(searcher, caplog, monkeypatch):
    keys = Keys.load(None, {"HASHLIGHT_API_KEYS": "page search searching-is-all-0001"})
    with serving.running(create_app(searcher, keys=keys)) as url, httpx.Client(base_url=url) as http:
        http.get("/v1/collection", headers={"X-API-Key": "not-a-key-of-them-03"})
        http.get("/metrics", headers={"X-API-Key": "searching-is-all-0001"})  # not logged: it is the same second
        first = [record.getMessage() for record in caplog.records]
        monkeypatch.setattr("hashlight.engine.service.door.access._LOG_EVERY_S", -1.0)
        http.get("/metrics", headers={"X-API-Key": "searching-is-all-0001"})
        http.get("/v1/items/x%0aforged%20line")
    logged = [record.getMessage() for record in caplog.records if record.name.endswith("access")]
    assert first == ["refused GET '/v1/collection' of 127.0.0.1: expected a key, got an unknown one"]
    assert logged[1] == (
        "refused GET '/metrics' of 127.0.0.1: key page lacks the scope metrics (1 more since the last line)"
    )
    assert logged[2] == r"refused GET '/v1/items/x\nforged line' of 127.0.0.1: expected a key, got none"
    assert "is-all" not in caplog.text
    assert "of-them" not in caplog.text


def test_metrics_have_a_scope_of_their_own(searcher):
    lines = "page search searching-is-all-0001\nscraper metrics scraping-only-0004\nops admin administering-0002\n"
    keys = Keys.load(None, {"HASHLIGHT_API_KEYS": lines})
    with serving.running(create_app(searcher, keys=keys)) as url, httpx.Client(base_url=url) as http:
        scraper = {"X-API-Key": "scraping-only-0004"}
        assert http.get("/metrics", headers=scraper).status_code == 200
        assert error(http.put("/v1/replicas", json={"replicas": 2}, headers=scraper))[0] == 403
        assert error(http.get("/v1/collection", headers=scraper))[0] == 403
        assert http.get("/metrics", headers={"X-API-Key": "administering-0002"}).status_code == 200
        assert error(http.get("/metrics", headers={"X-API-Key": "searching-is-all-0001"}))[0] == 403


def test_a_running_server_takes_up_new_keys(searcher, tmp_path):
    path = tmp_path / "keys"
    path.write_text("page search searching-is-all-0001\n")
    with serving.running(create_app(searcher, keys=Keys.load(path))) as url, httpx.Client(base_url=url) as http:

        def status(key):
            return http.get("/v1/collection", headers={"X-API-Key": key}).status_code

        assert (status("searching-is-all-0001"), status("the-key-after-it-0002")) == (200, 401)
        path.write_text("page search the-key-after-it-0002\n")
        eventually(lambda: status("the-key-after-it-0002") == 200)
        assert status("searching-is-all-0001") == 401


def test_scaling_replicas_needs_the_admin_scope(searcher, tmp_path):
    (tmp_path / "keys").write_text("page search searching-is-all-0001\nops admin administering-0002\n")
    asked = []

    def scale(replicas):
        if replicas > 3:
            raise ValueError("`replicas` must be fewer: there is no room")
        asked.append(replicas)

    app, key = create_app(searcher, keys=Keys.load(tmp_path / "keys"), scale=scale), {"X-API-Key": "administering-0002"}
    with serving.running(app) as url, httpx.Client(base_url=url) as http:
        answer = http.put("/v1/replicas", json={"replicas": 3}, headers=key)
        assert (answer.status_code, answer.json(), asked) == (200, {"replicas": 3}, [3])
        headers = {"X-API-Key": "searching-is-all-0001"}
        assert error(http.put("/v1/replicas", json={"replicas": 1}, headers=headers))[0] == 403
        for body in ({"replicas": 0}, {"replicas": 4}, {"replicas": "2"}, {"replicas": 65}):
            assert error(http.put("/v1/replicas", json=body, headers=key)) == (422, "invalid_request", "replicas")
        assert error(http.put("/v1/replicas", json={}, headers=key))[0] == 422
        assert error(http.put("/v1/replicas", content=b"[" * 10_000, headers=key))[0] == 415
        headers = {**key, "content-type": "application/json"}
        assert error(http.put("/v1/replicas", content=b"[" * 10_000, headers=headers))[0] == 400
        assert error(http.put("/v1/replicas", content=b"[" + b"1," * 400_000, headers=headers))[0] == 413
    assert asked == [3]


def test_a_server_without_shard_servers_has_no_replicas(http):
    assert error(http.put("/v1/replicas", json={"replicas": 2}))[:2] == (409, "conflict")


class Gate(CollectionSearcher):
    """A real searcher whose searches wait until the gate opens."""

    def __init__(self, collection):
        super().__init__(collection)
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)

    def answer(self, *args, **kwargs):
        self.entered.release()
        assert self.open.wait(60)
        return super().answer(*args, **{**kwargs, "timeout_s": None})


def test_requests_beyond_the_limit_are_refused_at_once(collection):
    gate = Gate(collection)
    scaled = []
    app = create_app(gate, limits=Limits(in_flight=3), scale=scaled.append)
    with serving.running(app) as url, httpx.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(http.post, "/v1/search", json=QUERY) for _ in range(3)]
        for _ in waiting:
            assert gate.entered.acquire(timeout=60)
        for _ in range(20):
            refused = http.post("/v1/search", json=QUERY)
            assert error(refused)[:2] == (429, "overloaded")
            assert refused.headers["retry-after"] == "1"
        assert http.get("/health/live").status_code == 200
        assert http.put("/v1/replicas", json={"replicas": 2}).status_code == 200
        assert scaled == [2]
        gate.open.set()
        assert [future.result().status_code for future in waiting] == [200] * 3
        assert http.post("/v1/search", json=QUERY).status_code == 200


def test_past_the_deadline_is_504_and_the_thread_stays_counted(collection):
    gate = Gate(collection)
    app = create_app(gate, limits=Limits(in_flight=1))
    with serving.running(app) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert error(http.post("/v1/search", json={**QUERY, "timeout_ms": 50})) == (
            504, "deadline_exceeded", "timeout_ms"
        )  # fmt: skip
        assert error(http.post("/v1/search", json=QUERY))[:2] == (429, "overloaded")
        gate.open.set()
        eventually(lambda: http.post("/v1/search", json=QUERY).status_code == 200)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (IncompleteError("shard b is missing", missing={"b": "gone"}), (503, "incomplete")),
        (NoShardError("none answers", missing={"a": "gone"}), (503, "no_shard")),
        (NotReadyError("starting"), (503, "not_ready")),
        (ZeroDivisionError("a secret of the server"), (500, "internal")),
    ],
)
def test_errors_of_the_searcher_become_statuses(collection, raised, expected):
    class Failing(CollectionSearcher):
        def answer(self, queries, query, **kwargs):
            if query.kind == "within":
                raise raised
            return super().answer(queries, query, **kwargs)

        def ready(self):
            raise raised

    with serving.running(create_app(Failing(collection))) as url, httpx.Client(base_url=url) as http:
        for answer in (http.post("/v1/range_search", json=QUERY), http.get("/health/complete")):
            assert error(answer)[:2] == expected
            assert "secret" not in answer.text
            assert ("missing" in answer.json()["error"]) == isinstance(raised, IncompleteError)
        assert http.post("/v1/search", json=QUERY).status_code == 200


@contextlib.contextmanager
def gateway_before(cluster_map):
    with (
        contextlib.closing(ClusterRouter(cluster_map)) as router,
        serving.running(create_app(router)) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        yield http


def halves(collection, missing):
    """Return the shards that are present, and those that are missing."""
    return [[shard for shard in collection.shards if (shard.name in missing) == gone] for gone in (False, True)]


def test_items_of_other_groups_are_found_while_one_is_lost(collection):
    with shard_servers(collection.path) as (_, whole):
        missing = set(whole.groups[2].shards)
        (rest, *_), (lost, *_) = halves(collection, missing)
        here, gone = int(rest.ids_N[0]), int(lost.ids_N[0])
        addresses = [group.replicas for group in whole.groups[:2]]
        with gateway_before(whole.with_replicas([*addresses, ()])) as http:
            assert http.get(f"/v1/items/{here}").json()["id"] == here
            assert error(http.get(f"/v1/items/{gone}"))[:2] == (503, "incomplete")
            body = {"queries": [{"id": here}], "k": 3, "rerank": {"pool": 20}, "include": ["attributes"]}
            document = http.post("/v1/search", json=body).raise_for_status().json()
    assert set(document["coverage"]["degraded"]) == missing
    assert document["results"][0]["hits"][0]["id"] == here


@pytest.mark.parametrize("include", [[], ["code", "attributes"]])
def test_a_partial_answer_comes_in_time(collection, include):
    body = {"queries": [{"code": CODE}], "k": 4, "timeout_ms": 3000, "include": include}
    with (
        shard_servers(collection.path, faults=True) as (servers, cluster_map),
        gateway_before(cluster_map) as http,
        ThreadPoolExecutor(4) as pool,
    ):
        servers[-1][0]._fault(delay_s=9.0)
        answers = list(pool.map(lambda _: http.post("/v1/search", json=body), range(4)))
        refused = http.post("/v1/search", json={**body, "allow_partial": False, "timeout_ms": 300})
    assert error(refused)[:2] == (504, "deadline_exceeded")
    missing = set(cluster_map.groups[-1].shards)
    rest, _ = halves(collection, missing)
    codes = np.concatenate([shard.codes_NW for shard in rest])
    ids = np.concatenate([shard.ids_N for shard in rest])
    query = np.frombuffer(bytes.fromhex(CODE), "<u8").astype(np.uint64).reshape(1, 1)
    distances, found = oracles.knn(query, codes, ids, 4)
    for answer in answers:
        document = answer.raise_for_status().json()
        assert set(document["coverage"]["degraded"]) == missing
        assert document["coverage"]["searched"] == len(ids)
        assert [(hit["distance"], hit["id"]) for hit in document["results"][0]["hits"]] == list(
            zip(distances[0].tolist(), found[0].tolist(), strict=True)
        )


def test_searches_with_equal_options_are_batched_and_each_gets_its_own_answer(collection, monkeypatch):
    monkeypatch.setattr("hashlight.engine.service.api.searching._PATIENCE_S", 60.0)
    metrics = Metrics()

    def requests_read():
        return metrics.registry.get_sample_value("hashlight_stage_seconds_count", {"stage": "read"})

    class Counting(CollectionSearcher):
        queries = ()

        def answer(self, queries, *args, **kwargs):
            Counting.queries += (len(queries),)  # each request asks a copy
            until_s = time.monotonic() + 60
            while requests_read() < 10 and time.monotonic() < until_s:
                time.sleep(0.001)
            return super().answer(queries, *args, **kwargs)

    codes = np.concatenate([shard.codes_NW for shard in collection.shards])
    ids = np.concatenate([shard.ids_N for shard in collection.shards])
    labels = np.array(collection.get(ids)["label"].to_pylist())
    kinds = [{"k": 3}, {"k": 5, "filter": "label == 1", "include": ["attributes", "code"]}]
    asked = [(kinds[number % 2], codes[number]) for number in range(48)]
    searcher = Counting(collection)
    with serving.running(create_app(searcher, metrics=metrics)) as url, ThreadPoolExecutor(16) as pool:

        def ask(options, code):
            body = {"queries": [{"code": code.tobytes().hex()}], **options}
            return httpx.post(f"{url}/v1/search", json=body, timeout=60).raise_for_status().json()

        documents = list(pool.map(lambda request: ask(*request), asked))
    for (options, code), document in zip(asked, documents, strict=True):
        (result,) = document["results"]
        kept = labels == 1 if "filter" in options else labels >= 0
        distances, found = oracles.knn(code[None], codes[kept], ids[kept], options["k"])
        assert [(hit["distance"], hit["id"]) for hit in result["hits"]] == list(
            zip(distances[0].tolist(), found[0].tolist(), strict=True)
        )
        for hit in result["hits"]:
            assert ("code" in hit) == ("include" in options)
            if "include" in options:
                assert hit["code"] == codes[ids == hit["id"]][0].tobytes().hex()
                assert hit["attributes"]["label"] == 1
        assert set(document["timing_ms"]) >= {"read", "wait", "search"}
    assert sum(searcher.queries) == len(asked)
    assert max(searcher.queries) >= 4
    assert metrics.registry.get_sample_value("hashlight_search_batch_requests_sum") == len(asked)


def test_images_of_several_requests_are_encoded_together(searcher):
    class Late(serving.AverageHash):
        """Encodes nothing before the images of all requests have arrived."""

        def __init__(self):
            super().__init__()
            self.decoded = threading.Semaphore(0)
            self.all_there = False

        def decode(self, *args):
            image = super().decode(*args)
            self.decoded.release()
            return image

        def encode(self, images):
            self.all_there = self.all_there or all(self.decoded.acquire(timeout=60) for _ in range(12))
            return super().encode(images)

    encoder, pictures = Late(), serving.make_pictures(12)
    with serving.running(create_app(searcher, encoder=encoder)) as url, ThreadPoolExecutor(12) as pool:
        bodies = [{"images": [b64(serving.png(picture))]} for picture in pictures]
        answers = list(pool.map(lambda body: httpx.post(f"{url}/v1/encode", json=body, timeout=60), bodies))
    plain = serving.AverageHash()
    expected = plain.encode([plain.decode(serving.png(picture), 10**6) for picture in pictures]).codes
    assert [answer.json()["codes"][0] for answer in answers] == [code.tobytes().hex() for code in expected]
    assert sum(encoder.batches) == 12
    assert 3 <= len(encoder.batches) < 12
    assert max(encoder.batches) <= encoder.batch_size


def test_only_the_given_host_names_are_accepted(searcher):
    app = create_app(searcher, allowed_hosts=("127.0.0.1", "[::1]"))
    with serving.running(app) as url:
        assert httpx.get(f"{url}/health/live").status_code == 200
        assert httpx.get(f"{url}/health/live", headers={"host": "evil.example.com"}).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/v1/search", 405, "/v1/search expects POST, got GET"),
        ("PUT", "/v1/collection", 405, "/v1/collection expects GET, got PUT"),
        ("GET", "/v1/v1/search", 404, "there is no /v1/v1/search; see /openapi.json"),
    ],
)
def test_errors_for_a_wrong_path_or_method_name_the_right_one(http, method, path, status, message):
    answer = http.request(method, path)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, message)
    assert ("allow" in answer.headers) == (status == 405)


def test_the_error_for_a_code_names_the_wrong_digit(http):
    answer = http.post("/v1/search", json={"queries": [{"code": CODE[:-1] + "z"}]})
    assert "of which 'z' is not a hex digit" in answer.json()["error"]["message"]


def test_a_form_accepts_one_file_named_image(http):
    other = http.post("/v1/search", files={"img": ("a", IMAGE)})
    assert "the file is `image`" in other.json()["error"]["message"]
    two = http.post("/v1/search", files=[("image", ("a", IMAGE)), ("image", ("b", IMAGE))])
    assert "Send several images as JSON, in base64" in two.json()["error"]["message"]


def test_codes_of_queries_of_any_kind(http, searcher, collection):
    encoder = serving.AverageHash()
    of_image = encoder.encode([encoder.decode(IMAGE, 10**6)]).codes[0].tobytes().hex()
    id_ = int(collection.shards[0].ids_N[3])
    of_item = collection.shards[0].codes_NW[3].tobytes().hex()
    queries = [{"id": id_}, {"image": b64(IMAGE)}, {"code": CODE}, {"id": id_}]
    answer = http.post("/v1/encode", json={"queries": queries}).json()
    assert answer["codes"] == [of_item, of_image, CODE, of_item]
    assert (answer["bits"], answer["fingerprint"]) == (60, "average-hash")
    with serving.running(create_app(searcher)) as url:  # without an encoder, codes and items have codes all the same
        assert httpx.post(f"{url}/v1/encode", json={"queries": queries[2:]}).json()["codes"] == [CODE, of_item]
        assert error(httpx.post(f"{url}/v1/encode", json={"queries": queries})) == (422, "no_encoder", "queries")


def test_the_files_of_the_page_are_named_by_their_content(searcher, tmp_path):
    (tmp_path / "index.html").write_text('<script src="a.js"></script><a href="https://example.com/a.js">')
    (tmp_path / "a.js").write_text("export const one = 1;")
    (tmp_path / "secret.py").write_text("no part of the page")

    def look():
        with serving.running(create_app(searcher, page=tmp_path)) as url:
            document = httpx.get(f"{url}/")
            [path] = re.findall(r'src="([0-9a-f]{16}/a\.js)"', document.text)
            assert 'href="https://example.com/a.js"' in document.text
            again = httpx.get(f"{url}/", headers={"If-None-Match": document.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            assert document.headers["cache-control"] == "no-cache"
            script = httpx.get(f"{url}/{path}")
            assert script.headers["cache-control"] == "public, max-age=31536000, immutable"
            # A page that was loaded before the server was renewed asks for a name that is gone.
            old = httpx.get(f"{url}/0123456789abcdef/a.js")
            assert (old.text, old.headers["cache-control"]) == (script.text, "no-cache")
            assert httpx.get(f"{url}/secret.py").status_code == 404
            assert httpx.get(f"{url}/{path[:17]}secret.py").status_code == 404
            return path, script.text

    first = look()
    (tmp_path / "a.js").write_text("export const one = 2;")
    second = look()
    assert first[0] != second[0]
    assert second[1] == "export const one = 2;"
