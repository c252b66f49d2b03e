"""What every runtime offers.

Shapes: N images, R of them in one call, D features, B bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

# Input, outputs and free dimension of an exported network.
PIXELS, FEATURES, Z, IMAGES = "pixels", "features", "z", "images"

PixelsOf = Callable[[slice], NDArray[np.uint8]]


class Outputs(NamedTuple):
    """What a model gives for N images.

    Attributes
    ----------
    features : ndarray of float32, shape (N, D)
        The layer before the hash layer.
    z : ndarray of float32, shape (N, B)
        The hash layer's outputs, whose signs are the bits.
    """

    features: NDArray[np.float32]
    z: NDArray[np.float32]

    @classmethod
    def empty(cls, num_images: int, feature_dim: int, bits: int) -> Outputs:
        """Return arrays that are yet to be filled."""
        return cls(np.empty((num_images, feature_dim), np.float32), np.empty((num_images, bits), np.float32))


class Runtime(Protocol):
    """Runs one model. Thread-safe.

    An image's outputs depend on neither the other images nor the number of threads.
    """

    @property
    def feature_dim(self) -> int:
        """Number of features."""

    @property
    def batch_size(self) -> int:
        """How many images one call computes."""

    @property
    def images_at_once(self) -> int:
        """How many images are computed at a time, by all threads."""

    def run(self, num_images: int, pixels_of: PixelsOf) -> Outputs:
        """Return the outputs for N images.

        Parameters
        ----------
        num_images : int
        pixels_of : callable
            Returns the prepared pixels (R, size, size, channels) uint8 of a slice of the images. Threads call it.
        """


def padded(pixels_RHWC: NDArray[np.uint8], batch_size: int) -> NDArray[np.uint8]:
    """Return a copy of the pixels with zeros after them, up to the batch size."""
    pixels_NHWC = np.zeros((batch_size, *pixels_RHWC.shape[1:]), np.uint8)
    pixels_NHWC[: len(pixels_RHWC)] = pixels_RHWC
    return pixels_NHWC
