"""Large answers: made in pieces, within a budget of bytes, and counted until somebody has read them."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine.errors import OverloadedError
from hashlight.engine.results import Coverage, Explanation
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.api.searching import begin_body
from hashlight.engine.service.asking import rendering
from hashlight.engine.service.asking.budget import Budget
from hashlight.engine.service.asking.rendering import (
    arrow_pieces,
    facets_pieces,
    item_pieces,
    items_pieces,
    json_pieces,
    table_pieces,
)
from hashlight.engine.service.asking.retrieval import Answer, _bytes_taken
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.problems import RequestError
from tests import serving
from tests.engine.service.conftest import eventually

COVERAGE = Coverage(shards=2, answered=2, codes=10**6, searched=10**6, degraded={}, version=3)


def make_answer(counts, *, items=True, explain=True):
    rng = np.random.default_rng(len(counts))
    lims = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows = int(lims[-1])
    table = pa.table(
        {
            "code": pa.array([bytes([row % 256] * 8) for row in range(rows)], pa.binary(8)),
            "name": pa.array([None if row % 3 == 0 else f'"{row}" é' for row in range(rows)], pa.string()),
            "price": pa.array([float("nan") if row % 7 == 0 else row / 4 for row in range(rows)], pa.float64()),
        }
    )
    queries = len(counts)
    zeros = np.zeros(queries, np.int64)
    return Answer(
        lims=lims,
        ids=rng.integers(2**63 - 1, size=rows),
        distances=rng.integers(64, size=rows).astype(np.int32),
        truncated=rng.random(queries) < 0.5,
        coverage=COVERAGE,
        explain=Explanation(plans=["scan"] * queries, probes=zeros, candidates=zeros, seconds=zeros.astype(float))
        if explain
        else None,
        items=table if items else None,
        has_attributes=items,
    )


def expected(answer):
    """The document, hit by hit."""
    results = []
    for query in range(len(answer.truncated)):
        hits = []
        for row in range(int(answer.lims[query]), int(answer.lims[query + 1])):
            hit = {"id": int(answer.ids[row]), "distance": int(answer.distances[row])}
            if answer.items is not None:
                hit["code"] = answer.items["code"][row].as_py().hex()
                price = answer.items["price"][row].as_py()
                hit["attributes"] = {
                    "name": answer.items["name"][row].as_py(), "price": None if price != price else price
                }  # fmt: skip
            hits.append(hit)
        goes_on = answer.truncated[query] and hits
        after = {"version": 3, "distance": hits[-1]["distance"], "id": hits[-1]["id"]} if goes_on else None
        result = {"hits": hits, "truncated": bool(answer.truncated[query]), "next": after}
        if answer.explain is not None:
            result["explain"] = {"plan": "scan", "probes": 0, "candidates": 0, "seconds": 0.0}
        results.append(result)
    return results


COUNTS = [[0], [1], [0, 0, 3], [1000], [1001], [2500, 0, 2500], [999, 1, 1, 0], [10] * 250, [400] * 7 + [3000, 1]]


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("items", "explain"), [(True, True), (False, False)])
def test_json_is_the_same_in_pieces(counts, items, explain):
    answer = make_answer(counts, items=items, explain=explain)
    pieces = list(json_pieces(answer, timing_ms={"search": 1.5}))
    document = json.loads(b"".join(pieces))
    assert list(document) == ["results", "order", "coverage", "version", "timing_ms"]
    assert document["results"] == expected(answer)
    assert (document["version"], document["timing_ms"]) == (3, {"search": 1.5})
    assert (document["coverage"]["complete"], document["coverage"]["codes"]) == (True, 10**6)
    assert max(piece.count(b'"distance"') - piece.count(b'"next":{') for piece in pieces) <= 1000


@pytest.mark.parametrize(
    ("counts", "columns", "length"),
    [([900], 1, 5_000), ([7, 900, 0, 3], 1, 5_000), ([1] * 900, 1, 5_000), ([600], 300, 0), ([0] * 9000, 0, 0)],
    ids=["long", "one of them long", "many long", "broad", "empty"],
)
def test_no_piece_is_large_whatever_is_stored(monkeypatch, counts, columns, length):
    """What is rendered in one go holds the interpreter's lock: about so many bytes, values and results, or one row."""
    answer = make_answer(counts)
    rows = len(answer.ids)
    more = {f"c{number}": pa.array(["x" * length] * rows, pa.string()) for number in range(columns)}
    items = pa.table({"code": answer.items["code"], **more})
    answer = dataclasses.replace(answer, items=items)
    made, render = [], rendering.to_json

    def recorded(document, **more):
        text = render(document, **more)
        made.append((len(text), values_in(document)))
        return text

    monkeypatch.setattr(rendering, "to_json", recorded)
    document = json.loads(b"".join(json_pieces(answer, timing_ms={})))
    assert sum(len(result["hits"]) for result in document["results"]) == rows
    b"".join(items_pieces(items.add_column(0, "id", pa.array(range(rows)))))
    assert max(size for size, _ in made) <= 2 * 262_144
    assert max(values for _, values in made) <= 10_000
    assert max(map(len, table_pieces(items))) <= 2 * 262_144


