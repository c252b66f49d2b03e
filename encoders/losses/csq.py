"""Central similarity quantization: each code is pulled to the centre of its class.

Yuan et al., "Central similarity quantization for efficient image and video retrieval", CVPR 2020, arXiv 1908.00347.
Shapes: B images of a batch, K bits, C classes.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from hashlight.encoders.data.supervision.protocol import Supervision
from hashlight.encoders.losses.centres import Centred
from hashlight.encoders.losses.objective import at_least_float32, classes_of, log_cosh


def csq_loss(z_BK: torch.Tensor, centre_BK: torch.Tensor, *, quantisation: float = 1e-4) -> torch.Tensor:
    """Pull each code to the centre of its class.

    Central similarity quantization (Yuan et al., CVPR 2020, arXiv 1908.00347), equations 5 and 6: the mean over units
    of the binary cross-entropy between (h + 1) / 2 and (c + 1) / 2, with h = tanh(z), and lambda times the mean of
    log cosh(|h| - 1). As (tanh(z) + 1) / 2 is the sigmoid of 2 z, the cross-entropy is taken of the logit 2 z, which
    is finite at any z.

    Parameters
    ----------
    z_BK : Tensor of float, shape (B, K)
    centre_BK : Tensor of float, shape (B, K)
        The centre of each image, -1 or 1.
    quantisation : float
        The paper's lambda.

    Returns
    -------
    Tensor, shape ()
    """
    z_BK = at_least_float32(z_BK)
    target_BK = (centre_BK.to(z_BK.dtype) + 1) / 2
    pull = functional.binary_cross_entropy_with_logits(2 * z_BK, target_BK, reduction="sum")
    off_BK = torch.tanh(z_BK).abs() - 1
    return (pull + quantisation * log_cosh(off_BK).sum()) / max(z_BK.numel(), 1)


def centres_of_images(centre_CK: torch.Tensor, target_BC: torch.Tensor) -> torch.Tensor:
    """Return the centre of each image: its class's, or the majority of its classes' bits, ties as in the first class.

    Central similarity quantization (Yuan et al., CVPR 2020), section 3.2, where ties are drawn at random.
    """
    first_BK = centre_CK[target_BC.argmax(dim=1)]
    vote_BK = target_BC.to(centre_CK.dtype) @ centre_CK
    return torch.where(vote_BK == 0, first_BK, vote_BK.sign())


class CSQ(Centred):
    """Codes are pulled to the centre of their class."""

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        target_BC = classes_of(supervision, index_B, output_BK.device)
        return csq_loss(output_BK, centres_of_images(self.centre_CK, target_BC))
