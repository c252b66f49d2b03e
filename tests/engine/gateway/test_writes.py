"""Writes over HTTP and in process, against a plain dict."""

from __future__ import annotations

import base64
import contextlib
import datetime
import decimal
import json
import threading

import httpx
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
import schemathesis

from hashlight.engine.client.client import SearchClient
from hashlight.engine.client.errors import IdExistsError, IdNotFoundError, PermissionDeniedError
from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.api.values import column_of
from hashlight.engine.service.asking.rendering import items_documents, json_bytes
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.door.http_server import Address
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.problems import RequestError
from hashlight.engine.writing.committing import Committer
from hashlight.engine.writing.direct import Direct
from hashlight.engine.writing.opened import Opened
from hashlight.engine.writing.writes import Delete, Put, folded
from hashlight.pipelines.serving.cluster import serve_cluster, shard_servers
from tests import oracles, serving
from tests.engine.gateway.test_openapi import CHECKS

ROWS, FEATURES = 40, 60
IMAGES = [serving.png(picture) for picture in serving.make_pictures(8)]


class Oracle(dict):
    """What is stored: id -> (code, attributes, thumbnail)."""

    def put(self, ids, codes, attributes, thumbnails):
        for number, id_ in enumerate(ids):
            row = {name: attributes[name][number] if name in attributes else None for name in ("label", "name")}
            self[id_] = (int(codes[number, 0]), row, thumbnails[number])

    def where(self, text):
        conditions = {
            "label == 3": lambda id_, row: row["label"] == 3,
            "name is null": lambda id_, row: row["name"] is None,
            "id < 20 and label != 1": lambda id_, row: id_ < 20 and row["label"] not in (1, None),
        }
        return [id_ for id_, (_, row, _) in self.items() if conditions[text](id_, row)]


WHERE = ("label == 3", "name is null", "id < 20 and label != 1")


@pytest.fixture
def oracle():
    return Oracle()


@pytest.fixture
def folder(tmp_path, oracle):
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 2**10, size=(ROWS, 1)).astype(np.uint64)
    attributes = {"label": (np.arange(ROWS) % 5).tolist(), "name": [f"{number}.png" for number in range(ROWS)]}
    features = np.zeros((ROWS, FEATURES), np.float16)
    Collection.create(
        tmp_path / "c", codes, bits=serving.BITS, attributes=attributes, features=features, shards=2,
        fingerprint=serving.AverageHash.fingerprint,
    )  # fmt: skip
    oracle.put(range(ROWS), codes, attributes, [None] * ROWS)
    serving.warm_up(Collection.open(tmp_path / "c"))
    return tmp_path / "c"


@contextlib.contextmanager
def writable(folder, *, gather_s=0.0, **more):
    """Serve a collection that can be written."""
    searcher = CollectionSearcher(folder)
    committer = serving.committer_of(folder, searcher, gather_s=gather_s)
    app = create_app(searcher, encoder=serving.AverageHash(), committer=committer, **more)
    with serving.running(app) as url:
        yield url


@pytest.fixture
def url(folder):
    with writable(folder, limits=Limits(timeout_s=60)) as url:
        yield url


@pytest.fixture(params=["http", "direct"])
def client(request, folder):
    with contextlib.ExitStack() as stack:
        if request.param == "http":
            target, more = stack.enter_context(writable(folder)), {}
        else:
            target, more = folder, {"encoder": serving.AverageHash()}
        yield stack.enter_context(SearchClient(target, timeout_s=60, **more))


