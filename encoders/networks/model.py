"""Backbone and hash layer in one module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import nn

from hashlight.encoders.networks.backbone import Backbone
from hashlight.encoders.networks.stages import Stage


class HashModel(nn.Module):
    """A backbone followed by a hash layer.

    Parameters
    ----------
    backbone : Backbone
    bits : int
        Units of the hash layer; a bit is 1 where its unit is above 0.
    head : nn.Module, optional
        The hash layer, one of `encoders.networks.heads`; by default an untrained linear one.
    """

    def __init__(self, backbone: Backbone, bits: int, head: nn.Module | None = None):
        super().__init__()
        self.bits = bits
        self.backbone = backbone.network
        self.feature_dim: int = backbone.feature_dim
        # Texts are hashed by the same layer.
        self.text = backbone.text
        self.hash_layer = head or _linear_to_train(backbone.feature_dim, bits)
        self._frozen: list[nn.Module] = []

    def freeze(self, stages: Sequence[Stage]) -> None:
        """Keep stages of the backbone as they are, the statistics of their normalisation included."""
        for stage in stages:
            self._frozen.extend(stage.modules)
            for weight in stage.weights:
                weight.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation; frozen stages are always evaluated."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, image_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (N, D) and the hash layer's outputs z (N, K)."""
        feature_ND: torch.Tensor = self.backbone(image_NCHW)
        z_NK: torch.Tensor = self.hash_layer(feature_ND)
        return feature_ND, z_NK


def _linear_to_train(feature_dim: int, bits: int) -> nn.Linear:
    layer = nn.Linear(feature_dim, bits)
    # With the paper's std of 0.01 (for 4,096 features) tanh(z) starts near 0, and the pairs give no gradient for the
    # first epochs; with 0.1 on 256 rectified features z starts near 1.
    nn.init.normal_(layer.weight, std=0.1 * (256 / feature_dim) ** 0.5)
    nn.init.zeros_(layer.bias)
    return layer
