"""A client that knows several gateways: what one does not answer, another one does."""

import asyncio
import contextlib

import httpx
import pytest

from hashlight.engine.client import http as client_http
from hashlight.engine.client.client import AsyncSearchClient, SearchClient
from hashlight.engine.client.errors import ConnectionFailedError, HashlightError, InvalidRequestError

URLS = ["http://a:1", "http://b:2/v1", "https://c"]
HOSTS = ["a", "b", "c"]
ABOUT = {"bits": 64}


def refusal(status, kind):
    return httpx.Response(status, json={"error": {"type": kind, "message": kind, "field": None}})


class Net(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Gateways by their hosts: each answers, or does what the test says; notes who was asked."""

    def __init__(self, **faults):
        self.faults, self.asked = faults, []

    def handle_request(self, request):
        self.asked.append(request.url.host)
        assert request.url.path.count("/v1") == 1
        fault = self.faults.get(request.url.host)
        if isinstance(fault, Exception):
            raise fault
        if fault is not None:
            return refusal(*fault)
        return httpx.Response(200, json={**ABOUT, "version": 7, "count": 3})

    async def handle_async_request(self, request):
        return self.handle_request(request)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client_http, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(client_http.random, "randrange", lambda count: 0)


@pytest.mark.parametrize(
    "fault",
    [
        httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.RemoteProtocolError("closed"),
        (503, "not_ready"), (503, "incomplete"), (503, "no_shard"), (429, "overloaded"),
    ],
)  # fmt: skip
def test_another_is_asked_at_once_and_stays_the_one(fault, monkeypatch):
    net = Net(a=fault)
    monkeypatch.setattr(client_http.time, "sleep", lambda seconds: pytest.fail("nothing is waited for"))
    with SearchClient(URLS, transport=net) as client:
        assert client.count() == 3
        assert client.count() == 3
    assert net.asked == ["a", "b", "b"]
    net = Net(a=fault, b=fault)

    async def ask():
        async with AsyncSearchClient(",".join(URLS), transport=net) as client:
            return await client.count()

    assert asyncio.run(ask()) == 3
    assert net.asked == HOSTS


def test_all_are_tried_again_after_a_pause(monkeypatch):
    net, pauses = Net(a=httpx.ConnectError("a"), b=httpx.ConnectError("b"), c=httpx.ConnectError("c")), []
    monkeypatch.setattr(client_http.time, "sleep", pauses.append)
    with SearchClient(URLS, transport=net, max_retries=1) as client, pytest.raises(ConnectionFailedError):
        client.count()
    assert (net.asked, len(pauses)) == (HOSTS * 2, 1)


def test_what_is_wrong_with_the_request_is_wrong_everywhere():
    net = Net(a=(422, "invalid_request"))
    with SearchClient(URLS, transport=net) as client, pytest.raises(InvalidRequestError):
        client.count()
    assert net.asked == ["a"]


@pytest.mark.parametrize(
    ("fault", "asked"),
    [
        (httpx.ReadError("reset"), ["a", "a"]),  # it may have been made, and only this server knows
        (httpx.ConnectError("refused"), ["a", "b"]),
        ((503, "not_ready"), ["a", "b"]),
    ],
)
def test_a_write_goes_elsewhere_only_if_it_was_not_made(fault, asked):
    net = Net(a=fault)
    fails = contextlib.nullcontext() if len(set(asked)) == 2 else pytest.raises(ConnectionFailedError)
    with SearchClient(URLS, transport=net, max_retries=1) as client, fails:
        client.delete([3])
    assert net.asked == asked


def test_an_answer_that_lacks_shards_everywhere_is_an_error_after_one_round():
    net = Net(**dict.fromkeys(HOSTS, (503, "incomplete")))
    with SearchClient(URLS, transport=net) as client, pytest.raises(HashlightError, match="incomplete"):
        client.count()
    assert net.asked == HOSTS


@pytest.mark.parametrize("target", [[], ["http://a", "folder"], ["http://a", 3], "http://a,folder"])
def test_several_targets_must_be_gateways(target):
    with pytest.raises(ValueError, match="several targets must be URLs of gateways"):
        SearchClient(target)


def test_the_client_shows_whom_it_knows():
    with SearchClient(URLS[:2]) as client:
        assert repr(client) == "SearchClient('http://a:1,http://b:2')"
