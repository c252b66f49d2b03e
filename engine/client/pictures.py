"""Pictures that are already in memory, as image files that decode to what a person sees."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.extras import missing

# Formats that every gateway decodes, and modes that PNG holds as they are.
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
_MODES_OF_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF


def is_picture(value: Any) -> bool:
    """Return whether a value is a PIL image, without importing Pillow."""
    return hasattr(value, "save") and hasattr(value, "mode") and hasattr(value, "size")


def file_of_picture(picture: Any) -> bytes:
    """Return a PIL image as an image file: its own, as long as nothing of it is loaded, or else a PNG.

    Raises
    ------
    ValueError
        If it cannot be decoded, or its pixels are 32-bit numbers, which have no fixed range.
    """
    if picture.mode in ("I", "F"):
        raise ValueError(f"a picture has 32-bit pixels (mode {picture.mode}), expected 8 or 16 bits: convert it")
    try:
        own = _own_file(picture)
        if own is not None:
            return own
        buffer = io.BytesIO()
        _for_png(picture).save(buffer, "PNG")
    except Exception as error:  # Pillow decodes only now, and raises OSError, SyntaxError, struct.error and more.
        raise ValueError(f"a picture cannot be decoded: {error}") from error
    return buffer.getvalue()


def file_of_array(pixels: NDArray[np.uint8]) -> bytes:
    """Return a picture, uint8 of shape (H, W), (H, W, 1) or (H, W, 3), as a PNG.

    Raises
    ------
    TypeError
        If it has another shape.
    """
    if pixels.ndim not in (2, 3) or pixels.size == 0 or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise TypeError(
            f"a picture must be a uint8 array of shape (H, W), (H, W, 1) or (H, W, 3), not empty, got shape "
            f"{pixels.shape}"
        )
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise missing(error, "searching by an array of pixels") or error from error
    return file_of_picture(Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def _own_file(picture: Any) -> bytes | None:
    """Return the file that a PIL image was opened from, if nothing is loaded, so that nothing can be changed."""
    file = getattr(picture, "fp", None)
    if picture.format not in _FORMATS or not getattr(picture, "tile", None) or file is None or picture.tell() != 0:
        return None
    place = file.tell()
    file.seek(0)
    data: bytes = file.read()
    file.seek(place)
    return data


def _for_png(picture: Any) -> Any:
    """Return a PIL image turned upright, in a mode that PNG holds."""
    from PIL import ImageOps

    upright = _sixteen_bits(picture) if picture.mode.startswith("I;16") else picture
    # A damaged EXIF block says nothing about orientation.
    with contextlib.suppress(Exception):
        upright = ImageOps.exif_transpose(upright)
    if upright.mode in _MODES_OF_PNG:
        return upright
    if upright.mode == "La":  # Pillow converts a premultiplied mode to its plain one only.
        return upright.convert("LA")
    return upright.convert("RGBA" if upright.mode in ("PA", "RGBa") else "RGB")


def _sixteen_bits(picture: Any) -> Any:
    """Return 16-bit grey from 0, black, to 65,535: a TIFF may have fewer bits, or 0 for white."""
    from PIL import Image

    tags = getattr(picture, "tag_v2", {})
    highest = 2 ** max(tags.get(_BITS_PER_SAMPLE, (16,))) - 1
    numbers_HW = np.asarray(picture).astype(np.uint32).clip(0, highest) * 65535 // highest
    if tags.get(_PHOTOMETRIC) == 0:
        numbers_HW = 65535 - numbers_HW
    scaled = Image.fromarray(numbers_HW.astype(np.uint16))
    scaled.info.update(picture.info)
    return scaled