TEXT = 'é"\\\n€😀'


def large_items():
    """Three rows, of which the second is large in each way that a value can be."""
    long = TEXT * 50_000
    return pa.table(
        {
            "id": pa.array([1, 2, 3]),
            "code": pa.array([bytes([row] * 8) for row in range(3)], pa.binary(8)),
            "text": pa.array(["a", long, None]),
            "wide": pa.array(["a", long, None]).cast(pa.large_string()).dictionary_encode(),
            "raw": pa.array([b"a", bytes(range(256)) * 3000, None]),
            "tags": pa.array([["a"], ["b", None, long, *["c"] * 50_000], None]),
            "about": pa.array([{"x": 1, "y": "a"}, {"x": None, "y": long}, None]),
            "pairs": pa.array([[("a", 1)], [("b", None)], None], pa.map_(pa.string(), pa.int64())),
            "price": pa.array([1.5, float("nan"), None]),
        }
    )


def plain(value):
    """What JSON has of a value."""
    if isinstance(value, bytes):
        return base64.urlsafe_b64encode(value).decode()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if value != value else value


def test_one_row_however_large_is_the_same_in_pieces_of_which_none_is_large(monkeypatch):
    items = large_items()
    rows = [{name: plain(value) for name, value in row.items()} for row in items.to_pylist()]
    made, render = [], rendering.to_json

    def recorded(document, **more):
        text = render(document, **more)
        made.append(len(text))
        return text

    monkeypatch.setattr(rendering, "to_json", recorded)
    attributes = [{name: row[name] for name in row if name not in ("id", "code")} for row in rows]
    documents = [
        {"id": row["id"], "code": bytes([number] * 8).hex(), "attributes": attributes[number]}
        for number, row in enumerate(rows)
    ]
    assert json.loads(b"".join(items_pieces(items))) == {"items": documents}
    for number in range(3):
        assert json.loads(b"".join(item_pieces(items.slice(number, 1)))) == documents[number]
    assert json.loads(b"".join(facets_pieces(items, {"a": 1}))) == {"values": rows, "a": 1}
    answer = dataclasses.replace(make_answer([0, 3], explain=False), items=items.drop_columns(["id"]))
    hits = json.loads(b"".join(json_pieces(answer, timing_ms={})))["results"][1]["hits"]
    assert [(hit["code"], hit["attributes"]) for hit in hits] == [
        (document["code"], document["attributes"]) for document in documents
    ]
    assert max(made) <= 6 * 262_144, "a character takes up to six bytes"
    pieces = list(table_pieces(items))
    read = pa.ipc.open_stream(b"".join(pieces)).read_all()
    assert read.drop_columns(["price"]) == items.drop_columns(["price"]), "NaN equals nothing"
    assert max(map(len, pieces)) <= 2 * 262_144


