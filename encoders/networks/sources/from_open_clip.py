"""Networks of open_clip: "open_clip:NAME/PRETRAINED", or "open_clip:local-dir:FOLDER".

With a file of weights "open_clip:NAME" is enough. The features are the embeddings, of length 1, that images share with
texts.
"""

from __future__ import annotations

import importlib
import json
import logging
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
from hashlight.encoders.networks.sources.hub import from_hub, not_to_be_had
from hashlight.encoders.networks.sources.texts import TokenizedTower
from hashlight.encoders.networks.weights import load_weights

logger = logging.getLogger(__name__)

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


class HubTextTower(TokenizedTower):
    """The part that embeds texts of a model whose tokenizer is one of transformers; see `TokenizedTower`.

    Parameters
    ----------
    model : nn.Module
        Whose part for images is taken off.
    clean : str
        How open_clip cleans texts before, by its own name.
    unseparated : int or None
        The token that is replaced by 0.
    """

    def __init__(
        self,
        model: Any,
        *,
        clean: str,
        unseparated: int | None,
        tokenizer: bytes,
        length: int,
        padding: int | None,
        pads_left: bool,
    ):
        super().__init__(tokenizer=tokenizer, length=length, padding=padding, pads_left=pads_left)
        model.visual = nn.Identity()
        self.model: Any = model
        self.clean, self.unseparated = clean, unseparated

    def forward(self, texts: list[str]) -> torch.Tensor:
        """Return embeddings (N, D) of length 1."""
        cleaned = importlib.import_module("open_clip.tokenizer").get_clean_fn(self.clean)
        rows = torch.tensor([self.tokens(cleaned(text)) for text in texts])
        if self.unseparated is not None:
            rows = rows.masked_fill(rows == self.unseparated, 0)
        embedding: torch.Tensor = self.model.encode_text(rows, normalize=True)
        return embedding

    def said(self) -> dict[str, Any]:
        """Return what builds it again, with the model."""
        names = ("clean", "unseparated", "length", "padding", "pads_left")
        return {"bytes": len(self.tokenizer), **{name: getattr(self, name) for name in names}}


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
        pretrained = (tag or None) if weights is None else None
        model = from_hub(lambda: open_clip.create_model(model_name, pretrained=pretrained, **options))
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
    text = _text_tower(open_clip, model, config, model_name, shown)
    return _backbone(shown, network, text, rule, probe(network, rule, name), config, _text_model(model, config))


def rebuild(what: str, architecture: Mapping[str, Any]) -> Backbone:
    """Return the image tower with random weights; see `Source`."""
    name = f"open_clip:{what}"
    open_clip = _open_clip(name)
    config = architecture["model"]
    with tempfile.TemporaryDirectory() as folder:
        built = config
        if (encoder := architecture.get("text_model")) is not None:
            # From here, in the place of the hub.
            Path(folder, "text").mkdir()
            Path(folder, "text", "config.json").write_text(json.dumps(encoder))
            built = {**config, "text_cfg": {**config["text_cfg"], "hf_model_name": str(Path(folder, "text"))}}
        Path(folder, "open_clip_config.json").write_text(json.dumps({"model_cfg": built, "preprocess_cfg": {}}))
        model = open_clip.create_model(_LOCAL + folder, load_weights=False, pretrained_text=False)
    rule = Preprocessing.from_dict(architecture["preprocessing"])
    network = ImageTower(model.visual)
    said = architecture["text"]
    text: nn.Module | None = None
    if said:
        text = HubTextTower(model, tokenizer=bytes(said["bytes"]), **{k: v for k, v in said.items() if k != "bytes"})
    elif said is not None:
        text = _simple_tower(open_clip, model, config)
    return _backbone(name, network, text, rule, architecture["feature_dim"], config, architecture.get("text_model"))


def _text_tower(
    open_clip: Any, model: Any, config: Mapping[str, Any], model_name: str, name: str
) -> TextTower | HubTextTower | None:
    """Return the part for texts, if there is one whose tokenizer can be kept."""
    given = config["text_cfg"]
    if not hasattr(model, "encode_text"):
        return None
    if not given.get("hf_tokenizer_name"):
        return None if given.get("hf_model_name") else _simple_tower(open_clip, model, config)
    try:
        tokenizer = open_clip.get_tokenizer(model_name)
        inner = tokenizer.tokenizer
        kept = inner.backend_tokenizer.to_str().encode()
        if tokenizer.tokenizer_mode:
            raise ValueError(f"it is of the mode {tokenizer.tokenizer_mode}")
        if inner.pad_token_id is None:
            raise ValueError("it has no token to pad with")
    except Exception as error:  # Of the hub's client, OSError, ValueError, or AttributeError of one in Python.
        logger.warning("%s will take no texts, because its tokenizer cannot be kept: %s", name, first_words(error))
        return None
    return HubTextTower(
        model,
        clean=given.get("tokenizer_kwargs", {}).get("clean", "whitespace"),
        unseparated=inner.sep_token_id if tokenizer.strip_sep_token else None,
        tokenizer=kept,
        length=tokenizer.context_length,
        padding=inner.pad_token_id,
        pads_left=inner.padding_side == "left",
    )


def _simple_tower(open_clip: Any, model: Any, config: Mapping[str, Any]) -> TextTower:
    """Return the part for texts with the tokenizer in open_clip's package."""
    given = config["text_cfg"]
    tokenizer = open_clip.SimpleTokenizer(
        context_length=given.get("context_length", 77), **given.get("tokenizer_kwargs", {})
    )
    return TextTower(model, tokenizer)


def _text_model(model: Any, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the configuration of a part for texts that is a model of transformers; None if it is open_clip's own."""
    if not config["text_cfg"].get("hf_model_name"):
        return None
    plain = model.text.config.to_dict()
    # Where it came from says nothing of its architecture.
    return {key: value for key, value in plain.items() if key not in ("_name_or_path", "dtype")}


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
    name: str,
    network: nn.Module,
    text: nn.Module | None,
    rule: Preprocessing,
    feature_dim: int,
    config: Any,
    text_model: dict[str, Any] | None,
) -> Backbone:
    said = {"feature_dim": feature_dim, "preprocessing": rule.to_dict(), "model": config}
    if text_model is not None:
        said["text_model"] = text_model
    tower = text.said() if isinstance(text, HubTextTower) else None if text is None else {}
    return Backbone(
        name=name,
        network=network,
        text=text,
        feature_dim=feature_dim,
        preprocessing=rule,
        pretrained=True,
        architecture={**said, "text": tower},
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
