"""The order in which training sees images: batches of images, of classes, or of known pairs.

All random numbers of an epoch are drawn by torch before its first batch. Shapes: M images to draw from, P pairs, G
groups of images of one class.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray


class DrawsImages:
    """Base of supervisions that draw images, not pairs.

    Parameters
    ----------
    num_images : int
    """

    def __init__(self, num_images: int):
        self._num_images = num_images
        self._member_M = torch.arange(num_images)

    @property
    def num_images(self) -> int:
        """Number of images."""
        return self._num_images

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return the number of full batches, or 1 for fewer images than a batch holds."""
        return max(1, len(self._member_M) // batch_size)

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield shuffled full batches; the remainder sits out this epoch, because a small batch has few pairs."""
        order_M = self._member_M[torch.randperm(len(self._member_M))]
        full = max(1, len(order_M) // batch_size)
        yield from torch.split(order_M, batch_size)[:full]

    def with_similar(self, batch_size: int) -> Self:
        """Return this supervision: its batches have what similar images they can have."""
        return self

    def restricted_to(self, index_M: torch.Tensor) -> Self:
        """Return the same supervision with batches of these images only."""
        restricted = copy.copy(self)
        restricted._member_M = index_M
        return restricted


def order_by_class(class_M: torch.Tensor, of_a_class: int) -> torch.Tensor:
    """Shuffle images so that `of_a_class` of one class stand together; what classes have left over comes last.

    Cut into batches of a multiple of `of_a_class`, all but the last ones have whole groups only: M images of each class
    that is drawn, as samplers "M per class" of metric learning do.

    Parameters
    ----------
    class_M : Tensor of int, shape (M,)
    of_a_class : int

    Returns
    -------
    Tensor of int64, shape (M,)
        Positions in `class_M`.
    """
    shuffled_M = torch.randperm(len(class_M))
    order_M = shuffled_M[torch.argsort(class_M[shuffled_M], stable=True)]
    count = torch.unique_consecutive(class_M[order_M], return_counts=True)[1]
    rank_M = torch.arange(len(order_M)) - (count.cumsum(0) - count).repeat_interleave(count)
    group_M = (rank_M % of_a_class == 0).cumsum(0) - 1
    size_G = torch.bincount(group_M)
    place_G = torch.randperm(len(size_G)) + len(size_G) * (size_G < of_a_class)
    return order_M[torch.argsort(place_G[group_M], stable=True)]


class PairSampler:
    """Draws the images of known pairs.

    With images drawn at random, a batch would rarely contain a known pair, so pairs are drawn. If so many are known
    that random images make as many pairs, images are drawn: an epoch shows each paired image once, in full batches.

    Parameters
    ----------
    key_P : ndarray of int64, shape (P,)
        Each pair once, as its lower image times `num_images` plus its higher one.
    num_images : int
    """

    def __init__(self, key_P: NDArray[np.int64], num_images: int):
        self._key_P = key_P
        self._num_images = num_images
        self._paired_M = torch.from_numpy(np.unique([key_P // num_images, key_P % num_images]))

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return the number of batches that show each pair once, or each image once if pairs are dense."""
        if self._is_dense(batch_size):
            return max(1, len(self._paired_M) // batch_size)
        return -(-len(self._key_P) // (batch_size // 2))

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the images of `batch_size` / 2 pairs at a time, each image once; every pair is shown once."""
        if self._is_dense(batch_size):
            order_M = self._paired_M[torch.randperm(len(self._paired_M))]
            yield from torch.split(order_M, batch_size)[: self.batches_per_epoch(batch_size)]
            return
        order_P = torch.randperm(len(self._key_P)).numpy()
        step = batch_size // 2
        for start in range(0, len(order_P), step):
            key_P = self._key_P[order_P[start : start + step]]
            yield torch.from_numpy(np.unique([key_P // self._num_images, key_P % self._num_images]))

    def _is_dense(self, batch_size: int) -> bool:
        """Whether a batch of random paired images holds as many known pairs, on average, as one of drawn pairs."""
        images = len(self._paired_M)
        by_chance = len(self._key_P) * batch_size * (batch_size - 1) / (images * (images - 1))
        return images >= batch_size and by_chance >= batch_size // 2
