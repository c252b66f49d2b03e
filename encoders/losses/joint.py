"""The exponentiated loss of pairs; a reconstruction.

After Mu & Liu, "Deep hashing: a joint approach for image signature learning", arXiv 1608.03658. Shapes: B images of a
batch, K bits; see `encoders.losses.pairs` for pairs.
"""

from __future__ import annotations

import torch

from hashlight.encoders.data.supervision.protocol import Supervision
from hashlight.encoders.losses.objective import Objective, pairs_of
from hashlight.encoders.losses.pairs import prepare_pairs


def exponentiated_loss(
    code_BK: torch.Tensor, similar_BB: torch.Tensor, known_BB: torch.Tensor | None = None
) -> torch.Tensor:
    """Exponentiated loss of the pairs, linearised at the current binary codes; a reconstruction.

    After Mu & Liu, "Deep hashing: a joint approach for image signature learning", arXiv 1608.03658, rebuilt from a
    description, not from the paper's formula. A pair costs exp(-y_ij <b_i, b_j> / K), with y_ij = 1 for similar and
    -1 for dissimilar pairs and b = sign(h). Its first-order expansion at the binary codes,
    exp(-y t_b) (1 - y (t_h - t_b)) with t = <., .> / K, is linear in t_h = <h_i, h_j> / K, hence bilinear in the
    relaxed codes: the exponential only weights the pairs, most heavily those that the binary codes get wrong.

    Parameters
    ----------
    code_BK : Tensor of float, shape (B, K)
    similar_BB, known_BB : Tensor of bool, shape (B, B)
        As in `hashnet_loss`.

    Returns
    -------
    Tensor, shape ()
        The mean over known pairs. It may be negative, like any linear expansion of a positive function.
    """
    code_BK, known_BB = prepare_pairs(code_BK, similar_BB, known_BB)
    bits = code_BK.shape[1]
    binary_BK = torch.where(code_BK > 0, 1.0, -1.0).to(code_BK.dtype).detach()
    sign_BB = torch.where(similar_BB, 1.0, -1.0).to(code_BK.dtype)
    margin_BB = sign_BB * (binary_BK @ binary_BK.T) / bits
    relaxed_BB = sign_BB * (code_BK @ code_BK.T) / bits
    cost_BB = torch.exp(-margin_BB) * (1 - (relaxed_BB - margin_BB)) * known_BB
    return cost_BB.sum() / known_BB.sum().clamp(min=1)


class Joint(Objective):
    """The exponentiated loss of pairs of tanh(z); a reconstruction of Mu & Liu 2016."""

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        similar_BB, known_BB = pairs_of(supervision, index_B, output_BK.device)
        return exponentiated_loss(torch.tanh(output_BK), similar_BB, known_BB)
