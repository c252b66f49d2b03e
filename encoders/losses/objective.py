"""Shared by all losses: the module that training calls, and functions that do not overflow.

An objective is a module because some learn weights of their own (a classifier on the codes), which are discarded after
training. Shapes: B images of a batch, K bits, C classes.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import nn

from hashlight.encoders.data.supervision.protocol import Supervision


class Objective(nn.Module, abc.ABC):
    """One batch's loss."""

    @abc.abstractmethod
    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of a batch.

        Parameters
        ----------
        output_BK : Tensor of float, shape (B, K)
            The hash layer's outputs z; the features, for a classification of features.
        beta : float
            The current sharpness of continuation.
        supervision : Supervision
        index_B : Tensor of int64, shape (B,)
            Positions of the images in the training set.
        """


def pairs_of(
    supervision: Supervision, index_B: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which pairs of a batch are similar and which are known, each (B, B) bool on `device`."""
    similar_BB, known_BB = supervision.pairs_within(index_B)
    return similar_BB.to(device), known_BB.to(device)


def classes_of(supervision: Supervision, index_B: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return which classes each image of a batch has, (B, C) of 0 and 1 on `device`."""
    return supervision.classes_of(index_B).to(device)


def at_least_float32(value: torch.Tensor) -> torch.Tensor:
    """Return half precision as float32, anything else as it is."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def log_cosh(value: torch.Tensor) -> torch.Tensor:
    """Return log cosh(x) = |x| + log(1 + exp(-2 |x|)) - log 2, which does not overflow."""
    return value.abs() + torch.log1p(torch.exp(-2 * value.abs())) - math.log(2)
