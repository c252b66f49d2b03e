"""Writes over HTTP in a log: sent twice, beside another process that writes, and across a restart."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time

import httpx
import numpy as np
import pytest

from hashlight.engine.client.client import SearchClient
from hashlight.engine.client.errors import IdExistsError
from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.limits import Limits
from hashlight.engine.storage.versions import read_current
from hashlight.engine.writing.committing import Committer
from hashlight.engine.writing.direct import Direct
from hashlight.engine.writing.opened import Opened
from hashlight.engine.writing.records import Key, Logged, encode
from hashlight.engine.writing.writes import Delete, DeleteWhere, Put
from tests import oracles, serving

NEVER = {"items": 10**6, "age_s": 1e9}
BITS = 16
CHANGED = {"version": 2, "sequence": 3, "deleted": 1, "not_found": 0}
IMAGES = [serving.png(picture) for picture in serving.make_pictures(3)]


@pytest.fixture
def folder(tmp_path):
    codes = np.arange(20, dtype=np.uint64)[:, None]
    Collection.create(tmp_path / "c", codes, bits=BITS, attributes={"label": (np.arange(20) % 5).tolist()})
    Collection.open(tmp_path / "c").search(codes[:1], 5)
    return tmp_path / "c"


@contextlib.contextmanager
def served(folder, log, *, gather_s=0.0, **gathering):
    searcher = CollectionSearcher(folder)
    committer = serving.committer_of(folder, searcher, log=log, gather_s=gather_s, **(gathering or NEVER))
    app = create_app(searcher, committer=committer, limits=Limits(timeout_s=60))
    with serving.running(app) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield http


@contextlib.contextmanager
def committing(folder, log):
    """Serve as over shard servers: what is written is committed before it is answered."""
    searcher = CollectionSearcher(folder)
    store = Direct(folder, Opened(folder, log), committed=lambda version: searcher.renew())
    app = create_app(searcher, committer=Committer(store), limits=Limits(timeout_s=60))
    with serving.running(app) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield http


def item(id_, label=1, code="0500"):
    return {"id": id_, "code": code, "attributes": {"label": label}}


def write(http, method, body, key, **params):
    return http.request(method, "/v1/items", json=body, params=params, headers={"Idempotency-Key": key})


def rows_of(http):
    return http.get("/v1/collection").json()["rows"]


def test_a_second_delivery_gets_the_first_ones_answer(folder, tmp_path):
    put, patch = {"items": [item(100)]}, {"items": [{"id": 100, "attributes": {"label": 9}}]}
    with served(folder, tmp_path / "log") as http:
        first = write(http, "POST", put, "a", on_conflict="refuse")
        assert (first.status_code, first.json()) == (200, {"version": None, "sequence": 1})
        assert write(http, "PATCH", patch, "b").json()["sequence"] == 2
        assert write(http, "DELETE", {"ids": [3]}, "c", wait="visible").json() == CHANGED
        assert write(http, "POST", {"items": [item(3)]}, "d").json()["sequence"] == 4  # what was deleted is back
        for _ in range(2):
            assert write(http, "DELETE", {"ids": [3]}, "c", wait="visible", timeout_ms=9000).json()["version"] == 2
            again = write(http, "POST", put, "a", on_conflict="refuse")
            assert (again.status_code, again.content) == (first.status_code, first.content)
        assert http.get("/v1/items/100").json()["attributes"] == {"label": 9}
        assert rows_of(http) == 21
    with served(folder, tmp_path / "log") as http:
        assert write(http, "POST", put, "a", on_conflict="refuse").content == first.content
        assert write(http, "DELETE", {"ids": [3]}, "c", wait="visible").json() == CHANGED
        assert write(http, "PATCH", patch, "e").json()["sequence"] == 5
        assert rows_of(http) == 21


def test_a_key_is_of_one_request_and_free_after_a_refusal(folder, tmp_path):
    with served(folder, tmp_path / "log") as http:
        assert write(http, "POST", {"items": [item(3)]}, "a", on_conflict="refuse").status_code == 409
        assert write(http, "POST", {"items": [item(30)]}, "a", on_conflict="refuse").status_code == 200
        others = [
            ("POST", {"items": [item(30)]}, {}),  # replaces
            ("POST", {"items": [item(31)]}, {"on_conflict": "refuse"}),
            ("DELETE", {"ids": [30]}, {}),
        ]
        for method, body, params in others:
            answer = write(http, method, body, "a", **params)
            assert answer.status_code == 422
            assert answer.json()["error"]["field"] == "Idempotency-Key"
            assert "came with another request before" in answer.json()["error"]["message"]
        for key in ("", "a" * 129, "a b", "a\tb"):
            answer = write(http, "POST", {"items": [item(32)]}, key)
            assert (answer.status_code, answer.json()["error"]["field"]) == (422, "Idempotency-Key")
        assert write(http, "POST", {"items": [item(32)]}, "~" * 128).status_code == 200
        assert rows_of(http) == 22


def test_a_form_is_the_same_whatever_its_boundaries(tmp_path):
    folder = tmp_path / "c"
    serving.make_collection(folder)
    searcher = CollectionSearcher(folder)
    committer = serving.committer_of(folder, searcher, log=tmp_path / "log", **NEVER)
    app = create_app(searcher, encoder=serving.AverageHash(), committer=committer, limits=Limits(timeout_s=60))
    with serving.running(app) as url, httpx.Client(base_url=url, timeout=60) as http:

        def send(image):
            more = {"data": {"id": "20000"}, "files": {"image": image}, "headers": {"Idempotency-Key": "form"}}
            return http.post("/v1/items", **more)

        assert [send(IMAGES[0]).json()["sequence"] for _ in range(3)] == [1, 1, 1]
        assert send(IMAGES[1]).status_code == 422


def test_deliveries_at_the_same_time_are_one_write(folder, tmp_path):
    answers = []
    with served(folder, tmp_path / "log", gather_s=0.2, **NEVER) as http:

        def send():
            answers.append(write(http, "POST", {"items": [item(50)]}, "same", on_conflict="refuse"))

        threads = [threading.Thread(target=send) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 6
        assert {answer.json()["sequence"] for answer in answers} == {1}
        assert "hashlight_log_writes 1.0" in http.get("/metrics").text


def test_a_delivery_that_times_out_while_it_waits_for_others_says_that_it_may_have_been_made(folder, tmp_path):
    put = {"items": [item(50)]}
    with served(folder, tmp_path / "log", gather_s=2.0, **NEVER) as http:
        for timeout_ms in (50, 200, 1000):  # where the machine is busy, the first may pass before the write is begun
            late = write(http, "POST", put, "same", timeout_ms=timeout_ms)
            assert (late.status_code, late.json()["error"]["type"]) == (504, "deadline_exceeded")
            if "may have been made" in late.json()["error"]["message"]:
                break
        assert "may have been made" in late.json()["error"]["message"]
        assert write(http, "POST", put, "same").json()["sequence"] == 1
        none = http.post("/v1/items", json={"items": [item(51)]}, params={"timeout_ms": 50})
        assert (none.status_code, rows_of(http)) == (504, 21)


class Losing(httpx.HTTPTransport):
    """Loses the answers to the first requests, which have arrived."""

    def __init__(self, count):
        super().__init__()
        self.left = count

    def handle_request(self, request):
        response = super().handle_request(request)
        if self.left and request.method != "GET":
            self.left -= 1
            response.read()
            raise httpx.ReadError("the connection was lost")
        return response


def test_what_the_client_tries_again_is_made_once(folder, tmp_path):
    with served(folder, tmp_path / "log") as http:
        with SearchClient(str(http.base_url), timeout_s=60, transport=Losing(2)) as client:
            assert client.add(np.array([[9]], np.uint64), ids=[60]) is None  # would be refused if it was made twice
            with pytest.raises(IdExistsError):
                client.add(np.array([[9]], np.uint64), ids=[60])
        assert rows_of(http) == 21


def test_where_shard_servers_answer_a_write_is_committed_first_and_keys_work(folder, tmp_path):
    for _ in range(2):
        with committing(folder, tmp_path / "log") as http:
            for _ in range(2):
                answer = write(http, "POST", {"items": [item(70)]}, "a", on_conflict="refuse")
                assert answer.json() == {"version": 2, "sequence": 1}
            assert write(http, "POST", {"items": [item(70)]}, "b", on_conflict="refuse").status_code == 409
        assert not list((tmp_path / "log").rglob("*.log"))
    assert len(Collection.open(folder)) == 21


def test_what_was_logged_before_a_kill_is_committed_first(folder, tmp_path):
    opened = Opened(folder, tmp_path / "log")
    writes = [
        (Put(np.array([[7]], np.uint64), np.array([80])), Key("a", "d")),
        (Put(np.array([[7]], np.uint64), np.array([3]), replaces=False), Key("refused", "d")),
        (DeleteWhere("label == 4"), None),
        (Delete(np.array([0])), Key("b", "d")),
    ]
    opened.log.append([encode(Logged(1, one, (BITS, None), key=key)) for one, key in writes])
    opened.close()
    store = Direct(folder, Opened(folder, tmp_path / "log"))
    found = store.find(Key("a", "d")), store.find(Key("refused", "d")), store.find(Key("b", "d"))
    store.close()
    assert [made and made.number for made in found] == [1, None, 4]
    ids = Collection.open(folder).scan([]).read_all()["id"].to_pylist()
    assert ids == [id_ for id_ in range(1, 20) if id_ % 5 != 4] + [80]
    assert read_current(store._place).logs[opened.log.id].through == 4


def write_elsewhere(folder, ending, counts):
    """Store, delete and compact in another process; items of ids from 1,000 on."""
    collection, rng, number = Collection.open(folder), np.random.default_rng(3), 0
    while not ending.is_set():
        number += 1
        ids = 1000 + rng.choice(30, size=3, replace=False)
        collection = collection.upsert(np.full((3, 1), number % 50, np.uint64), ids=ids)
        collection = collection.delete(ids[:1])
        if number % 4 == 0:
            collection.compact(full=True)
        counts.value = number


def test_beside_another_process_that_writes_and_compacts(folder, tmp_path):
    context = multiprocessing.get_context("spawn")
    ending, counts = context.Event(), context.Value("i", 0)
    other = context.Process(target=write_elsewhere, args=(folder, ending, counts), daemon=True)
    other.start()
    rng, items = np.random.default_rng(4), {id_: (id_, id_ % 5) for id_ in range(20)}
    with (
        served(folder, tmp_path / "log", items=7, age_s=0.3) as http,
        SearchClient(str(http.base_url), timeout_s=60) as client,
    ):
        until_s, step = time.monotonic() + 240, 0
        while (step < 60 or counts.value < 8) and time.monotonic() < until_s:
            step += 1
            ids = rng.choice(40, size=rng.integers(1, 4), replace=False)
            if step % 4 == 3:
                client.delete(ids)
                for id_ in ids.tolist():
                    items.pop(id_, None)
            elif step % 4 == 2 and set(ids.tolist()) <= items.keys():
                client.update(ids, {"label": [step] * len(ids)})
                items |= {id_: (items[id_][0], step) for id_ in ids.tolist()}
            else:
                codes = rng.integers(50, size=(len(ids), 1)).astype(np.uint64)
                client.upsert(codes, ids=ids, attributes={"label": [step] * len(ids)})
                items |= {id_: (int(code), step) for id_, code in zip(ids.tolist(), codes[:, 0], strict=True)}
            found = [one for page in client.scan("id < 1000") for one in page]
            assert {one.id: (int(one.code[0]), one.attributes["label"]) for one in found} == items
            own = np.array(sorted(items))
            query = rng.integers(50, size=(1, 1)).astype(np.uint64)
            (hits,) = client.search(query, 5, filter="id < 1000")
            codes = np.array([[items[id_][0]] for id_ in own.tolist()], np.uint64).reshape(-1, 1)
            assert hits.ids.tolist() == oracles.knn(query, codes, own, min(5, len(own)))[1][0].tolist()
        ending.set()
        other.join(240)
        assert counts.value >= 8
    assert other.exitcode == 0
    table = Collection.open(folder, verify=True).scan(["label"], "id < 1000").read_all()
    codes = [int.from_bytes(code, "little") for code in table["code"].to_pylist()]
    stored = dict(zip(table["id"].to_pylist(), zip(codes, table["label"].to_pylist(), strict=True), strict=True))
    assert stored == items


def test_pages_and_cursors_go_on_in_what_was_shown(folder, tmp_path):
    queries = [{"code": "0000"}]
    with served(folder, tmp_path / "log") as http, SearchClient(str(http.base_url), timeout_s=60) as client:
        client.delete([0, 7])
        client.upsert(np.array([[1], [3]], np.uint64), ids=[40, 41])
        ids = [*range(1, 7), *range(8, 20), 40, 41]
        codes = np.array([[1 if id_ == 40 else 3 if id_ == 41 else id_] for id_ in ids], np.uint64)
        ((expected,), _) = oracles.within_radius(np.zeros((1, 1), np.uint64), codes, np.array(ids), BITS)
        first = client.range_search(np.zeros((1, 1), np.uint64), BITS, 6)
        page = client.scroll(limit=6)
        assert (first.coverage.sequence, page.version, page.sequence) == (2, 1, 2)

        def rest():
            found, cursor = [(hit.distance, hit.id) for hit in first[0]], first[0].next
            while cursor is not None:
                (hits,) = client.range_search(np.zeros((1, 1), np.uint64), BITS, 6, after=cursor)
                found, cursor = found + [(hit.distance, hit.id) for hit in hits], hits.next
            read, after = [item.id for item in page], page.next
            while after is not None:
                more = client.scroll(after=after, limit=6, version=page.version, sequence=page.sequence)
                read, after = read + [item.id for item in more], more.next
            return found, read

        assert rest() == (expected, ids)
        client.delete([1, 2, 3, 41])  # pending, too
        assert rest() == (expected, ids)
        client.delete([4, 19], visible=True)
        client.upsert(np.array([[0]], np.uint64), ids=[50])
        assert rest() == (expected, ids)
        body = {"queries": queries, "radius": BITS, "limit": 6}
        shown = http.post("/v1/range_search", json=body).json()
        assert shown["results"][0]["next"]["sequence"] == shown["sequence"] == 5
        # A version alone is what was committed.
        assert [item["id"] for item in http.get("/v1/items?version=1").json()["items"]] == list(range(20))
        gone = http.get("/v1/items?version=1&sequence=77")
        assert (gone.status_code, gone.json()["error"]["type"]) == (410, "version_gone")
        live = http.get("/v1/items?version=2").json()
        assert (len(live["items"]), "sequence" in live) == (14, False)
    with served(folder, tmp_path / "log") as http:  # nothing is pending, and what was is not known
        assert http.get("/v1/items?version=1&sequence=2").status_code == 410
