"""What operators see and do under `/v1/admin`: versions and rollback, servers, slow queries, rejected images."""

from __future__ import annotations

import contextlib

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.api.collections import Collections
from hashlight.engine.service.asking.beside import Beside
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.door.http_server import Address, HttpServer
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.routing.router import ClusterRouter
from tests import serving
from tests.engine.service.conftest import eventually
from tests.engine.service.conftest import serving as shard_servers

CODES = np.arange(40, dtype=np.uint64)[:, None]


@pytest.fixture
def folder(tmp_path):
    """Nine versions, each made by another kind of write."""
    folder = tmp_path / "c"
    collection = Collection.create(folder, CODES, bits=16, attributes={"label": np.arange(40) % 3})
    collection = collection.add(CODES[:5], ids=np.arange(100, 105), attributes={"label": [7] * 5})
    collection = collection.delete([0, 1, 102])
    collection = collection.tag("clean")
    collection = collection.set_column("price", [0.5, 1.5], ids=[7, 8])
    collection = collection.upsert(CODES[:2], ids=np.array([5, 6]), attributes={"label": [1, 2], "price": [0.5, 1.5]})
    collection = collection.compact(full=True)
    collection.rollback(2)
    return folder


@contextlib.contextmanager
def asking(app, **headers):
    with serving.running(app) as url, httpx.Client(base_url=url, timeout=60, headers=headers) as http:
        yield http


def app_of(folder, **more):
    beside = Beside(collection=str(folder), **more)
    return create_app(CollectionSearcher(folder), beside=beside)


@contextlib.contextmanager
def writing(folder, **gathering):
    searcher = CollectionSearcher(folder)
    committer = serving.committer_of(folder, searcher, **gathering)
    with asking(create_app(searcher, committer=committer, beside=Beside(collection=str(folder)))) as http:
        yield http


def test_each_version_says_what_made_it(folder):
    with asking(app_of(folder)) as http:
        versions = http.get("/v1/admin/versions").json()["versions"]
    told = {one["version"]: (one["operation"], one["items"], one["items_before"], one["tags"]) for one in versions}
    assert [one["version"] for one in versions] == sorted(told, reverse=True)
    assert told == {
        1: ("created", 40, None, []),
        2: ("added", 45, 40, []),
        3: ("deleted", 42, 45, ["clean"]),
        4: ("relabelled", 42, 42, []),
        5: ("column_set", 42, 42, []),
        6: ("changed", 42, 42, []),
        7: ("compacted", 42, 42, []),
        8: ("rolled_back", 45, 42, []),
    }
    assert [one["live"] for one in versions] == [True] + 7 * [False]
    assert all(one["written"] and one["shards"] and one["bytes"] for one in versions)


@pytest.mark.parametrize("version", [1, "clean"])
def test_a_rollback_is_a_new_version(folder, version):
    with writing(folder) as http:
        answer = http.post("/v1/admin/rollback", json={"version": version})
        assert (answer.status_code, answer.json()) == (200, {"version": 9})
        assert http.get("/v1/admin/versions").json()["versions"][0]["operation"] == "rolled_back"
    assert len(Collection.open(folder)) == {1: 40, "clean": 42}[version]


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        ({"version": 77}, {}, 404, "has no version 77"),
        ({"version": "dirty"}, {}, 404, "no version tagged 'dirty'"),
        ({"version": None}, {}, 422, "version"),
        ({}, {}, 422, "missing"),
        ({"version": 1}, {"Origin": "https://elsewhere.example"}, 403, "another site may not write"),
    ],
)
def test_a_rollback_that_makes_no_sense_changes_nothing(folder, body, headers, status, message):
    with writing(folder) as http:
        answer = http.post("/v1/admin/rollback", json=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert message in answer.json()["error"]["message"]
    assert Collection.open(folder).version == 8


def test_a_server_that_only_reads_does_not_roll_back(folder):
    with asking(app_of(folder)) as http:
        answer = http.post("/v1/admin/rollback", json={"version": 1})
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "read_only")
    assert Collection.open(folder).version == 8


