"""A corpus decoded in this process, for training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from encoders.errors import ImageError
from encoders.images import decode_image
from pipelines.corpora import read_images
from pipelines.errors import PipelineError


@dataclass(frozen=True, slots=True)
class DecodedCorpus:
    """The good images of a corpus, their entries, and (uri, reason) of the others."""

    images: list[Image.Image]
    entries: pa.Table
    rejects: list[tuple[str, str]]


def decode_corpus(entries: pa.Table) -> DecodedCorpus:
    """Decode every image of a listing; one that cannot be decoded is left out, with its reason.

    Raises
    ------
    PipelineError
        If not one can be decoded.
    """
    images, good, rejects = [], [], []
    for row, (uri, data) in enumerate(zip(entries["uri"].to_pylist(), read_images(entries), strict=True)):
        try:
            images.append(decode_image(data if isinstance(data, bytes) else b""))
            good.append(row)
        except ImageError as error:
            rejects.append((uri, str(data) if isinstance(data, OSError) else str(error)))
    if not images:
        raise PipelineError(f"not one of {len(entries)} images can be decoded, the first because: {rejects[0][1]}")
    return DecodedCorpus(images, entries.take(np.array(good)), rejects)
