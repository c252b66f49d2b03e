"""The images of a corpus in this process, for training and evaluation; jobs decode in guarded processes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
from PIL import Image

from hashlight.encoders.data.images import decode_image
from hashlight.encoders.encoder import EncoderOutput, HashEncoder
from hashlight.encoders.errors import ImageError, ImageLimitError
from hashlight.pipelines.corpora.corpus import read_images
from hashlight.pipelines.corpora.reasons import FORMAT, LIMIT, reason_of
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
    kinds: Counter[str] = Counter()
    for row, data in enumerate(read_images(entries)):
        if _image_or_none(data, entries, row, kinds) is not None and not isinstance(data, OSError):
            good.append(row)
            encoded.append(data)
    _account(entries, len(good), kinds)
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
    kinds: Counter[str] = Counter()
    for batch in batches(_decoded(entries, kinds), _ENCODE_BATCH):
        good.extend(row for row, _ in batch)
        outputs.append(model.encode_all([image for _, image in batch]))
    _account(entries, len(good), kinds)
    return entries.take(np.array(good)), EncoderOutput(*(np.concatenate(part) for part in zip(*outputs, strict=True)))


def _decoded(entries: pa.Table, kinds: Counter[str]) -> Iterator[tuple[int, Image.Image]]:
    for row, data in enumerate(read_images(entries)):
        image = _image_or_none(data, entries, row, kinds)
        if image is not None:
            yield row, image


def _image_or_none(data: bytes | OSError, entries: pa.Table, row: int, kinds: Counter[str]) -> Image.Image | None:
    """Decode an entry; if that fails, log why and count the kind of the reject."""
    try:
        return decode_entry(data)
    except ImageError as error:
        logger.warning("left out %s: %s", entries["uri"][row], error)
        limited = LIMIT if isinstance(error, ImageLimitError) else FORMAT
        kinds[reason_of(data).kind if isinstance(data, OSError) else limited] += 1
        return None


def _account(entries: pa.Table, num_good: int, kinds: Counter[str]) -> None:
    """Say how many entries were left out, by kind; PipelineError if all were."""
    if not num_good:
        raise PipelineError(f"none of {len(entries)} images can be decoded: the log gives the reason for each")
    if kinds:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        logger.warning("left out %s of %s images: %s", f"{kinds.total():,}", f"{len(entries):,}", counts)
