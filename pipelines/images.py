"""The images of a corpus in this process, for training and evaluation; jobs over whole corpora are in `encode`."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from PIL import Image

from encoders.encoder import EncoderOutput, HashEncoder
from encoders.errors import ImageError
from encoders.images import decode_image
from pipelines.corpora import read_images
from pipelines.errors import PipelineError

logger = logging.getLogger(__name__)

_ENCODE_BATCH = 512

Progress = Callable[[int, int], None]


def decode_entry(data: bytes | OSError) -> Image.Image:
    """Decode what `read_images` gave for one entry.

    Raises
    ------
    ImageError
        If it could not be read, or cannot be decoded.
    """
    if isinstance(data, OSError):
        raise ImageError(f"unreadable: {data}")
    return decode_image(data)


def readable_images(entries: pa.Table) -> tuple[pa.Table, list[bytes]]:
    """Return the entries whose images can be decoded, and these images, still encoded.

    Raises
    ------
    PipelineError
        If there are none.
    """
    good, encoded = [], []
    for row, data in enumerate(read_images(entries)):
        if _image_or_none(data, entries, row) is not None:
            good.append(row)
            encoded.append(data)
    _refuse_none(good, entries)
    return entries.take(np.array(good)), encoded


def encode_entries(
    model: HashEncoder, entries: pa.Table, progress: Progress | None = None
) -> tuple[pa.Table, EncoderOutput]:
    """Encode a listing here, a batch of images in memory at a time; return the good entries and what they gave.

    Raises
    ------
    PipelineError
        If not one image can be decoded.
    """
    good: list[int] = []
    outputs = []
    images = _decoded(entries)
    while batch := list(itertools.islice(images, _ENCODE_BATCH)):
        good.extend(row for row, _ in batch)
        outputs.append(model.encode_all([image for _, image in batch]))
        if progress is not None:
            progress(batch[-1][0] + 1, len(entries))
    _refuse_none(good, entries)
    return entries.take(np.array(good)), EncoderOutput(*(np.concatenate(part) for part in zip(*outputs, strict=True)))


def _decoded(entries: pa.Table) -> Iterator[tuple[int, Image.Image]]:
    for row, data in enumerate(read_images(entries)):
        image = _image_or_none(data, entries, row)
        if image is not None:
            yield row, image


def _image_or_none(data: bytes | OSError, entries: pa.Table, row: int) -> Image.Image | None:
    try:
        return decode_entry(data)
    except ImageError as error:
        logger.warning("left out %s: %s", entries["uri"][row], error)
        return None


def _refuse_none(good: list[int], entries: pa.Table) -> None:
    if not good:
        raise PipelineError(f"not one of {len(entries)} images can be decoded: the log names each with its reason")
