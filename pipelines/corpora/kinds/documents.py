"""JSON in the files of corpora, which anybody may have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def parse_json(text: str, *, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Return what a text in JSON says, as `json.loads` does.

    Raises
    ------
    ValueError
        If it is not valid, is nested too deeply, or has text that is not Unicode.
    """
    try:
        found = json.loads(text, object_hook=object_hook)
        if "\\u" in text:  # half of a surrogate pair is valid JSON, and no text that Arrow can hold
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return found
