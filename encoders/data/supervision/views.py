"""Images without labels: two views of each, or the images alone.

Shapes: B images of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from hashlight.encoders.data.supervision.protocol import NOTHING, VIEWS, digest_of
from hashlight.encoders.data.supervision.samplers import DrawsImages


class ViewSupervision(DrawsImages):
    """No labels: two views of one image are similar, views of different images are not.

    Each batch contains each of its images twice; augmentation makes the two views differ. The model learns copy
    detection: codes that do not change when an image is cropped, mirrored or recoloured.

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
        """Return the number of full batches of `batch_size` / 2 images."""
        return super().batches_per_epoch(batch_size // 2)

    def batches(self, batch_size: int) -> Iterator[torch.Tensor]:
        """Yield batches of `batch_size` / 2 images, each twice."""
        for index_B in super().batches(batch_size // 2):
            yield torch.cat([index_B, index_B])

    def pairs_within(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which pairs are views of the same image, and all True."""
        similar_BB = index_B[:, None] == index_B
        return similar_BB, torch.ones_like(similar_BB)

    def affinity_within(self, index_B: torch.Tensor) -> torch.Tensor | None:
        """Return None: views are similar or not."""
        return None

    def describe(self) -> str:
        """Return "two views" and the number of images."""
        return f"two views of each of {self.num_images} images"

    def digest(self) -> str:
        """Return a hash of the number of images."""
        return digest_of(VIEWS, np.array([self.num_images]))


class NoSupervision(DrawsImages):
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
        return digest_of(NOTHING, np.array([self.num_images]))
