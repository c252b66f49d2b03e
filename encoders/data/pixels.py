"""Training images: resized once and kept in memory if they fit, otherwise opened again for every batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import ImageError

# Room for a million 28x28 grey images, or 6,000 colour images of 224x224.
CACHE_BYTES = 1_000_000_000


class PixelSource:
    """Batches of preprocessed training images by position.

    Parameters
    ----------
    images : uint8 array or tensor, or any sequence of images
    preprocessing : Preprocessing
    cache_bytes : int
        Resized pixels are kept if all of them together take at most this much.

    Attributes
    ----------
    images : uint8 array, or the sequence as given
    """

    def __init__(self, images: Any, preprocessing: Preprocessing, *, cache_bytes: int = CACHE_BYTES):
        self.images = images.numpy() if isinstance(images, torch.Tensor) else images
        self._preprocessing = preprocessing
        pixels = preprocessing.size**2 * preprocessing.channels
        self._cache = self._open(np.arange(len(images))) if pixels * len(images) <= cache_bytes else None

    def batch(self, index_B: torch.Tensor) -> torch.Tensor:
        """Return the float32 input (B, C, H, W) of the images at `index_B`."""
        pixels_BHWC = self._open(index_B.numpy()) if self._cache is None else self._cache[index_B]
        return self._preprocessing.normalise(pixels_BHWC)

    def sample(self, count: int) -> NDArray[np.uint8]:
        """Return the prepared pixels (N, size, size, channels) of up to `count` images, evenly spaced."""
        num_images = len(self.images)
        index_N = np.unique(np.linspace(0, num_images - 1, min(count, num_images)).astype(np.int64))
        pixels_NHWC: NDArray[np.uint8] = self._open(index_N).numpy()
        return pixels_NHWC

    def _open(self, index_B: NDArray[np.int64]) -> torch.Tensor:
        size = self._preprocessing.size
        pixels_BHWC = np.empty((len(index_B), size, size, self._preprocessing.channels), np.uint8)
        for row, position in enumerate(index_B.tolist()):
            try:
                image = self._preprocessing.open(self.images[position])
            except ImageError as exc:
                raise ImageError(f"training image {position}: {exc.reason}") from exc
            pixels_BHWC[row] = self._preprocessing.pixels(image)
        return torch.from_numpy(pixels_BHWC)
