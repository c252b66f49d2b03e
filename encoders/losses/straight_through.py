"""HashNet's pairs of signs from the first step, alone or with a classifier that reads the same signs.

Bengio, Leonard & Courville, arXiv 1308.3432, for the straight-through estimator. Shapes: B images of a batch, K bits,
C classes.
"""

from __future__ import annotations

import torch
from torch import nn

from hashlight.encoders.data.supervision.protocol import Supervision
from hashlight.encoders.losses.classification import class_loss
from hashlight.encoders.losses.hashnet import HashNet
from hashlight.encoders.losses.objective import classes_of


class SteHashNet(HashNet):
    """HashNet's pairs of sign(z) from the first step, in place of continuation.

    The gradient of the sign is passed to tanh(z) unchanged: the straight-through estimator of Bengio, Leonard &
    Courville, arXiv 1308.3432.

    Parameters
    ----------
    alpha : float or None
        See `hashnet_loss`.
    """

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`; beta is not read."""
        return self._pair_loss(straight_through_sign(output_BK), supervision, index_B)


class StraightHashNet(HashNet):
    """`SteHashNet` plus a classifier on the same signs; a method of this project.

    It differs from HashNet in two ways: signs from the first step, in place of continuation, and the classifier.
    `SteHashNet` (the method hashnet-ste) has only the first, so comparing it with HashNet shows the effect of the
    signs, and comparing it with this method the effect of the classifier. Pairs place codes relative to each other, the
    cross-entropy places each code relative to all classes at once. The two losses are added with equal weight.

    Parameters
    ----------
    alpha : float or None
        See `hashnet_loss`.
    bits, num_classes : int
    """

    def __init__(self, alpha: float | None, bits: int, num_classes: int):
        super().__init__(alpha)
        self.classifier = nn.Linear(bits, num_classes)

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        code_BK = straight_through_sign(output_BK)
        target_BC = classes_of(supervision, index_B, output_BK.device)
        return self._pair_loss(code_BK, supervision, index_B) + class_loss(self.classifier(code_BK), target_BC)


def straight_through_sign(z_BK: torch.Tensor) -> torch.Tensor:
    """Return sign(z) with the gradient of tanh(z): binary in the forward pass, smooth in the backward pass."""
    soft_BK = torch.tanh(z_BK)
    return soft_BK + (torch.where(z_BK > 0, 1.0, -1.0) - soft_BK).detach()
