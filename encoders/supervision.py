"""What training knows about similarity: a label for each image, or a list of pairs.

Shapes: N images, P pairs, B images of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray


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


class Supervision(Protocol):
    """What a training run asks of its supervision."""

    @property
    def num_classes(self) -> int:
        """Number of labels, 0 if there are none."""

    def classes(self) -> NDArray[np.int64]:
        """Return the class of each image, (N,), 0 to `num_classes` - 1."""

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return how many batches `batches` gives."""

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Give the positions of the images of each batch of one epoch, in an order from torch's random numbers."""

    def pairs_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which pairs of a batch are similar and which are known, each (B, B) bool."""

    def describe(self) -> str:
        """Return a word on it for the artifact."""


class LabelSupervision:
    """One label an image: every pair is known.

    Parameters
    ----------
    labels : int array, shape (N,)
        At least two different ones.
    num_images : int
    """

    def __init__(self, labels: NDArray[Any], num_images: int):
        if labels.shape != (num_images,) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"`labels` must be {num_images} integers, one an image, got {labels.dtype} of shape {labels.shape}"
            )
        names, class_N = np.unique(labels, return_inverse=True)
        if len(names) < 2:
            raise ValueError("`labels` must hold at least 2 different labels to have dissimilar pairs, got 1")
        self._class_N = class_N.astype(np.int64)
        self._tensor_N = torch.from_numpy(self._class_N)
        self._num_classes = len(names)

    @property
    def num_classes(self) -> int:
        """Number of different labels."""
        return self._num_classes

    def classes(self) -> NDArray[np.int64]:
        """Return the class of each image, (N,)."""
        return self._class_N

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return the number of full batches, or 1 for fewer images than a batch holds."""
        return max(1, len(self._class_N) // batch_size)

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Give shuffled full batches; the remainder sits out this epoch, as a small batch has few pairs."""
        order_N = torch.randperm(len(self._class_N))
        for number in range(self.batches_per_epoch(batch_size)):
            yield order_N[number * batch_size : (number + 1) * batch_size]

    def pairs_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return equality of labels, and all True."""
        label_B = self._tensor_N[index_B]
        similar_BB = label_B[:, None] == label_B[None, :]
        return similar_BB, torch.ones_like(similar_BB)

    def describe(self) -> str:
        """Return "labels" and how many."""
        return f"{self._num_classes} labels"


class PairSupervision:
    """A list of known pairs.

    Parameters
    ----------
    pairs : PairList
    num_images : int

    Raises
    ------
    ValueError
        If the list is empty, names images that are not there, pairs an image with itself, or contradicts itself.
    """

    def __init__(self, pairs: PairList, num_images: int):
        first_P, second_P, similar_P = _check_pairs(pairs, num_images)
        self._num_images = num_images
        # A pair has one key whichever way round it was given.
        key_P = np.minimum(first_P, second_P) * num_images + np.maximum(first_P, second_P)
        self._key_P, position_P, inverse_P = np.unique(key_P, return_index=True, return_inverse=True)
        self._similar_P = similar_P[position_P]
        contradicted = np.flatnonzero(self._similar_P[inverse_P] != similar_P)
        if len(contradicted):
            row = int(contradicted[0])
            raise ValueError(
                f"`pairs` calls images {first_P[row]} and {second_P[row]} both similar and dissimilar: keep one"
            )

    @property
    def num_classes(self) -> int:
        """0: pairs have no labels."""
        return 0

    def classes(self) -> NDArray[np.int64]:
        """Refuse: there are no labels."""
        raise ValueError("a pair list has no labels")

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return the number of batches that show each pair once."""
        return -(-len(self._key_P) // (batch_size // 2))

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Give the images of `batch_size` / 2 pairs at a time, each image once; every pair is shown once.

        Drawing pairs, not images, is what makes known pairs meet in a batch at all.
        """
        order_P = torch.randperm(len(self._key_P)).numpy()
        step = batch_size // 2
        for start in range(0, len(order_P), step):
            key_P = self._key_P[order_P[start : start + step]]
            yield torch.from_numpy(np.unique([key_P // self._num_images, key_P % self._num_images]))

    def pairs_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Look every pair of the batch up in the list."""
        index = index_B.numpy()
        key_BB = np.minimum(index[:, None], index) * self._num_images + np.maximum(index[:, None], index)
        place_BB = np.searchsorted(self._key_P, key_BB).clip(max=len(self._key_P) - 1)
        known_BB = self._key_P[place_BB] == key_BB
        return torch.from_numpy(self._similar_P[place_BB] & known_BB), torch.from_numpy(known_BB)

    def describe(self) -> str:
        """Return "pairs" and how many."""
        return f"{len(self._key_P)} pairs, {int(self._similar_P.sum())} similar"


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