def test_writes_in_the_log_are_not_made_on_top_of_an_earlier_version(folder):
    with writing(folder, age_s=600.0) as http:
        item = {"id": 900, "code": "0100", "attributes": {"label": 1}}
        assert http.post("/v1/items", json={"items": [item]}).json()["version"] is None
        assert http.get("/v1/admin/collection").json()["write_log"]["writes"] == 1
        answer = http.post("/v1/admin/rollback", json={"version": 1})
        assert (answer.status_code, answer.json()["error"]["type"]) == (409, "conflict")
        assert "1 writes are in the server's log" in answer.json()["error"]["message"]
        assert http.get("/v1/admin/versions").json()["versions"][0]["version"] == 8


def test_the_collection_is_described_as_it_is_served(folder):
    with asking(app_of(folder)) as http:
        told = http.get("/v1/admin/collection").json()
        assert http.get("/v1/admin/servers").json() == {"servers": [], "version": 8}
    assert (told["version"], told["items"], told["bits"], told["location"]) == (8, 45, 16, str(folder))
    assert (told["coverage"]["complete"], told["coverage"]["searched"]) == (True, 45)
    assert (told["pending"], told["write_log"]) == (None, None)


def test_servers_are_told_with_what_they_have_and_how_they_are(collection):
    with (
        shard_servers(collection.path, groups=2) as (servers, cluster),
        contextlib.closing(ClusterRouter(cluster)) as router,
    ):
        known = [
            {"address": servers[0][0].address, "group": 1, "versions": [1], "fault": None},
            {"address": servers[1][0].address, "group": 2, "versions": [1], "fault": None},
            {"address": "grpc://127.0.0.1:9", "group": 2, "versions": [], "fault": "does not say what it has: nobody"},
        ]
        with asking(create_app(router, beside=Beside(servers=lambda: known))) as http:
            told = http.get("/v1/admin/servers").json()
            assert [(one["group"], one["versions"], one["state"]) for one in told["servers"]] == [
                (1, [1], "connected"), (2, [1], "connected"), (2, [], "not served")
            ]  # fmt: skip
            assert [one["fault"] for one in told["servers"]] == [None, None, "does not say what it has: nobody"]
            first, second, never = told["servers"]
            assert first["last_answer_s"] < 60
            assert (never["last_answer_s"], never["breaker_s"]) == (None, 0)
            assert http.get("/v1/admin/versions").status_code == 404
            assert http.get("/v1/admin/collection").json()["coverage"]["complete"]
            servers[1][0].drain()
            eventually(lambda: http.get("/v1/admin/servers").json()["servers"][1]["state"] == "leaving")
            assert second["address"] in http.get("/v1/admin/servers").json()["servers"][1]["fault"]


