"""Images from URLs: which are refused before anything is sent, and where requests go."""

from __future__ import annotations

import asyncio
import datetime
import ssl

import anyio
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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


def fetch(url, *, addresses=("93.184.216.34",), answer=None, max_bytes=1000):
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
            [data] = (await fetcher.fetch_all({"queries.0.url": url}, max_bytes=max_bytes)).values()
            return data
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
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "::127.0.0.1", "::8.8.8.8",
        "64:ff9b:1::7f00:1", "64:ff9b:1::808:808", "fec0::1", "feff::1", "::ffff:0:127.0.0.1", "::ffff:224.0.0.1",
        "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "100::1", "5f00::1", "2001:db8::1", "4000::1", "2606:4700::1%eth0",
    ],
)  # fmt: skip
def test_names_that_resolve_to_private_addresses_are_refused(address):
    assert not is_public(address)
    for addresses in ((address,), ("93.184.216.34", address)):
        with pytest.raises(RequestError, match="not public"):
            fetch("https://images.example.com/", addresses=addresses)


def test_public_addresses_are_public():
    assert all(is_public(address) for address in ("93.184.216.34", "1.1.1.1", "2606:4700::1111"))
    assert all(is_public(address) for address in ("::ffff:1.1.1.1", "64:ff9b::101:101", "2a00:1450:4001::8"))


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


def test_the_images_of_a_request_are_limited_together():
    data, _ = fetch("https://images.example.com/", max_bytes=7)
    assert data == b"picture"
    for limit, answer in ((6, None), (0, None), (60, httpx.Response(200, stream=Chunks(b"x" * 40, b"x" * 40)))):
        with pytest.raises(RequestError, match=f"are over {limit} bytes together") as caught:
            fetch("https://images.example.com/", answer=answer, max_bytes=limit)
        assert (caught.value.status, caught.value.field) == (413, "queries.0.url")
    urls = [f"https://images.example.com/{number}" for number in range(3)]
    assert run(urls, Counting(), max_bytes=21) == [b"picture"] * 3
    with pytest.raises(RequestError, match="are over 20 bytes together"):
        run(urls, Counting(), max_bytes=20)


class Counting(httpx.AsyncBaseTransport):
    """Answers once `together` requests are open, or fails that of a path; counts how many were open at most."""

    def __init__(self, together=1, failing=None):
        self.together, self.failing, self.open, self.most, self.ended = together, failing, 0, 0, 0
        self.enough = None

    async def handle_async_request(self, request):
        self.enough = self.enough or asyncio.Event()
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            if self.open == self.together:
                self.enough.set()
            if request.url.path == self.failing:
                return httpx.Response(404)
            await self.enough.wait()
            return httpx.Response(200, stream=Chunks(b"picture"))
        finally:
            self.open -= 1
            self.ended += 1


def run(urls, transport, *, max_bytes=10**6):
    async def look_up(host):
        return ["93.184.216.34"]

    async def fetch_all():
        fetcher = ImageFetcher(ALLOWED, max_bytes=100, resolve=look_up, transport=transport)
        try:
            found = await fetcher.fetch_all(
                {f"queries.{n}.url": url for n, url in enumerate(urls)}, max_bytes=max_bytes
            )
            return list(found.values())
        finally:
            await fetcher.close()

    return asyncio.run(fetch_all())


def test_images_are_fetched_side_by_side_but_a_few_at_a_time():
    urls = [f"https://images.example.com/{number}" for number in range(30)]
    transport = Counting(together=8)  # answers nothing before eight requests are open
    assert run(urls, transport) == [b"picture"] * 30
    assert (transport.most, transport.ended) == (8, 30)


def test_the_first_image_that_fails_ends_the_fetching_of_the_others():
    urls = [f"https://images.example.com/{number}" for number in range(30)]
    transport = Counting(together=31, failing="/5")  # the others would wait for ever
    with pytest.raises(RequestError, match=r"`queries\.5\.url` returned status 404"):
        run(urls, transport)
    assert transport.open == 0


def write_certificate(folder, hosts):
    """Write a self-signed certificate for some hosts, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hashlight test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(private)


class Recorder(asyncio.Protocol):
    """An https server that answers every request with the name it was asked for, and records its connections."""

    connections: list[list[bytes]]

    def connection_made(self, transport):
        self.transport, self.requests = transport, []
        self.connections.append(self.requests)

    def data_received(self, data):
        host = data.split(b"Host: ")[1].split(b"\r\n")[0]
        self.requests.append(host)
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(host) + host)


@pytest.mark.parametrize(
    "hosts",
    [
        ["a.cdn.example.com", "b.cdn.example.com"],
        ["a.cdn.example.com", "a.cdn.example.com"],
        ["a.cdn.example.com", "images.example.com", "a.cdn.example.com"],
    ],
)
def test_no_connection_serves_two_requests(tmp_path, monkeypatch, hosts):
    write_certificate(tmp_path, {*hosts})
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    monkeypatch.setattr("certifi.where", lambda: str(tmp_path / "certificate.pem"))
    kind = type("One", (Recorder,), {"connections": []})

    async def look_up(host):
        return ["93.184.216.34"]

    async def fetch_one_after_another():
        server = await asyncio.get_running_loop().create_server(kind, "127.0.0.1", 0, ssl=server_side)
        port, connect = server.sockets[0].getsockname()[1], anyio.connect_tcp

        async def connect_here(remote_host, remote_port, **options):  # the one step that would leave the machine
            assert (remote_host, remote_port) == ("93.184.216.34", 443)
            return await connect("127.0.0.1", port, **options)

        monkeypatch.setattr("anyio.connect_tcp", connect_here)
        fetcher = ImageFetcher(ALLOWED, max_bytes=100, resolve=look_up)
        try:
            for host in hosts:
                found = await fetcher.fetch_all({"url": f"https://{host}/a.png"}, max_bytes=1000)
                assert found == {"url": host.encode()}
        finally:
            await fetcher.close()
            server.close()

    asyncio.run(fetch_one_after_another())
    assert kind.connections == [[host.encode()] for host in hosts]


def test_names_are_resolved_by_the_system():
    assert "127.0.0.1" in asyncio.run(resolve("localhost"))
    with pytest.raises(RequestError, match="not public"):
        asyncio.run(ImageFetcher(["localhost"], max_bytes=10).fetch_all({"url": "https://localhost/"}, max_bytes=10))
    with pytest.raises(RequestError, match="cannot be resolved"):
        asyncio.run(ImageFetcher(["no.invalid"], max_bytes=10).fetch_all({"url": "https://no.invalid/"}, max_bytes=10))
