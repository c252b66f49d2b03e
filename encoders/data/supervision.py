"""What training knows about similarity: labels of the images, a list of pairs, or nothing but the images.

Shapes: N images, C classes, P pairs, B images of a batch, Q pairs of these.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, Self

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


LABELS = "labels"
MULTI_LABELS = "multi-labels"
PAIRS = "pairs"
VIEWS = "views"
NOTHING = "nothing"


class Supervision(Protocol):
    """What a training run asks of its supervision."""

    @property
    def kind(self) -> str:
        """LABELS, MULTI_LABELS, PAIRS, VIEWS or NOTHING."""

    @property
    def num_images(self) -> int:
        """Number of images."""

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 if there are none."""

    def classes_of(self, index_B: torch.Tensor) -> torch.Tensor:
        """Return which classes each image has, (B, C) float32 of 0 and 1."""

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return how many batches `batches` gives."""

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Give the positions of the images of each batch of one epoch, in an order from torch's random numbers.

        All random numbers of an epoch are drawn before its first batch.
        """

    def pairs_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which pairs of a batch are similar and which are known, each (B, B) bool."""

    def affinity_within(self, index_B: torch.Tensor) -> torch.Tensor | None:
        """Return the Jaccard index of the labels of each pair, (B, B) float32; None if it is 1 for similar pairs."""

    def restricted_to(self, index_M: torch.Tensor) -> Self:
        """Return the same supervision with batches of these images only."""

    def describe(self) -> str:
        """Return a word on it for the artifact."""

    def digest(self) -> str:
        """Return a hash of all it knows, by which a checkpoint recognises it."""


class _OfImages:
    """What supervisions that draw images, not pairs, have in common."""

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
        """Give shuffled full batches; the remainder sits out this epoch, as a small batch has few pairs."""
        order_M = self._member_M[torch.randperm(len(self._member_M))]
        full = max(1, len(order_M) // batch_size)
        yield from torch.split(order_M, batch_size)[:full]

    def restricted_to(self, index_M: torch.Tensor) -> Self:
        """Return the same supervision with batches of these images only."""
        restricted = copy.copy(self)
        restricted._member_M = index_M
        return restricted


class LabelSupervision(_OfImages):
    """One label an image, or several: every pair is known, and images that share a label are similar.

    Parameters
    ----------
    labels : int array, shape (N,), or bool or 0/1 array, shape (N, C)
        At least two different ones. In the second form an image has every label whose column is set, at least one.
    num_images : int
    """

    def __init__(self, labels: NDArray[Any], num_images: int):
        super().__init__(num_images)
        class_NC = _multi_hot(labels, num_images) if labels.ndim == 2 else _one_hot(labels, num_images)
        # A matrix with one label in every row says no more than a column of labels.
        self._kind = MULTI_LABELS if (class_NC.sum(axis=1) > 1).any() else LABELS
        self._class_NC = torch.from_numpy(class_NC)

    @property
    def kind(self) -> str:
        """LABELS or MULTI_LABELS."""
        return self._kind

    @property
    def num_classes(self) -> int:
        """Number of different labels."""
        return int(self._class_NC.shape[1])

    def classes_of(self, index_B: torch.Tensor) -> torch.Tensor:
        """Return which labels each image has, (B, C) float32 of 0 and 1."""
        return self._class_NC[index_B].float()

    def pairs_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which pairs share a label, and all True."""
        class_BC = self.classes_of(index_B)
        similar_BB = class_BC @ class_BC.T > 0
        return similar_BB, torch.ones_like(similar_BB)

    def affinity_within(self, index_B: torch.Tensor) -> torch.Tensor | None:
        """Return labels in common over labels of either, for several labels an image."""
        if self._kind == LABELS:
            return None
        class_BC = self.classes_of(index_B)
        shared_BB = class_BC @ class_BC.T
        count_B = class_BC.sum(dim=1)
        return shared_BB / (count_B[:, None] + count_B - shared_BB)

    def describe(self) -> str:
        """Return "labels" and how many."""
        several = ", several an image" if self._kind == MULTI_LABELS else ""
        return f"{self.num_classes} labels{several}"

    def digest(self) -> str:
        """Return a hash of the labels."""
        return _digest(self._kind, self._class_NC.numpy())


