"""What a trained method minimises: from a batch's hash layer outputs and its supervision to one number.

An objective is a module, because some learn weights of their own (a classifier on the codes), which are thrown away
after training. Shapes: B images of a batch, K bits, C classes.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import nn

from hashlight.encoders.data.supervision import Supervision
from hashlight.encoders.losses.classes import (
    centres_of_images,
    class_centres,
    class_loss,
    csq_loss,
    latent_loss,
    orthohash_loss,
)
from hashlight.encoders.losses.pairs import dhn_loss, exponentiated_loss, hashnet_loss


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
            Where continuation stands.
        supervision : Supervision
        index_B : Tensor of int64, shape (B,)
            The images.
        """


class HashNet(Objective):
    """Weighted likelihood of pairs of tanh(beta z).

    Parameters
    ----------
    alpha : float or None
        See `hashnet_loss`.
    weighted : bool
        False for HashNet-W.
    jaccard : bool
        Weigh similar pairs by what share of their labels they have in common, for HashNet+C.
    """

    def __init__(self, alpha: float | None, *, weighted: bool = True, jaccard: bool = False):
        super().__init__()
        self._alpha, self._weighted, self._jaccard = alpha, weighted, jaccard

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        return self._pair_loss(torch.tanh(beta * output_BK), supervision, index_B)

    def _pair_loss(self, code_BK: torch.Tensor, supervision: Supervision, index_B: torch.Tensor) -> torch.Tensor:
        affinity_BB = supervision.affinity_within(index_B) if self._jaccard else None
        similar_BB, known_BB = _pairs(supervision, index_B, code_BK.device)
        return hashnet_loss(
            code_BK,
            similar_BB,
            known_BB,
            affinity_BB=None if affinity_BB is None else affinity_BB.to(code_BK.device),
            alpha=self._alpha,
            weighted=self._weighted,
        )


class SignHashNet(HashNet):
    """HashNet's pairs of sign(z) from the first step, in the place of continuation.

    The gradient of a sign passes to tanh(z) as it is: the straight-through estimator of Bengio, Leonard & Courville,
    arXiv 1308.3432.

    Parameters
    ----------
    alpha : float or None
        See `hashnet_loss`.
    """

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`; beta is not read."""
        return self._pair_loss(_straight_through_sign(output_BK), supervision, index_B)


class StraightHashNet(HashNet):
    """`SignHashNet`, and a classifier that reads the classes off the same signs; a method of this project.

    It differs from HashNet by two things: signs from the first step, in the place of continuation, and the classifier.
    `SignHashNet` (the method hashnet-sgn) has the first alone, so what lies between HashNet and it is what the signs
    add, and what lies between it and this one is what the classifier adds. Pairs place codes against each other, the
    cross-entropy places each against all classes at once. The two losses add up, with equal weight.

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
        code_BK = _straight_through_sign(output_BK)
        target_BC = _classes(supervision, index_B, output_BK.device)
        return self._pair_loss(code_BK, supervision, index_B) + class_loss(self.classifier(code_BK), target_BC)


class DHN(Objective):
    """Likelihood of pairs of tanh(z), and a penalty for what is far from -1 and 1."""

    def __init__(self, alpha: float | None):
        super().__init__()
        self._alpha = alpha

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        similar_BB, known_BB = _pairs(supervision, index_B, output_BK.device)
        return dhn_loss(torch.tanh(output_BK), similar_BB, known_BB, alpha=self._alpha)


class Joint(Objective):
    """The exponentiated loss of pairs of tanh(z); a reconstruction of Mu & Liu 2016."""

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        similar_BB, known_BB = _pairs(supervision, index_B, output_BK.device)
        return exponentiated_loss(torch.tanh(output_BK), similar_BB, known_BB)


class Classification(Objective):
    """A linear classifier on the outputs, as it stands: the warm-up's, on features."""

    def __init__(self, dims: int, num_classes: int):
        super().__init__()
        self.classifier = nn.Linear(dims, num_classes)

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        return class_loss(self.classifier(output_BK), _classes(supervision, index_B, output_BK.device))


class Latent(Objective):
    """A classifier on the sigmoids of the hash layer."""

    def __init__(self, bits: int, num_classes: int):
        super().__init__()
        self.classifier = nn.Linear(bits, num_classes)
        # The sigmoids lie in 0 to 1: the default bound, 1 / sqrt(K), leaves the logits of few bits too flat to learn.
        nn.init.uniform_(self.classifier.weight, -4 / math.sqrt(bits), 4 / math.sqrt(bits))

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        target_BC = _classes(supervision, index_B, output_BK.device)
        return latent_loss(output_BK, self.classifier.weight, self.classifier.bias, target_BC)


class _Centred(Objective):
    """An objective with one fixed code a class."""

    def __init__(self, bits: int, num_classes: int, seed: int):
        super().__init__()
        self.centre_CK: torch.Tensor
        self.register_buffer("centre_CK", class_centres(num_classes, bits, seed))


class CSQ(_Centred):
    """Codes are pulled to the centre of their class."""

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        target_BC = _classes(supervision, index_B, output_BK.device)
        return csq_loss(output_BK, centres_of_images(self.centre_CK, target_BC))


class OrthoHash(_Centred):
    """One cross-entropy over cosines to the centres."""

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        return orthohash_loss(output_BK, self.centre_CK, _classes(supervision, index_B, output_BK.device))


def _straight_through_sign(z_BK: torch.Tensor) -> torch.Tensor:
    """Return sign(z) with the gradient of tanh(z): forward it is binary, backward it is as if it were not."""
    soft_BK = torch.tanh(z_BK)
    return soft_BK + (torch.where(z_BK > 0, 1.0, -1.0) - soft_BK).detach()


def _pairs(supervision: Supervision, index_B: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    similar_BB, known_BB = supervision.pairs_within(index_B)
    return similar_BB.to(device), known_BB.to(device)


def _classes(supervision: Supervision, index_B: torch.Tensor, device: torch.device) -> torch.Tensor:
    return supervision.classes_of(index_B).to(device)
