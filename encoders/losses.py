"""Losses over pairs of codes. Pure functions, a thin module round each, and its configuration.

Shapes: B images of a batch, K bits. `code_BK` are relaxed codes in [-1, 1]; `similar_BB` says which pairs are
similar, `known_BB` which pairs are known at all.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn import functional


@dataclasses.dataclass(kw_only=True, slots=True)
class HashNetLossConfig:
    """Settings of the HashNet loss.

    Attributes
    ----------
    alpha : float or None
        Slope of the sigmoid that turns an inner product into a probability. None is 10 / bits: the paper asks for
        a slope below 1, and the inner product grows with the bits.
    weighted : bool
        Weigh similar and dissimilar pairs against their numbers; False is the ablation HashNet-W.
    """

    alpha: float | None = None
    weighted: bool = True

    def __post_init__(self) -> None:
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError(f"`alpha` must be above 0 or None (10 / bits), got {self.alpha}")


def pair_weights(
    similar_BB: torch.Tensor, known_BB: torch.Tensor, *, weighted: bool = True, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Weigh each known pair against how rare its kind is.

    HashNet (Cao et al., ICCV 2017, arXiv 1702.00758), equation 2 with c_ij = 1: |S| / |S1| for similar pairs,
    |S| / |S0| for dissimilar ones, where S is the set of known pairs.

    Parameters
    ----------
    similar_BB, known_BB : Tensor of bool, shape (B, B)
        Read where `known_BB`, which must leave out the diagonal.
    weighted : bool
        False gives every known pair the weight 1.
    dtype : torch.dtype
        Of the weights.

    Returns
    -------
    Tensor of `dtype`, shape (B, B)
        Zero outside `known_BB`.
    """
    if not weighted:
        return known_BB.to(dtype)
    num_pairs = known_BB.sum().to(dtype)
    num_similar = (known_BB & similar_BB).sum().to(dtype)
    weight_similar = num_pairs / num_similar.clamp(min=1)
    weight_dissimilar = num_pairs / (num_pairs - num_similar).clamp(min=1)
    return torch.where(similar_BB, weight_similar, weight_dissimilar) * known_BB


def hashnet_loss(
    code_BK: torch.Tensor,
    similar_BB: torch.Tensor,
    known_BB: torch.Tensor | None = None,
    *,
    alpha: float | None = None,
    weighted: bool = True,
) -> torch.Tensor:
    """Weighted maximum likelihood of the pairs, averaged over the known ones.

    HashNet (Cao et al., ICCV 2017, arXiv 1702.00758), equations 2 and 4:
    w_ij (log(1 + exp(alpha <h_i, h_j>)) - alpha s_ij <h_i, h_j>). An image is no pair with itself: the diagonal is
    always left out. In a small batch it would be most of the similar pairs, and it teaches nothing.

    Parameters
    ----------
    code_BK : Tensor of float, shape (B, K)
        Relaxed codes. Half precision is summed in float32.
    similar_BB : Tensor of bool, shape (B, B)
    known_BB : Tensor of bool, shape (B, B), optional
        Which pairs count; all by default.
    alpha : float, optional
        10 / K by default.
    weighted : bool
        See `pair_weights`.

    Returns
    -------
    Tensor, shape ()
        Zero, with a gradient of zeros, when no pair is known.

    Raises
    ------
    TypeError
        If `similar_BB` or `known_BB` is not bool.
    ValueError
        If the shapes do not fit.
    """
    known_BB = torch.ones_like(similar_BB) if known_BB is None else known_BB
    _check_pairs(code_BK, similar_BB, known_BB)
    if code_BK.dtype in (torch.float16, torch.bfloat16):
        code_BK = code_BK.float()
    alpha = 10.0 / code_BK.shape[1] if alpha is None else alpha
    known_BB = known_BB & ~torch.eye(len(known_BB), dtype=torch.bool, device=known_BB.device)
    logit_BB = alpha * (code_BK @ code_BK.T)
    weight_BB = pair_weights(similar_BB, known_BB, weighted=weighted, dtype=logit_BB.dtype)
    target_BB = similar_BB.to(logit_BB.dtype)
    total = functional.binary_cross_entropy_with_logits(logit_BB, target_BB, weight=weight_BB, reduction="sum")
    return total / known_BB.sum().clamp(min=1)


class HashNetLoss(nn.Module):
    """`hashnet_loss` with its settings."""

    def __init__(self, config: HashNetLossConfig | None = None):
        super().__init__()
        self.config = config or HashNetLossConfig()

    def forward(
        self, code_BK: torch.Tensor, similar_BB: torch.Tensor, known_BB: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of one batch; see `hashnet_loss`."""
        config = self.config
        return hashnet_loss(code_BK, similar_BB, known_BB, alpha=config.alpha, weighted=config.weighted)


def _check_pairs(code_BK: torch.Tensor, similar_BB: torch.Tensor, known_BB: torch.Tensor) -> None:
    if code_BK.ndim != 2:
        raise ValueError(f"`code_BK` must have shape (B, K), got {tuple(code_BK.shape)}")
    square = (len(code_BK), len(code_BK))
    for name, value in (("similar_BB", similar_BB), ("known_BB", known_BB)):
        if value.dtype != torch.bool:
            raise TypeError(f"`{name}` must be bool, got {value.dtype}")
        if tuple(value.shape) != square:
            raise ValueError(f"`{name}` must have shape {square} for {square[0]} codes, got {tuple(value.shape)}")