def check(client, oracle):
    """Compare everything that can be asked with the oracle."""
    items = [item for page in client.scan(limit=17) for item in page]
    assert [(item.id, int(item.code[0]), item.attributes) for item in items] == [
        (id_, oracle[id_][0], oracle[id_][1]) for id_ in sorted(oracle)
    ]
    assert client.count() == len(oracle)
    assert client.count("label == 3") == len(oracle.where("label == 3"))
    ids = np.array(sorted(oracle), np.int64)
    codes = np.array([oracle[id_][0] for id_ in ids.tolist()], np.uint64).reshape(-1, 1)
    (hits,) = client.search(np.array([5], np.uint64), 10)
    assert hits.ids.tolist() == oracles.knn(np.array([[5]], np.uint64), codes, ids, min(10, len(ids)))[1][0].tolist()
    asked = np.array([[5]], np.uint64)
    counts, _ = oracles.distance_histograms(asked, codes, np.zeros((1, len(ids)), bool), 60)
    assert client.histogram(asked).tolist() == counts.tolist()
    for id_ in ids[:3].tolist():
        assert client.thumbnail(id_) == oracle[id_][2]


def encoded(images):
    encoder = serving.AverageHash()
    return encoder.encode([encoder.decode(image, 10**6) for image in images])


def test_any_writes_do_what_they_do_to_a_dict(client, oracle):
    rng, in_process = np.random.default_rng(9), "writable" not in client.describe()
    for step in range(24):
        ids = rng.choice(60, size=rng.integers(1, 5), replace=False)
        count = len(ids)
        attributes = {"label": rng.integers(5, size=count).tolist(), "name": [f"n{step}"] * count}
        if step % 4 == 1:
            del attributes["name"]
        thumbnails = [b"\x89PNG" + bytes([step])] * count if step % 3 == 0 else [None] * count
        kind = step % 6
        before, refused, visible = client.describe()["version"], False, step % 5 == 2
        if kind in (0, 1):
            codes = rng.integers(0, 2**10, size=(count, 1)).astype(np.uint64)
            more = {"features": np.ones((count, FEATURES), np.float16), "thumbnails": thumbnails}
            more["visible"] = visible
            if step % 2 == 0:
                version = client.upsert(codes, ids=ids, attributes=attributes, **more)
            elif oracle.keys() & set(ids.tolist()):
                with pytest.raises(IdExistsError, match=r"in .* already"):
                    client.add(codes, ids=ids, attributes=attributes, **more)
                refused = True
            else:
                version = client.add(codes, ids=ids, attributes=attributes, **more)
            if not refused:
                oracle.put(ids.tolist(), codes, attributes, thumbnails)
        elif kind == 2:
            images = [IMAGES[number % len(IMAGES)] for number in range(count)]
            version = client.upsert(images, ids=ids, attributes=attributes, thumbnails=thumbnails, visible=visible)
            oracle.put(ids.tolist(), encoded(images).codes, attributes, thumbnails)
        elif kind == 3:
            version = client.delete(ids, visible=visible)
            refused = not oracle.keys() & set(ids.tolist())
            for id_ in ids.tolist():
                oracle.pop(id_, None)
        elif kind == 4:
            there = ids[[id_ in oracle for id_ in ids.tolist()]]
            if len(there) < count:
                with pytest.raises(IdNotFoundError, match="not found"):
                    client.update(ids, attributes)
                refused = True
            else:
                version = client.update(ids, attributes, visible=visible)
                for number, id_ in enumerate(ids.tolist()):
                    oracle[id_][1].update({name: column[number] for name, column in attributes.items()})
        else:
            text = WHERE[step % 3]
            gone = oracle.where(text)
            version = client.delete_where(text, visible=visible)
            for id_ in gone:
                del oracle[id_]
            refused = not gone
        if not refused and (visible or in_process):
            assert version > before
            assert client.describe()["version"] == version
        check(client, oracle)


def item(id_, code="0000000000000001", **more):
    return {"id": id_, "code": code, "features": [0.0] * FEATURES, **more}


def error(answer):
    told = answer.json()["error"]
    return answer.status_code, told["type"], told["field"]


