"""OrthoHash: one cross-entropy over the cosines to all centres.

Hoe et al., "One loss for all: deep hashing with a single cosine similarity based learning objective", NeurIPS 2021,
arXiv 2109.14449. Shapes: B images of a batch, K bits, C classes.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from hashlight.encoders.data.supervision.protocol import Supervision
from hashlight.encoders.losses.centres import Centred
from hashlight.encoders.losses.classification import class_loss
from hashlight.encoders.losses.objective import at_least_float32, classes_of


def orthohash_loss(
    z_BK: torch.Tensor, centre_CK: torch.Tensor, target_BC: torch.Tensor, *, scale: float = 8.0, margin: float = 0.2
) -> torch.Tensor:
    """Cross-entropy over the cosines between an image and all centres, with a margin for its own.

    OrthoHash (Hoe et al., NeurIPS 2021, arXiv 2109.14449), equation 7: the logit of class c is
    s (cos(z, o_c) - m [c is the image's]). For binary codes the cosine to a centre determines the Hamming distance, so
    no further term is needed. The paper's batch normalisation of the hash layer is left out.

    Parameters
    ----------
    z_BK : Tensor of float, shape (B, K)
    centre_CK : Tensor of float, shape (C, K)
        -1 or 1.
    target_BC : Tensor of float, shape (B, C)
    scale, margin : float
        s and m.

    Returns
    -------
    Tensor, shape ()
    """
    z_BK = at_least_float32(z_BK)
    direction_CK = functional.normalize(centre_CK.to(z_BK.dtype), dim=1)
    cosine_BC = functional.normalize(z_BK, dim=1) @ direction_CK.T
    return class_loss(scale * (cosine_BC - margin * target_BC.to(z_BK.dtype)), target_BC)


class OrthoHash(Centred):
    """One cross-entropy over cosines to the centres."""

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        return orthohash_loss(output_BK, self.centre_CK, classes_of(supervision, index_B, output_BK.device))
