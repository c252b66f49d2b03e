"""Images from URLs: which are refused before anything is sent, and where requests go."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from hashlight.engine.service.door.fetch import ImageFetcher, is_public, resolve
from hashlight.engine.service.problems import RequestError

ALLOWED = ("images.example.com", ".cdn.example.com")


class Chunks(httpx.AsyncByteStream):
    """A body that arrives in chunks, as from the network."""

    def __init__(self, *parts):
        self.parts = parts

    async def __aiter__(self):
        for part in self.parts:
            yield part


def fetch(url, *, addresses=("93.184.216.34",), answer=None, **options):
    """Fetch with a name server that returns `addresses`; return the result and the requests that were made."""
    made = []

    async def handle(request):
        made.append(request)
        return answer or httpx.Response(200, stream=Chunks(b"pic", b"ture"))

    async def look_up(host):
        return list(addresses)

    async def run():
        fetcher = ImageFetcher(ALLOWED, max_bytes=100, resolve=look_up, transport=httpx.MockTransport(handle))
        try:
            return await fetcher.fetch(url, "queries.0.url", **options)
        finally:
            await fetcher.close()

    return asyncio.run(run()), made


def test_the_connection_goes_to_the_address_that_was_checked():
    data, (request,) = fetch("https://images.example.com/a/b.png?size=1", addresses=("93.184.216.34", "1.1.1.1"))
    assert data == b"picture"
    assert str(request.url) == "https://93.184.216.34/a/b.png?size=1"
    assert request.headers["host"] == "images.example.com"
    assert request.extensions["sni_hostname"] == "images.example.com"
    assert request.headers["accept-encoding"] == "identity"
    _, (request,) = fetch("https://a.b.CDN.example.com./", addresses=("2606:4700::1111",))
    assert str(request.url) == "https://[2606:4700::1111]/"


@pytest.mark.parametrize(
    "url",
    [
        "http://images.example.com/a.png",
        "ftp://images.example.com/a.png",
        "file:///etc/passwd",
        "//images.example.com/a.png",
        "https://images.example.com:8443/a.png",
        "https://user@images.example.com/a.png",
        "https://images.example.com:443@169.254.169.254/",
        "https://169.254.169.254/latest/meta-data/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://2130706433/",
        "https://evil.com/images.example.com",
        "https://images.example.com.evil.com/",
        "https://evilcdn.example.com/",
        "https://evil.com\\@images.example.com/",
        "https://images.example.com:99999999/",
        "https://[images.example.com/",
        "https://",
        "",
    ],
)
def test_disallowed_urls(url):
    with pytest.raises(RequestError) as caught:
        fetch(url)
    assert (caught.value.status, caught.value.field) == (422, "queries.0.url")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::",
    ],
)  # fmt: skip
def test_names_that_resolve_to_private_addresses_are_refused(address):
    assert not is_public(address)
    for addresses in ((address,), ("93.184.216.34", address)):
        with pytest.raises(RequestError, match="not public"):
            fetch("https://images.example.com/", addresses=addresses)


def test_public_addresses_are_public():
    assert all(is_public(address) for address in ("93.184.216.34", "1.1.1.1", "2606:4700::1111"))


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (httpx.Response(302, headers={"location": "http://127.0.0.1/"}), 422, "status 302"),
        (httpx.Response(404), 422, "status 404"),
        (httpx.Response(200, stream=Chunks(b"x" * 60, b"x" * 60)), 413, "over 100 bytes"),
    ],
)
def test_unacceptable_responses(answer, status, message):
    with pytest.raises(RequestError, match=message) as caught:
        fetch("https://images.example.com/", answer=answer)
    assert caught.value.status == status


def test_a_fetch_stops_at_the_requests_remaining_bytes():
    data, _ = fetch("https://images.example.com/", left_bytes=7)
    assert data == b"picture"
    for left, answer in ((6, None), (0, None), (60, httpx.Response(200, stream=Chunks(b"x" * 40, b"x" * 40)))):
        with pytest.raises(RequestError, match=f"exceeds the {left} bytes left for this request") as caught:
            fetch("https://images.example.com/", answer=answer, left_bytes=left)
        assert (caught.value.status, caught.value.field) == (413, "queries.0.url")


def test_names_are_resolved_by_the_system():
    assert "127.0.0.1" in asyncio.run(resolve("localhost"))
    with pytest.raises(RequestError, match="not public"):
        asyncio.run(ImageFetcher(["localhost"], max_bytes=10).fetch("https://localhost/", "url"))
    with pytest.raises(RequestError, match="cannot be resolved"):
        asyncio.run(ImageFetcher(["no.invalid"], max_bytes=10).fetch("https://no.invalid/", "url"))
