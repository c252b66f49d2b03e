"""Metrics and health on a port of their own, for what watches a server: without keys, and apart from its requests."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from hashlight.engine.errors import HashlightError
from hashlight.engine.service.problems import RequestError, refusal_of
from hashlight.engine.service.protocol.exposure import split_address
from hashlight.engine.service.telemetry.metrics import CONTENT_TYPE

_JSON = "application/json"
_MAX_CONNECTIONS = 64
_TIMEOUT_S = 10.0  # to send a request, and to take its answer

logger = logging.getLogger(__name__)

Check = Callable[[], Mapping[str, Any]]


class Watched(NamedTuple):
    """What a server says about itself; all of it is called in threads of the listener.

    Attributes
    ----------
    metrics : callable
        Returns Prometheus's text format.
    ready : callable
        Returns a document if the server is to be sent requests, or raises what is wrong.
    complete : callable
        Returns a document if every shard can be searched, or raises what is wrong.
    """

    metrics: Callable[[], bytes]
    ready: Check
    complete: Check


@contextmanager
def watching(listen: str, watched: Watched) -> Iterator[str]:
    """Answer `/metrics`, `/health/live`, `/health/ready` and `/health/complete` as long as the context is open.

    Parameters
    ----------
    listen : str
        `HOST:PORT`; port 0 is any that is free, and the address of IPv6 is in brackets.
    watched : Watched

    Yields
    ------
    str
        The URL.

    Raises
    ------
    ValueError
        If `listen` is not an address.
    OSError
        If it cannot be bound; it says which.
    """
    host, port = split_address(listen)
    try:
        server = _Server((host, port), watched)
    except OSError as error:
        raise OSError(
            f"cannot listen at {listen}: {error.strerror or error}: choose another address (`--metrics-listen`)"
        ) from error
    # Polled often, so that the end does not wait.
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="hashlight-metrics", daemon=True)
    thread.start()
    url = f"http://{listen.rpartition(':')[0]}:{server.server_address[1]}"
    logger.info("metrics and health at %s", url)
    try:
        yield url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    """A thread for each connection, up to a number."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], watched: Watched) -> None:
        self.address_family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        self.watched = watched
        self._free = threading.Semaphore(_MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, unless there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with a connection: mostly, that its other end has gone."""
        logger.debug("a connection for metrics or health has failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request, and closes its connection."""

    server: _Server
    timeout = _TIMEOUT_S
    server_version, sys_version = "hashlight", ""

    def do_GET(self) -> None:
        """Answer."""
        status, kind, body = self._answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the names are those of the base class

    def log_message(self, format: str, *args: Any) -> None:
        """Log a request."""
        logger.debug("%s of %s", format % args, self.client_address[0])

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        """Return the status, the type and the body of an answer."""
        watched = self.server.watched
        try:
            if path == "/metrics":
                return 200, CONTENT_TYPE, watched.metrics()
            checks: dict[str, Check] = {
                "/health/live": lambda: {"status": "live"},
                "/health/ready": watched.ready,
                "/health/complete": watched.complete,
            }
            if path not in checks:
                there = ", ".join(["/metrics", *checks])
                raise RequestError(404, "not_found", f"there is no {path[:100]}; there are {there}")
            return 200, _JSON, json.dumps(checks[path]()).encode()
        except Exception as error:
            if not isinstance(error, HashlightError | RequestError):
                logger.exception("%s cannot be answered", path)
            refusal = refusal_of(error)
            return refusal.status, _JSON, json.dumps(refusal.document()).encode()
