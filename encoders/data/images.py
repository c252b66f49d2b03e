"""Bytes to pixels: an image file becomes RGB or L, or an `ImageError` that says why not."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from hashlight.encoders.data.formats import open_file, refusal_of
from hashlight.encoders.errors import ImageError, ImageLimitError

ImageLike = Image.Image | bytes | str | os.PathLike[str] | NDArray[np.uint8]
# From the width and height of a file to a size that is enough.
EnoughFor = Callable[[int, int], tuple[int, int]]

# 64 million pixels are 192 MB as RGB: more than an ordinary phone photo, little enough for a worker's memory.
MAX_PIXELS = 64_000_000

# By the number of the EXIF orientation: what makes the stored image upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow looks for the orientation.
_ORIENTATIONS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
# By the raw mode that a PNG is unpacked from: what a grey sample is multiplied by.
_GREY_SCALES = {"L;2": 85, "L;4": 17}

# With a comment, so that the filter with it is not equal to one that a caller has.
_PILLOW_MODULES = r"PIL\.(?#while an image is decoded)"

# Without a handler, Python would print what Pillow logs of odd files.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class _Samples:
    """How the numbers of a file are to be read, of which Pillow knows nothing more once it has decoded them.

    Attributes
    ----------
    highest : int
        The number that is white, of 16-bit grey.
    inverted : bool
        Whether that number is black, of 16-bit grey.
    transparent : int, ndarray of bool of shape (H, W), or None
        The number of a grey that is transparent, or where an image is transparent.
    """

    highest: int = 65535
    inverted: bool = False
    transparent: int | NDArray[np.bool_] | None = None


def open_image(image: ImageLike, *, enough: EnoughFor | None = None) -> Image.Image:
    """Return an image of any accepted kind as `decode_image` does; a Pillow image that is given is not changed.

    Parameters
    ----------
    image : PIL image, encoded bytes, path or uint8 array
    enough : callable, optional
        As in `decode_image`; images that are decoded already stay as large as they are.

    Raises
    ------
    ImageError
        If it cannot be read or decoded.
    TypeError
        If it is not an image of an accepted kind.
    """
    if isinstance(image, Image.Image):
        with _pillow_errors():
            return _upright(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_image(bytes(image), enough=enough)
    if isinstance(image, str | os.PathLike):
        try:
            return decode_image(Path(image).read_bytes(), enough=enough)
        except OSError as exc:
            raise ImageError(f"unreadable file: {exc.strerror or exc}") from exc
    if isinstance(image, np.ndarray):
        return _image_of_array(image)
    raise TypeError(f"an image must be a PIL image, bytes, a path or a uint8 array, got {type(image).__name__}")


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, enough: EnoughFor | None = None) -> Image.Image:
    """Decode one image.

    Applies the EXIF orientation, takes the first frame of an animation, scales grey of any depth to 8 bits, and puts
    transparent pixels on white, as a browser does.

    Parameters
    ----------
    data : bytes
        A PNG, JPEG, GIF, WebP, BMP or TIFF file.
    max_pixels : int
        An image whose header announces more is refused before its pixels are decoded.
    enough : callable, optional
        Returns, for a width and height, a size that is enough. A JPEG is then decoded at the smallest eighth, quarter
        or half of its size that is no smaller, which takes a fraction of the time.

    Returns
    -------
    PIL.Image.Image
        Mode "RGB", or "L" if the file is grey.

    Raises
    ------
    ImageError
        If `data` is empty, not an image, of another format, truncated or damaged.
    ImageLimitError
        If it has too many pixels.
    """
    if not data:
        raise ImageError("empty file")
    with _pillow_errors():
        image = open_file(data)
        _check_size(image, max_pixels)
        if enough is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
            image.draft(None, enough(*image.size))
        return _upright(image)


def to_rgb_or_grey(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to "RGB", or to "L" if it is grey and opaque.

    Raises
    ------
    ImageError
        If the pixels are signed or 32-bit numbers, which have no fixed range.
    """
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    samples = _samples_of(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _from_16_bit(image, samples)
    if image.mode in ("I", "F"):
        raise ImageError(f"unsupported pixels: 32-bit (mode {image.mode}), expected 8 or 16 bits per channel")
    if isinstance(samples.transparent, np.ndarray):
        return _white_where(np.asarray(image), samples.transparent)
    if isinstance(samples.transparent, int):
        grey = np.asarray(image)
        return _white_where(grey, grey == samples.transparent)
    if image.has_transparency_data:
        return _on_white(image)
    return image.convert("L" if image.mode == "1" else "RGB")


def _upright(image: Image.Image) -> Image.Image:
    plain = to_rgb_or_grey(image)
    plain.load()
    # A damaged EXIF block says nothing about orientation; the pixels are still good.
    with contextlib.suppress(Exception):
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        if turn is not None:
            turned = plain.transpose(turn)
            for source in _ORIENTATIONS:  # or who opens the result would turn it again
                turned.info.pop(source, None)
            return turned
    return plain


def _image_of_array(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise TypeError(
            f"an image array must be uint8 of shape (H, W), (H, W, 1) or (H, W, 3), got {pixels.dtype} of shape "
            f"{pixels.shape}"
        )
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _samples_of(image: Image.Image) -> _Samples:
    """Return how to read the samples of a file; a PNG that is loaded already does not tell its depth any more."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,)))
        return _Samples(highest=2**bits - 1, inverted=tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0)
    transparent = image.info.get("transparency")
    if not isinstance(image, PngImagePlugin.PngImageFile) or transparent is None:
        return _Samples()
    raw_mode = image.tile[0].args if image.tile else None
    if raw_mode == "RGB;16B":
        return _Samples(transparent=_is_transparent(image, transparent))
    if raw_mode in _GREY_SCALES:
        scale = _GREY_SCALES[raw_mode]
        return _Samples(transparent=transparent % (255 // scale + 1) * scale)
    return _Samples(transparent=transparent if image.mode == "I;16" else None)


def _is_transparent(png: PngImagePlugin.PngImageFile, colour_C: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return where a PNG of 16 bits per channel has the colour that is transparent; Pillow keeps the upper 8 bits."""
    assert png.fp is not None, "a file that is not loaded is open"
    place = png.fp.tell()
    png.fp.seek(0)
    lower = PngImagePlugin.PngImageFile(io.BytesIO(png.fp.read()))
    png.fp.seek(place)
    lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
    upper_HWC, lower_HWC = np.asarray(png).astype(np.uint16), np.asarray(lower)
    is_transparent_HW: NDArray[np.bool_] = np.all((upper_HWC << 8 | lower_HWC) == np.array(colour_C), axis=2)
    return is_transparent_HW


def _from_16_bit(image: Image.Image, samples: _Samples) -> Image.Image:
    # Pillow's own conversion clips at 255 instead of scaling, which turns most 16-bit images white.
    numbers_HW = np.asarray(image).astype(np.uint32).clip(0, samples.highest)
    if samples.inverted:
        numbers_HW = samples.highest - numbers_HW
    grey_HW = (numbers_HW * 255 // samples.highest).astype(np.uint8)
    if samples.transparent is None:
        return Image.fromarray(grey_HW)
    return _white_where(grey_HW, numbers_HW == samples.transparent)


def _white_where(pixels: NDArray[np.uint8], transparent_HW: NDArray[np.bool_]) -> Image.Image:
    shown = pixels.copy()
    shown[transparent_HW] = 255
    return Image.fromarray(shown).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    # Pillow converts a premultiplied mode to its plain one only.
    rgba = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    page = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(page, rgba).convert("RGB")


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageLimitError(f"too many pixels: {width} x {height}, at most {max_pixels:,} are decoded")


@contextlib.contextmanager
def _pillow_errors() -> Iterator[None]:
    """Map every exception of Pillow to an `ImageError`, and silence its warnings.

    Its decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more on hostile bytes, so all of
    `Exception` is caught.
    """
    try:
        with _silence:
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError as exc:
        raise ImageLimitError(f"too many pixels: {exc}") from exc
    except Exception as exc:
        raise ImageError(refusal_of(exc)) from exc


class _Silence:
    """Ignores the warnings of Pillow while any thread decodes.

    `warnings.catch_warnings` serves one thread only: who else changes the filters meanwhile would have them changed
    back. So one filter is added, and later taken out of wherever it is by then: a caller may have saved the filters,
    and others may be in their place.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decoding = 0
        self._filter: Any = None
        # The lists of filters that it was added to.
        self._lists: list[list[Any]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._decoding += 1
            if self._filter not in warnings.filters:
                warnings.filterwarnings("ignore", module=_PILLOW_MODULES)
                self._filter = warnings.filters[0]
                self._lists.append(cast("list[Any]", warnings.filters))

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._decoding -= 1
            if self._decoding:
                return
            for filters in (*self._lists, cast("list[Any]", warnings.filters)):
                with contextlib.suppress(ValueError):
                    filters.remove(self._filter)
            self._lists.clear()


_silence = _Silence()
