"""A trained encoder behind the interface that servers and clients use.

What decodes images is imported when there is one to decode: a collection of embeddings needs neither torch nor Pillow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.config import Embeddings
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.errors import ImageError
from hashlight.engine.service.asking.encoding import Encoded, ImageRefusedError, num_decoders
from hashlight.pipelines.serving.vector_encoder import HashVectorEncoder

if TYPE_CHECKING:
    from hashlight.pipelines.decoding.uploads import UploadDecoder


def encoder_for_server(model: HashEncoder) -> HashImageEncoder | HashVectorEncoder:
    """Return the encoder of a server, of images or of embeddings."""
    if isinstance(model.config.input, Embeddings):
        return HashVectorEncoder(model)
    return HashImageEncoder.for_server(model)


class HashImageEncoder:
    """An `engine.service.asking.encoding.ImageEncoder` from a `HashEncoder`. Thread-safe.

    Parameters
    ----------
    model : HashEncoder
    uploads : UploadDecoder, optional
        Decodes the images of people who may not be trusted; without it, images are decoded in this process.
    """

    def __init__(self, model: HashEncoder, uploads: UploadDecoder | None = None) -> None:
        self._model = model
        self._uploads = uploads

    @classmethod
    def load(cls, folder: str | Path) -> HashImageEncoder | HashVectorEncoder:
        """Open an encoder written by `hashlight train` or stored in a collection, of images or of embeddings."""
        model = HashEncoder.load(folder)
        return HashVectorEncoder(model) if isinstance(model.config.input, Embeddings) else cls(model)

    @classmethod
    def for_server(cls, model: HashEncoder) -> HashImageEncoder:
        """Return the encoder of a server, which decodes in guarded processes."""
        from hashlight.pipelines.decoding.uploads import UploadDecoder

        return cls(model, UploadDecoder(model.config.preprocessing, processes=num_decoders()))

    @property
    def bits(self) -> int:
        """Number of bits in a code."""
        return self._model.bits

    @property
    def fingerprint(self) -> str:
        """Identifies the encoder."""
        return self._model.fingerprint

    @property
    def takes_texts(self) -> bool:
        """Whether the network embeds texts too."""
        return self._model.takes_texts

    def encode_texts(self, texts: Sequence[str]) -> Encoded:
        """Encode texts."""
        output = self._model.encode_texts(texts)
        return Encoded(output.codes, output.features, output.projections)

    @property
    def batch_size(self) -> int:
        """How many images are encoded at a time; so many take hardly longer than one."""
        return self._model.images_at_once

    def decode(self, data: bytes, max_pixels: int, timeout_s: float | None = None) -> NDArray[np.uint8]:
        """Return an image file's pixels at the size of the model's input; ImageRefusedError if it cannot be decoded."""
        try:
            if self._uploads is not None:
                from hashlight.pipelines.decoding.uploads import UPLOAD_LIMITS

                timeout_s = UPLOAD_LIMITS.wall_seconds if timeout_s is None else timeout_s
                return self._uploads.decode(data, max_pixels=max_pixels, timeout_s=timeout_s)
            rule = self._model.config.preprocessing
            return rule.pixels(rule.decode(data, max_pixels=max_pixels))
        except ImageError as error:
            raise ImageRefusedError(error.reason) from error

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> Encoded:
        """Encode decoded images."""
        output = self._model.encode_pixels(np.stack(images))
        return Encoded(output.codes, output.features, output.projections)
