"""The images of a corpus in this process, for training and evaluation; jobs decode in guarded processes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from PIL import Image

from hashlight.encoders.data.images import decode_image
from hashlight.encoders.encoder import EncoderOutput, HashEncoder
from hashlight.encoders.errors import ImageError
from hashlight.pipelines.corpora.corpus import read_images
from hashlight.pipelines.jobs.errors import PipelineError

logger = logging.getLogger(__name__)

# Limit on the decoded images of a batch; a photograph of 12 megapixels takes 36 MB.
MAX_BATCH_PIXELS = 32_000_000
_ENCODE_BATCH = 512


def decode_entry(data: bytes | OSError) -> Image.Image:
    """Decode the result of `read_images` for one entry.

    Raises
    ------
    ImageError
        If the image could not be read or cannot be decoded.
    """
    if isinstance(data, OSError):
        raise ImageError(f"unreadable: {data}")
    return decode_image(data)


def readable_images(entries: pa.Table) -> tuple[pa.Table, list[bytes]]:
    """Return the entries whose images can be decoded, and those images in encoded form.

    Raises
    ------
    PipelineError
        If there are none.
    """
    good: list[int] = []
    encoded: list[bytes] = []
    for row, data in enumerate(read_images(entries)):
        if _image_or_none(data, entries, row) is not None and not isinstance(data, OSError):
            good.append(row)
            encoded.append(data)
    _refuse_none(good, entries)
    return entries.take(np.array(good)), encoded


def batches(images: Iterable[tuple[int, Image.Image]], size: int) -> Iterator[list[tuple[int, Image.Image]]]:
    """Gather (row, image) into batches of at most `size` images and about `MAX_BATCH_PIXELS` pixels."""
    batch: list[tuple[int, Image.Image]] = []
    pixels = 0
    for row, image in images:
        batch.append((row, image))
        pixels += image.width * image.height
        if len(batch) == size or pixels >= MAX_BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def encode_entries(model: HashEncoder, entries: pa.Table) -> tuple[pa.Table, EncoderOutput]:
    """Encode a listing in this process, a batch at a time; return the good entries and their output.

    Raises
    ------
    PipelineError
        If no image can be decoded.
    """
    good: list[int] = []
    outputs = []
    for batch in batches(_decoded(entries), _ENCODE_BATCH):
        good.extend(row for row, _ in batch)
        outputs.append(model.encode_all([image for _, image in batch]))
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
        raise PipelineError(f"none of {len(entries)} images can be decoded: the log gives the reason for each")