# Written piece by piece, as it is to a client: what is more in memory than the answer itself.
GROWTH = """
import sys
import pyarrow as pa
from hashlight.engine.service.asking.rendering import items_pieces, table_pieces

def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

def growth(pieces):
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    before = memory("VmRSS")
    size = sum(map(len, pieces))
    return memory("VmHWM") - before, size

def items(size):
    codes = pa.array([b"8 bytes."], pa.binary(8))
    return pa.table({"id": [1], "code": codes, "text": [chr(233) * size], "raw": [b"r" * size]})

for pieces in (items_pieces, table_pieces):
    growth(pieces(items(1000)))  # loads what is loaded once
    print(*growth(pieces(items(int(sys.argv[1])))))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak of memory is Linux's")
def test_a_text_of_tens_of_megabytes_is_not_in_memory_a_second_time():
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(32 << 20)], capture_output=True, text=True, check=True, timeout=300
    )
    for line in done.stdout.splitlines():
        grown, size = map(int, line.split())
        assert size > 96 << 20
        assert grown < 16 << 20


def values_in(document):
    if isinstance(document, dict):
        return sum(map(values_in, document.values()))
    return sum(map(values_in, document)) if isinstance(document, list) else 1


@pytest.mark.parametrize("path", ["/v1/items/{id}", "/v1/items?ids={id}"])
def test_items_are_rendered_within_the_budget_and_not_on_the_loop(searcher, collection, monkeypatch, path):
    threads, render = [], rendering.items_documents

    def recorded(table):
        threads.append(threading.current_thread().name)
        return render(table)

    monkeypatch.setattr(rendering, "items_documents", recorded)
    id_ = int(collection.shards[0].ids_N[0])
    with serving.running(create_app(searcher)) as url:
        assert httpx.get(url + path.format(id=id_)).status_code == 200
    assert [name.startswith("hashlight-search") for name in threads] == [True]
    with serving.running(create_app(searcher, limits=Limits(answer_bytes=10))) as url:
        refused = httpx.get(url + path.format(id=id_))
        assert (refused.status_code, "at most 10 are sent at once" in refused.text) == (422, True)


@pytest.mark.parametrize("counts", COUNTS)
def test_arrow_is_the_same_in_pieces(counts):
    answer = make_answer(counts)
    pieces = list(arrow_pieces(answer, timing_ms={}))
    with pa.ipc.open_stream(b"".join(pieces)) as reader:
        table = reader.read_all()
        assert json.loads(reader.schema.metadata[b"hashlight"])["queries"] == len(counts)
    assert table["id"].to_pylist() == answer.ids.tolist()
    assert table["query"].to_pylist() == [query for query, count in enumerate(counts) for _ in range(count)]
    assert table["name"].to_pylist() == answer.items["name"].to_pylist()
    assert len(pieces) > sum(counts) // 1000


def test_items_are_the_same_in_pieces():
    items = make_answer([2300]).items.add_column(0, "id", pa.array(range(2300)))
    rows = json.loads(b"".join(items_pieces(items)))["items"]
    assert [row["id"] for row in rows] == list(range(2300))
    assert rows[7] == {"id": 7, "code": "07" * 8, "attributes": {"name": '"7" é', "price": None}}
    assert json.loads(b"".join(items_pieces(items.slice(0, 0)))) == {"items": []}
    read = pa.ipc.open_stream(b"".join(table_pieces(items))).read_all()
    assert read.select(["id", "code", "name"]) == items.select(["id", "code", "name"])


@pytest.mark.parametrize("sizes", [[1], [0], [262_144], [262_143, 1], [100_000] * 9, [10**6, 5]])
def test_a_small_body_is_whole_and_a_large_one_is_made_as_it_is_sent(sizes):
    made = []

    def pieces():
        for size in sizes:
            made.append(size)
            yield b"x" * size

    body = begin_body(pieces())
    assert sum(made) <= 262_144 * 2 + max(sizes) * 2
    parts = [body.first, *(body.rest or [])]
    assert sum(map(len, parts)) == sum(sizes) == sum(made)
    assert (body.rest is None) == (sum(sizes) < 262_144)


def test_the_size_of_rows_is_known_before_they_are_repeated():
    table = pa.table({"a": ["x" * 1000, "y", None], "b": pa.array([1, 2, 3], pa.int64())})
    for place in ([0, 0, 0, 1], [2] * 10, [0] * 500, []):
        taken = table.take(np.array(place, np.int64))
        least = sum(len(text or "") for text in taken["a"].to_pylist()) + 8 * len(place)
        assert least <= _bytes_taken(table, np.array(place, np.intp)) <= least + 30 * len(place)


def test_answers_have_a_budget_each_and_together():
    budget = Budget(each_bytes=100, total_bytes=150)
    with budget.account() as one, budget.account() as other:
        one.hold(80)
        one.hold(100)
        with pytest.raises(RequestError, match="about 101 bytes, at most 100"):
            one.hold(101)
        with pytest.raises(OverloadedError, match="answers of 150 bytes"):
            other.hold(51)
        one.hold(20)
        other.hold(90)
        assert budget.held == 110
    assert budget.held == 0
    one.hold(60)  # a thread that was left behind
    assert budget.held == 0


def codes(count):
    return [{"code": f"{number:014x}00"} for number in range(count)]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("search", {"queries": codes(20), "k": 500}),
        ("search", {"queries": codes(1), "k": 450, "include": ["attributes", "code"]}),
        ("range_search", {"queries": codes(3), "radius": 60, "limit": 500, "include": ["attributes"]}),
    ],
)
def test_an_answer_that_is_too_large_is_refused_before_it_is_made(searcher, path, body):
    with (
        serving.running(create_app(searcher, limits=Limits(answer_bytes=40_000))) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        refused = http.post(f"/v1/{path}", json=body)
        assert (refused.status_code, refused.json()["error"]["type"]) == (422, "invalid_request")
        assert "at most 40000 are sent at once" in refused.json()["error"]["message"]
        few = {**body, "queries": codes(1), "k" if path == "search" else "limit": 10}
        assert http.post(f"/v1/{path}", json=few).status_code == 200


def in_flight(http):
    [line] = [
        line for line in http.get("/metrics").text.splitlines() if line.startswith("hashlight_in_flight_requests ")
    ]
    return float(line.split()[1])


@pytest.mark.parametrize(("accept", "count"), [("application/json", 150), ("application/vnd.apache.arrow.stream", 400)])
def test_an_answer_counts_until_it_is_read(searcher, accept, count):
    body = json.dumps({"queries": codes(count), "k": 500, "include": ["attributes", "code"], "timeout_ms": 60_000})
    head = f"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\nContent-Type: application/json\r\n"
    limits = Limits(in_flight=2, answer_bytes=110_000 * count, answers_bytes=110_000 * count)
    with (
        serving.running(create_app(searcher, limits=limits)) as url,
        httpx.Client(base_url=url, timeout=60) as http,
        ThreadPoolExecutor(1) as pool,
        socket.socket() as slow,
    ):
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        slow.settimeout(60)
        slow.connect((urlsplit(url).hostname, urlsplit(url).port))
        slow.sendall(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        received = slow.recv(4096)
        assert received.startswith(b"HTTP/1.1 200")
        assert in_flight(http) == 1
        again = {"accept": accept, "content-type": "application/json"}
        refused = http.post("/v1/search", content=body, headers=again)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "overloaded")
        while chunk := slow.recv(2**20):
            received += chunk
        assert len(received) > 5 * 2**20
        eventually(lambda: in_flight(http) == 0)
        answer = pool.submit(http.post, "/v1/search", content=body, headers=again).result()
        assert answer.status_code == 200
