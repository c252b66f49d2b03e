"""Bytes to pixels: an image file becomes RGB or L, or an `ImageError` that says why not."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from hashlight.encoders.errors import ImageError, ImageLimitError

ImageLike = Image.Image | bytes | str | os.PathLike[str] | NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")

# 64 million pixels are 192 MB as RGB: more than an ordinary phone photo, little enough for a worker's memory.
MAX_PIXELS = 64_000_000

# Formats recognised by their first bytes, so that "unsupported" can be told from "not an image".
_OUR_FORMATS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
_OTHER_FORMATS = (
    (b"%PDF", 0, "PDF"),
    (b"8BPS", 0, "Photoshop"),
    (b"\x00\x00\x01\x00", 0, "ICO"),
    (b"ftyphei", 4, "HEIC"),
    (b"ftypmif1", 4, "HEIC"),
    (b"ftypmsf1", 4, "HEIC"),
    (b"ftypavi", 4, "AVIF"),
    (b"\xff\x0a", 0, "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", 0, "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", 0, "JPEG 2000"),
    (b"\xff\x4f\xff\x51", 0, "JPEG 2000"),
    (b"<svg", 0, "SVG"),
    (b"%!PS", 0, "PostScript"),
)


def open_image(image: ImageLike) -> Image.Image:
    """Return an image of any accepted kind as a Pillow image, rotated according to its EXIF orientation.

    Raises
    ------
    ImageError
        If it cannot be read or decoded.
    TypeError
        If it is not an image of an accepted kind.
    """
    if isinstance(image, Image.Image):
        return upright(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_image(bytes(image))
    if isinstance(image, str | os.PathLike):
        try:
            return decode_image(Path(image).read_bytes())
        except OSError as exc:
            raise ImageError(f"unreadable file: {exc.strerror or exc}") from exc
    if isinstance(image, np.ndarray):
        return _image_of_array(image)
    raise TypeError(f"an image must be a PIL image, bytes, a path or a uint8 array, got {type(image).__name__}")


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode one image completely.

    Applies the EXIF orientation, takes the first frame of an animation, scales 16-bit grey to 8 bits, and puts
    transparent pixels on white, as a browser does.

    Parameters
    ----------
    data : bytes
        A PNG, JPEG, GIF, WebP, BMP or TIFF file.
    max_pixels : int
        An image whose header announces more is refused before its pixels are decoded. Pillow's own limit
        (`PIL.Image.MAX_IMAGE_PIXELS`) applies too.

    Returns
    -------
    PIL.Image.Image
        Mode "RGB", or "L" if the file is grey.

    Raises
    ------
    ImageError
        If `data` is empty, not an image, of another format, truncated, damaged, or too large.
    """
    if not data:
        raise ImageError("empty file")
    with _pillow_errors(data, max_pixels):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image, max_pixels)
        image.load()
        return to_rgb_or_grey(_turn_upright(image))


def upright(image: Image.Image) -> Image.Image:
    """Return an opened image with its EXIF orientation applied; the original is not changed."""
    # A damaged EXIF block says nothing about orientation; the pixels are still good.
    with contextlib.suppress(Exception):
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def to_rgb_or_grey(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to "RGB", or to "L" if it is grey and opaque.

    Raises
    ------
    ImageError
        If the pixels are 32-bit numbers, which have no fixed range.
    """
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        raise ImageError(f"unsupported pixels: 32-bit (mode {image.mode}), expected 8 or 16 bits per channel")
    if image.has_transparency_data:
        return _on_white(image)
    return image.convert("L" if image.mode == "1" else "RGB")


def _image_of_array(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise TypeError(
            f"an image array must be uint8 of shape (H, W), (H, W, 1) or (H, W, 3), got {pixels.dtype} of shape "
            f"{pixels.shape}"
        )
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _from_16_bit(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255 instead of scaling, which turns most 16-bit images white.
    pixels_HW = np.asarray(image).astype(np.uint32)
    return Image.fromarray((pixels_HW.clip(0, 65535) // 257).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    page = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(page, rgba).convert("RGB")


def _turn_upright(image: Image.Image) -> Image.Image:
    # A damaged EXIF block says nothing about orientation; the pixels are still good.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageLimitError(f"too many pixels: {width} x {height}, at most {max_pixels:,} are decoded")


@contextlib.contextmanager
def _pillow_errors(data: bytes, max_pixels: int) -> Iterator[None]:
    """Map every exception of Pillow to an `ImageError`.

    Its decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more on hostile bytes, so all of
    `Exception` is caught.
    """
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as exc:
        raise ImageError(_name_unidentified(data)) from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        limit = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
        raise ImageLimitError(f"too many pixels: at most {limit:,} are decoded") from exc
    except Exception as exc:
        reason = " ".join(str(exc).split())[:120] or type(exc).__name__
        kind = "truncated" if "truncated" in reason.lower() else "damaged"
        raise ImageError(f"{kind}: {reason}") from exc


def _name_unidentified(data: bytes) -> str:
    expected = ", ".join(FORMATS)
    for magic, offset, name in _OTHER_FORMATS:
        if data[offset : offset + len(magic)] == magic:
            return f"unsupported format: {name}, expected one of {expected}"
    if data.startswith(_OUR_FORMATS):
        return "damaged: the header cannot be read"
    return f"not an image: expected one of {expected}"
