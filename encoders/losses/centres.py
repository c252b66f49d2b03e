"""The codes that CSQ and OrthoHash aim at: one per class, far from each other.

Shapes: K bits, C classes.
"""

from __future__ import annotations

import random

import torch

from hashlight.encoders.losses.objective import Objective

# Number of random sets of centres to choose the best from, and the maximum number of distances to compute for that.
_CENTRE_DRAWS = 200
_CENTRE_DISTANCES = 20_000_000


class Centred(Objective):
    """An objective with one fixed code per class."""

    def __init__(self, bits: int, num_classes: int, seed: int):
        super().__init__()
        self.centre_CK: torch.Tensor
        self.register_buffer("centre_CK", class_centres(num_classes, bits, seed))


def class_centres(num_classes: int, bits: int, seed: int = 0) -> torch.Tensor:
    """Draw one code per class, far from each other, each with as many ones as minus ones if possible.

    If `bits` is a power of two and there are at most twice as many classes, they are rows of a Hadamard matrix and
    their negatives, with random signs; else the best of a number of random draws, by the smallest distance between two
    centres. The signs matter: without them all rows have the same first bit.

    Parameters
    ----------
    num_classes, bits : int
    seed : int

    Returns
    -------
    Tensor of float32, shape (C, K)
        -1 or 1. All centres are different.

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
    best = max(draws, key=_min_distance)
    if _min_distance(best) == 0:
        return _numbered_centres(num_classes, bits, seed)
    return best


def check_centres(num_classes: int, bits: int) -> None:
    """Raise ValueError if there are more classes than codes."""
    if num_classes > 2**bits:
        raise ValueError(f"`bits` must give each of {num_classes} classes its own code, got {bits}: use more bits")


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
    """Draw different codes when there are few more codes than classes: the bits of different random numbers."""
    numbers = random.Random(seed).sample(range(2**bits), num_classes)
    return torch.tensor([[1.0 if number >> bit & 1 else -1.0 for bit in range(bits)] for number in numbers])


def _min_distance(centre_CK: torch.Tensor) -> int:
    """Return the smallest Hamming distance between two centres."""
    bits = centre_CK.shape[1]
    distance_CC = (bits - centre_CK @ centre_CK.T) / 2
    return int(distance_CC.fill_diagonal_(bits).min())
