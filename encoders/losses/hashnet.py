"""HashNet: the weighted likelihood of pairs, under continuation.

Cao et al., "HashNet: deep learning to hash by continuation", ICCV 2017, arXiv 1702.00758. Shapes: B images of a batch,
K bits; see `encoders.losses.pairs` for pairs.
"""

from __future__ import annotations

import torch

from hashlight.encoders.data.supervision.protocol import Supervision
from hashlight.encoders.losses.objective import Objective, pairs_of
from hashlight.encoders.losses.pairs import likelihood, pair_weights, prepare_pairs, slope_of


def hashnet_loss(
    code_BK: torch.Tensor,
    similar_BB: torch.Tensor,
    known_BB: torch.Tensor | None = None,
    *,
    affinity_BB: torch.Tensor | None = None,
    alpha: float | None = None,
    weighted: bool = True,
) -> torch.Tensor:
    """Weighted negative log likelihood of the pairs, averaged over the known ones.

    HashNet (Cao et al., ICCV 2017, arXiv 1702.00758), equations 2 and 4:
    w_ij (log(1 + exp(alpha <h_i, h_j>)) - alpha s_ij <h_i, h_j>).

    Parameters
    ----------
    code_BK : Tensor of float, shape (B, K)
    similar_BB : Tensor of bool, shape (B, B)
    known_BB : Tensor of bool, shape (B, B), optional
        Which pairs count; all by default.
    affinity_BB : Tensor of float, shape (B, B), optional
        c_ij of similar pairs, the Jaccard index of their labels in HashNet+C; 1 by default.
    alpha : float, optional
        10 / K by default: the paper requires a slope below 1, and the inner product grows with the number of bits.
    weighted : bool
        See `pair_weights`; False is the ablation HashNet-W.

    Returns
    -------
    Tensor, shape ()

    Raises
    ------
    TypeError
        If `similar_BB` or `known_BB` is not bool.
    ValueError
        If the shapes do not fit.
    """
    code_BK, known_BB = prepare_pairs(code_BK, similar_BB, known_BB)
    logit_BB = slope_of(alpha, code_BK) * (code_BK @ code_BK.T)
    weight_BB = pair_weights(similar_BB, known_BB, weighted=weighted, affinity_BB=affinity_BB, dtype=logit_BB.dtype)
    return likelihood(logit_BB, similar_BB, weight_BB) / known_BB.sum().clamp(min=1)


class HashNet(Objective):
    """Weighted likelihood of pairs of tanh(beta z).

    Parameters
    ----------
    alpha : float or None
        See `hashnet_loss`.
    weighted : bool
        False for HashNet-W.
    jaccard : bool
        Weight similar pairs by the share of labels that they have in common, for HashNet+C.
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
        similar_BB, known_BB = pairs_of(supervision, index_B, code_BK.device)
        return hashnet_loss(
            code_BK,
            similar_BB,
            known_BB,
            affinity_BB=None if affinity_BB is None else affinity_BB.to(code_BK.device),
            alpha=self._alpha,
            weighted=self._weighted,
        )
