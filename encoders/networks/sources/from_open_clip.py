"""Networks of open_clip: "open_clip:NAME/PRETRAINED", or "open_clip:local-dir:FOLDER".

With a file of weights "open_clip:NAME" is enough. The features are the embeddings, of length 1, that images share with
texts.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hashlight.encoders.data.preprocessing import INTERPOLATIONS, Preprocessing
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.networks.backbone import Backbone, first_words, probe
from hashlight.encoders.networks.compat import load_torchvision
from hashlight.encoders.networks.packages import import_package
from hashlight.encoders.networks.sources.hub import not_to_be_had
from hashlight.encoders.networks.weights import load_weights

_LOCAL = "local-dir:"
_FITS = {"shortest": "crop", "squash": "stretch"}


class TextTower(nn.Module):
    """The part of a model that embeds texts.

    Parameters
    ----------
    model : nn.Module
        Whose part for images is taken off.
    tokenizer : callable
    """

    def __init__(self, model: Any, tokenizer: Any):
        super().__init__()
        model.visual = nn.Identity()
        self.model: Any = model
        self._tokenizer = tokenizer

    def forward(self, texts: list[str]) -> torch.Tensor:
        """Return embeddings (N, D) of length 1."""
        embedding: torch.Tensor = self.model.encode_text(self._tokenizer(texts), normalize=True)
        return embedding


class ImageTower(nn.Module):
    """The part of a model that embeds images.

    Parameters
    ----------
    visual : nn.Module
    """

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return embeddings (N, D) of length 1."""
        return nn.functional.normalize(self.visual(image_NCHW), dim=-1)


def build(what: str, weights: str | None) -> Backbone:
    """Return the image tower of a model; see `Source`."""
    name = f"open_clip:{what}"
    open_clip = _open_clip(name)
    is_local = what.startswith(_LOCAL)
    model_name, _, tag = (what, "", "") if is_local else what.partition("/")
    _check_names(open_clip, name, model_name, tag, is_local=is_local, weights=weights)
    # `pretrained_text` would download the weights of a text tower that are then replaced.
    options = {"pretrained_text": False, "load_weights": weights is None}
    try:
        model = open_clip.create_model(model_name, pretrained=(tag or None) if weights is None else None, **options)
        config = open_clip.get_model_config(model_name)
    except Exception as error:  # Of the hub's client, of the HTTP client, or RuntimeError.
        if is_local or weights is not None:
            raise EncoderError(f"open_clip cannot build {name}: {first_words(error)}") from error
        repository = (open_clip.get_pretrained_cfg(model_name, tag) or {}).get("hf_hub") or what
        remedy = f"pass a file of them as `weights` of open_clip:{model_name}"
        raise not_to_be_had(name, "the weights", f"the repository {repository}", remedy, error) from error
    if weights is not None:
        load_weights(model, Path(weights), name)
    rule = _preprocessing(model.visual.preprocess_cfg, name)
    shown = f"open_clip:{Path(model_name.removeprefix(_LOCAL)).name}" if is_local else name
    network = ImageTower(model.visual)
    text = _text_tower(open_clip, model, config)
    return _backbone(shown, network, text, rule, probe(network, rule, name), config)


def rebuild(what: str, architecture: Mapping[str, Any]) -> Backbone:
    """Return the image tower with random weights; see `Source`."""
    name = f"open_clip:{what}"
    open_clip = _open_clip(name)
    config = architecture["model"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        model = open_clip.create_model(_LOCAL + folder, load_weights=False, pretrained_text=False)
    rule = Preprocessing.from_dict(architecture["preprocessing"])
    network = ImageTower(model.visual)
    text = _text_tower(open_clip, model, config) if architecture["text"] is not None else None
    return _backbone(name, network, text, rule, architecture["feature_dim"], config)


def _text_tower(open_clip: Any, model: Any, config: Mapping[str, Any]) -> TextTower | None:
    """Return the part for texts, if its tokenizer is the one in open_clip's package."""
    given = config["text_cfg"]
    if given.get("hf_tokenizer_name") or given.get("hf_model_name") or not hasattr(model, "encode_text"):
        return None
    tokenizer = open_clip.SimpleTokenizer(
        context_length=given.get("context_length", 77), **given.get("tokenizer_kwargs", {})
    )
    return TextTower(model, tokenizer)


def _open_clip(name: str) -> Any:
    # open_clip imports torchvision.
    load_torchvision()
    return import_package("open_clip", name, "open-clip")


def _check_names(open_clip: Any, name: str, model_name: str, tag: str, *, is_local: bool, weights: str | None) -> None:
    if is_local:
        return
    if model_name not in open_clip.list_models():
        raise EncoderError(
            f"open_clip {open_clip.__version__} has no model {model_name}: `open_clip.list_models()` lists them"
        )
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if weights is None and tag not in tags:
        raise EncoderError(
            f"{name} must name its weights, as open_clip:{model_name}/PRETRAINED, one of {', '.join(tags) or 'none'}, "
            "or pass a file of them as `weights`"
        )


def _backbone(
    name: str, network: nn.Module, text: nn.Module | None, rule: Preprocessing, feature_dim: int, config: Any
) -> Backbone:
    said = {"feature_dim": feature_dim, "preprocessing": rule.to_dict(), "model": config}
    return Backbone(
        name=name,
        network=network,
        text=text,
        feature_dim=feature_dim,
        preprocessing=rule,
        pretrained=True,
        architecture={**said, "text": None if text is None else {}},
    )


def _preprocessing(config: Mapping[str, Any], name: str) -> Preprocessing:
    """Translate open_clip's evaluation transform."""
    sizes = config["size"] if isinstance(config["size"], list | tuple) else (config["size"],) * 2
    mode, interpolation = config["resize_mode"], config["interpolation"]
    if sizes[0] != sizes[1] or mode not in _FITS or interpolation not in INTERPOLATIONS:
        raise EncoderError(
            f"{name} prepares images in a way that is not supported: {sizes[0]} x {sizes[1]} pixels, {interpolation}, "
            f"resized by the {mode}; expected a square, and one of {', '.join(_FITS)}"
        )
    return Preprocessing(
        size=sizes[0],
        channels=3,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        fit=_FITS[mode],
        resize=sizes[0] if mode == "shortest" else 0,
        interpolation=interpolation,
        draft=2,
    )
