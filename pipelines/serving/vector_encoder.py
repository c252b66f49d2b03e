"""An encoder of embeddings behind the interface that servers and clients use; it needs no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.encoder import HashEncoder
from hashlight.engine.service.asking.encoding import Encoded


class HashVectorEncoder:
    """An `engine.service.asking.encoding.VectorEncoder` from a `HashEncoder`. Thread-safe.

    Parameters
    ----------
    model : HashEncoder
        One that takes embeddings.
    """

    def __init__(self, model: HashEncoder) -> None:
        self._model = model

    @property
    def bits(self) -> int:
        """Number of bits in a code."""
        return self._model.bits

    @property
    def fingerprint(self) -> str:
        """Identifies the encoder."""
        return self._model.fingerprint

    @property
    def dims(self) -> int:
        """Numbers in an embedding."""
        return self._model.config.embeddings.dims

    def encode_vectors(self, vectors_ND: NDArray[np.float32]) -> Encoded:
        """Encode embeddings (N, `dims`); ValueError if one of them has no code."""
        output = self._model.encode_embeddings_all(vectors_ND)
        return Encoded(output.codes, output.features, output.projections)
