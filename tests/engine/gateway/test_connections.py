"""Connections under load, with an application of a few lines: who is let in, and when a request is over."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from urllib.parse import urlsplit

import pytest

from hashlight.engine.service.door.http_server import BoundedHttp
from tests import serving
from tests.engine.service.conftest import eventually

CHUNK = b"x" * 2**20


class Application:
    """Answers `/health/live` and `/` at once, `/wait` when it is told to, `/large` with 64 MiB; counts what is open."""

    def __init__(self):
        self.open = self.cancelled = self.sent = 0
        self.go_on = threading.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.open += 1
        try:
            await self.answer(scope["path"], send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.open -= 1

    async def answer(self, path, send):
        while path == "/wait" and not self.go_on.is_set():
            await asyncio.sleep(0.01)
        chunks = 64 if path == "/large" else 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(chunks):
            await send({"type": "http.response.body", "body": CHUNK if path == "/large" else b"ok", "more_body": True})
            self.sent += 1
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def application():
    one = Application()
    yield one
    one.go_on.set()


def connect(url):
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def ask(connection, path="/", method="GET"):
    connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())


def status(connection):
    head = connection.recv(4096)
    return int(head.split()[1]) if head else None


def is_closed(connection):
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@contextlib.contextmanager
def connections(url, count, path=None):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(url)) for _ in range(count)]
        for one in held if path else []:
            ask(one, path)
        yield held


@pytest.mark.parametrize("head", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nX: y\r\n"])
def test_idle_connections_shut_nobody_out(application, head):
    """Twice as many as are allowed: the oldest make room."""
    with serving.running(application, max_connections=20) as url, connections(url, 40) as held:
        for one in held:
            with contextlib.suppress(OSError):
                one.sendall(head)
        for path in ("/health/live", "/", "/"):
            with connect(url) as one:
                ask(one, path)
                assert status(one) == 200
        assert is_closed(held[0])
        assert is_closed(held[19])


def test_idle_after_an_answer_is_idle_too(application):
    with serving.running(application, max_connections=20) as url, connections(url, 20, "/") as held:
        assert [status(one) for one in held] == [200] * 20
        with connections(url, 15, "/") as more:
            assert [status(one) for one in more] == [200] * 15
            ask(held[19])  # one that is not among the oldest is still there
            assert status(held[19]) == 200
            assert is_closed(held[0])


def test_health_is_answered_when_every_connection_has_a_request(application):
    with serving.running(application, max_connections=20) as url, connections(url, 20, "/wait") as held:
        eventually(lambda: application.open == 20)
        for path, expected in (("/", 503), ("/health/live", 200), ("/", 503), ("/health/ready", 200)):
            with connect(url) as one:
                ask(one, path)
                assert status(one) == expected
        application.go_on.set()
        assert [status(one) for one in held] == [200] * 20
        with connect(url) as one:
            ask(one)
            assert status(one) == 200


@pytest.mark.parametrize("path", ["/wait", "/large"])
def test_a_client_that_went_away_ends_its_request(application, path, caplog):
    with serving.running(application) as url:
        with connections(url, 5, path):
            eventually(lambda: application.open == 5)
        eventually(lambda: application.open == 0)
        assert application.cancelled == 5 or path == "/large"
        with connect(url) as one:
            ask(one)
            assert status(one) == 200
    assert "Exception" not in caplog.text


def test_a_request_is_over_when_its_last_byte_is_out(application):
    with serving.running(application) as url, connections(url, 3, "/large") as held:
        eventually(lambda: application.open == 3 and application.sent > 0)
        sent = application.sent
        assert sent < 3 * 64  # what nobody reads is not produced
        for one in held:
            received = 0
            while received < 64 * 2**20:
                received += len(one.recv(2**20))
        eventually(lambda: application.open == 0)
        assert application.cancelled == 0


@pytest.mark.parametrize("path", ["/large", "/large?again"])
def test_an_answer_that_nobody_reads_is_given_up(application, path, monkeypatch, caplog):
    monkeypatch.setattr(BoundedHttp, "write_s", 0.5)
    with serving.running(application) as url, connections(url, 3, path) as held:
        eventually(lambda: application.cancelled == 3)
        assert application.open == 0
        assert application.sent < 3 * 64
        for one in held:
            with contextlib.suppress(ConnectionResetError):
                while one.recv(2**20):
                    pass
    assert caplog.text.count("did not read its answer within 0.5 s") == 3
