"""Losses over pairs of codes, as pure functions.

Shapes: B images of a batch, K bits. `code_BK` are relaxed codes in [-1, 1]; `similar_BB` says which pairs are
similar, `known_BB` which pairs are known at all. An image is no pair with itself: the diagonal is always left out. In a
small batch it would be most of the similar pairs, and it teaches nothing. Half precision is summed in float32. Without
a known pair every pair loss is zero, with a gradient of zeros.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional


def pair_weights(
    similar_BB: torch.Tensor,
    known_BB: torch.Tensor,
    *,
    weighted: bool = True,
    affinity_BB: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Weigh each known pair against how rare its kind is.

    HashNet (Cao et al., ICCV 2017, arXiv 1702.00758), equation 2: c_ij |S| / |S1| for similar pairs, |S| / |S0| for
    dissimilar ones. The paper's S is the set of all known pairs; here, as in the authors' code, |S|, |S1| and |S0|
    count the known pairs of the batch, so the weights vary from batch to batch. Dissimilar pairs always have c_ij = 1:
    their labels have nothing in common, and a Jaccard index of 0 would make all of them vanish.

    Parameters
    ----------
    similar_BB, known_BB : Tensor of bool, shape (B, B)
        Read where `known_BB`, which must leave out the diagonal.
    weighted : bool
        False gives every known pair c_ij alone.
    affinity_BB : Tensor of float, shape (B, B), optional
        c_ij, read where pairs are similar; 1 by default.
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


def hashnet_loss(
    code_BK: torch.Tensor,
    similar_BB: torch.Tensor,
    known_BB: torch.Tensor | None = None,
    *,
    affinity_BB: torch.Tensor | None = None,
    alpha: float | None = None,
    weighted: bool = True,
) -> torch.Tensor:
    """Weighted maximum likelihood of the pairs, averaged over the known ones.

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
        10 / K by default: the paper asks for a slope below 1, and the inner product grows with the bits.
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
    code_BK, known_BB = _prepare(code_BK, similar_BB, known_BB)
    logit_BB = _slope(alpha, code_BK) * (code_BK @ code_BK.T)
    weight_BB = pair_weights(similar_BB, known_BB, weighted=weighted, affinity_BB=affinity_BB, dtype=logit_BB.dtype)
    return _likelihood(logit_BB, similar_BB, weight_BB) / known_BB.sum().clamp(min=1)


def dhn_loss(
    code_BK: torch.Tensor,
    similar_BB: torch.Tensor,
    known_BB: torch.Tensor | None = None,
    *,
    alpha: float | None = None,
    quantisation: float = 0.1,
) -> torch.Tensor:
    """Maximum likelihood of the pairs, and a penalty for codes that are not near -1 or 1.

    Deep Hashing Network (Zhu et al., AAAI 2016), equations 4 to 6: the mean over known pairs of
    log(1 + exp(alpha <h_i, h_j>)) - alpha s_ij <h_i, h_j>, and lambda times the mean over units of
    log cosh(|h_ik| - 1). The paper has alpha = 1, at which pairs of 48 bits are certain from the start; here alpha is
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
    code_BK, known_BB = _prepare(code_BK, similar_BB, known_BB)
    logit_BB = _slope(alpha, code_BK) * (code_BK @ code_BK.T)
    num_pairs = known_BB.sum()
    pairs = _likelihood(logit_BB, similar_BB, known_BB.to(logit_BB.dtype)) / num_pairs.clamp(min=1)
    penalty = _log_cosh(code_BK.abs() - 1).mean()
    return pairs + quantisation * penalty * (num_pairs > 0)


def exponentiated_loss(
    code_BK: torch.Tensor, similar_BB: torch.Tensor, known_BB: torch.Tensor | None = None
) -> torch.Tensor:
    """Exponentiated loss of the pairs, linearised at the current binary codes; a reconstruction.

    After Mu & Liu, "Deep hashing: a joint approach for image signature learning", arXiv 1608.03658, rebuilt from a
    description, not from the paper's formula. A pair costs exp(-y_ij <b_i, b_j> / K), with y_ij = 1 for similar and
    -1 for dissimilar pairs and b = sign(h). Its first-order expansion at the binary codes,
    exp(-y t_b) (1 - y (t_h - t_b)) with t = <., .> / K, is linear in t_h = <h_i, h_j> / K, hence bilinear in the
    relaxed codes: the exponential only weighs pairs, and those that the binary codes get wrong weigh most.

    Parameters
    ----------
    code_BK : Tensor of float, shape (B, K)
    similar_BB, known_BB : Tensor of bool, shape (B, B)
        As in `hashnet_loss`.

    Returns
    -------
    Tensor, shape ()
        The mean over known pairs. It may fall below zero, as an expansion of a positive function may.
    """
    code_BK, known_BB = _prepare(code_BK, similar_BB, known_BB)
    bits = code_BK.shape[1]
    binary_BK = torch.where(code_BK > 0, 1.0, -1.0).to(code_BK.dtype).detach()
    sign_BB = torch.where(similar_BB, 1.0, -1.0).to(code_BK.dtype)
    margin_BB = sign_BB * (binary_BK @ binary_BK.T) / bits
    relaxed_BB = sign_BB * (code_BK @ code_BK.T) / bits
    cost_BB = torch.exp(-margin_BB) * (1 - (relaxed_BB - margin_BB)) * known_BB
    return cost_BB.sum() / known_BB.sum().clamp(min=1)


def _prepare(
    code_BK: torch.Tensor, similar_BB: torch.Tensor, known_BB: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Check the input; return codes in at least float32, and the known pairs without the diagonal."""
    known_BB = torch.ones_like(similar_BB) if known_BB is None else known_BB
    _check_pairs(code_BK, similar_BB, known_BB)
    if code_BK.dtype in (torch.float16, torch.bfloat16):
        code_BK = code_BK.float()
    return code_BK, known_BB & ~torch.eye(len(known_BB), dtype=torch.bool, device=known_BB.device)


def _slope(alpha: float | None, code_BK: torch.Tensor) -> float:
    return 10.0 / code_BK.shape[1] if alpha is None else alpha


def _likelihood(logit_BB: torch.Tensor, similar_BB: torch.Tensor, weight_BB: torch.Tensor) -> torch.Tensor:
    """Sum of w (log(1 + exp(logit)) - s logit)."""
    target_BB = similar_BB.to(logit_BB.dtype)
    return functional.binary_cross_entropy_with_logits(logit_BB, target_BB, weight=weight_BB, reduction="sum")


def _log_cosh(value: torch.Tensor) -> torch.Tensor:
    """Return log cosh(x) = |x| + log(1 + exp(-2 |x|)) - log 2, which does not overflow."""
    return value.abs() + torch.log1p(torch.exp(-2 * value.abs())) - math.log(2)


def _check_pairs(code_BK: torch.Tensor, similar_BB: torch.Tensor, known_BB: torch.Tensor) -> None:
    if code_BK.ndim != 2:
        raise ValueError(f"`code_BK` must have shape (B, K), got {tuple(code_BK.shape)}")
    square = (len(code_BK), len(code_BK))
    for name, value in (("similar_BB", similar_BB), ("known_BB", known_BB)):
        if value.dtype != torch.bool:
            raise TypeError(f"`{name}` must be bool, got {value.dtype}")
        if tuple(value.shape) != square:
            raise ValueError(f"`{name}` must have shape {square} for {square[0]} codes, got {tuple(value.shape)}")
