"""Vision models of transformers: "hf:NAME", a repository of the Hugging Face hub, or "hf:FOLDER".

Models of images and texts (CLIP, SigLIP) give the embeddings, of length 1, that images share with texts; others
(DINOv2, DINOv3, ViT, ConvNeXt) what the library calls pooled.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import EncoderError
from hashlight.encoders.networks.backbone import Backbone, first_words, probe
from hashlight.encoders.networks.compat import load_torchvision
from hashlight.encoders.networks.packages import import_package
from hashlight.encoders.networks.sources.hub import from_hub, not_to_be_had
from hashlight.encoders.networks.sources.texts import TokenizedTower
from hashlight.encoders.networks.weights import load_weights

logger = logging.getLogger(__name__)

# By Pillow's numbers.
_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_RESCALING = 1 / 255
# ConvNeXt's images are cropped below this size.
_CROPPED_BELOW = 384


class ImageTower(nn.Module):
    """The part of a model of images and texts that embeds images.

    Parameters
    ----------
    model : nn.Module
    """

    def __init__(self, model: Any):
        super().__init__()
        self.vision_model: Any = model.vision_model
        self.visual_projection: nn.Module = getattr(model, "visual_projection", nn.Identity())

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return embeddings (N, D) of length 1."""
        pooled = self.vision_model(pixel_values=image_NCHW).pooler_output
        return nn.functional.normalize(self.visual_projection(pooled), dim=-1)


class TextTower(TokenizedTower):
    """The part of a model of images and texts that embeds texts, with its tokenizer; see `TokenizedTower`.

    Parameters
    ----------
    model : nn.Module
    """

    def __init__(self, model: Any, *, tokenizer: bytes, length: int, padding: int | None):
        super().__init__(tokenizer=tokenizer, length=length, padding=padding)
        self.text_model: Any = model.text_model
        self.text_projection: nn.Module = getattr(model, "text_projection", nn.Identity())

    def forward(self, texts: list[str]) -> torch.Tensor:
        """Return embeddings (N, D) of length 1."""
        rows = [torch.tensor([self.tokens(text)]) for text in texts]
        pooled = torch.cat([self.text_model(input_ids=row).pooler_output for row in rows])
        return nn.functional.normalize(self.text_projection(pooled), dim=-1)


