"""Hashlight: finds images among billions by learned binary codes, exactly.

The names below are loaded when they are first used, so that a program that only searches never imports torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hashlight.encoders.encoder import HashEncoder
    from hashlight.engine.client.client import AsyncSearchClient, SearchClient
    from hashlight.engine.collection.collection import Collection
    from hashlight.engine.collection.rerank import Rerank

__all__ = ["AsyncSearchClient", "Collection", "HashEncoder", "Rerank", "SearchClient"]
__version__ = "0.1.0"

_HOMES = {
    "AsyncSearchClient": "hashlight.engine.client.client",
    "Collection": "hashlight.engine.collection.collection",
    "HashEncoder": "hashlight.encoders.encoder",
    "Rerank": "hashlight.engine.collection.rerank",
    "SearchClient": "hashlight.engine.client.client",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hashlight' has no attribute {name!r}")
    home: Any = importlib.import_module(_HOMES[name])
    if name.endswith("SearchClient"):
        home.open_encoder = _open_encoder
    return getattr(home, name)


def _open_encoder(folder: Path) -> Any:
    """Open the encoder that a collection keeps, for a client that asks it with images in this process."""
    from hashlight.pipelines.serving.image_encoder import HashImageEncoder

    return HashImageEncoder.load(folder)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted([*globals(), *__all__])
