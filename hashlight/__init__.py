"""Hashlight: finds images among billions by learned binary codes, exactly.

Everything public is importable from here. A name is loaded from the module that defines it when it is first used, so
that `import hashlight` loads nothing, and a program that only searches never loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlight.encoders.config import Embeddings, EncoderConfig, Pictures
    from hashlight.encoders.data.preprocessing import Preprocessing
    from hashlight.encoders.encoder import EncoderOutput, HashEncoder
    from hashlight.encoders.errors import EncoderError, ImageError, ImageLimitError
    from hashlight.encoders.methods import METHODS, Method
    from hashlight.encoders.networks.backbone import Backbone
    from hashlight.encoders.training.train import TrainConfig, train
    from hashlight.engine.client.client import AsyncSearchClient, SearchClient
    from hashlight.engine.client.errors import (
        AuthenticationError,
        ClientError,
        ConnectionFailedError,
        InvalidRequestError,
        PermissionDeniedError,
        ServerError,
    )
    from hashlight.engine.client.results import (
        Cursor,
        Hit,
        Hits,
        Item,
        Items,
        Page,
        SearchResponse,
        ValueCount,
        ValueCounts,
    )
    from hashlight.engine.collection.collection import Collection
    from hashlight.engine.collection.rerank import Rerank
    from hashlight.engine.errors import (
        CollectionBusyError,
        CollectionExistsError,
        CollectionNotFoundError,
        CorruptDataError,
        DeadlineExceededError,
        EncoderMismatchError,
        HashlightError,
        IdExistsError,
        IdNotFoundError,
        IncompleteError,
        MissingDependencyError,
        NoShardError,
        NotReadyError,
        OverloadedError,
        PlaceError,
        ReadFailedError,
        VersionGoneError,
    )
    from hashlight.engine.features import Features
    from hashlight.engine.results import Coverage, Explanation, RangeResult, RerankResult, SearchResult
    from hashlight.engine.service.asking.encoding import Encoded, ImageEncoder, ImageRefusedError, VectorEncoder
    from hashlight.pipelines.jobs.errors import PipelineError

__version__ = "0.1.0"

# Module -> the public names that it defines: the imports above, for the interpreter.
_HOMES = {
    "encoders.config": ("Embeddings", "EncoderConfig", "Pictures"),
    "encoders.encoder": ("EncoderOutput", "HashEncoder"),
    "encoders.errors": ("EncoderError", "ImageError", "ImageLimitError"),
    "encoders.data.preprocessing": ("Preprocessing",),
    "encoders.methods": ("METHODS", "Method"),
    "encoders.networks.backbone": ("Backbone",),
    "encoders.training.train": ("TrainConfig", "train"),
    "engine.client.client": ("AsyncSearchClient", "SearchClient"),
    "engine.client.errors": (
        "AuthenticationError",
        "ClientError",
        "ConnectionFailedError",
        "InvalidRequestError",
        "PermissionDeniedError",
        "ServerError",
    ),
    "engine.client.results": (
        "Cursor",
        "Hit",
        "Hits",
        "Item",
        "Items",
        "Page",
        "SearchResponse",
        "ValueCount",
        "ValueCounts",
    ),
    "engine.collection.collection": ("Collection",),
    "engine.collection.rerank": ("Rerank",),
    "engine.errors": (
        "CollectionBusyError",
        "CollectionExistsError",
        "CollectionNotFoundError",
        "CorruptDataError",
        "DeadlineExceededError",
        "EncoderMismatchError",
        "HashlightError",
        "IdExistsError",
        "IdNotFoundError",
        "IncompleteError",
        "MissingDependencyError",
        "NoShardError",
        "NotReadyError",
        "OverloadedError",
        "PlaceError",
        "ReadFailedError",
        "VersionGoneError",
    ),
    "engine.features": ("Features",),
    "engine.results": ("Coverage", "Explanation", "RangeResult", "RerankResult", "SearchResult"),
    "engine.service.asking.encoding": ("Encoded", "ImageEncoder", "ImageRefusedError", "VectorEncoder"),
    "pipelines.jobs.errors": ("PipelineError",),
}
_MODULES = {name: f"hashlight.{module}" for module, names in _HOMES.items() for name in names}

__all__ = [
    "METHODS",
    "AsyncSearchClient",
    "AuthenticationError",
    "Backbone",
    "ClientError",
    "Collection",
    "CollectionBusyError",
    "CollectionExistsError",
    "CollectionNotFoundError",
    "ConnectionFailedError",
    "CorruptDataError",
    "Coverage",
    "Cursor",
    "DeadlineExceededError",
    "Embeddings",
    "Encoded",
    "EncoderConfig",
    "EncoderError",
    "EncoderMismatchError",
    "EncoderOutput",
    "Explanation",
    "Features",
    "HashEncoder",
    "HashlightError",
    "Hit",
    "Hits",
    "IdExistsError",
    "IdNotFoundError",
    "ImageEncoder",
    "ImageError",
    "ImageLimitError",
    "ImageRefusedError",
    "IncompleteError",
    "InvalidRequestError",
    "Item",
    "Items",
    "Method",
    "MissingDependencyError",
    "NoShardError",
    "NotReadyError",
    "OverloadedError",
    "Page",
    "PermissionDeniedError",
    "Pictures",
    "PipelineError",
    "PlaceError",
    "Preprocessing",
    "RangeResult",
    "ReadFailedError",
    "Rerank",
    "RerankResult",
    "SearchClient",
    "SearchResponse",
    "SearchResult",
    "ServerError",
    "TrainConfig",
    "ValueCount",
    "ValueCounts",
    "VectorEncoder",
    "VersionGoneError",
    "train",
]

# Type checkers go by the imports above; with a `__getattr__` every misspelled name would be one of type Any.
if not TYPE_CHECKING:

    def __getattr__(name):
        """Load a public name from the module that defines it."""
        if name not in _MODULES:
            raise AttributeError(f"module 'hashlight' has no attribute {name!r}")
        import importlib

        try:
            value = getattr(importlib.import_module(_MODULES[name]), name)
        except ModuleNotFoundError as error:
            from hashlight.engine.extras import missing

            raise missing(error, f"`hashlight.{name}`") or error from error
        globals()[name] = value
        return value

    def __dir__():
        """List the public names, loaded or not."""
        return sorted({*globals(), *__all__})
