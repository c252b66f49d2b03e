"""Several collections in one server: each is asked by its name, and none is mistaken for another."""

from __future__ import annotations

import contextlib
import uuid

import httpx
import numpy as np
import pytest

from hashlight.engine.client.client import SearchClient
from hashlight.engine.client.errors import InvalidRequestError
from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.api.collections import Collections
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.door.keys import Keys
from tests import serving


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for number, name in enumerate(("cats", "dogs.2")):
        made[name] = tmp_path_factory.mktemp("several") / name
        codes = np.arange(10 + number, dtype=np.uint64)[:, None]
        Collection.create(made[name], codes, bits=16, ids=np.arange(len(codes)) + 100 * number)
        warm_up(Collection.open(made[name]))
    return made


def warm_up(collection):
    for number in (1, 8):
        collection.search(np.zeros((number, 1), np.uint64), 5)


@contextlib.contextmanager
def served(folders, keys=None):
    apps = {}
    for name, folder in folders.items():
        searcher = CollectionSearcher(folder)
        # Of its own, because the same collections are served once more.
        log = folder.parent / f"log-{uuid.uuid4().hex}"
        apps[name] = create_app(searcher, keys=keys, committer=serving.committer_of(folder, searcher, log=log))
    with serving.running(Collections(apps, keys or Keys())) as url:
        yield url


@pytest.fixture(scope="module")
def url(folders):
    with served(folders) as url:
        yield url


BODY = {"queries": [{"code": "0500"}], "k": 1}


def first(answer):
    return answer.json()["results"][0]["hits"][0]["id"]


def test_each_is_asked_by_its_name(url):
    assert first(httpx.post(f"{url}/v1/collections/cats/search", json=BODY)) == 5
    assert first(httpx.post(f"{url}/v1/collections/dogs.2/search", json=BODY)) == 105
    told = httpx.get(f"{url}/v1/collections").json()["collections"]
    assert [(one["name"], one["rows"]) for one in told] == [("cats", 10), ("dogs.2", 11)]
    assert httpx.get(f"{url}/v1/collections/dogs.2").json()["rows"] == 11
    assert httpx.get(f"{url}/v1/collections/cats/items/3").json()["id"] == 3
    assert httpx.get(f"{url}/collections/dogs.2/").headers["content-type"].startswith("text/html")
    assert "hashlight_served_version" in httpx.get(f"{url}/collections/cats/metrics").text
    ready = httpx.get(f"{url}/health/ready").json()
    assert {name: one["status"] for name, one in ready["collections"].items()} == {"cats": "ready", "dogs.2": "ready"}
    assert httpx.get(f"{url}/health/live").json() == {"status": "live"}


def test_clients_ask_one_and_write_to_one(url, folders):
    for number, name in enumerate(folders):
        with SearchClient(url, collection=name) as client:
            assert client.search(np.array([5], np.uint64), 1)[0].ids.tolist() == [100 * number + 5]
            assert client.upsert(np.array([[9]], np.uint64), ids=[50 + number], visible=True) == 2
            assert [item.id for page in client.scan() for item in page] == sorted(
                [*(np.arange(10 + number) + 100 * number).tolist(), 50 + number]
            )
            assert client.delete([50 + number], visible=True) == 3
            client.ready()
    with SearchClient(url) as client, pytest.raises(InvalidRequestError, match=r"cats, dogs\.2") as caught:
        client.describe()
    assert (caught.value.status, caught.value.type) == (409, "several_collections")


def test_paths_that_name_none(url):
    for method, path in (("POST", "/v1/search"), ("GET", "/v1/collection"), ("GET", "/"), ("GET", "/metrics")):
        answer = httpx.request(method, f"{url}{path}")
        assert (answer.status_code, answer.json()["error"]["collections"]) == (409, ["cats", "dogs.2"])
        assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/v1/collections/birds/search", "/v1/collections/../x/items", "/v1/collections/cats/none"):
        answer = httpx.get(f"{url}{path}")
        assert answer.status_code in (404, 405, 409), path
    assert "there are: cats, dogs.2" in httpx.get(f"{url}/v1/collections/birds/search").text
    assert httpx.delete(f"{url}/v1/collections").status_code == 405
    assert httpx.get(f"{url}/health/none").status_code == 404


def test_keys_are_asked_for_every_path(folders):
    lines = "page search searching-is-all-0001\nload write writing-only-000003"
    page, load = ({"x-api-key": key} for key in ("searching-is-all-0001", "writing-only-000003"))
    with served(folders, Keys.load(None, {"HASHLIGHT_API_KEYS": lines})) as url:
        for path in (
            "/v1/collections",
            "/v1/collections/cats",
            "/v1/collections/x",
            "/v1/collections/cats/items",
            "/v1/x",
        ):
            assert httpx.get(f"{url}{path}").status_code == 401, path
            assert httpx.get(f"{url}{path}", headers=load).status_code == 403, path
        for path in ("/v1/collections", "/v1/collections/cats", "/v1/collections/cats/items"):
            assert httpx.get(f"{url}{path}", headers=page).status_code == 200, path
        for start in ("/v1/collections/cats/items", "/collections/cats/v1/items"):
            body = {"ids": [1]}
            assert httpx.request("DELETE", f"{url}{start}", json=body, headers=page).status_code == 403
            assert httpx.request("DELETE", f"{url}{start}", json=body, headers=load).status_code == 200
        assert httpx.get(f"{url}/collections/cats/metrics", headers=page).status_code == 403
        assert httpx.get(f"{url}/health/ready").status_code == 200


def test_one_alone_is_asked_with_and_without_its_name(folders):
    with served({"cats": folders["cats"]}) as url:
        for path in ("/v1/search", "/v1/collections/cats/search"):
            assert first(httpx.post(f"{url}{path}", json=BODY)) == 5
        assert [one["name"] for one in httpx.get(f"{url}/v1/collections").json()["collections"]] == ["cats"]
        assert httpx.get(f"{url}/v1/collections/dogs/items").status_code == 404
        assert httpx.get(f"{url}/health/ready").json()["version"] > 0


def test_the_document_has_the_paths_of_each(url):
    document = httpx.get(f"{url}/openapi.json").json()
    plain = {path for path in document["paths"] if path.startswith("/v1/") and "collections" not in path}
    named = {path.replace("/v1/", "/v1/collections/{name}/") for path in plain - {"/v1/collection"}}
    assert set(document["paths"]) >= named | {"/v1/collections", "/v1/collections/{name}"}
    ids = [operation["operationId"] for one in document["paths"].values() for operation in one.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", ["", "a/b", ".a", "a" * 65, "é"])
def test_names_that_are_none_are_refused(name, folders):
    with pytest.raises(ValueError, match="a collection's name has up to 64"):
        Collections({name: create_app(CollectionSearcher(folders["cats"]))}, Keys())
