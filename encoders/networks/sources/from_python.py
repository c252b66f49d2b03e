"""Networks of your own: "python:MODULE:FACTORY".

The factory is a function without required arguments, annotated to return a `Backbone`. An encoder is opened by calling
it again; the weights that it gives are then replaced by the encoder's. The annotation is required because a name in an
encoder's folder would otherwise call any function of any module.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.networks.backbone import Backbone, first_words, probe
from hashlight.encoders.networks.weights import load_weights


def build(what: str, weights: str | None) -> Backbone:
    """Call the factory; see `Source`."""
    backbone = _made(what)
    if weights is None:
        return backbone
    load_weights(backbone.network, Path(weights), backbone.name)
    return dataclasses.replace(backbone, pretrained=True)


def rebuild(what: str, architecture: Mapping[str, Any]) -> Backbone:
    """Call the factory; see `Source`."""
    return _made(what)


def _made(what: str) -> Backbone:
    name = f"python:{what}"
    factory = _factory(what)
    try:
        backbone = factory()
    except Exception as error:  # A factory may raise anything.
        raise EncoderError(f"{name} failed: {type(error).__name__}: {first_words(error)}") from error
    if not isinstance(backbone, Backbone):
        raise EncoderError(f"{name} must return a Backbone, got {type(backbone).__name__}")
    if not isinstance(backbone.network, nn.Module) or not isinstance(backbone.preprocessing, Preprocessing):
        raise EncoderError(
            f"{name} must return a Backbone of an nn.Module and a Preprocessing, got "
            f"{type(backbone.network).__name__} and {type(backbone.preprocessing).__name__}"
        )
    if (got := probe(backbone.network, backbone.preprocessing, name)) != backbone.feature_dim:
        raise EncoderError(f"{name} says `feature_dim` {backbone.feature_dim}, but gives {got} features")
    return dataclasses.replace(backbone, name=name)


def _factory(what: str) -> Callable[[], object]:
    module_name, _, path = what.partition(":")
    if not module_name or not path.isidentifier():
        raise EncoderError(f"`backbone` must be python:MODULE:FACTORY, got python:{what}")
    try:
        factory = getattr(importlib.import_module(module_name), path, None)
    except ImportError as error:
        raise EncoderError(
            f"the module {module_name} of python:{what} cannot be imported ({first_words(error)}): install it, or put "
            "its folder on PYTHONPATH"
        ) from error
    if not inspect.isfunction(factory) or not _returns_backbone(factory):
        raise EncoderError(
            f"python:{what} must be a function annotated `-> Backbone` (`from hashlight import Backbone`), got "
            f"{factory!r}"
        )
    return factory


def _returns_backbone(factory: Callable[..., object]) -> bool:
    try:
        return typing.get_type_hints(factory).get("return") is Backbone
    except NameError:
        return False
