"""Classification from a latent layer of sigmoids.

Lin et al., "Deep learning of binary hash codes for fast image retrieval", CVPR workshops 2015. Shapes: B images of a
batch, K bits, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from hashlight.encoders.data.supervision.protocol import Supervision
from hashlight.encoders.losses.classification import class_loss
from hashlight.encoders.losses.objective import Objective, at_least_float32, classes_of


def latent_loss(
    z_BK: torch.Tensor, weight_CK: torch.Tensor, bias_C: torch.Tensor, target_BC: torch.Tensor
) -> torch.Tensor:
    """Classification from a latent layer of sigmoids, whose activations above 0.5 are the bits.

    Lin et al., "Deep learning of binary hash codes for fast image retrieval", CVPR workshops 2015, section 3.2.

    Parameters
    ----------
    z_BK : Tensor of float, shape (B, K)
        The latent layer before its sigmoid.
    weight_CK, bias_C : Tensor of float
        Parameters of the classifier on the sigmoids.
    target_BC : Tensor of float, shape (B, C)

    Returns
    -------
    Tensor, shape ()
    """
    activation_BK = torch.sigmoid(at_least_float32(z_BK))
    dtype = activation_BK.dtype
    return class_loss(functional.linear(activation_BK, weight_CK.to(dtype), bias_C.to(dtype)), target_BC)


class Latent(Objective):
    """A classifier on the sigmoids of the hash layer."""

    def __init__(self, bits: int, num_classes: int):
        super().__init__()
        self.classifier = nn.Linear(bits, num_classes)
        # Sigmoids are within 0 to 1: with few bits and the default bound, 1 / sqrt(K), logits are too flat to learn.
        nn.init.uniform_(self.classifier.weight, -4 / math.sqrt(bits), 4 / math.sqrt(bits))

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        target_BC = classes_of(supervision, index_B, output_BK.device)
        return latent_loss(output_BK, self.classifier.weight, self.classifier.bias, target_BC)
