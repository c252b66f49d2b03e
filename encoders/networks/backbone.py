"""What a network without its classifier must bring, wherever it comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import EncoderError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """A network without its classifier, with its preprocessing and shapes.

    Attributes
    ----------
    network : nn.Module
        Maps (N, C, H, W) float32 to features (N, `feature_dim`).
    feature_dim : int
    preprocessing : Preprocessing
        What the network was or will be trained with.
    name : str
        By which `build_backbone` found it; a factory of your own leaves it out.
    batch_size : int
        The fixed batch size of inference in torch.
    pretrained : bool
        Whether the network has learned already, so that it needs no warm-up and its features can be hashed.
    text : nn.Module or None
        Maps a list of N texts to embeddings (N, `feature_dim`) float32 that can be compared with the features.
    architecture : mapping
        What builds the network again, with random weights and without a download; plain values for JSON.
    """

    network: nn.Module
    feature_dim: int
    preprocessing: Preprocessing
    name: str = ""
    batch_size: int = 8
    pretrained: bool = False
    text: nn.Module | None = None
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def without_text(self) -> Backbone:
        """Return the backbone for a training, which changes the features, so that texts can no longer be compared."""
        if self.text is None:
            return self
        return dataclasses.replace(self, text=None, architecture={**self.architecture, "text": None})


def probe(network: nn.Module, preprocessing: Preprocessing, name: str) -> int:
    """Return the number of features that a network gives, by a try.

    Raises
    ------
    EncoderError
        If it does not take such images, or gives anything but one row of float32 for each.
    """
    rule, was_training = preprocessing, network.training
    try:
        with torch.inference_mode():
            feature_ND = network.eval()(torch.zeros(2, rule.channels, rule.size, rule.size))
    except Exception as error:  # A network may raise anything.
        raise EncoderError(
            f"{name} does not take images of {rule.size} x {rule.size} pixels and {rule.channels} channels: "
            f"{first_words(error)}"
        ) from error
    finally:
        network.train(was_training)
    if not isinstance(feature_ND, torch.Tensor):
        raise EncoderError(f"{name} must give a tensor of features (N, D), got {type(feature_ND).__name__}")
    if feature_ND.ndim != 2 or len(feature_ND) != 2 or feature_ND.dtype != torch.float32:
        raise EncoderError(
            f"{name} must give features (N, D) of float32, got shape {tuple(feature_ND.shape)} of {feature_ND.dtype} "
            "for 2 images"
        )
    return int(feature_ND.shape[1])


def first_words(error: BaseException) -> str:
    """Return the message of an error on one line, cut short."""
    return " ".join(str(error).split())[:300]