class ViewSupervision(_OfImages):
    """No knowledge but the images: two views of one image are similar, views of different images are not.

    Each batch holds each of its images twice; augmentation makes the two views differ. What is learned is
    copy detection: codes that stay where an image is cropped, mirrored or recoloured.

    Parameters
    ----------
    num_images : int
    """

    @property
    def kind(self) -> str:
        """VIEWS."""
        return VIEWS

    @property
    def num_classes(self) -> int:
        """0: there are no labels."""
        return 0

    def classes_of(self, index_B: torch.Tensor) -> torch.Tensor:
        """Refuse: there are no labels."""
        raise ValueError("two views of an image have no labels")

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return the number of full batches of half as many images."""
        return super().batches_per_epoch(batch_size // 2)

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Give batches of `batch_size` / 2 images, each twice."""
        for index_B in super().batches(batch_size // 2):
            yield torch.cat([index_B, index_B])

    def pairs_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which pairs are of one image, and all True."""
        similar_BB = index_B[:, None] == index_B
        return similar_BB, torch.ones_like(similar_BB)

    def affinity_within(self, index_B: torch.Tensor) -> torch.Tensor | None:
        """Return None: views are similar or not."""
        return None

    def describe(self) -> str:
        """Return "views" and of how many images."""
        return f"two views of each of {self.num_images} images"

    def digest(self) -> str:
        """Return a hash of the number of images."""
        return _digest(VIEWS, np.array([self.num_images]))


class NoSupervision(_OfImages):
    """Images alone, for methods that learn from features.

    Parameters
    ----------
    num_images : int
    """

    @property
    def kind(self) -> str:
        """NOTHING."""
        return NOTHING

    @property
    def num_classes(self) -> int:
        """0: there are no labels."""
        return 0

    def classes_of(self, index_B: torch.Tensor) -> torch.Tensor:
        """Refuse: there are no labels."""
        raise ValueError("images alone have no labels")

    def pairs_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return that no pair is known."""
        known_BB = torch.zeros(len(index_B), len(index_B), dtype=torch.bool)
        return known_BB, known_BB

    def affinity_within(self, index_B: torch.Tensor) -> torch.Tensor | None:
        """Return None: nothing is known."""
        return None

    def describe(self) -> str:
        """Return "nothing"."""
        return NOTHING

    def digest(self) -> str:
        """Return a hash of the number of images."""
        return _digest(NOTHING, np.array([self.num_images]))


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
        self._paired_M = torch.from_numpy(np.unique([self._key_P // num_images, self._key_P % num_images]))
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
        """Return the number of batches that show each pair once, or each image once where pairs are dense."""
        if self._is_dense(batch_size):
            return max(1, len(self._paired_M) // batch_size)
        return -(-len(self._key_P) // (batch_size // 2))

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Give the images of `batch_size` / 2 pairs at a time, each image once; every pair is shown once.

        Drawing pairs, not images, is what makes known pairs meet in a batch at all. Where so many are known that
        as many meet by chance, images are drawn: an epoch shows each paired image once, in full batches.
        """
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

    def pairs_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Look every pair of the batch up in the list."""
        index = index_B.numpy().astype(np.int64)
        order_B = np.argsort(index)
        first_Q, second_Q = order_B[np.stack(np.triu_indices(len(order_B), 1))]
        # Each pair once and in ascending order: ten times as fast as at random, of which each search misses the caches.
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
        """Refuse: of pairs drawn from a part of the images hardly one would be left."""
        raise ValueError("a pair list cannot be restricted to some of its images without losing most of its pairs")

    def describe(self) -> str:
        """Return "pairs" and how many."""
        return f"{len(self._key_P)} pairs, {int(self._similar_P.sum())} similar"

    def digest(self) -> str:
        """Return a hash of the pairs."""
        return _digest(PAIRS, np.array([self._num_images]), self._key_P, self._similar_P)


def _one_hot(labels: NDArray[Any], num_images: int) -> NDArray[np.bool_]:
    if labels.shape != (num_images,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` must be {num_images} integers, one an image, got {labels.dtype} of shape {labels.shape}"
        )
    names, class_N = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError("`labels` must hold at least 2 different labels to have dissimilar pairs, got 1")
    return np.asarray(class_N[:, None] == np.arange(len(names)))


def _multi_hot(labels: NDArray[Any], num_images: int) -> NDArray[np.bool_]:
    if len(labels) != num_images or not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"`labels` of several an image must be 0 or 1 in {num_images} rows, one a label in each column, "
            f"got {labels.dtype} of shape {labels.shape} with values {labels.min()} to {labels.max()}"
        )
    class_NC = labels.astype(np.bool_)
    class_NC = class_NC[:, class_NC.any(axis=0)]
    if class_NC.shape[1] < 2:
        raise ValueError(
            f"`labels` must hold at least 2 different labels to have dissimilar pairs, got {class_NC.shape[1]}"
        )
    bare = int((~class_NC.any(axis=1)).sum())
    if bare:
        raise ValueError(f"`labels` must give each image at least one label, {bare} have none: leave them out")
    return class_NC


def _digest(kind: str, *arrays: NDArray[Any]) -> str:
    hasher = hashlib.sha256(kind.encode())
    for array in arrays:
        hasher.update(f"{array.dtype}{array.shape}".encode())
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()


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
