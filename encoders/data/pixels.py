"""Training images by batches of resized pixels, each decoded once."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hashlight.encoders.data.prepared import PreparedImages
from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.errors import ImageError

# Images decoded before they are kept.
_CHUNK = 64


class PixelSource:
    """Batches of preprocessed training images by position.

    Parameters
    ----------
    images : PreparedImages, uint8 array or tensor, or any sequence of images
        Unless they are prepared, all are decoded at once, by several threads.
    preprocessing : Preprocessing
    num_threads : int
    """

    def __init__(self, images: Any, preprocessing: Preprocessing, *, num_threads: int = 1):
        if isinstance(images, PreparedImages):
            if images.preprocessing != preprocessing:
                raise ValueError(
                    f"`images` must be prepared for the backbone, by {preprocessing}, got {images.preprocessing}"
                )
            self._prepared = images
        else:
            plain = images.numpy() if isinstance(images, torch.Tensor) else images
            self._prepared = PreparedImages.gather(_opened(plain, preprocessing, num_threads), preprocessing)
        self.preprocessing = preprocessing
        self._reader = ThreadPoolExecutor(1, "pixels")
        # The batch that is read ahead: its positions, and its pixels.
        self._ahead: tuple[torch.Tensor, Future[torch.Tensor]] | None = None

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The pixels of all images (N, size, size, channels)."""
        return self._prepared.pixels_NHWC

    def batch(self, index_B: torch.Tensor) -> torch.Tensor:
        """Return the pixels (B, size, size, channels) of the images at `index_B`."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and torch.equal(ahead[0], index_B):
            return ahead[1].result()
        return self._read(index_B)

    def read_ahead(self, index_B: torch.Tensor) -> None:
        """Begin to read the pixels of the next batch, if they may have to come from a disk."""
        if isinstance(self.pixels, np.memmap):
            self._ahead = index_B, self._reader.submit(self._read, index_B)

    def sample(self, count: int) -> NDArray[np.uint8]:
        """Return the pixels of up to `count` images, evenly spaced."""
        num_images = len(self._prepared)
        index_N = np.unique(np.linspace(0, num_images - 1, min(count, num_images)).astype(np.int64))
        return self._read(torch.from_numpy(index_N)).numpy()

    def _read(self, index_B: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.take(self.pixels, index_B.numpy(), axis=0))


def _opened(images: Any, preprocessing: Preprocessing, num_threads: int) -> Iterable[NDArray[np.uint8]]:
    """Yield the pixels of all images, in order; the first that cannot be decoded is raised."""

    def open_one(position: int) -> NDArray[np.uint8]:
        try:
            return preprocessing.pixels(preprocessing.open(images[position]))
        except ImageError as exc:
            raise ImageError(f"training image {position}: {exc.reason}") from exc

    with ThreadPoolExecutor(num_threads, "decode") as pool:
        for start in range(0, len(images), _CHUNK):
            yield np.stack(list(pool.map(open_one, range(start, min(start + _CHUNK, len(images))))))
