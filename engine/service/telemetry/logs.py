"""Logs of a server: one line a record, as text for people or as JSON for programs.

::

    2026-11-30T21:30:09.123Z info hashlight.access GET /v1/collection: 200 in 0.8 ms request_id=4f2a… key=page …
    {"time": "2026-11-30T21:30:09.123Z", "level": "info", "logger": "hashlight.access", "message": "GET …", …}

A record has the time in UTC, its level, its logger, a message, the id of the request that it is about, if any, and the
fields that the call gives as `extra={"fields": {...}}`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any, Literal, TextIO, get_args

from hashlight.engine.service.telemetry.requests import request_id

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
LOG_FORMATS: tuple[LogFormat, ...] = get_args(LogFormat)
LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)

OURS = "hashlight"

# Of text, so that nothing that a client sends can look like a line of its own.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NEEDS_QUOTES = re.compile(r'[\s"=]|^$')


class JsonFormatter(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {**_head(record), "message": record.getMessage(), **_fields(record)}
        if (trace := _traceback(self, record)) is not None:
            line["exception"] = trace
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line a record, and tracebacks below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        head = " ".join(_head(record).values())
        fields = "".join(f" {name}={_as_text(value)}" for name, value in _fields(record).items())
        trace = _traceback(self, record)
        return f"{head} {_escaped(record.getMessage())}{fields}" + ("" if trace is None else f"\n{trace}")


class _ToStandardError(logging.StreamHandler[TextIO]):
    """Writes to whatever standard error is at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.stream = sys.stderr
        super().emit(record)


@contextlib.contextmanager
def logging_as(format: LogFormat = "text", level: LogLevel = "info", *, stream: TextIO | None = None) -> Iterator[None]:
    """Send all that this process logs, warnings included, to one stream as long as the context is open.

    Parameters
    ----------
    format : str
        "text" or "json".
    level : str
        The least level of what Hashlight logs; of other libraries, warnings are the least.
    stream : text stream, optional
        Standard error by default.

    Raises
    ------
    ValueError
        If the format or the level is not one.
    """
    if format not in LOG_FORMATS:
        raise ValueError(f"the format of logs must be one of {', '.join(LOG_FORMATS)}, got {format!r}")
    if level not in LOG_LEVELS:
        raise ValueError(f"the level of logs must be one of {', '.join(LOG_LEVELS)}, got {level!r}")
    handler = _ToStandardError() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root, ours, wanted = logging.getLogger(), logging.getLogger(OURS), logging.getLevelNamesMapping()[level.upper()]
    before = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(max(wanted, logging.WARNING))
    ours.setLevel(wanted)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(before[0])
        ours.setLevel(before[1])


def _head(record: logging.LogRecord) -> dict[str, str]:
    at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    time = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"time": time, "level": record.levelname.lower(), "logger": record.name}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the id of the request, if there is one, and what else the call gave."""
    id_ = request_id()
    return {**({"request_id": id_} if id_ else {}), **getattr(record, "fields", {})}


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    parts = [] if record.exc_info is None else [formatter.formatException(record.exc_info)]
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts) or None


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return json.dumps(text) if isinstance(value, str) and _NEEDS_QUOTES.search(text) else _escaped(text)


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
