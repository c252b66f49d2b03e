"""The order in which training sees images: batches of images, or of known pairs.

All random numbers of an epoch are drawn by torch before its first batch. Shapes: M images to draw from, P pairs.
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

    def restricted_to(self, index_M: torch.Tensor) -> Self:
        """Return the same supervision with batches of these images only."""
        restricted = copy.copy(self)
        restricted._member_M = index_M
        return restricted


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
