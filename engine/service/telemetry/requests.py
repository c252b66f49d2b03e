"""The requests that a thread or task works for: their ids, their traces, and what their lines in the log will say.

A request has one id from the client to the shard servers. Whatever is logged while one works for it carries that id
(`engine.service.telemetry.logs`), and so does the body of every error.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from hashlight.engine.tracing import Attributes, Kind, span, traceparent

if TYPE_CHECKING:
    from opentelemetry.trace import Span

T = TypeVar("T")

ID_HEADER = "X-Request-Id"
TRACE_HEADER = "traceparent"
MAX_ID_CHARACTERS = 128

# Neither quotes, nor spaces, nor what ends a line, and no comma, which joins the ids of requests answered together.
_ID = re.compile(rf"[A-Za-z0-9._:/+=@-]{{1,{MAX_ID_CHARACTERS}}}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Trace(NamedTuple):
    """A place in a trace, as the W3C's `traceparent` gives it.

    Attributes
    ----------
    trace_id : str
        32 hex digits.
    span_id : str
        16 hex digits: of the caller's part of the trace.
    flags : str
        2 hex digits; `01`: the caller records the trace.
    """

    trace_id: str
    span_id: str
    flags: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a `traceparent`; None if it is not valid, and so to be ignored."""
        found = _TRACEPARENT.fullmatch(text)
        if found is None:
            return None
        version, trace_id, span_id, flags, more = found.groups()
        # Later versions may have more fields, the first one has none.
        if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id, span_id, flags)

    @classmethod
    def begin(cls) -> Self:
        """Return a new trace, which nobody records."""
        return cls(secrets.token_hex(16), secrets.token_hex(8), "00")

    def child(self) -> Self:
        """Return a part of the same trace, with an id of its own."""
        return self._replace(span_id=secrets.token_hex(8))

    def __str__(self) -> str:
        """Return the `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


@dataclasses.dataclass(slots=True)
class Handled:
    """A request that is being handled.

    Attributes
    ----------
    id : str
        Empty if it has none.
    trace : Trace or None
        This server's part of the trace; None if nobody gave one.
    route : str
        Which of the server's paths it is for, `/v1/items/{id}`; empty until that is known, or if it is for none.
    wants_explain : bool
        Whether its search is to be explained for the log, also if the client does not want that.
    notes : dict
        What its line in the access log says besides.
    slow_notes : dict
        What its line in the log of slow queries says besides.
    """

    id: str
    trace: Trace | None = None
    route: str = ""
    wants_explain: bool = False
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    slow_notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, given_id: str | None, traceparent: str | None) -> Self:
        """Return a request with the id that its client gave, or with a new one if that is missing or not valid."""
        id_ = given_id if given_id is not None and is_valid_id(given_id) else secrets.token_hex(16)
        caller = None if traceparent is None else Trace.parse(traceparent)
        return cls(id_, Trace.begin() if caller is None else caller.child())


_current: contextvars.ContextVar[tuple[Handled, ...]] = contextvars.ContextVar("hashlight_requests", default=())


def is_valid_id(text: str) -> bool:
    """Return whether a text may be the id of a request: 1 to 128 letters, digits and any of `._:/+=@-`."""
    return _ID.fullmatch(text) is not None


def current() -> tuple[Handled, ...]:
    """Return the requests that this thread or task works for; several if they are answered together."""
    return _current.get()


def request_id() -> str:
    """Return the id of the current request, joined by commas if there are several, empty if there is none."""
    return ",".join([one.id for one in _current.get()])


def note(**more: Any) -> None:
    """Add to what the current request's line in the access log says."""
    for one in _current.get():
        one.notes.update(more)


def traces() -> list[str]:
    """Return the `traceparent` of each of the current requests that has one."""
    return [str(one.trace) for one in _current.get() if one.trace is not None]


def shared_span(name: str, attributes: Attributes, *, kind: Kind = "INTERNAL") -> AbstractContextManager[Span | None]:
    """Return a span of work for all current requests: a part of the first one's, with links to the others'."""
    found = traces()
    return span(name, attributes, kind=kind, parent=found[0] if found else None, links=found[1:])


def context() -> str:
    """Return what a shard server is told of the current requests: lines `name: value`, of which it reads what it knows.

    They are the ids, and the `traceparent` of the current span, or else of the first request that has one.
    """
    lines = []
    if id_ := request_id():
        lines.append(f"request_id: {id_}")
    if trace := traceparent() or next(iter(traces()), None):
        lines.append(f"traceparent: {trace}")
    return "\n".join(lines)


def told_by(context: str) -> list[Handled]:
    """Undo `context`: the requests, the first with the trace; what is not valid is left out."""
    told = dict(line.split(": ", 1) for line in context.split("\n") if ": " in line)
    requests = [Handled(id_) for id_ in told.get("request_id", "").split(",") if is_valid_id(id_)]
    if (trace := Trace.parse(told.get("traceparent", ""))) is not None:
        requests = requests or [Handled("")]
        requests[0].trace = trace
    return requests


@contextlib.contextmanager
def working_for(requests: Sequence[Handled]) -> Iterator[None]:
    """Work for some requests as long as the context is open."""
    token = _current.set(tuple(requests))
    try:
        yield
    finally:
        _current.reset(token)


def carried(work: Callable[[], T]) -> Callable[[], T]:
    """Return `work` for another thread, where it is done for the requests that are the current ones now."""
    context = contextvars.copy_context()
    return lambda: context.run(work)