def test_the_last_slow_queries_are_kept_with_how_they_were_answered(collection, monkeypatch):
    app = create_app(CollectionSearcher(collection))
    with (
        serving.run_server(HttpServer(app, Address(port=0), slow_query_s=0.0)) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        id_ = int(collection.shards[0].ids_N[0])
        for k in (3, 4):
            answer = http.post("/v1/search", json={"queries": [{"id": id_}], "k": k, "filter": "label == 3"})
            assert answer.status_code == 200
        http.get("/v1/collection")
        told = http.get("/v1/admin/slow_queries").json()
    assert told["threshold_s"] == 0.0
    assert [one["k"] for one in told["queries"]] == [4, 3], "the latest first, and queries only"
    first = told["queries"][0]
    assert (first["path"], first["status"], first["filter"]) == ("/v1/search", 200, "label == 3")
    assert first["ms"] > 0
    assert first["explain"][0]["plan"]
    assert first["request_id"] == answer.headers["x-request-id"]


def test_without_a_threshold_no_query_is_slow(folder):
    with asking(app_of(folder)) as http:
        http.post("/v1/count", json={})
        assert http.get("/v1/admin/slow_queries").json() == {"threshold_s": None, "queries": []}


REJECTS = pa.schema({"id": pa.int64(), "uri": pa.string(), "kind": pa.string(), "reason": pa.string()})


@pytest.fixture
def codes(tmp_path):
    """What an encode job leaves of images that it could not encode."""
    (tmp_path / "ok.png").write_bytes(serving.png(serving.make_pictures(1)[0]))
    (tmp_path / "no.txt").write_bytes(b"not a picture")
    names = ["ok.png", "no.txt", "gone.png", None, "ok.png"]
    rows = {
        "id": [2**62 + number for number in range(5)],
        "uri": [None if name is None else str(tmp_path / name) for name in names],
        "kind": ["decode", "decode", "read", "read", "decode"],
        "reason": [f"reason {number}" for number in range(5)],
    }
    (tmp_path / "codes").mkdir()
    pq.write_table(pa.table(rows, schema=REJECTS), tmp_path / "codes" / "rejects.parquet", row_group_size=2)
    return tmp_path / "codes"


def test_rejects_are_read_page_by_page_with_their_pictures(folder, codes, tmp_path):
    with asking(app_of(folder, codes=str(codes))) as http:
        for limit in (1, 3, 100):
            pages, after = [], 0
            while after is not None:
                pages.append(http.get("/v1/admin/rejects", params={"after": after, "limit": limit}).json())
                after = pages[-1]["next"]
            rows = [row for page in pages for row in page["rejects"]]
            assert len(pages) == -(-5 // limit)
            assert [(row["number"], row["id"], row["reason"]) for row in rows] == [
                (number, 2**62 + number, f"reason {number}") for number in range(5)
            ]
            assert {str(page["kinds"]) for page in pages} == {"{'decode': 3, 'read': 2}"}
        assert rows[0]["uri"] == str(tmp_path / "ok.png")
        picture = http.get("/v1/admin/rejects/4/picture")
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/png")
        assert picture.content == (tmp_path / "ok.png").read_bytes()
        for number in (1, 2, 3, 5, 2**62):
            answer = http.get(f"/v1/admin/rejects/{number}/picture")
            assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found"), number


def test_a_folder_without_rejects_is_named(folder, tmp_path):
    with asking(app_of(folder)) as http:
        answer = http.get("/v1/admin/rejects")
        assert answer.status_code == 404
        assert "`--rejects CODES`" in answer.json()["error"]["message"]
    with asking(app_of(folder, codes=str(tmp_path / "nowhere"))) as http:
        answer = http.get("/v1/admin/rejects")
        assert answer.status_code == 503
        assert "has no rejects.parquet" in answer.json()["error"]["message"]
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "rejects.parquet").write_bytes(b"PAR1 and no more")
    with asking(app_of(folder, codes=str(tmp_path / "odd"))) as http:
        answer = http.get("/v1/admin/rejects")
        assert answer.status_code == 503
        assert "cannot be read as rejects" in answer.json()["error"]["message"]


PATHS = ("collection", "versions", "servers", "slow_queries", "rejects", "rejects/1/picture", "collections", "nothing")


def test_nothing_is_told_without_a_key_for_it(folder):
    environment = {"HASHLIGHT_API_KEYS": f"reader search,metrics,write {'r' * 32}\noperator admin {'a' * 32}"}
    keys = Keys.load(None, environment)
    searcher = CollectionSearcher(folder)
    app = create_app(searcher, keys=keys, beside=Beside(collection=str(folder)))
    with asking(Collections({"c": app}, keys)) as http:
        for key, status, kind in ((None, 401, "unauthenticated"), ("r" * 32, 403, "forbidden")):
            headers = {} if key is None else {"X-API-Key": key}
            for name in PATHS:
                for path in (f"/v1/admin/{name}", f"/v1/collections/c/admin/{name}"):
                    answer = http.get(path, headers=headers)
                    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind), path
            answer = http.post("/v1/admin/rollback", json={"version": 1}, headers=headers)
            assert answer.status_code == status
        told = http.get("/v1/admin/collections", headers={"X-API-Key": "a" * 32}).json()
        assert [(one["name"], one["version"]) for one in told["collections"]] == [("c", 8)]
        assert http.get("/v1/collections/c/admin/versions", headers={"X-API-Key": "a" * 32}).status_code == 200


def test_several_collections_are_listed(folder, collection):
    apps = {"one": app_of(folder), "two": create_app(CollectionSearcher(collection))}
    with asking(Collections(apps, Keys())) as http:
        told = http.get("/v1/admin/collections").json()["collections"]
        assert [(one["name"], one["items"], one["location"]) for one in told] == [
            ("one", 45, str(folder)), ("two", 500, None)
        ]  # fmt: skip
        assert http.get("/v1/collections/one/admin/versions").json()["versions"][0]["version"] == 8
        assert http.get("/v1/admin/versions").status_code == 409
