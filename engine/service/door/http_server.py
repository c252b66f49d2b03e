"""Running a gateway under uvicorn, and the addresses it may bind to."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import itertools
import json
import logging
import socket
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hashlight.engine.service.door.certificates import FollowedCertificates
from hashlight.engine.service.door.draining import DELAY_S, DRAIN_S, Drain, DrainingServer
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.door.observing import Observed
from hashlight.engine.service.problems import RequestError
from hashlight.engine.service.protocol.exposure import is_loopback

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")

# Connections in all: more than can wait for a thread, fewer than there are file handles. If there are more, the one
# that has been idle for longest is closed, and if none is idle, new ones may only ask for the server's health.
MAX_CONNECTIONS = 1000
_FOR_HEALTH = 50
_BACKLOG = 2048
_MAX_HEAD_BYTES = 65_536
HEAD_S = 10
WRITE_S = 60  # for a client to take an answer, whatever its size

_TURNS = itertools.count()  # the loop's clock is too coarse to tell who came first

logger = logging.getLogger(__name__)


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
        PEM files that turn on https; read again when they change.
    client_authority : Path or None
        PEM file of authorities; only clients with a certificate from one of them can connect.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    private_key: Path | None = None
    client_authority: Path | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"`port` must be 0 to 65535, got {self.port}")
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("`certificate` and `private_key` go together: give both or neither")
        if self.client_authority is not None and self.certificate is None:
            raise ValueError("`client_authority` goes with `certificate` and `private_key`: give those, too")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it: every address of `host` is a loopback one."""
        return is_loopback(self.host, self.port)


def check_exposure(address: Address, keys: Keys, *, insecure: bool) -> None:
    """Refuse to expose a server to other machines that asks for neither keys nor certificates.

    Raises
    ------
    ValueError
        If other machines can reach it, it asks for neither, and `insecure` is not set.
    """
    is_open = not keys and address.client_authority is None
    if is_open and not insecure and not address.is_loopback:
        raise ValueError(
            f"{address.host} can be reached from other machines, and there are no API keys: give keys (`--keys FILE` "
            "or HASHLIGHT_API_KEYS), ask clients for certificates (`--tls-client-authority FILE`), bind to 127.0.0.1, "
            "or allow everyone (`--insecure`)"
        )


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol with limits on connections, on the head of a request, and on the time to read an answer.

    The parser lets a head grow without bound, and uvicorn times out only connections that are silent after an answer.
    Here a connection is closed when it has had no request in progress for that long, whether data arrives or not.

    A request lasts until the system has taken the last byte of its answer (with TLS, all but the last 64 KiB), which
    the application is told by the end of `send`; it is cancelled when its client goes away.
    """

    write_s: float = WRITE_S

    _head_bytes = 0
    _whole_heads = 0
    _in_head = True
    _waiting: asyncio.TimerHandle | None = None
    _turn = 0  # of beginning to wait
    _task: asyncio.Task[Any] | None = None
    _lost = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn would refuse everybody.
        self._max_connections, self.limit_concurrency = self.limit_concurrency or MAX_CONNECTIONS, None
        self._application, self.app = self.app, self._answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head, in the place of a connection that has been idle for longer if there are too many."""
        super().connection_made(transport)
        # Full until it is empty. Under TLS a limit of 0 would pause writing at every other write, and keep it paused.
        transport.set_write_buffer_limits(high=1, low=0)
        if self._make_room() or len(self.connections) <= self._max_connections + _FOR_HEALTH:
            self._wait_for_head()
        else:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer, and whatever is done for a client that has gone."""
        self._wait_no_more()
        self._lost = True
        if self._task is not None:
            self._task.cancel()
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

    def _make_room(self) -> bool:
        """Return whether there is room for this connection; close the one that has been idle for longest if need be."""
        if len(self.connections) <= self._max_connections:
            return True
        others = [one for one in self.connections if isinstance(one, BoundedHttp) and one is not self]
        others = [one for one in others if not one.transport.is_closing()]
        idle = [one for one in others if one._waiting is not None]
        if len(others) >= self._max_connections and idle:
            longest = min(idle, key=lambda one: one._turn)
            longest._wait_no_more()
            longest.transport.close()
        return len(others) < self._max_connections or bool(idle)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the application until the last byte of its answer is out, or the client is gone or does not read."""
        if not scope["path"].startswith("/health/") and not self._make_room():
            await _CROWD(scope, receive, send)
            return
        left_s = self.write_s  # not counting the time to make the answer

        async def send_out(message: Any) -> None:
            nonlocal left_s
            begun_s = self.loop.time()
            try:
                async with asyncio.timeout(left_s):
                    await send(message)
                    await self.flow.drain()
                left_s -= self.loop.time() - begun_s
            except TimeoutError:
                logger.warning("%s did not read its answer within %g s", self.client, self.write_s)
                self.transport.abort()

        task = self._task = asyncio.current_task()
        try:
            await self._application(scope, receive, send_out)
        except asyncio.CancelledError:
            if not self._lost or task is None or task.uncancel():
                raise
        finally:
            if self._task is task:
                self._task = None
                if self.cycle.response_complete and not self.transport.is_closing():
                    self._wait_for_head()

    def _wait_for_head(self) -> None:
        self._wait_no_more()
        self._turn = next(_TURNS)
        self._waiting = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


