"""Labels of the images: those that share one are similar.

Shapes: N images, C classes, B images of a batch.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from hashlight.encoders.data.supervision.protocol import LABELS, MULTI_LABELS, digest_of
from hashlight.encoders.data.supervision.samplers import DrawsImages, order_by_class

logger = logging.getLogger(__name__)

# A batch holds so many images of each class that is drawn for it, where random batches have too few similar pairs.
IMAGES_OF_A_CLASS = 4


class LabelSupervision(DrawsImages):
    """One or several labels per image: every pair is known, and images that share a label are similar.

    Labels are kept as lists of classes, so that memory does not grow with images times classes.

    Parameters
    ----------
    labels : int array, shape (N,), or bool or 0/1 array or scipy.sparse array, shape (N, C)
        At least two different ones. In the second form an image has every label whose column is set, at least one.
    num_images : int
    """

    def __init__(self, labels: NDArray[Any] | sparse.sparray, num_images: int):
        super().__init__(num_images)
        several = sparse.issparse(labels) or labels.ndim == 2
        self._class_NC = _several_labels(labels, num_images) if several else _one_label(labels, num_images)
        # A matrix with one label in every row is the same as a column of labels.
        self._kind = MULTI_LABELS if self._class_NC.nnz > num_images else LABELS
        self._images_of_a_class = 1

    @property
    def kind(self) -> str:
        """LABELS or MULTI_LABELS."""
        return self._kind

    @property
    def num_classes(self) -> int:
        """Number of different labels."""
        return int(self._class_NC.shape[1])

    @property
    def classes(self) -> sparse.csr_array:
        """Which labels each image has, sparse (N, C) float32 of 0 and 1."""
        return self._class_NC

    def classes_of(self, index_B: torch.Tensor) -> torch.Tensor:
        """Return which labels each image has, (B, C) float32 of 0 and 1."""
        return torch.from_numpy(self._class_NC[index_B.numpy()].toarray())

    def pairs_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which pairs share a label, and all True."""
        similar_BB = self._shared_within(index_B)[0] > 0
        return similar_BB, torch.ones_like(similar_BB)

    def affinity_within(self, index_B: torch.Tensor) -> torch.Tensor | None:
        """Return the number of shared labels over the number in either, if images have several labels."""
        if self._kind == LABELS:
            return None
        shared_BB, count_B = self._shared_within(index_B)
        return shared_BB / (count_B[:, None] + count_B - shared_BB)

    def _shared_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the numbers of labels that each pair shares and that each image has, as float32."""
        class_BC = self._class_NC[index_B.numpy()]
        shared_BB = torch.from_numpy((class_BC @ class_BC.T).toarray())
        return shared_BB, shared_BB.diagonal()

    def with_similar(self, batch_size: int) -> Self:
        """Draw several images of a class at once if in random batches images had fewer than one similar other each."""
        expected = self._similar_by_chance(batch_size)
        of_a_class = min(IMAGES_OF_A_CLASS, batch_size // 2)
        if expected >= 1:
            return self
        logger.warning(
            "in a random batch of %d images one would have %.2g similar others on average, of %d labels: each batch "
            "has up to %d images of each label that is drawn for it",
            batch_size,
            expected,
            self.num_classes,
            of_a_class,
        )
        grouped = copy.copy(self)
        grouped._images_of_a_class = of_a_class
        return grouped

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield full batches, as many as `batches_per_epoch` says: of shuffled images, or by classes."""
        if self._images_of_a_class == 1:
            return super().batches(batch_size)
        order_M = order_by_class(self._draw_classes(), self._images_of_a_class)
        batches = torch.split(self._member_M[order_M], batch_size)[: self.batches_per_epoch(batch_size)]
        return iter([batches[number] for number in torch.randperm(len(batches)).tolist()])

    def _draw_classes(self) -> torch.Tensor:
        """Return one class of each image, drawn from those that it has."""
        class_MC = self._class_NC[self._member_M.numpy()]
        count_M = np.diff(class_MC.indptr)
        share_M = torch.rand(len(count_M), dtype=torch.float64).numpy()
        return torch.from_numpy(class_MC.indices[class_MC.indptr[:-1] + (share_M * count_M).astype(np.int64)])

    def _similar_by_chance(self, batch_size: int) -> float:
        """Return how many others of a random batch share a label with an image, on average, counted by label."""
        images = len(self._member_M)
        count_C = self._class_NC[self._member_M.numpy()].sum(axis=0).astype(np.float64)
        return float((count_C * (count_C - 1)).sum() / images / max(images - 1, 1) * (min(batch_size, images) - 1))

    def describe(self) -> str:
        """Return "labels" and their number."""
        several = ", several per image" if self._kind == MULTI_LABELS else ""
        return f"{self.num_classes} labels{several}"

    def digest(self) -> str:
        """Return a hash of the labels."""
        return digest_of(self._kind, self._class_NC.indptr, self._class_NC.indices)


def _one_label(labels: NDArray[Any], num_images: int) -> sparse.csr_array:
    if labels.shape != (num_images,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` must be {num_images} integers, one per image, got {labels.dtype} of shape {labels.shape}"
        )
    names, class_N = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError("`labels` must hold at least 2 different labels to have dissimilar pairs, got 1")
    parts = np.ones(num_images, np.float32), class_N, np.arange(num_images + 1)
    return sparse.csr_array(parts, shape=(num_images, len(names)))


def _several_labels(labels: NDArray[Any] | sparse.sparray, num_images: int) -> sparse.csr_array:
    given = sparse.csr_array(labels)
    if given.shape[0] != num_images or not np.isin(given.data, (0, 1)).all():
        values = given.data if given.nnz else np.zeros(1)
        raise ValueError(
            f"`labels` with several per image must be 0 or 1 in {num_images} rows, one column per label, "
            f"got {labels.dtype} of shape {labels.shape} with values {min(values.min(), 0)} to {values.max()}"
        )
    class_NC = given.astype(np.float32)
    class_NC.eliminate_zeros()
    class_NC.sort_indices()
    names, column_E = np.unique(class_NC.indices, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"`labels` must hold at least 2 different labels to have dissimilar pairs, got {len(names)}")
    bare = int((np.diff(class_NC.indptr) == 0).sum())
    if bare:
        raise ValueError(f"`labels` must give each image at least one label, {bare} have none: leave them out")
    return sparse.csr_array((class_NC.data, column_E, class_NC.indptr), shape=(num_images, len(names)))
