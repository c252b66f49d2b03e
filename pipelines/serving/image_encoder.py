"""A trained encoder, as servers and clients of a collection ask it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.data.images import decode_image
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import ImageError
from hashlight.engine.service.asking.encoding import Encoded, ImageRefusedError


class HashImageEncoder:
    """An `engine.service.asking.encoding.ImageEncoder` of a `HashEncoder`. Several threads may use one at once."""

    def __init__(self, model: HashEncoder) -> None:
        self._model = model

    @classmethod
    def load(cls, folder: str | Path) -> HashImageEncoder:
        """Open the encoder that `hashlight train` wrote, or that a collection keeps."""
        return cls(HashEncoder.load(folder))

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self._model.bits

    @property
    def fingerprint(self) -> str:
        """Which encoder this is."""
        return self._model.fingerprint

    @property
    def batch_size(self) -> int:
        """The shape that the model always runs at: as many images cost what one does."""
        return self._model.config.batch_size

    def decode(self, data: bytes, max_pixels: int) -> NDArray[np.uint8]:
        """Return an image file's pixels at the size of the model's input; ImageRefusedError says why it is none."""
        try:
            return self._model.config.preprocessing.pixels(decode_image(data, max_pixels=max_pixels))
        except ImageError as error:
            raise ImageRefusedError(error.reason) from error

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Encoded:
        """Encode decoded images."""
        output = self._model.encode_pixels(np.stack(images))
        return Encoded(output.codes, output.features)
