"""Common parts of benchmark reports: the machine, the versions, and a pair of files."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def environment(*packages: str) -> dict[str, Any]:
    """Return the machine and the versions of Python and of packages."""
    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def save_report(out: Path | None, document: dict[str, Any], markdown: str) -> None:
    """Print the Markdown report and, if a path is given, write `OUT.json` and `OUT.md`."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{out}.json").write_text(json.dumps(document, indent=1) + "\n")
        Path(f"{out}.md").write_text(markdown)
    print(markdown)
