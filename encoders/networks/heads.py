"""Heads: from features to real numbers, whose signs are the bits.

Three kinds cover every method. A linear head is trained with the backbone or holds a linear hasher; a kernel head
first compares with anchors; a spectral head takes cosines of projections. Shapes: N images, D features, B bits, M
anchors.
"""

from __future__ import annotations

import torch
from torch import nn

from hashlight.encoders.fits.hashers import (
    KERNEL,
    LINEAR,
    SPECTRAL,
    Hasher,
    KernelHasher,
    LinearHasher,
    SpectralHasher,
)


class KernelHead(nn.Module):
    """A linear map of the Gaussian kernel between the features and anchors.

    Parameters
    ----------
    feature_dim, bits, anchors : int
    """

    def __init__(self, feature_dim: int, bits: int, anchors: int):
        super().__init__()
        self.in_features = feature_dim
        self.anchors = nn.Parameter(torch.zeros(anchors, feature_dim))
        self.scale = nn.Parameter(torch.ones(()))
        self.linear = nn.Linear(anchors, bits)

    def forward(self, feature_ND: torch.Tensor) -> torch.Tensor:
        """Return z (N, B)."""
        square_N1 = feature_ND.square().sum(dim=1, keepdim=True)
        square_M = self.anchors.square().sum(dim=1)
        distance_NM = (square_N1 + square_M - 2 * feature_ND @ self.anchors.T).clamp(min=0)
        z_NB: torch.Tensor = self.linear(torch.exp(-self.scale * distance_NM))
        return z_NB


class SpectralHead(nn.Linear):
    """Cosines of a linear map."""

    def forward(self, feature_ND: torch.Tensor) -> torch.Tensor:
        """Return z (N, B)."""
        return torch.cos(super().forward(feature_ND))


def build_head(kind: str, feature_dim: int, bits: int, anchors: int = 0) -> nn.Module:
    """Build a head whose weights are yet to be trained or loaded.

    Parameters
    ----------
    kind : {"linear", "kernel", "spectral"}
    feature_dim, bits : int
    anchors : int
        Number of anchors of a kernel head.
    """
    if kind == KERNEL:
        return KernelHead(feature_dim, bits, anchors)
    return {LINEAR: nn.Linear, SPECTRAL: SpectralHead}[kind](feature_dim, bits)


@torch.no_grad()
def head_of(hasher: Hasher) -> tuple[str, nn.Module]:
    """Return the kind and the head that computes what a fitted hasher computes, in float32."""
    if isinstance(hasher, KernelHasher):
        kernel = KernelHead(hasher.dims, hasher.bits, len(hasher.anchors))
        kernel.anchors.copy_(torch.from_numpy(hasher.anchors))
        kernel.scale.fill_(hasher.scale)
        _fill(kernel.linear, hasher.weight.T, hasher.bias)
        return KERNEL, kernel
    if isinstance(hasher, SpectralHasher):
        spectral = SpectralHead(hasher.dims, hasher.bits)
        _fill(spectral, hasher.weight.T, hasher.bias)
        return SPECTRAL, spectral
    assert isinstance(hasher, LinearHasher), f"no head for {type(hasher).__name__}"
    linear = nn.Linear(hasher.dims, hasher.bits)
    _fill(linear, hasher.weight.T, -hasher.mean @ hasher.weight)
    return LINEAR, linear


def _fill(layer: nn.Linear, weight_BD: object, bias_B: object) -> None:
    layer.weight.copy_(torch.as_tensor(weight_BD))
    layer.bias.copy_(torch.as_tensor(bias_B))
