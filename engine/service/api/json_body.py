"""JSON bodies."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json


def json_bytes(document: Any) -> bytes:
    """Return JSON; NaN and infinity, which JSON lacks, become null, bytes become base64, dates ISO 8601."""
    return to_json(document, inf_nan_mode="null", bytes_mode="base64", serialize_unknown=True)