def test_bodies_of_each_kind(url, folder, oracle):
    with httpx.Client(base_url=url, timeout=60) as http, SearchClient(url) as client:
        image = base64.b64encode(IMAGES[0]).decode()
        body = {
            "items": [
                {"id": 100, "image": image, "attributes": {"label": 3}, "thumbnail": image},
                item(101, attributes={"name": None}),
            ]
        }
        assert http.post("/v1/items", json=body, params={"wait": "visible"}).json() == {"version": 2, "sequence": 1}
        oracle.put([100], encoded(IMAGES[:1]).codes, {"label": [3]}, [IMAGES[0]])
        oracle.put([101], np.array([[2**56]], np.uint64), {}, [None])
        form = {"data": {"id": "102", "attributes": '{"name": "new", "label": 1}'}, "files": {"image": IMAGES[1]}}
        assert http.post("/v1/items", **form).json() == {"version": None, "sequence": 2}
        oracle.put([102], encoded(IMAGES[1:2]).codes, {"label": [1], "name": ["new"]}, [None])
        patch = {"items": [{"id": 102, "attributes": {"name": "x"}}, {"id": 3, "attributes": {"label": None}}]}
        assert http.patch("/v1/items", json=patch).json() == {"version": None, "sequence": 3}
        oracle[102][1]["name"], oracle[3][1]["label"] = "x", None
        ids = {"ids": [5, 7000, 5]}
        deleted = {"version": None, "sequence": 4, "deleted": 1, "not_found": 1}
        assert http.request("DELETE", "/v1/items", json=ids).json() == deleted
        del oracle[5]
        lists = {"filter": "id in :some", "parameters": {"some": [6, 7]}}
        assert http.request("DELETE", "/v1/items", json=lists).json() == {
            "version": None, "sequence": 5, "deleted": 2
        }  # fmt: skip
        del oracle[6], oracle[7]
        check(client, oracle)
        client.delete([6], visible=True)
        assert np.allclose(Collection.open(folder).features_of(np.array([100]))[0], encoded(IMAGES[:1]).features[0])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"items": []}, (422, "invalid_request", "items")),
        ({"items": [item(1), item(1)]}, (422, "invalid_request", "id")),
        ({"items": [item(-1)]}, (422, "invalid_request", "items.0.id")),
        ({"items": [item(1), item(2, code="zz")]}, (422, "invalid_request", "items.1.code")),
        ({"items": [item(1, code="f" * 16)]}, (422, "invalid_request", "items.0.code")),
        ({"items": [{"id": 1}]}, (422, "invalid_request", "items.0")),
        ({"items": [item(1, image="aa")]}, (422, "invalid_request", "items.0")),
        ({"items": [{"id": 1, "image": "aGFsbG8="}]}, (422, "invalid_request", "items.0.image")),
        ({"items": [item(1, text="a cat")]}, (422, "invalid_request", "items.0.text")),
        ({"items": [item(1, attributes={"colour": 1})]}, (422, "invalid_request", "items.0.attributes.colour")),
        (
            {"items": [item(1, attributes={"label": 1}), item(2, attributes={"label": "1"})]},
            (422, "invalid_request", "items.1.attributes.label"),
        ),
        ({"items": [item(1, attributes={"label": 2**63})]}, (422, "invalid_request", "items.0.attributes.label")),
        ({"items": [item(1) | {"features": [0.0]}]}, (422, "invalid_request", "items.0.features")),
        ({"items": [{"id": 1, "code": "0" * 16}]}, (422, "invalid_request", "items.0.features")),
        ({"items": [item(1) | {"features": [1e9] * FEATURES}]}, (422, "invalid_request", "items.0.features")),
    ],
)
def test_items_that_do_not_fit_are_refused_and_nothing_is_written(url, oracle, body, expected):
    assert error(httpx.post(f"{url}/v1/items", json=body)) == expected
    with SearchClient(url) as client:
        assert client.describe()["version"] == 1
        check(client, oracle)


