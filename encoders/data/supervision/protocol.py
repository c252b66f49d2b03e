"""The interface between a training run and its supervision.

Shapes: C classes, B images of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

LABELS = "labels"
MULTI_LABELS = "multi-labels"
PAIRS = "pairs"
VIEWS = "views"
NOTHING = "nothing"


class Supervision(Protocol):
    """What is known about the images: labels, pairs, views, or nothing."""

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
        """Return how many batches `batches` yields."""

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield the positions of the images of each batch of one epoch, in an order from torch's random numbers.

        All random numbers of an epoch are drawn before its first batch.
        """

    def pairs_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which pairs of a batch are similar and which are known, each (B, B) bool."""

    def affinity_within(self, index_B: torch.Tensor) -> torch.Tensor | None:
        """Return the Jaccard index of the labels of each pair, (B, B) float32; None if it is 1 for similar pairs."""

    def with_similar(self, batch_size: int) -> Self:
        """Return the same supervision, with batches whose images have similar others in them, as far as there are."""

    def restricted_to(self, index_M: torch.Tensor) -> Self:
        """Return the same supervision with batches of these images only."""

    def describe(self) -> str:
        """Return a short description for the artifact."""

    def digest(self) -> str:
        """Return a hash of its contents, by which a checkpoint recognises it."""


def digest_of(kind: str, *arrays: NDArray[Any]) -> str:
    """Return a hash of a kind of supervision and its arrays."""
    hasher = hashlib.sha256(kind.encode())
    for array in arrays:
        hasher.update(f"{array.dtype}{array.shape}".encode())
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()
