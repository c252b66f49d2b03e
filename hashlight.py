"""Hashlight: finds images among billions by learned binary codes, exactly.

The names below are loaded when they are first used, so that a program that only searches never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from encoders.encoder import HashEncoder
    from engine.collection import Collection
    from engine.rerank import Rerank

__all__ = ["Collection", "HashEncoder", "Rerank"]
__version__ = "0.1.0"

_HOMES = {"Collection": "engine.collection", "HashEncoder": "encoders.encoder", "Rerank": "engine.rerank"}


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hashlight' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted([*globals(), *__all__])
