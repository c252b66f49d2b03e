"""Backbone and hash layer in one module."""

from __future__ import annotations

import torch
from torch import nn

from encoders.backbones import Backbone


class HashModel(nn.Module):
    """A backbone with a linear hash layer on its features.

    Parameters
    ----------
    backbone : Backbone
    bits : int
        Units of the hash layer; a code's bit is whether its unit is above 0.
    """

    def __init__(self, backbone: Backbone, bits: int):
        super().__init__()
        self.backbone = backbone.network
        self.hash_layer = nn.Linear(backbone.feature_dim, bits)
        # At std 0.01, as in the paper on 4,096 features, tanh(z) starts near 0 and the pairs give no gradient for
        # the first epochs; 0.1 on 256 rectified features starts z near 1.
        nn.init.normal_(self.hash_layer.weight, std=0.1 * (256 / backbone.feature_dim) ** 0.5)
        nn.init.zeros_(self.hash_layer.bias)

    def forward(self, image_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (N, D) and the hash layer's outputs z (N, K)."""
        feature_ND: torch.Tensor = self.backbone(image_NCHW)
        z_NK: torch.Tensor = self.hash_layer(feature_ND)
        return feature_ND, z_NK
