"""Classification of images: the loss of the warm-up, and a term of other losses.

Shapes: B images of a batch, C classes. `target_BC` is 1 for the classes of an image, which may be several, and else 0.
Half precision is summed in float32. An empty batch has a loss of zero, with a gradient.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from hashlight.encoders.data.supervision.protocol import Supervision
from hashlight.encoders.losses.objective import Objective, at_least_float32, classes_of


def class_loss(logit_BC: torch.Tensor, target_BC: torch.Tensor) -> torch.Tensor:
    """Cross-entropy between the softmax of the logits and the classes; several classes of an image share its weight.

    Parameters
    ----------
    logit_BC, target_BC : Tensor of float, shape (B, C)

    Returns
    -------
    Tensor, shape ()
        The mean over images.
    """
    logit_BC = at_least_float32(logit_BC)
    share_BC = target_BC.to(logit_BC.dtype)
    share_BC = share_BC / share_BC.sum(dim=1, keepdim=True).clamp(min=1)
    return -(share_BC * functional.log_softmax(logit_BC, dim=1)).sum() / max(len(logit_BC), 1)


class Classification(Objective):
    """A linear classifier on the outputs; the warm-up uses it on features."""

    def __init__(self, dims: int, num_classes: int):
        super().__init__()
        self.classifier = nn.Linear(dims, num_classes)

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        return class_loss(self.classifier(output_BK), classes_of(supervision, index_B, output_BK.device))
