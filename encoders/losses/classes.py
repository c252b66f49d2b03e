"""Losses that hold each image against its classes, as pure functions, and the codes that some of them aim at.

Shapes: B images of a batch, K bits, C classes. `z_BK` are the hash layer's outputs; `target_BC` says which classes an
image has, 0 or 1, and may have several ones a row. Half precision is summed in float32. A batch of no images has a loss
of zero, with a gradient.
"""

from __future__ import annotations

import math
import random

import torch
from torch.nn import functional

# Sets of random centres that are drawn to choose the best one from, and the distances computed for it at most.
_CENTRE_DRAWS = 200
_CENTRE_DISTANCES = 20_000_000


def class_loss(logit_BC: torch.Tensor, target_BC: torch.Tensor) -> torch.Tensor:
    """Cross-entropy between the softmax of the logits and the classes, an image with several sharing itself out.

    Parameters
    ----------
    logit_BC, target_BC : Tensor of float, shape (B, C)

    Returns
    -------
    Tensor, shape ()
        The mean over images.
    """
    logit_BC = _at_least_float32(logit_BC)
    share_BC = target_BC.to(logit_BC.dtype)
    share_BC = share_BC / share_BC.sum(dim=1, keepdim=True).clamp(min=1)
    return -(share_BC * functional.log_softmax(logit_BC, dim=1)).sum() / max(len(logit_BC), 1)


def latent_loss(
    z_BK: torch.Tensor, weight_CK: torch.Tensor, bias_C: torch.Tensor, target_BC: torch.Tensor
) -> torch.Tensor:
    """Classification from a latent layer of sigmoids, whose activations above 0.5 are the bits.

    Lin et al., "Deep learning of binary hash codes for fast image retrieval", CVPR workshops 2015, section 3.2.

    Parameters
    ----------
    z_BK : Tensor of float, shape (B, K)
        The latent layer before its sigmoid.
    weight_CK, bias_C : Tensor of float
        Of the classifier on the sigmoids.
    target_BC : Tensor of float, shape (B, C)

    Returns
    -------
    Tensor, shape ()
    """
    activation_BK = torch.sigmoid(_at_least_float32(z_BK))
    dtype = activation_BK.dtype
    return class_loss(functional.linear(activation_BK, weight_CK.to(dtype), bias_C.to(dtype)), target_BC)


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
    z_BK = _at_least_float32(z_BK)
    target_BK = (centre_BK.to(z_BK.dtype) + 1) / 2
    pull = functional.binary_cross_entropy_with_logits(2 * z_BK, target_BK, reduction="sum")
    off_BK = torch.tanh(z_BK).abs() - 1
    penalty = (off_BK.abs() + torch.log1p(torch.exp(-2 * off_BK.abs())) - math.log(2)).sum()
    return (pull + quantisation * penalty) / max(z_BK.numel(), 1)


def orthohash_loss(
    z_BK: torch.Tensor, centre_CK: torch.Tensor, target_BC: torch.Tensor, *, scale: float = 8.0, margin: float = 0.2
) -> torch.Tensor:
    """One cross-entropy over the cosines between an image and all centres, with a margin for its own.

    OrthoHash (Hoe et al., NeurIPS 2021, arXiv 2109.14449), equation 7: the logit of class c is
    s (cos(z, o_c) - m [c is the image's]). The cosine to a centre of -1 and 1 is itself the Hamming distance of a
    binary code, so no further term is needed. The paper's batch normalisation of the hash layer is left out.

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
    z_BK = _at_least_float32(z_BK)
    direction_CK = functional.normalize(centre_CK.to(z_BK.dtype), dim=1)
    cosine_BC = functional.normalize(z_BK, dim=1) @ direction_CK.T
    return class_loss(scale * (cosine_BC - margin * target_BC.to(z_BK.dtype)), target_BC)


def class_centres(num_classes: int, bits: int, seed: int = 0) -> torch.Tensor:
    """Draw one code a class, far from each other, each with as many ones as minus ones where it can be.

    Rows of a Hadamard matrix and their negatives, with random signs, where `bits` is a power of two and
    `num_classes` at most twice as many; else the best of a number of random draws, by the least distance between two
    centres. The signs matter: plain rows share a first bit that is constant.

    Parameters
    ----------
    num_classes, bits : int
    seed : int

    Returns
    -------
    Tensor of float32, shape (C, K)
        -1 or 1. No two classes have one centre.

    Raises
    ------
    ValueError
        If there are more classes than codes.
    """
    check_centres(num_classes, bits)
    generator = torch.Generator().manual_seed(seed)
    if bits & (bits - 1) == 0 and num_classes <= 2 * bits:
        return _hadamard_centres(num_classes, bits, generator)
    num_draws = min(_CENTRE_DRAWS, max(1, _CENTRE_DISTANCES // num_classes**2))
    draws = [_random_centres(num_classes, bits, generator) for _ in range(num_draws)]
    best = max(draws, key=_least_distance)
    if _least_distance(best) == 0:
        return _numbered_centres(num_classes, bits, seed)
    return best


def check_centres(num_classes: int, bits: int) -> None:
    """Refuse more classes than there are codes to give them."""
    if num_classes > 2**bits:
        raise ValueError(f"`bits` must give each of {num_classes} classes its own code, got {bits}: use more bits")


def centres_of_images(centre_CK: torch.Tensor, target_BC: torch.Tensor) -> torch.Tensor:
    """Return the centre of each image: its class's, or the majority of its classes' bits, ties as in the first class.

    Central similarity quantization (Yuan et al., CVPR 2020), section 3.2, where ties are drawn at random.
    """
    first_BK = centre_CK[target_BC.argmax(dim=1)]
    vote_BK = target_BC.to(centre_CK.dtype) @ centre_CK
    return torch.where(vote_BK == 0, first_BK, vote_BK.sign())


def _hadamard_centres(num_classes: int, bits: int, generator: torch.Generator) -> torch.Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < bits:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    matrix = matrix[:, torch.randperm(bits, generator=generator)]
    sign_K1 = torch.where(torch.rand(bits, 1, generator=generator) < 0.5, -1.0, 1.0)
    rows_KK = sign_K1 * matrix[torch.randperm(bits, generator=generator)]
    return torch.cat([rows_KK, -rows_KK])[:num_classes]


def _random_centres(num_classes: int, bits: int, generator: torch.Generator) -> torch.Tensor:
    order_CK = torch.rand(num_classes, bits, generator=generator).argsort(dim=1)
    return torch.where(order_CK < bits // 2, -1.0, 1.0)


def _numbered_centres(num_classes: int, bits: int, seed: int) -> torch.Tensor:
    """Different codes where there are few more of them than classes: different random numbers, bit by bit."""
    numbers = random.Random(seed).sample(range(2**bits), num_classes)
    return torch.tensor([[1.0 if number >> bit & 1 else -1.0 for bit in range(bits)] for number in numbers])


def _least_distance(centre_CK: torch.Tensor) -> int:
    """Return the least Hamming distance between two centres."""
    bits = centre_CK.shape[1]
    distance_CC = (bits - centre_CK @ centre_CK.T) / 2
    return int(distance_CC.fill_diagonal_(bits).min())


def _at_least_float32(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
