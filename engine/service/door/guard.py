"""Wraps every request: its key, limits on its body, headers of its answer, an answer to every failure, counters."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hashlight.engine.service.door.access import REPLICAS_PATH, Access
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.problems import RequestError
from hashlight.engine.service.telemetry.metrics import Metrics
from hashlight.engine.service.telemetry.requests import current

API_POLICY = "default-src 'none'; frame-ancestors 'none'"
# The page's own files and nothing else; pictures also from memory, as those that need a key are shown that way.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
API_PATHS = ("/v1/", "/health/", "/metrics", "/openapi.json")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware. Bodies that are too large, too slow or too many raise `RequestError` when they are read."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        metrics: Metrics,
        access: Access,
        admit: Callable[[], None],
        refuse: Callable[[Exception], Response],
    ) -> None:
        self._app = app
        self._access = access
        self._admit = admit
        self._refuse = refuse
        self._limits = limits
        self._metrics = metrics
        self.buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, sent = time.perf_counter(), 0, 0
        body = _Body(self, self._limits, Headers(scope=scope), receive)

        async def send_guarded(message: Message) -> None:
            nonlocal status, sent
            sent += len(message.get("body", b""))
            if message["type"] == "http.response.start":
                status = message["status"]
                self.add_headers(scope["path"], MutableHeaders(scope=message), closes=body.refused)
            await send(message)

        # What a request takes is given back when its answer is out, which `send` waits for.
        with contextlib.ExitStack() as until_sent:
            scope.setdefault("state", {})["until_sent"] = until_sent
            try:
                self._access.check(scope, until_sent)
                # Before routing: under overload most requests end here, and must cost little. Adding replicas relieves
                # an overload, so it is not refused under one.
                if scope["path"].startswith("/v1/") and scope["path"] != REPLICAS_PATH:
                    self._admit()
                await self._app(scope, body.receive, send_guarded)
            except Exception as error:
                if status:
                    raise
                # Answered here, because Starlette's fallback closes the connection and breaks the client's next
                # request.
                await self._refuse(error)(scope, body.receive, send_guarded)
            finally:
                self.buffered -= body.received
                route = getattr(scope.get("route"), "path", "other")
                for request in current():
                    request.route = route
                seconds = time.perf_counter() - start
                self._metrics.count(route, status, seconds, received=body.received, sent=sent)

    def check_buffered(self) -> None:
        """Raise 429 if the bodies being received are too large together."""
        if self.buffered > self._limits.buffered_bytes:
            raise RequestError(
                429,
                "overloaded",
                f"{self._limits.buffered_bytes} bytes of requests are being received: try again",
                headers={"Retry-After": "1"},
            )

    @staticmethod
    def add_headers(path: str, headers: MutableHeaders, *, closes: bool) -> None:
        """Add the headers that every answer has."""
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        headers.setdefault("Content-Security-Policy", API_POLICY if path.startswith(API_PATHS) else PAGE_POLICY)
        if path.startswith(API_PATHS):
            headers.setdefault("Cache-Control", "no-store")
        if closes:
            headers["Connection"] = "close"


class _Body:
    """The body of one request as it arrives."""

    def __init__(self, guard: Guard, limits: Limits, headers: Headers, receive: Receive) -> None:
        self._guard = guard
        self._limits = limits
        self._receive = receive
        self._announced = headers.get("content-length", "0")
        self._deadline_s: float | None = None
        self._whole = False
        self.received = 0
        self.refused = False

    async def receive(self) -> Message:
        """Return the next part of the body; RequestError if it exceeds a limit."""
        if self._whole:
            return await self._receive()
        try:
            return await self._next()
        except RequestError:
            self.refused = True
            raise

    async def _next(self) -> Message:
        if self._announced.isdecimal() and int(self._announced) > self._limits.body_bytes:
            raise self._too_large(f"{self._announced} bytes")
        loop = asyncio.get_running_loop()
        if self._deadline_s is None:
            self._deadline_s = loop.time() + self._limits.body_s
        try:
            async with asyncio.timeout_at(self._deadline_s):
                message = await self._receive()
        except TimeoutError as error:
            text = f"the body did not arrive within {self._limits.body_s:g} s: send it faster or make it smaller"
            raise RequestError(408, "body_timeout", text) from error
        size = len(message.get("body", b""))
        self.received += size
        self._guard.buffered += size
        if self.received > self._limits.body_bytes:
            raise self._too_large("more")
        self._guard.check_buffered()
        self._whole = not message.get("more_body", False)
        return message

    def _too_large(self, got: str) -> RequestError:
        text = f"a body must have at most {self._limits.body_bytes} bytes, got {got}: split it into several requests"
        return RequestError(413, "too_large", text)