def test_other_writes_that_are_refused(url):
    with httpx.Client(base_url=url, timeout=60) as http:
        refuse = {"on_conflict": "refuse"}
        assert error(http.post("/v1/items", json={"items": [item(3)]}, params=refuse)) == (409, "id_exists", None)
        assert error(http.post("/v1/items", json={"items": [item(3)]}, params={"on_conflict": "x"}))[2] == "on_conflict"
        assert error(http.post("/v1/items", json={"items": [item(3)]}, params={"colour": "x"}))[2] == "colour"
        absent = {"items": [{"id": 999, "attributes": {"label": 1}}]}
        assert error(http.patch("/v1/items", json=absent)) == (404, "id_not_found", None)
        for body in (
            {}, {"ids": [1], "filter": "label == 3"}, {"ids": [1], "parameters": {"a": [1]}}, {"ids": [1], "text": "a"}
        ):  # fmt: skip
            assert error(http.request("DELETE", "/v1/items", json=body))[:2] == (422, "invalid_request")
        assert error(http.request("DELETE", "/v1/items", json={"filter": "colour == 3"}))[:2] == (
            422,
            "invalid_request",
        )
        for elsewhere in ("https://example.com", "null", "http://[", ""):
            answer = http.post("/v1/items", json={"items": [item(3)]}, headers={"origin": elsewhere})
            assert error(answer) == (403, "forbidden", "origin")
        here = {"origin": url}
        assert http.post("/v1/items", json={"items": [item(3)]}, headers=here).json() == {
            "version": None,
            "sequence": 1,
        }


def test_only_servers_that_are_told_to_write_do_and_only_keys_with_the_scope(folder):
    body = {"items": [item(3)]}
    with serving.running(create_app(CollectionSearcher(folder))) as url:
        assert error(httpx.post(f"{url}/v1/items", json=body)) == (403, "read_only", None)
        assert httpx.get(f"{url}/v1/collection").json()["writable"] is False
        with SearchClient(url) as client, pytest.raises(PermissionDeniedError, match="--writable"):
            client.delete([3])
    keys = Keys.load(None, {"HASHLIGHT_API_KEYS": "page search searching-is-all-0001\nload write writing-only-000003"})
    with writable(folder, keys=keys) as url:
        page, load = ({"x-api-key": key} for key in ("searching-is-all-0001", "writing-only-000003"))
        for method in ("POST", "PATCH", "DELETE", "PUT"):
            assert error(httpx.request(method, f"{url}/v1/items", json=body, headers=page))[:2] == (403, "forbidden")
        assert error(httpx.post(f"{url}/v1/items", json=body))[0] == 401
        assert httpx.post(f"{url}/v1/items", json=body, headers=load).json() == {"version": None, "sequence": 1}
        assert error(httpx.get(f"{url}/v1/items", headers=load))[:2] == (403, "forbidden")
        assert len(httpx.get(f"{url}/v1/items", headers=page).json()["items"]) == ROWS


def test_many_writers_lose_nothing(folder, oracle):
    answers = []

    def write(number):
        with SearchClient(url, timeout_s=60) as client:
            for step in range(4):
                ids = np.array([1000 + 10 * number + step, 2000 + step])  # of its own, and of all
                codes = np.array([[number], [7]], np.uint64)
                visible = step % 2 == 0
                version = client.upsert(codes, ids=ids, features=np.zeros((2, FEATURES), np.float16), visible=visible)
                answers.append((int(ids[0]), number, version))
                assert [one.id for one in client.get(ids.tolist())] == ids.tolist()  # at once

    with writable(folder, gather_s=0.02) as url:
        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for id_, number, _ in answers:
            oracle.put([id_], np.array([[number]]), {}, [None])
        for step in range(4):
            oracle.put([2000 + step], np.array([[7]]), {}, [None])
        assert len(answers) == 24
        with SearchClient(url) as client:
            check(client, oracle)
    found = Collection.open(folder)  # the server has ended, and committed all
    assert {id_ for id_ in oracle} == set(found.scan([]).read_all()["id"].to_pylist())
    for id_, number, version in answers:
        if version is None:
            continue
        with_it = Collection.open(folder, version=version)
        without = Collection.open(folder, version=version - 1)
        assert int.from_bytes(with_it.get([id_])["code"][0].as_py(), "little") == number
        assert without.count(f"id == {id_}") == 0


