"""A sample of the images in a work list: read, and looked at.

Shapes: N images, H and W pixels.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.encoders.data.formats import open_file
from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.engine.wording import counted
from hashlight.pipelines.corpora.corpus import Readers, read_images
from hashlight.pipelines.corpora.kinds.webdataset import START, STOP, read_shard
from hashlight.pipelines.corpora.listing import SHARDS, SOURCE
from hashlight.pipelines.corpora.work import WorkList
from hashlight.pipelines.decoding.pool import DecodePool
from hashlight.pipelines.jobs.errors import PipelineError

SAMPLE_IMAGES = 64
_MAX_UNITS = 64
# Pixels are picked, not averaged, so that flat areas stay flat.
_LOOK = Preprocessing(size=64, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="nearest")
# Where red, green and blue differ by more, an image has colours: JPEG makes grey ones differ by less.
_COLOUR = 16
_COLOUR_SHARE = 0.01
# Photographs fill their frame, and their neighbouring pixels differ.
_PLAIN_SHARE, _FLAT_SHARE = 0.25, 0.3


class UnreadableError(PipelineError):
    """None of the images of a sample can be decoded."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a sample shows of a corpus.

    Attributes
    ----------
    images : tuple of bytes
        Those of the sample that can be decoded, encoded as they are.
    looked_at : int
        How many were tried.
    colour, drawings : int
        How many of `images` have colours, and how many are drawings, or on a plain background, rather than photographs.
    formats : dict of str to int
        How many are in each format, most first.
    sizes : tuple of (int, int)
        Width and height of each, by their product.
    thumbnail_bytes, decode_s : float
        Means of an image.
    """

    images: tuple[bytes, ...]
    looked_at: int
    colour: int
    drawings: int
    formats: dict[str, int]
    sizes: tuple[tuple[int, int], ...]
    thumbnail_bytes: float
    decode_s: float

    @property
    def is_small_grey(self) -> bool:
        """Whether all are grey and about as small as the input of the small network."""
        return not self.colour and max(max(size) for size in self.sizes) <= 32

    def describe(self) -> str:
        """Say what the images are, in a line."""
        kinds = [_share(self.drawings, len(self.images), "drawings (or on a plain background)", "photographs")]
        if self.is_small_grey:
            kinds = ["small"]
        kinds.append(_share(self.colour, len(self.images), "in colour", "grey"))
        low, middle, high = self.sizes[0], self.sizes[len(self.sizes) // 2], self.sizes[-1]
        sizes = _size(middle) if low == high else f"{_size(middle)} pixels in the middle, {_size(low)} to {_size(high)}"
        damaged = self.looked_at - len(self.images)
        cannot = f"; {damaged} of them cannot be decoded" if damaged else ""
        sample = f"from a sample of {self.looked_at}{cannot}"
        return f"{', '.join(kinds)}; {', '.join(self.formats)}; {sizes} ({sample})"


def _share(part: int, whole: int, yes: str, no: str) -> str:
    if part in (0, whole):
        return yes if part else no
    return f"{part / whole:.0%} {yes} and {1 - part / whole:.0%} {no}"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]:,} x {size[1]:,}"


def look_at(work: Path, *, thumbnail: int) -> Look:
    """Look at a sample of a work list.

    Parameters
    ----------
    work : Path
    thumbnail : int
        Longest side of the thumbnails whose size is measured.

    Raises
    ------
    UnreadableError
        If none of its images can be decoded.
    """
    tried = list(read_sample(work, SAMPLE_IMAGES))
    good: list[bytes] = []
    thumbnail_bytes: list[int] = []
    colour = drawings = 0
    reasons: Counter[str] = Counter()
    start = time.perf_counter()
    with DecodePool(_LOOK, batch_size=16, thumbnail=thumbnail) as pool:
        for batch in pool.decode(tried):
            images = [tried[row] for row in batch.good.tolist()]
            good += [image for image in images if isinstance(image, bytes)]
            thumbnail_bytes += map(len, batch.thumbnails)
            colour += sum(map(_has_colours, batch.pixels))
            drawings += sum(map(_is_drawing, batch.pixels))
            reasons.update(reason.words for reason in batch.reasons.values())
    decode_s = time.perf_counter() - start
    if not good:
        [(words, _)] = reasons.most_common(1)
        raise UnreadableError(f"none of {counted(len(tried), 'image')} can be decoded, for example: {words}")
    headers = [_header(image) for image in good]
    formats = Counter(name for name, _ in headers)
    return Look(
        images=tuple(good),
        looked_at=len(tried),
        colour=colour,
        drawings=drawings,
        formats=dict(formats.most_common()),
        sizes=tuple(sorted((size for _, size in headers), key=lambda size: (size[0] * size[1], size))),
        thumbnail_bytes=float(np.mean(thumbnail_bytes)) if thumbnail else 0.0,
        decode_s=decode_s / len(tried),
    )


def _header(image: bytes) -> tuple[str, tuple[int, int]]:
    """Return format and size of an image that was decoded before."""
    with open_file(image) as opened:
        return str(opened.format), opened.size


def _has_colours(pixels_HWC: NDArray[np.uint8]) -> bool:
    difference_HW = pixels_HWC.max(axis=2).astype(np.int16) - pixels_HWC.min(axis=2)
    return float((difference_HW > _COLOUR).mean()) > _COLOUR_SHARE


def _is_drawing(pixels_HWC: NDArray[np.uint8]) -> bool:
    """Whether an image has a plain background, or is made of flat areas."""
    packed_HW = pixels_HWC.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    values, counts = np.unique(packed_HW, return_counts=True)
    inside_HW = packed_HW != values[counts.argmax()]
    if float(inside_HW.mean()) < 1 - _PLAIN_SHARE:
        return True
    both = inside_HW[:, :-1] & inside_HW[:, 1:]
    return float((packed_HW[:, :-1] == packed_HW[:, 1:])[both].mean()) > _FLAT_SHARE


def read_sample(work: Path, count: int) -> Iterator[bytes | OSError]:
    """Read up to so many images of a work list, spread evenly over it; an error comes in the place of one."""
    with pa.memory_map(str(work)) as raw, Readers() as readers:
        listed = WorkList(raw, str(work))
        places = _spread(listed.summary.units, _MAX_UNITS)
        left = count
        for number, place in enumerate(places):
            wanted = -(-left // (len(places) - number))
            read = 0
            for image in _images_of(listed, place, wanted, readers):
                read += 1
                yield image
            left -= read


def _images_of(listed: WorkList, place: int, wanted: int, readers: Readers) -> Iterator[bytes | OSError]:
    entries = listed.read(place)
    if listed.summary.kind != SHARDS:
        return read_images(entries.take(pa.array(_spread(len(entries), wanted))), readers)
    source, start, stop = (entries[name][0].as_py() for name in (SOURCE, START, STOP))
    samples = read_shard(source, start=start, stop=stop, opened=readers.shard)
    return (sample.data for sample in itertools.islice(samples, wanted))


def _spread(count: int, wanted: int) -> list[int]:
    """Return up to so many positions, spread evenly."""
    positions: list[int] = np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64)).tolist()
    return positions
