"""What a server logs is one line a record, which programs can parse and nobody can forge."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
import warnings

import pytest

from hashlight.engine.service.telemetry.logs import logging_as
from hashlight.engine.service.telemetry.requests import Handled, carried, current, note, request_id, working_for

logger = logging.getLogger("hashlight.engine.something")


def logged(write, **how):
    stream = io.StringIO()
    with logging_as(stream=stream, **how):
        write()
    return stream.getvalue().splitlines()


def test_a_line_of_json_has_time_level_logger_message_request_and_fields():
    def write():
        with working_for([Handled("abc-1")]):
            logger.info("read %d codes", 7, extra={"fields": {"ms": 1.5, "key": "page"}})
        logger.debug("left out")

    [line] = map(json.loads, logged(write, format="json"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info", "logger": "hashlight.engine.something", "message": "read 7 codes", "request_id": "abc-1",
        "ms": 1.5, "key": "page",
    }  # fmt: skip


def test_a_line_of_text_has_the_same():
    def write():
        with working_for([Handled("abc-1")]):
            logger.warning("read %d codes", 7, extra={"fields": {"ms": 1.5, "key": "a page"}})

    [line] = logged(write)
    time, rest = line.split(" ", 1)
    assert time.endswith("Z")
    assert rest == 'warning hashlight.engine.something read 7 codes request_id=abc-1 ms=1.5 key="a page"'


@pytest.mark.parametrize("format", ["text", "json"])
def test_nobody_can_forge_a_line(format):
    lines = logged(
        lambda: logger.error("path %s", "/x\n2026 info \x1b[31m\u2028y", extra={"fields": {"p": "a\r\nb"}}),
        format=format,
    )
    assert len(lines) == 1
    assert not re.search("[\x00-\x1f\u2028]", lines[0])


def test_errors_keep_their_traceback():
    def write():
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            logger.exception("failed")

    [line] = map(json.loads, logged(write, format="json"))
    assert line["exception"].endswith("ZeroDivisionError: division by zero")
    assert logged(write)[-1] == "ZeroDivisionError: division by zero"


def test_levels_are_those_of_hashlight_and_warnings_of_others():
    def write():
        for name in ("hashlight.access", "uvicorn.error", "httpx"):
            for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
                logging.getLogger(name).log(level, "told")

    def told(level):
        return [(line["logger"], line["level"]) for line in map(json.loads, logged(write, format="json", level=level))]

    others = [(name, level) for name in ("uvicorn.error", "httpx") for level in ("warning", "error")]
    assert told("debug") == [("hashlight.access", level) for level in ("debug", "info", "warning", "error")] + others
    assert told("error") == [(name, "error") for name in ("hashlight.access", "uvicorn.error", "httpx")]


def test_warnings_are_lines_too_and_all_is_as_before_afterwards():
    root, ours = logging.getLogger(), logging.getLogger("hashlight")
    before = root.handlers[:], root.level, ours.level, warnings.showwarning

    def write():
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning("old", DeprecationWarning, "file.py", 3)

    [line] = map(json.loads, logged(write, format="json"))
    assert line["logger"] == "py.warnings"
    assert "old" in line["message"]
    assert (root.handlers[:], root.level, ours.level, warnings.showwarning) == before


@pytest.mark.parametrize(
    ("how", "message"), [({"format": "xml"}, "text, json, got 'xml'"), ({"level": "loud"}, "got 'loud'")]
)
def test_other_formats_and_levels_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        logged(lambda: None, **how)


def test_work_in_another_thread_is_for_the_same_requests():
    found = []

    def work():
        note(seen=True)
        found.append(request_id())

    one, other = Handled("one"), Handled("other")
    with working_for([one, other]):
        thread = threading.Thread(target=carried(work))
        plain = threading.Thread(target=work)
    for started in (thread, plain):
        started.start()
        started.join()
    assert found == ["one,other", ""]
    assert one.notes == other.notes == {"seen": True}
    assert current() == ()
