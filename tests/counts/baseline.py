"""Comparison of counts with the checked-in ones."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RENEW = "HASHLIGHT_RENEW_COUNTS"
FOLDER = Path(__file__).parent


def compare(name: str, counts: dict[str, Any]) -> None:
    """Compare `counts` with `NAME.json`, exactly; write that file instead if `HASHLIGHT_RENEW_COUNTS` is 1."""
    path = FOLDER / f"{name}.json"
    text = json.dumps(counts, indent=1) + "\n"
    if os.environ.get(RENEW) == "1":
        path.write_text(text, encoding="utf-8")
    expected = json.loads(path.read_text(encoding="utf-8"))
    differing = sorted(key for key in {*expected, *counts} if expected.get(key) != json.loads(text).get(key))
    assert not differing, "\n".join(
        [
            *(f"{key}: expected {expected.get(key)}, got {counts.get(key)}" for key in differing),
            f"if there is less work, or more for a good reason, renew {path.name} with {RENEW}=1 and commit it",
        ]
    )