def test_one_that_is_refused_does_not_concern_the_others_of_its_commit(folder):
    committer = Committer(Direct(folder, Opened(folder)), gather_s=0.3)
    features = np.zeros((1, FEATURES), np.float16)

    def put(id_, replaces=True):
        return Put(np.array([[1]], np.uint64), np.array([id_]), None, features, replaces=replaces)

    with contextlib.closing(committer):
        late = committer.submit(put(77), deadline_s=0.0)
        futures = [committer.submit(put(*one), deadline_s=1e12) for one in ((70,), (3, False), (71,), (72, False))]
    assert [future.exception() is None for future in futures] == [True, False, True, True]
    assert isinstance(futures[1].exception(), IdExistsError)
    assert isinstance(late.exception(), TimeoutError)
    found = Collection.open(folder)
    assert found.count("id >= 70") == 3
    assert found.get([3])["label"].to_pylist() == [3]


IDS = st.lists(st.integers(0, 6), min_size=1, max_size=4, unique=True)


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(st.lists(st.tuples(st.sampled_from(["put", "delete", "refuse"]), IDS), max_size=8))
def test_folded_writes_do_the_same(writes):
    class Live:
        schema, bits, features = pa.schema([("label", pa.int64()), ("name", pa.string())]), 64, None

    made = []
    for number, (kind, ids) in enumerate(writes):
        ids_N = np.array(ids)
        table = pa.table({"label": pa.array([number] * len(ids))}) if number % 2 else None
        codes = np.full((len(ids), 1), number, np.uint64)
        made.append(Delete(ids_N) if kind == "delete" else Put(codes, ids_N, table, replaces=kind == "put"))

    def outcome(writes):
        """What becomes of a dict; a put that must not replace is only written down, with what is there then."""
        there, refusing = {}, []
        for write in writes:
            if isinstance(write, Put) and not write.replaces:
                refusing.append((write.ids.tolist(), dict(there)))
            for number, id_ in enumerate(write.ids.tolist()):
                if isinstance(write, Delete):
                    there.pop(id_, None)
                else:
                    label = None if write.attributes is None else write.attributes["label"][number].as_py()
                    there[id_] = (int(write.codes[number, 0]), label)
        return there, refusing

    short = folded(made, Live)
    assert outcome(short) == outcome(made)
    assert len(short) <= len(made)


KINDS = {
    "b": (pa.bool_(), [True, None, False]),
    "i": (pa.int8(), [-128, 127, None]),
    "u": (pa.uint64(), [2**64 - 1, 0, None]),
    "f": (pa.float32(), [0.5, None, -1.0]),
    "s": (pa.large_string(), ["", None, "é\n" * 9000]),
    "x": (pa.binary(3), [b"\0\1\2", None, b"abc"]),
    "d": (pa.decimal128(20, 2), [decimal.Decimal("-1.10"), None, decimal.Decimal("99999999999999999.99")]),
    "day": (pa.date32(), [datetime.date(2024, 2, 29), None, datetime.date(1, 1, 1)]),
    "t": (pa.timestamp("us"), [datetime.datetime(2024, 1, 31, 8, 30, 0, 250), None, datetime.datetime(1960, 1, 1)]),
    "z": (pa.timestamp("ms", "UTC"), [datetime.datetime(2024, 1, 31, 8, tzinfo=datetime.UTC), None, None]),
    "clock": (pa.time64("us"), [datetime.time(8, 30, 0, 5), None, datetime.time(0)]),
    "took": (pa.duration("us"), [datetime.timedelta(days=-1, seconds=3), None, datetime.timedelta(0)]),
    "l": (pa.list_(pa.int64()), [[1, None], [], None]),
    "k": (pa.list_(pa.date32(), 2), [[datetime.date(2024, 1, 1), None], None, [None, None]]),
    "o": (pa.struct([("a", pa.int64()), ("b", pa.string())]), [{"a": 1, "b": None}, None, {"a": None, "b": "x"}]),
    "m": (pa.map_(pa.string(), pa.int64()), [[("a", 1)], [], None]),
}


