"""Spans of OpenTelemetry around what takes time, for whoever records them; nothing otherwise.

They are recorded in a process that has given OpenTelemetry a tracer provider, or has called `recording_to`. In any
other nothing of OpenTelemetry is imported here, and a span is a context that does nothing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

Kind = Literal["INTERNAL", "SERVER", "CLIENT"]
Attributes = Mapping[str, str | int | float | bool]

_NAME = "hashlight"
_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()
_given: Tracer | None = None


@contextlib.contextmanager
def recording_to(provider: TracerProvider) -> Iterator[None]:
    """Have `provider` make the spans of this process as long as the context is open."""
    global _given
    before, _given = _given, provider.get_tracer(_NAME)
    try:
        yield
    finally:
        _given = before


def span(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "INTERNAL",
    parent: str | Mapping[str, str] | None = None,
    links: Sequence[str] = (),
) -> AbstractContextManager[Span | None]:
    """Return a context that is a span, and gives it if it is recorded.

    Parameters
    ----------
    name : str
        The same for all that are alike.
    attributes : mapping, optional
    kind : str
        Whether it answers a remote call, is one, or neither.
    parent : str or mapping, optional
        A `traceparent`, or the headers of a request, their names in lower case; by default the current span.
    links : sequence of str
        The `traceparent` of other spans for which this one works, too.
    """
    tracer = _tracer()
    if tracer is None:
        return _NOTHING
    from opentelemetry import trace

    context = None if parent is None else _context_of(parent)
    linked = [trace.Link(trace.get_current_span(_context_of(link)).get_span_context()) for link in links]
    return tracer.start_as_current_span(
        name, context=context, kind=trace.SpanKind[kind], attributes=attributes, links=linked
    )


def is_recorded() -> bool:
    """Return whether somebody records spans."""
    return _tracer() is not None


def traceparent() -> str | None:
    """Return the `traceparent` of the current span; None if there is none."""
    if _tracer() is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def fail(span: Span, reason: str) -> None:
    """Say that what a span stands for has failed."""
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, reason))


def inject(headers: MutableMapping[str, str]) -> None:
    """Add what continues the current trace to the headers of a request, in the way that OpenTelemetry was given."""
    if _tracer() is not None:
        from opentelemetry import propagate

        propagate.inject(headers)


def _tracer() -> Tracer | None:
    """Return what makes spans; None if nobody records them."""
    if _given is not None:
        return _given
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    tracer: Tracer = provider.get_tracer(_NAME)
    return tracer


def _context_of(parent: str | Mapping[str, str]) -> Context:
    from opentelemetry import propagate
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if isinstance(parent, str):
        return TraceContextTextMapPropagator().extract({"traceparent": parent}, Context())
    return propagate.extract(parent, Context())
