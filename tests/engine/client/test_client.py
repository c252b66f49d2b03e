"""The client: retries, errors, what a notebook shows, and the cost of importing it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
import time

import httpx
import numpy as np
import pyarrow as pa
import pytest

import hashlight
from hashlight.engine.client import http as client_http
from hashlight.engine.client.client import AsyncSearchClient, SearchClient
from hashlight.engine.client.errors import (
    AuthenticationError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    PermissionDeniedError,
    ServerError,
)
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.door.keys import Keys
from tests import serving

CODE = np.array([[0x0F0F0F0F0F0F0F]], np.uint64)


@pytest.fixture
def quick(monkeypatch):
    """Wait less between tries."""
    monkeypatch.setattr(client_http, "FIRST_WAIT_S", 0.01)


def refusal(status, kind, **headers):
    return httpx.Response(status, json={"error": {"type": kind, "message": kind, "field": None}}, headers=headers)


def answering(url, *answers):
    """A transport that returns these responses first and then asks the server; counts the tries."""
    left, real = list(answers), httpx.HTTPTransport()

    class Transport(httpx.BaseTransport):
        tries = 0

        def handle_request(self, request):
            self.tries += 1
            if not left:
                return real.handle_request(request)
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        def close(self):
            real.close()

    return Transport()


@pytest.mark.parametrize(
    "first",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.RemoteProtocolError("closed"),
        httpx.ReadError("reset"),
        refusal(429, "overloaded"),
        refusal(503, "not_ready"),
        httpx.Response(503, text="Service Unavailable"),
    ],
)
def test_temporary_errors_are_retried(url, quick, first):
    transport = answering(url, first)
    with SearchClient(url, transport=transport) as client:
        assert len(client.search(CODE, 3)[0]) == 3
    assert transport.tries == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (refusal(422, "invalid_request"), InvalidRequestError),
        (refusal(413, "too_large"), InvalidRequestError),
        (refusal(401, "unauthenticated"), AuthenticationError),
        (refusal(403, "forbidden"), PermissionDeniedError),
        (refusal(500, "internal"), ServerError),
        (refusal(504, "deadline_exceeded"), DeadlineExceededError),
        (httpx.Response(200, text="<html>"), ServerError),
        (httpx.Response(404, text="<html>"), ServerError),
        (httpx.ReadTimeout("slow"), DeadlineExceededError),
    ],
)
def test_permanent_errors_are_raised_at_once(url, answer, error):
    transport = answering(url, answer)
    with SearchClient(url, transport=transport) as client, pytest.raises(error):
        client.search(CODE)
    assert transport.tries == 1


def test_the_error_of_the_last_try_is_raised(url, quick):
    transport = answering(url, *[refusal(503, "not_ready")] * 9)
    with SearchClient(url, transport=transport, max_retries=3) as client, pytest.raises(NotReadyError):
        client.search(CODE)
    assert transport.tries == 4


def test_no_retry_starts_after_the_deadline(url):
    transport = answering(url, *[refusal(429, "overloaded", **{"retry-after": "7"})] * 9)
    with SearchClient(url, transport=transport) as client, pytest.raises(OverloadedError) as caught:
        client.search(CODE, timeout_s=3)
    assert (caught.value.retry_after_s, transport.tries) == (7.0, 1)


def test_a_server_that_is_not_there(quick):
    with SearchClient("http://127.0.0.1:9", max_retries=1) as client:
        with pytest.raises(ConnectionFailedError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
            client.search(CODE)
        with pytest.raises(ConnectionError):
            client.ready()


def test_the_field_at_fault_is_kept(url):
    with SearchClient(url) as client, pytest.raises(InvalidRequestError) as caught:
        client.search([CODE[0], b"text"])
    assert (caught.value.status, caught.value.type, caught.value.field) == (422, "invalid_request", "queries.1.image")


def test_requests_too_long_for_a_url_are_split(url, searcher, collection):
    ids = np.tile(np.concatenate([shard.ids_N for shard in collection.shards]), 30)
    assert len(",".join(map(str, ids))) > 65_536
    long = f'name is not null and name != "{"😀" * 7000}"'
    codes = np.repeat(CODE, 9)[:, None] ^ np.arange(9, dtype=np.uint64)[:, None]

    async def ask():
        async with AsyncSearchClient(url) as client:
            return await client.get(ids), await client.get([]), await client.search(codes, 3, filter=long)

    with SearchClient(searcher) as here, SearchClient(url) as client:
        expected = (here.get(ids), here.get([]), here.search(codes, 3, filter="name is not null"))
        for found in ((client.get(ids), client.get([]), client.search(codes, 3, filter=long)), asyncio.run(ask())):
            assert str(found[0].to_arrow().to_pylist()) == str(expected[0].to_arrow().to_pylist())
            assert list(found[1]) == list(expected[1]) == []
            assert found[2].to_arrow().to_pylist() == expected[2].to_arrow().to_pylist()
        assert len(expected[2].to_arrow()) == 27
        with pytest.raises(InvalidRequestError) as caught:
            client.search(codes, filter="x" * 10_001)
        assert caught.value.field == "filter"


def test_digits_that_are_not_a_code_are_a_missing_file(url, searcher):
    """The digits of 48-bit codes in base64 have been searched for, too: a gateway reads both."""

    async def ask():
        async with AsyncSearchClient(url) as client:
            await client.search("cafe")

    for target in (url, searcher):
        with SearchClient(target) as client:
            for text in ("cafe", "cafecafe", "ca" * 30):
                with pytest.raises(FileNotFoundError, match=r"no such file, and as a code .* expected 16 for the 60"):
                    client.search([CODE[0], text])
    with pytest.raises(FileNotFoundError, match="no such file, and as a code"):
        asyncio.run(ask())


def test_a_gateway_is_asked_once_how_many_digits_a_code_has(url):
    asked = []

    class Counting(httpx.HTTPTransport):
        def handle_request(self, request):
            asked.append(request.url.path)
            return super().handle_request(request)

    text = CODE[0].astype("<u8").tobytes().hex()
    with SearchClient(url, transport=Counting()) as client:
        expected = client.search(CODE, 3)[0].ids.tolist()
        for _ in range(2):
            assert [hits.ids.tolist() for hits in client.search([text] * 6, 3)] == [expected] * 6
        assert asked.count("/v1/collection") == 1
        client._transport._bits = 128  # as of a collection that was there before
        assert client.search(text, 3)[0].ids.tolist() == expected
    assert asked.count("/v1/collection") == 2


def test_half_of_a_surrogate_pair_is_refused_before_anything_is_sent(url, searcher):
    for target in (url, searcher):
        with SearchClient(target) as client:
            for ask in (client.search, client.range_search):
                with pytest.raises(ValueError, match=r"`filter`, at character 9: expected text, got U\+D800"):
                    ask(CODE, filter='name == "\ud800"')
            with pytest.raises(ValueError, match="is not a URL"):
                client.search("https://example.com/\udc00.jpg")


def test_the_parts_of_one_call_share_its_deadline(url):
    class Slow(httpx.BaseTransport):
        tries = 0

        def handle_request(self, request):
            self.tries += 1
            time.sleep(0.15)
            return httpx.Response(200, content=items())

    transport = Slow()
    with SearchClient(url, transport=transport) as client, pytest.raises(DeadlineExceededError, match=r"0\.2 s"):
        client.get([1] * 9000, timeout_s=0.2)
    assert transport.tries <= 2


def test_parts_from_different_versions_are_refused(url):
    transport = answering(url, *(httpx.Response(200, content=items(**more)) for more in ({"a": [1]}, {"b": [1]})))
    with SearchClient(url, transport=transport) as client, pytest.raises(NotReadyError, match="were read in parts"):
        client.get([1] * 1001)


def items(**attributes):
    sink = pa.BufferOutputStream()
    table = pa.table({"id": [1], "code": [b"1"], **attributes})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_an_invalid_url_is_refused_before_any_request():
    for client in (SearchClient, AsyncSearchClient):
        with pytest.raises(ValueError, match=r"`target` must be the URL .*non-printable"):
            client("http://localhost:8000\n")


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_the_url_of_a_gateway_may_end_in_the_version_of_its_interface(url, end):
    with SearchClient(url + end) as client:
        assert client.describe()["bits"] == 60
    with SearchClient(f"http://localhost:8000/proxied{end}", collection="a b") as client:
        assert repr(client) == "SearchClient('http://localhost:8000/proxied/collections/a%20b')"
    with pytest.raises(ValueError, match=r"without a query or fragment, got .*: give 'http://localhost:8000/v1'"):
        SearchClient("http://localhost:8000/v1?key=7")


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.search(CODE, timeout_s=7),
        lambda client: client.range_search(np.tile(CODE, (9, 1)), timeout_s=7),
        lambda client: client.encode(b"image", timeout_s=7),
        lambda client: client.get([1], timeout_s=7),
        lambda client: client.thumbnail(1, timeout_s=7),
    ],
)
def test_the_remaining_time_is_sent_to_the_server(url, ask):
    told = []

    def handle(request):
        given = dict(request.url.params) | (json.loads(request.content) if request.content[:1] == b"{" else {})
        told.append(int(given["timeout_ms"]))
        return refusal(422, "invalid_request")

    transport = httpx.MockTransport(handle)
    with SearchClient(url, transport=transport) as client, pytest.raises(InvalidRequestError):
        ask(client)
    assert 0 < told[0] <= 7000
    assert len(told) == 1


def test_a_key_is_sent(searcher):
    keys = Keys.load(None, {"HASHLIGHT_API_KEYS": "page search searching-is-all-0001"})
    with serving.running(create_app(searcher, keys=keys)) as url:
        with SearchClient(url, api_key="searching-is-all-0001") as client:
            assert len(client.search(CODE, 2)[0]) == 2
        with SearchClient(url) as client, pytest.raises(AuthenticationError, match="got none"):
            client.search(CODE)


def test_the_async_client_gives_the_same(url, collection, searcher):
    picture = serving.png(serving.make_pictures(5)[4])
    id_ = int(collection.shards[0].ids_N[0])

    async def ask(target, **options):
        async with AsyncSearchClient(target, **options) as client:
            nearest, within = await asyncio.gather(
                client.search([picture, id_, CODE[0]], 4, include=["attributes"]), client.range_search(CODE, 20, 7)
            )
            streamed = [batch async for batch in client.stream_search(np.tile(CODE, (9, 1)), 2, batch_size=4)]
            codes, items = await client.encode(picture), await client.get([id_])
            told, thumbnail = await client.describe(), await client.thumbnail(id_)
            await client.ready()
            with pytest.raises(ValueError, match="`k`"):
                await client.search(CODE, 0)
            tables = [
                nearest.to_arrow(),
                within.to_arrow(),
                *(batch.to_arrow() for batch in streamed),
                items.to_arrow(),
            ]
            return [str(table.to_pylist()) for table in tables], codes.tolist(), told["rows"], thumbnail

    over_http = asyncio.run(ask(url))
    here = asyncio.run(ask(searcher, encoder=serving.AverageHash()))
    with SearchClient(url) as client:
        plain = client.search([picture, id_, CODE[0]], 4, include=["attributes"]).to_arrow()
    assert over_http == here
    assert over_http[0][0] == str(plain.to_pylist())


@pytest.mark.parametrize("more", [[], ["code"]])
def test_a_collection_without_attributes_has_none_of_them(tmp_path, more):
    Collection.create(tmp_path / "bare", np.arange(5, dtype=np.uint64)[:, None], bits=60)
    opened = CollectionSearcher(tmp_path / "bare")
    with serving.running(create_app(opened)) as url, SearchClient(url) as http, SearchClient(opened) as here:
        for client in (http, here):
            (hits,) = client.search(CODE, 2, include=["attributes", *more])
            assert [hit.attributes for hit in hits] == [{}, {}]
            (hits,) = client.search(CODE, 2, include=more)
            assert [hit.attributes for hit in hits] == [None, None]
        body = {"queries": [{"id": 3}], "k": 2, "include": ["attributes", *more]}
        found = httpx.post(f"{url}/v1/search", json=body).json()
    assert [hit["attributes"] for hit in found["results"][0]["hits"]] == [{}, {}]


def test_a_notebook_shows_pictures_and_escapes_what_it_shows(url, collection):
    with SearchClient(url) as client:
        found = client.search([int(id_) for id_ in collection.shards[0].ids_N[:2]], 30, include=["attributes"])
        page = found._repr_html_()
    assert 20 < page.count('<img src="data:;base64,') <= 40
    assert "picture &lt;" in page
    assert "&quot;é&quot;" in page
    assert "picture <" not in page
    assert page.count("and 10 more") == 2
    assert "2 queries, 60 hits, version 1" in repr(found)
    assert repr(found[0]).startswith("Hits(30: ")
    assert len(found[0][:3]) == 3
    assert found[-1][-1].id == found[1].ids[29]


def test_pictures_are_shown_behind_a_key_in_an_event_loop_and_after_the_client_was_closed(searcher, collection):
    wanted = [int(id_) for id_ in collection.shards[0].ids_N[:2]]

    async def ask(url):
        async with AsyncSearchClient(url, api_key="searching-is-all-0001") as client:
            found = await client.search(wanted, 6)
            return found._repr_html_(), found

    keys = Keys.load(None, {"HASHLIGHT_API_KEYS": "page search searching-is-all-0001"})
    with serving.running(create_app(searcher, keys=keys)) as url:
        with SearchClient(url, api_key="searching-is-all-0001") as client:
            before = client.search(wanted, 6)
            expected = before._repr_html_()
        inside, after = asyncio.run(ask(url))
        assert expected.count('<img src="data:;base64,') > 6
        assert expected == before._repr_html_() == inside == after._repr_html_()
    assert "<img" not in after._repr_html_()


def test_queries_of_all_kinds_are_resolved_together(collection):
    class Recording(CollectionSearcher):
        read, times_s = [], []

        def get(self, ids, *, timeout_s=None):
            self.read.append(list(ids))
            self.times_s.append(timeout_s)
            return super().get(ids)

        def features_of(self, ids, *, timeout_s=None):
            self.times_s.append(timeout_s)
            return super().features_of(ids)

    ids = [int(id_) for id_ in collection.shards[0].ids_N[:3]]
    pictures = [serving.png(picture) for picture in serving.make_pictures(7)]
    asked = [ids[2], pictures[0], CODE[0], pictures[1], ids[0], ids[2], *pictures[2:]]
    encoder, searcher = serving.AverageHash(), Recording(collection)
    with SearchClient(searcher, encoder=encoder) as client:
        found = client.search(asked, 4)
        assert (encoder.batches, searcher.read) == ([7], [[ids[2], ids[0], ids[2]]])
        alone = [client.search(query, 4)[0] for query in asked]
        assert [hits.ids.tolist() for hits in found] == [hits.ids.tolist() for hits in alone]
        features = [query for query in asked if not isinstance(query, np.ndarray)]
        found = client.search(features, 4, rerank=Rerank(pool=20), timeout_s=7)
        alone = [client.search(query, 4, rerank=Rerank(pool=20))[0] for query in features]
        assert [hits.ids.tolist() for hits in found] == [hits.ids.tolist() for hits in alone]
        assert all(0 < left_s <= 10 for left_s in searcher.times_s)
        with pytest.raises(ValueError, match="has 2 words per code"):
            client.search([ids[0], np.zeros(2, np.uint64)])
        with pytest.raises(DeadlineExceededError):
            client.search(ids, timeout_s=1e-9)


def test_an_open_collection_needs_no_server(tmp_path):
    serving.make_collection(tmp_path / "c", count=40, shards=1)
    with hashlight.SearchClient(tmp_path / "c") as client:
        assert len(client.search(CODE, 5)[0]) == 5
        assert "40 codes" in repr(client)


def run_python(code):
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def test_importing_the_client_loads_nothing_heavy():
    loaded = run_python(
        """
        import json, sys
        from hashlight import AsyncSearchClient, SearchClient
        client = SearchClient("http://127.0.0.1:9")
        heavy = ("torch", "ray", "faiss", "numba", "pyarrow", "fastapi", "encoders", "pipelines", "PIL", "pandas")
        print(json.dumps([name for name in heavy if name in sys.modules]))
        """
    )
    assert loaded == []


def test_image_urls_need_a_gateway(url, searcher):
    with SearchClient(url) as client, pytest.raises(InvalidRequestError) as caught:
        client.search("https://example.com/a.jpg")
    assert caught.value.field == "queries.0.url"
    with SearchClient(searcher) as client, pytest.raises(ValueError, match="only a gateway fetches"):
        client.search("https://example.com/a.jpg")


@pytest.mark.parametrize("target", ["127.0.0.1:8000", "localhost:8000/", "search.example.com:443/v1"])
def test_a_url_without_its_scheme_is_not_mistaken_for_a_folder(target):
    with pytest.raises(ValueError, match="`target` must be http://"):
        SearchClient(target)
