"""Search by an embedding, without torch."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.encoder import HashEncoder
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.asking.encoding import Encoded
from hashlight.pipelines.jobs.errors import PipelineError

_MAX_BYTES = 64 << 20


def read_vector(vector: str | Path) -> NDArray[np.floating[Any]]:
    """Read an embedding (1, D) from a file, local or in a bucket: `.npy` of shape (D,) or (1, D), or a list in JSON.

    Raises
    ------
    PipelineError
        If it is something else.
    """
    place = open_place(vector)
    try:
        data = place.read(max_bytes=_MAX_BYTES)
        is_npy = data.startswith(b"\x93NUMPY")
        found = np.load(io.BytesIO(data), allow_pickle=False) if is_npy else np.asarray(json.loads(data))
    except Exception as error:  # numpy parses a header as Python, and passes on SyntaxError, TokenError and others
        raise PipelineError(
            f"{place} cannot be searched for: expected an embedding as .npy or a list of numbers in JSON ({error})"
        ) from error
    if found.dtype.kind not in "fiu" or found.ndim not in (1, 2) or (found.ndim == 2 and len(found) != 1):
        raise PipelineError(
            f"{place} holds {found.dtype} of shape {found.shape}: expected one embedding, of shape (D,) or (1, D)"
        )
    return np.atleast_2d(found.astype(np.float32) if found.dtype.kind != "f" else found)


def encode_vector(model: HashEncoder, vector: str | Path) -> Encoded:
    """Encode the embedding in a file, as a batch of one.

    Raises
    ------
    PipelineError
        If it cannot be read, has other dimensions than the encoder takes, or has no code.
    EncoderError
        If the encoder takes images.
    """
    expected, vector_1D = model.config.embeddings.dims, read_vector(vector)
    if vector_1D.shape[1] != expected:
        raise PipelineError(
            f"{open_place(vector)} has {vector_1D.shape[1]} numbers, expected {expected}, as embeddings here have"
        )
    try:
        output = model.encode_embeddings_all(vector_1D)
    except ValueError as error:
        raise PipelineError(f"{open_place(vector)} cannot be searched for: {error}") from error
    return Encoded(output.codes, output.features, output.projections)