class Pooled(nn.Module):
    """A model of images alone.

    Parameters
    ----------
    model : nn.Module
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model: Any = model

    def forward(self, image_NCHW: torch.Tensor) -> torch.Tensor:
        """Return features (N, D)."""
        feature: torch.Tensor = self.model(pixel_values=image_NCHW).pooler_output
        return feature.flatten(1)


def build(what: str, weights: str | None) -> Backbone:
    """Return a model with the weights of its repository, or those of a file; see `Source`."""
    name = f"hf:{what}"
    transformers = _transformers(name)

    def load() -> tuple[Any, Any, Any]:
        config = transformers.AutoConfig.from_pretrained(what)
        processor = transformers.AutoImageProcessor.from_pretrained(what)
        if weights is None:
            return config, processor, transformers.AutoModel.from_pretrained(what, dtype=torch.float32)
        return config, processor, transformers.AutoModel.from_config(config)

    try:
        config, processor, model = from_hub(load)
    except Exception as error:  # Of the hub's client, of the HTTP client, OSError or ValueError.
        if Path(what).is_dir():
            raise EncoderError(f"transformers cannot build {name}: {first_words(error)}") from error
        remedy = "pass the folder that holds them, as hf:FOLDER"
        raise not_to_be_had(name, "the files", f"the repository {what}", remedy, error) from error
    if weights is not None:
        load_weights(model, Path(weights), name)
    rule = _preprocessing(processor.to_dict(), name)
    network = _tower(model)
    shown = f"hf:{Path(what).resolve().name}" if Path(what).is_dir() else name
    # Where a repository came from says nothing of its architecture.
    plain = {key: value for key, value in config.to_dict().items() if key not in ("_name_or_path", "dtype")}
    text = _text_tower(transformers, model, config, what)
    return _backbone(shown, network, text, rule, probe(network, rule, name), plain)


def rebuild(what: str, architecture: Mapping[str, Any]) -> Backbone:
    """Return the model with random weights; see `Source`."""
    name = f"hf:{what}"
    transformers = _transformers(name)
    plain = architecture["model"]
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**plain))
    rule = Preprocessing.from_dict(architecture["preprocessing"])
    said = architecture["text"]
    text = said and TextTower(model, tokenizer=bytes(said["bytes"]), length=said["length"], padding=said["padding"])
    return _backbone(name, _tower(model), text, rule, architecture["feature_dim"], plain)


def _transformers(name: str) -> Any:
    # Its image processors import torchvision.
    load_torchvision()
    return import_package("transformers", name, "transformers")


def _text_tower(transformers: Any, model: Any, config: Any, what: str) -> TextTower | None:
    """Return the part for texts, if there is one with a tokenizer that can be kept."""
    if not hasattr(model, "text_model"):
        return None
    try:
        tokenizer = from_hub(lambda: transformers.AutoTokenizer.from_pretrained(what))
        kept = tokenizer.backend_tokenizer.to_str().encode()
    except Exception as error:  # Of the hub's client, OSError, ValueError, or AttributeError of one in Python.
        logger.warning("hf:%s will take no texts, because its tokenizer cannot be kept: %s", what, first_words(error))
        return None
    padding = tokenizer.pad_token_id if config.model_type.startswith("siglip") else None
    return TextTower(model, tokenizer=kept, length=config.text_config.max_position_embeddings, padding=padding)


def _tower(model: Any) -> nn.Module:
    return ImageTower(model) if hasattr(model, "vision_model") else Pooled(model)


def _backbone(
    name: str, network: nn.Module, text: TextTower | None, rule: Preprocessing, feature_dim: int, config: Any
) -> Backbone:
    said = {"feature_dim": feature_dim, "preprocessing": rule.to_dict(), "model": config}
    tower = text and {"bytes": len(text.tokenizer), "length": text.length, "padding": text.padding}
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
    """Translate an image processor of the library."""
    size, resample = config.get("size") or {}, config.get("resample")
    rescales = config.get("do_rescale", True) and abs(config.get("rescale_factor", _RESCALING) - _RESCALING) < 1e-6
    fitted = _fit_of(config, size) if config.get("do_resize", True) else None
    if fitted is None or not rescales or resample not in _INTERPOLATIONS:
        raise EncoderError(
            f"{name} prepares images in a way that is not supported: {config.get('image_processor_type')} with size "
            f"{size}, crop {config.get('crop_size')}, resample {resample}, rescale {config.get('rescale_factor')}; "
            "expected a square of fixed size"
        )
    normalises = config.get("do_normalize", True)
    return Preprocessing(
        channels=3,
        mean=tuple(config["image_mean"]) if normalises else (0.0,) * 3,
        std=tuple(config["image_std"]) if normalises else (1.0,) * 3,
        interpolation=_INTERPOLATIONS[resample],
        draft=2,
        **fitted,
    )


def _fit_of(config: Mapping[str, Any], size: Mapping[str, int]) -> dict[str, Any] | None:
    """Return size, fit and resize; None if images do not become squares."""
    crop = (config.get("crop_size") or {}) if config.get("do_center_crop") else {}
    shortest = size.get("shortest_edge")
    if crop and (shortest or size.get("height")) and crop.get("height") == crop.get("width"):
        # A size of two equal numbers is of the whole image, distorted; only its crop by nothing is a square of ours.
        if shortest is None:
            square = size["height"] == size["width"] == crop["height"]
            return {"size": crop["height"], "fit": "stretch"} if square else None
        return {"size": crop["height"], "fit": "crop", "resize": shortest} if shortest >= crop["height"] else None
    if crop:
        return None
    if shortest and config.get("crop_pct"):
        resize = int(shortest / config["crop_pct"])
        is_cropped = shortest < _CROPPED_BELOW
        return {"size": shortest, **({"fit": "crop", "resize": resize} if is_cropped else {"fit": "stretch"})}
    if size.get("height") and size.get("height") == size.get("width"):
        return {"size": size["height"], "fit": "stretch"}
    return None
