"""Running a gateway under uvicorn, and the addresses it may bind to."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.protocol.exposure import is_loopback

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")

# Connections beyond which uvicorn answers 503: more than can wait for a thread, fewer than there are file handles.
_MAX_CONNECTIONS = 1000
_BACKLOG = 2048
_MAX_HEAD_BYTES = 65_536
_DRAIN_S = 30
HEAD_S = 10


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Where a gateway listens.

    Attributes
    ----------
    host : str
        Name or address; `0.0.0.0` is every address of the machine.
    port : int
        0 for any free port.
    certificate, private_key : Path or None
        PEM files that turn on https.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    private_key: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"`port` must be 0 to 65535, got {self.port}")
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("`certificate` and `private_key` go together: give both or neither")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it: every address of `host` is a loopback one."""
        return is_loopback(self.host, self.port)


def check_exposure(address: Address, keys: Keys, *, insecure: bool) -> None:
    """Refuse to expose a server without keys to other machines.

    Raises
    ------
    ValueError
        If other machines can reach it, it has no keys, and `insecure` is not set.
    """
    if not keys and not insecure and not address.is_loopback:
        raise ValueError(
            f"{address.host} can be reached from other machines, and there are no API keys: give keys (`--keys FILE` "
            "or HASHLIGHT_API_KEYS), bind to 127.0.0.1, or allow everyone (`--insecure`)"
        )


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol with limits on the head of a request.

    The parser lets a head grow without bound, and uvicorn times out only connections that are silent after an answer.
    Here a connection is closed when it has had no request in progress for that long, whether data arrives or not.
    """

    _head_bytes = 0
    _whole_heads = 0
    _in_head = True
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived; answer 400 and close if the head exceeds its limit before it is complete."""
        before = self._whole_heads
        super().data_received(data)
        if not self._in_head or self._whole_heads != before:
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"the head of a request must have at most {_MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Start the request; its body follows."""
        self._in_head = False
        self._wait_no_more()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the request; the next head follows."""
        super().on_message_complete()
        self._in_head = True
        self._whole_heads += 1

    def on_response_complete(self) -> None:
        """Continue with the next request, which may have arrived already."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        self._wait_no_more()
        self._waiting = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class HttpServer:
    """A gateway bound to its address.

    Parameters
    ----------
    app : FastAPI
    address : Address
    head_s : int
        Seconds that a connection may be idle or have an incomplete head.

    Raises
    ------
    OSError
        If the address cannot be bound.
    """

    def __init__(self, app: FastAPI, address: Address, *, head_s: int = HEAD_S) -> None:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        self._socket = socket.create_server((address.host, address.port), family=family, backlog=_BACKLOG)
        self._server = uvicorn.Server(_config(app, address, head_s))
        scheme = "http" if address.certificate is None else "https"
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.url = f"{scheme}://{host}:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`, then finish the requests in progress."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Make `run` return, which another thread has called."""
        self._server.should_exit = True


def _config(app: FastAPI, address: Address, head_s: int) -> uvicorn.Config:
    tls: dict[str, Any] = {}
    if address.certificate is not None:
        tls = {"ssl_certfile": str(address.certificate), "ssl_keyfile": str(address.private_key)}
    return uvicorn.Config(
        app,
        http=BoundedHttp,
        access_log=False,
        log_level="warning",
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_DRAIN_S,
        timeout_keep_alive=head_s,
        **tls,
    )
