"""Packages that only some networks need."""

from __future__ import annotations

import importlib
from typing import Any

from hashlight.encoders.errors import EncoderError


def import_package(module: str, needed_by: str, extra: str) -> Any:
    """Import a package of an extra.

    Raises
    ------
    EncoderError
        If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        package = (exc.name or module).partition(".")[0].replace("_", "-")
        raise EncoderError(
            f"{needed_by} needs the package {package}, which is not installed: `pip install 'hashlight[{extra}]'`"
        ) from exc
