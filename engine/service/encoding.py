"""What a server needs to turn images into codes: decoded one by one, encoded together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.codes import CodeArray


class ImageRefusedError(ValueError):
    """An image cannot be decoded, or has more pixels than are allowed."""


class Encoded(NamedTuple):
    """What an encoder gives for N images.

    Attributes
    ----------
    codes : ndarray of uint64, shape (N, W)
    features : ndarray of float32, shape (N, F)
        Fine features, to re-rank by.
    """

    codes: CodeArray
    features: NDArray[np.float32]


class ImageEncoder(Protocol):
    """What makes codes of images. Several threads may use one at once."""

    @property
    def bits(self) -> int:
        """Bits of a code."""
        ...

    @property
    def fingerprint(self) -> str:
        """Which encoder this is."""
        ...

    @property
    def batch_size(self) -> int:
        """Images that are encoded as quickly as one."""
        ...

    def decode(self, data: bytes, max_pixels: int) -> Any:
        """Return an image for `encode`.

        Raises
        ------
        ImageRefusedError
            If `data` is no image, is damaged, or has more than `max_pixels` pixels.
        """
        ...

    def encode(self, images: Sequence[Any]) -> Encoded:
        """Encode decoded images."""
        ...