async def _refuse_crowd(scope: Any, receive: Any, send: Any) -> None:
    refusal = RequestError(503, "overloaded", "there are too many connections: try again")
    body = json.dumps(refusal.document()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "retry-after": "1"}
    pairs = [(name.encode(), value.encode()) for name, value in {**headers, "connection": "close"}.items()]
    await send({"type": "http.response.start", "status": 503, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


_CROWD = Observed(_refuse_crowd)


class HttpServer:
    """A gateway bound to its address.

    Parameters
    ----------
    app : ASGI application
    address : Address
    head_s : int
        Seconds that a connection may be idle or have an incomplete head.
    max_connections : int
        Above which idle ones are closed, and without any everything but the server's health is refused.
    slow_query_s : float, optional
        A query that takes longer is logged with how it was answered.
    delay_s : float
        How long requests are answered after SIGTERM.

    Raises
    ------
    OSError
        If the address cannot be bound; it says which, and what to do. If a certificate cannot be read.
    ValueError
        If certificates cannot be used.
    """

    def __init__(
        self,
        app: ASGIApp,
        address: Address,
        *,
        head_s: int = HEAD_S,
        max_connections: int = MAX_CONNECTIONS,
        slow_query_s: float | None = None,
        delay_s: float = DELAY_S,
    ) -> None:
        drain = self._drain = Drain(app, delay_s=delay_s)
        config = _config(Observed(drain, slow_query_s=slow_query_s), address, head_s, max_connections)
        self._socket = _listen(address)
        self._server = DrainingServer(config, drain)
        scheme = "http" if address.certificate is None else "https"
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.url = f"{scheme}://{host}:{self._socket.getsockname()[1]}"

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`, then finish the requests in progress.

        From SIGTERM on, `/health/ready` is 503, and the socket stays open for a while, so that a load balancer can send
        requests elsewhere first. A second signal, SIGINT and `stop` close it at once.
        """
        self._server.run(sockets=[self._socket])

    @property
    def draining(self) -> bool:
        """Whether it is about to end, and is not ready any more."""
        return self._drain.begun

    def stop(self) -> None:
        """Make `run` return, which another thread has called."""
        self._server.should_exit = True


def _listen(address: Address) -> socket.socket:
    """Return a socket that listens at an address; OSError that says what to do if it cannot."""
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address.host, address.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        where = f"[{address.host}]" if ":" in address.host else address.host
        message = f"cannot listen at {where}:{address.port}: {_why_not(error, address)}"
        # With the number, so that callers can tell the reasons apart; without it the message is all that is shown.
        refused = OSError(message)
        refused.errno = error.errno
        raise refused from error


def _why_not(error: OSError, address: Address) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another process listens there: stop it, or choose another port (`--port`; 0 is any that is free)"
    if error.errno == errno.EACCES:
        return "ports below 1024 need privileges: choose another port (`--port`; 0 is any that is free)"
    if error.errno == errno.EADDRNOTAVAIL:
        return "no network interface of this machine has this address: choose another host (`--host`)"
    if isinstance(error, socket.gaierror):
        return f"the host has no address ({error.strerror}): choose another host (`--host`)"
    return f"{error.strerror or error}"


def _config(app: Observed, address: Address, head_s: int, max_connections: int) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        access_log=False,
        # As `logging_as` says, or whoever uses this as a library.
        log_config=None,
        log_level=None,
        server_header=False,
        ws="none",
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=int(DRAIN_S),
        timeout_keep_alive=head_s,
    )
    config.load()
    if address.certificate is not None and address.private_key is not None:
        config.ssl = FollowedCertificates(address.certificate, address.private_key, address.client_authority).context
    return config
