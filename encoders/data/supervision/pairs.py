"""A list of known pairs; all other pairs are unknown.

Shapes: P pairs, B images of a batch, Q pairs among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hashlight.encoders.data.supervision.protocol import PAIRS, digest_of
from hashlight.encoders.data.supervision.samplers import PairSampler


class PairList(NamedTuple):
    """Known pairs of images; all other pairs are unknown, not dissimilar.

    Attributes
    ----------
    index_a, index_b : int array, shape (P,)
        Positions of the images.
    similar : bool or 0/1 array, shape (P,)
    """

    index_a: ArrayLike
    index_b: ArrayLike
    similar: ArrayLike


class PairSupervision:
    """A list of known pairs.

    Parameters
    ----------
    pairs : PairList
    num_images : int

    Raises
    ------
    ValueError
        If the list is empty, has positions out of range, pairs an image with itself, or contradicts itself.
    """

    def __init__(self, pairs: PairList, num_images: int):
        first_P, second_P, similar_P = _check_pairs(pairs, num_images)
        self._num_images = num_images
        # A pair has the same key in either order.
        key_P = np.minimum(first_P, second_P) * num_images + np.maximum(first_P, second_P)
        self._key_P, position_P, inverse_P = np.unique(key_P, return_index=True, return_inverse=True)
        self._similar_P = similar_P[position_P]
        self._sampler = PairSampler(self._key_P, num_images)
        contradicted = np.flatnonzero(self._similar_P[inverse_P] != similar_P)
        if len(contradicted):
            row = int(contradicted[0])
            raise ValueError(
                f"`pairs` calls images {first_P[row]} and {second_P[row]} both similar and dissimilar: keep one"
            )

    @property
    def kind(self) -> str:
        """PAIRS."""
        return PAIRS

    @property
    def num_images(self) -> int:
        """Number of images, paired or not."""
        return self._num_images

    @property
    def num_classes(self) -> int:
        """0: pairs have no labels."""
        return 0

    def classes_of(self, index_B: torch.Tensor) -> torch.Tensor:
        """Refuse: there are no labels."""
        raise ValueError("a pair list has no labels")

    def batches_per_epoch(self, batch_size: int) -> int:
        """See `PairSampler.batches_per_epoch`."""
        return self._sampler.batches_per_epoch(batch_size)

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """See `PairSampler.batches`."""
        return self._sampler.batches(batch_size)

    def pairs_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Look up every pair of the batch in the list."""
        index = index_B.numpy().astype(np.int64)
        order_B = np.argsort(index)
        first_Q, second_Q = order_B[np.stack(np.triu_indices(len(order_B), 1))]
        # Each pair once, in ascending order: ten times as fast as at random, where each search misses the caches.
        key_Q = index[first_Q] * self._num_images + index[second_Q]
        place_Q = np.searchsorted(self._key_P, key_Q).clip(max=len(self._key_P) - 1)
        known_Q = self._key_P[place_Q] == key_Q
        known_BB, similar_BB = np.zeros((2, len(order_B), len(order_B)), np.bool_)
        known_BB[first_Q, second_Q] = known_BB[second_Q, first_Q] = known_Q
        similar_BB[first_Q, second_Q] = similar_BB[second_Q, first_Q] = self._similar_P[place_Q] & known_Q
        return torch.from_numpy(similar_BB), torch.from_numpy(known_BB)

    def affinity_within(self, index_B: torch.Tensor) -> torch.Tensor | None:
        """Return None: pairs are similar or not."""
        return None

    def restricted_to(self, index_M: torch.Tensor) -> Self:
        """Refuse: hardly any pair would have both images in a part of them."""
        raise ValueError("a pair list cannot be restricted to some of its images without losing most of its pairs")

    def describe(self) -> str:
        """Return "pairs" and their number."""
        return f"{len(self._key_P)} pairs, {int(self._similar_P.sum())} similar"

    def digest(self) -> str:
        """Return a hash of the pairs."""
        return digest_of(PAIRS, np.array([self._num_images]), self._key_P, self._similar_P)


def _check_pairs(pairs: PairList, num_images: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    first_P, second_P, similar_P = (np.asarray(column) for column in pairs)
    if first_P.ndim != 1 or not first_P.shape == second_P.shape == similar_P.shape or not len(first_P):
        raise ValueError(
            "`pairs` must be three columns of one length of at least 1 (index_a, index_b, similar), got shapes "
            f"{first_P.shape}, {second_P.shape}, {similar_P.shape}"
        )
    if first_P.dtype.kind not in "iu" or second_P.dtype.kind not in "iu":
        raise ValueError(f"`index_a` and `index_b` must be integers, got {first_P.dtype} and {second_P.dtype}")
    both_2P = np.stack([first_P, second_P]).astype(np.int64)
    if both_2P.min() < 0 or both_2P.max() >= num_images:
        raise ValueError(f"`pairs` must name images 0 to {num_images - 1}, got {both_2P.min()} to {both_2P.max()}")
    if (both_2P[0] == both_2P[1]).any():
        row = int(np.argmax(both_2P[0] == both_2P[1]))
        raise ValueError(
            f"`pairs` must join two different images, got image {both_2P[0][row]} with itself in row {row}"
        )
    if not np.isin(similar_P, (0, 1)).all():
        raise ValueError(f"`similar` must be 0 or 1, got {similar_P[~np.isin(similar_P, (0, 1))][0]!r}")
    return both_2P[0], both_2P[1], similar_P.astype(np.bool_)
