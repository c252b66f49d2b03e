"""Shared by the losses over pairs of codes.

Shapes: B images of a batch, K bits. `code_BK` are relaxed codes in [-1, 1]; `similar_BB` says which pairs are similar,
`known_BB` which pairs are known at all. An image is not paired with itself: the diagonal is always left out, because it
teaches nothing and would be most of the similar pairs of a small batch. Half precision is summed in float32. Without
a known pair every pair loss is zero, with a gradient of zeros.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from hashlight.encoders.losses.objective import at_least_float32


def pair_weights(
    similar_BB: torch.Tensor,
    known_BB: torch.Tensor,
    *,
    weighted: bool = True,
    affinity_BB: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Weight each known pair by how rare its kind is.

    HashNet (Cao et al., ICCV 2017, arXiv 1702.00758), equation 2: c_ij |S| / |S1| for similar pairs, |S| / |S0| for
    dissimilar ones. The paper's S is the set of all known pairs; here, as in the authors' code, |S|, |S1| and |S0|
    count the known pairs of the batch, so the weights vary from batch to batch. Dissimilar pairs always have c_ij = 1:
    they share no label, and a Jaccard index of 0 would remove them all.

    Parameters
    ----------
    similar_BB, known_BB : Tensor of bool, shape (B, B)
        `similar_BB` is only read where `known_BB` is set; `known_BB` must not include the diagonal.
    weighted : bool
        If False, the weight of a known pair is c_ij alone.
    affinity_BB : Tensor of float, shape (B, B), optional
        c_ij, only read for similar pairs; 1 by default.
    dtype : torch.dtype
        Of the weights.

    Returns
    -------
    Tensor of `dtype`, shape (B, B)
        Zero outside `known_BB`.
    """
    weight_BB = known_BB.to(dtype)
    if weighted:
        num_pairs = known_BB.sum().to(dtype)
        num_similar = (known_BB & similar_BB).sum().to(dtype)
        weight_similar = num_pairs / num_similar.clamp(min=1)
        weight_dissimilar = num_pairs / (num_pairs - num_similar).clamp(min=1)
        weight_BB = torch.where(similar_BB, weight_similar, weight_dissimilar) * weight_BB
    if affinity_BB is None:
        return weight_BB
    return torch.where(similar_BB, affinity_BB.to(dtype), 1.0) * weight_BB


def prepare_pairs(
    code_BK: torch.Tensor, similar_BB: torch.Tensor, known_BB: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check the input; return codes in at least float32, and the known pairs without the diagonal."""
    known_BB = torch.ones_like(similar_BB) if known_BB is None else known_BB
    _check_pairs(code_BK, similar_BB, known_BB)
    return at_least_float32(code_BK), known_BB & ~torch.eye(len(known_BB), dtype=torch.bool, device=known_BB.device)


def slope_of(alpha: float | None, code_BK: torch.Tensor) -> float:
    """Return the slope of the likelihood: `alpha`, or 10 / K."""
    return 10.0 / code_BK.shape[1] if alpha is None else alpha


def likelihood(logit_BB: torch.Tensor, similar_BB: torch.Tensor, weight_BB: torch.Tensor) -> torch.Tensor:
    """Sum of w (log(1 + exp(logit)) - s logit)."""
    target_BB = similar_BB.to(logit_BB.dtype)
    return functional.binary_cross_entropy_with_logits(logit_BB, target_BB, weight=weight_BB, reduction="sum")


def _check_pairs(code_BK: torch.Tensor, similar_BB: torch.Tensor, known_BB: torch.Tensor) -> None:
    if code_BK.ndim != 2:
        raise ValueError(f"`code_BK` must have shape (B, K), got {tuple(code_BK.shape)}")
    square = (len(code_BK), len(code_BK))
    for name, value in (("similar_BB", similar_BB), ("known_BB", known_BB)):
        if value.dtype != torch.bool:
            raise TypeError(f"`{name}` must be bool, got {value.dtype}")
        if tuple(value.shape) != square:
            raise ValueError(f"`{name}` must have shape {square} for {square[0]} codes, got {tuple(value.shape)}")
