"""The images of a corpus, or single ones, decoded in a guarded process for jobs that run in this one."""

from __future__ import annotations

import errno
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.encoders.data.prepared import PreparedImages
from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.encoder import EncoderOutput, HashEncoder
from hashlight.encoders.errors import ImageError
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.wording import counted
from hashlight.pipelines.corpora.corpus import read_images
from hashlight.pipelines.corpora.reasons import Reason
from hashlight.pipelines.decoding.pool import DecodePool, images_of_a_batch
from hashlight.pipelines.decoding.worker import DecodeLimits
from hashlight.pipelines.jobs.errors import PipelineError

logger = logging.getLogger(__name__)

# Where only whether an image can be decoded is asked.
_ONE_PIXEL = Preprocessing(size=1, channels=1, mean=(0.5,), std=(0.5,), interpolation="nearest")


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
    # Read, and not decoded yet.
    waiting: dict[int, bytes | OSError] = {}

    def images() -> Iterator[bytes | OSError]:
        for row, data in enumerate(read_images(entries)):
            waiting[row] = data
            yield data

    with DecodePool(_ONE_PIXEL) as pool:
        for batch in pool.decode(images()):
            for row in batch.good.tolist():
                data = waiting.pop(row)
                assert isinstance(data, bytes), "only bytes can be decoded"
                good.append(row)
                encoded.append(data)
            for row in batch.reasons:
                del waiting[row]
            _tell(entries, batch.reasons, kinds)
    _account(entries, len(good), kinds)
    return entries.take(np.array(good)), encoded


def prepared_images(
    entries: pa.Table,
    preprocessing: Preprocessing,
    folder: Path | None,
    images: Iterable[bytes | OSError] | None = None,
) -> tuple[pa.Table, PreparedImages]:
    """Return the entries whose images can be decoded, and those images, resized; many are kept in a file.

    Parameters
    ----------
    entries : pyarrow.Table
        A listing.
    preprocessing : Preprocessing
    folder : Path, optional
        Where the file is, which is gone with this process; by default the folder for temporary files.
    images : iterable of bytes, optional
        The encoded images, if they are read already.

    Raises
    ------
    PipelineError
        If no image can be decoded, or the disk has no room for the resized pixels.
    """
    good: list[NDArray[np.int64]] = []
    kinds: Counter[str] = Counter()

    def pixels(pool: DecodePool) -> Iterator[NDArray[np.uint8]]:
        for batch in pool.decode(read_images(entries) if images is None else images):
            _tell(entries, batch.reasons, kinds)
            good.append(batch.good)
            yield batch.pixels

    batch_size = images_of_a_batch(preprocessing)
    try:
        with DecodePool(preprocessing, processes=usable_cores(), batch_size=batch_size) as pool:
            prepared = PreparedImages.gather(pixels(pool), preprocessing, folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        needed = len(entries) * preprocessing.size**2 * preprocessing.channels
        raise PipelineError(
            f"there is no room for the resized pixels of {len(entries):,} images, {needed / 1e9:.1f} GB, in "
            f"{folder or tempfile.gettempdir()}: make room, or choose an --output on a larger disk"
        ) from error
    _account(entries, len(prepared), kinds)
    return entries.take(np.concatenate(good)), prepared


def encode_entries(model: HashEncoder, entries: pa.Table) -> tuple[pa.Table, EncoderOutput]:
    """Encode a listing with a model in this process, a batch at a time; return the good entries and their output.

    Raises
    ------
    PipelineError
        If no image can be decoded.
    """
    good: list[NDArray[np.int64]] = []
    outputs = []
    kinds: Counter[str] = Counter()
    with DecodePool(model.config.preprocessing) as pool:
        for batch in pool.decode(read_images(entries)):
            if len(batch.good):
                good.append(batch.good)
                outputs.append(model.encode_pixels(batch.pixels))
            _tell(entries, batch.reasons, kinds)
    _account(entries, sum(map(len, good)), kinds)
    output = EncoderOutput(*(np.concatenate(part) for part in zip(*outputs, strict=True)))
    return entries.take(np.concatenate(good)), output


def decode_one(data: bytes, preprocessing: Preprocessing, *, max_pixels: int) -> NDArray[np.uint8]:
    """Return the pixels (size, size, channels) of one image.

    Raises
    ------
    ImageError
        If it cannot be decoded.
    """
    with DecodePool(preprocessing, batch_size=1, limits=DecodeLimits(pixels=max_pixels)) as pool:
        [batch] = [(batch.pixels.copy(), batch.reasons) for batch in pool.decode([data])]
    pixels_NHWC, reasons = batch
    if reasons:
        raise ImageError(reasons[0].words)
    pixels_HWC: NDArray[np.uint8] = pixels_NHWC[0]
    return pixels_HWC


def thumbnails(images: Sequence[bytes], *, side: int, max_pixels: int) -> list[bytes | None]:
    """Return a JPEG of each image with this longest side, in order; None for what cannot be decoded."""
    found: list[bytes | None] = []
    if not images:
        return found
    with DecodePool(_ONE_PIXEL, batch_size=16, thumbnail=side, limits=DecodeLimits(pixels=max_pixels)) as pool:
        for batch in pool.decode(images):
            by_row = dict(zip(batch.good.tolist(), batch.thumbnails, strict=True))
            found += [by_row.get(row) for row in range(batch.first, batch.first + len(by_row) + len(batch.reasons))]
    return found


def _tell(entries: pa.Table, reasons: Mapping[int, Reason], kinds: Counter[str]) -> None:
    """Log why entries are left out, and count them by kind."""
    for row, (kind, words) in reasons.items():
        logger.warning("left out %s: %s", entries["uri"][row], words)
        kinds[kind] += 1


def _account(entries: pa.Table, num_good: int, kinds: Counter[str]) -> None:
    """Say how many entries were left out, by kind; PipelineError if all were."""
    if not num_good:
        raise PipelineError(
            f"none of {counted(len(entries), 'image')} can be decoded: the log gives the reason for each"
        )
    if kinds:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        logger.warning("left out %s of %s images: %s", f"{kinds.total():,}", f"{len(entries):,}", counts)