@pytest.mark.parametrize("name", KINDS)
def test_values_of_every_type_are_read_as_they_are_shown(name):
    kind, values = KINDS[name]
    column = pa.array(values, kind)
    items = pa.table({"id": [1, 2, 3], "code": [b"1", b"2", b"3"], "a": column})
    shown = [row["attributes"]["a"] for row in json.loads(json_bytes(items_documents(items)))]
    assert column_of(shown, kind, ["a"] * 3).equals(column)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.int8(), 128), (pa.int64(), 1.5), (pa.int64(), True), (pa.int64(), "1"), (pa.float64(), "x"),
        (pa.float16(), 1e5), (pa.float32(), 1e300), (pa.float32(), 10**400), (pa.float64(), float("nan")),
        (pa.time64("us"), "10:00:00+02:00"),
        (pa.bool_(), 1),
        (pa.string(), 5), (pa.binary(), "%"), (pa.binary(3), "YWI="), (pa.decimal128(4, 2), "1e9"), (pa.date32(), "x"),
        (pa.timestamp("us"), "2024-13-01"), (pa.time64("us"), "25:00"), (pa.duration("us"), "x"),
        (pa.list_(pa.int64()), 5), (pa.list_(pa.int64()), ["a"]), (pa.list_(pa.int64(), 2), [1]),
        (pa.struct([("a", pa.int64())]), {"b": 1}), (pa.struct([("a", pa.int64())]), {"a": "x"}),
        (pa.map_(pa.string(), pa.int64()), [["a"]]), (pa.month_day_nano_interval(), "x"),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused_by_name(kind, value):
    with pytest.raises(RequestError, match=r"`items\.1\.attributes\.a` must be") as caught:
        column_of([None, value], kind, ["items.0.attributes.a", "items.1.attributes.a"])
    assert (caught.value.status, caught.value.field) == (422, "items.1.attributes.a")


@pytest.mark.parametrize("label", ["POST /v1/items", "PATCH /v1/items", "DELETE /v1/items"])
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_write_from_the_document_ends_in_a_500(folder, label, mode):
    searcher = CollectionSearcher(folder)
    committer = serving.committer_of(folder, searcher)
    app = create_app(searcher, encoder=serving.AverageHash(), committer=committer, limits=Limits(timeout_s=60))
    with serving.running(app) as url:
        api = schemathesis.openapi.from_dict(app.openapi())
        api.config.update(base_url=url)
        (operation,) = [one.ok() for one in api.get_all_operations() if one.ok().label == label]

        @hypothesis.given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        @hypothesis.settings(
            max_examples=15,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def check(case):
            case.call_and_validate(checks=CHECKS)

        check()


def test_over_shard_servers_a_write_is_visible_when_it_is_waited_for(folder, oracle):
    keys, address = Keys.load(None, {}), Address(port=0)
    with (
        serve_cluster(folder, address, keys, shard_servers(folder, groups=2, replicas=1), writable=True) as server,
        serving.run_server(server) as url,
        SearchClient(url, timeout_s=60) as client,
    ):
        for step in range(3):
            codes = np.array([[step]], np.uint64)
            client.upsert(codes, ids=[100 + step], features=np.zeros((1, FEATURES), np.float16), visible=True)
            oracle.put([100 + step], codes, {}, [None])
            client.delete([step], visible=True)
            del oracle[step]
            check(client, oracle)
        with pytest.raises(IdExistsError):
            client.add(np.array([[1]], np.uint64), ids=[101], features=np.zeros((1, FEATURES), np.float16))
        Collection.open(folder).compact(full=True)  # leaves fewer shards than there are groups of servers
        client.update([101], {"label": [3]}, visible=True)
        oracle[101][1]["label"] = 3
        check(client, oracle)
