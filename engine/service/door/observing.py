"""Around everything that a server answers: the id of each request, and its line in the access log."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hashlight.engine import tracing
from hashlight.engine.service.telemetry.requests import ID_HEADER, TRACE_HEADER, Handled, Trace, working_for
from hashlight.engine.service.telemetry.slow import SLOW_QUERIES, SlowQueries

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_ID, _TRACEPARENT = ID_HEADER.lower().encode(), TRACE_HEADER.lower().encode()

# Asked every few seconds by what watches the server.
_PROBES = ("/health/", "/metrics")
_SEARCHES = ("/search", "/range_search", "/count", "/facets", "/histogram", "/scroll", "/items")
_MAX_PATH = 200

access_log = logging.getLogger("hashlight.access")
slow_log = logging.getLogger("hashlight.slow")


class Observed:
    """ASGI middleware, the outermost: gives each request its id and trace, answers with both, and logs the request.

    Parameters
    ----------
    app : ASGI application
    slow_query_s : float, optional
        A query that takes longer is logged as a warning, with how it was answered; every search is explained for that.
    """

    def __init__(self, app: ASGIApp, *, slow_query_s: float | None = None) -> None:
        self._app = app
        self._slow_s = slow_query_s
        self._slow = SlowQueries(slow_query_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[SLOW_QUERIES] = self._slow
        request = _request_of(scope)
        request.wants_explain = self._slow_s is not None
        # Probes would fill what records traces.
        if scope["path"].startswith(_PROBES) or not tracing.is_recorded():
            await self._answer(request, scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with tracing.span(scope["method"], kind="SERVER", parent=headers) as span:
            assert span is not None, "spans are recorded"
            request.trace = Trace.parse(tracing.traceparent() or "") or request.trace
            status = await self._answer(request, scope, receive, send)
            _describe(span, scope, request, status)

    async def _answer(self, request: Handled, scope: Scope, receive: Receive, send: Send) -> int | None:
        """Answer one request, log it, and return its status; None if its client has gone before."""
        begun_s = time.perf_counter()
        status: int | None = None
        bytes_in = bytes_out = 0

        async def receive_counted() -> Message:
            nonlocal bytes_in
            message = await receive()
            bytes_in += len(message.get("body", b""))
            return message

        async def send_counted(message: Message) -> None:
            nonlocal status, bytes_out
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[ID_HEADER] = request.id
                headers[TRACE_HEADER] = str(request.trace)
            bytes_out += len(message.get("body", b""))
            await send(message)

        with working_for([request]):
            try:
                await self._app(scope, receive_counted, send_counted)
            finally:
                seconds = time.perf_counter() - begun_s
                self._log(scope, request, status, seconds, {"bytes_in": bytes_in, "bytes_out": bytes_out})
        return status

    def _log(self, scope: Scope, request: Handled, status: int | None, seconds: float, sizes: dict[str, int]) -> None:
        """Log a request; its query string and its headers, which may have keys, are left out."""
        method, path = scope["method"], scope["path"][:_MAX_PATH]
        level = logging.DEBUG if path.startswith(_PROBES) else logging.INFO
        is_slow = self._slow_s is not None and seconds > self._slow_s and _is_query(path)
        if not is_slow and not access_log.isEnabledFor(level):
            return
        milliseconds = round(1000 * seconds, 3)
        fields: dict[str, Any] = {"method": method, "path": path, "status": status, **sizes, "ms": milliseconds}
        fields |= request.notes
        if request.trace is not None:
            fields["trace_id"] = request.trace.trace_id
        outcome = "no answer, the client has gone" if status is None else str(status)
        access_log.log(level, "%s %s: %s in %.1f ms", method, path, outcome, milliseconds, extra={"fields": fields})
        if is_slow:
            fields |= request.slow_notes
            self._slow.add(request.id, fields)
            slow_log.warning("slow query: %s %s took %.3f s", method, path, seconds, extra={"fields": fields})


def _request_of(scope: Scope) -> Handled:
    given: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in (_ID, _TRACEPARENT):
            given[name] = value.decode("latin-1")
    return Handled.of(given.get(_ID), given.get(_TRACEPARENT))


def _describe(span: Span, scope: Scope, request: Handled, status: int | None) -> None:
    """Say in a span which request it was, and what became of it; by the names of OpenTelemetry's conventions."""
    if request.route:
        span.update_name(f"{scope['method']} {request.route}")
        span.set_attribute("http.route", request.route)
    span.set_attribute("http.request.method", scope["method"])
    span.set_attribute("url.path", scope["path"][:_MAX_PATH])
    span.set_attribute("hashlight.request_id", request.id)
    for name, value in request.notes.items():
        span.set_attribute(f"hashlight.{name}", value)
    if status is not None:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            tracing.fail(span, f"status {status}")


def _is_query(path: str) -> bool:
    return path.startswith("/v1/") and path.endswith(_SEARCHES)
