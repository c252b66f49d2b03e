"""Labels of the images: those that share one are similar.

Shapes: N images, C classes, B images of a batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hashlight.encoders.data.supervision.protocol import LABELS, MULTI_LABELS, digest_of
from hashlight.encoders.data.supervision.samplers import DrawsImages


class LabelSupervision(DrawsImages):
    """One or several labels per image: every pair is known, and images that share a label are similar.

    Parameters
    ----------
    labels : int array, shape (N,), or bool or 0/1 array, shape (N, C)
        At least two different ones. In the second form an image has every label whose column is set, at least one.
    num_images : int
    """

    def __init__(self, labels: NDArray[Any], num_images: int):
        super().__init__(num_images)
        class_NC = _multi_hot(labels, num_images) if labels.ndim == 2 else _one_hot(labels, num_images)
        # A matrix with one label in every row is the same as a column of labels.
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
        """Return the number of shared labels over the number in either, if images have several labels."""
        if self._kind == LABELS:
            return None
        class_BC = self.classes_of(index_B)
        shared_BB = class_BC @ class_BC.T
        count_B = class_BC.sum(dim=1)
        return shared_BB / (count_B[:, None] + count_B - shared_BB)

    def describe(self) -> str:
        """Return "labels" and their number."""
        several = ", several per image" if self._kind == MULTI_LABELS else ""
        return f"{self.num_classes} labels{several}"

    def digest(self) -> str:
        """Return a hash of the labels."""
        return digest_of(self._kind, self._class_NC.numpy())


def _one_hot(labels: NDArray[Any], num_images: int) -> NDArray[np.bool_]:
    if labels.shape != (num_images,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`labels` must be {num_images} integers, one per image, got {labels.dtype} of shape {labels.shape}"
        )
    names, class_N = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError("`labels` must hold at least 2 different labels to have dissimilar pairs, got 1")
    return np.asarray(class_N[:, None] == np.arange(len(names)))


def _multi_hot(labels: NDArray[Any], num_images: int) -> NDArray[np.bool_]:
    if len(labels) != num_images or not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"`labels` with several per image must be 0 or 1 in {num_images} rows, one column per label, "
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
