"""Deep Hashing Network: the likelihood of pairs, and a penalty for codes that are far from binary.

Zhu et al., "Deep hashing network for efficient similarity retrieval", AAAI 2016. Shapes: B images of a batch, K bits;
see `encoders.losses.pairs` for pairs.
"""

from __future__ import annotations

import torch

from hashlight.encoders.data.supervision.protocol import Supervision
from hashlight.encoders.losses.objective import Objective, log_cosh, pairs_of
from hashlight.encoders.losses.pairs import likelihood, prepare_pairs, slope_of


def dhn_loss(
    code_BK: torch.Tensor,
    similar_BB: torch.Tensor,
    known_BB: torch.Tensor | None = None,
    *,
    alpha: float | None = None,
    quantisation: float = 0.1,
) -> torch.Tensor:
    """Negative log likelihood of the pairs, and a penalty for codes that are not near -1 or 1.

    Deep Hashing Network (Zhu et al., AAAI 2016), equations 4 to 6: the mean over known pairs of
    log(1 + exp(alpha <h_i, h_j>)) - alpha s_ij <h_i, h_j>, and lambda times the mean over units of
    log cosh(|h_ik| - 1). With the paper's alpha = 1, pairs of 48-bit codes saturate from the start; here alpha is
    HashNet's.

    Parameters
    ----------
    code_BK : Tensor of float, shape (B, K)
    similar_BB, known_BB : Tensor of bool, shape (B, B)
        As in `hashnet_loss`.
    alpha : float, optional
        10 / K by default.
    quantisation : float
        The paper's lambda.

    Returns
    -------
    Tensor, shape ()
        Without a known pair, the penalty is left out too.
    """
    code_BK, known_BB = prepare_pairs(code_BK, similar_BB, known_BB)
    logit_BB = slope_of(alpha, code_BK) * (code_BK @ code_BK.T)
    num_pairs = known_BB.sum()
    pairs = likelihood(logit_BB, similar_BB, known_BB.to(logit_BB.dtype)) / num_pairs.clamp(min=1)
    penalty = log_cosh(code_BK.abs() - 1).mean()
    return pairs + quantisation * penalty * (num_pairs > 0)


class DHN(Objective):
    """Likelihood of pairs of tanh(z), and a penalty for outputs far from -1 and 1."""

    def __init__(self, alpha: float | None):
        super().__init__()
        self._alpha = alpha

    def forward(
        self, output_BK: torch.Tensor, beta: float, supervision: Supervision, index_B: torch.Tensor
    ) -> torch.Tensor:
        """See `Objective.forward`."""
        similar_BB, known_BB = pairs_of(supervision, index_B, output_BK.device)
        return dhn_loss(torch.tanh(output_BK), similar_BB, known_BB, alpha=self._alpha)
