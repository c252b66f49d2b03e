"""Images as found in the wild: good ones with the pixels they must give, bad ones with why they are refused."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

SIDE = 16
GREY = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
COLOUR = np.random.default_rng(6).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)

# What a camera held that way stores: turning it as the EXIF number says gives the upright image.
_STORED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}


def save(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(_STORED[orientation](COLOUR))
    return save(Image.fromarray(stored), "PNG", exif=exif)


def animated(file_format, **options):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    return save(frames[0], file_format, save_all=True, append_images=frames[1:], **options)


def png_with_profile(num_bytes):
    """A PNG whose colour profile takes this many bytes, which is none of the decoder's business."""
    plain = save(Image.fromarray(COLOUR), "PNG")
    content = b"huge\0\0" + zlib.compress(bytes(num_bytes))
    chunk = struct.pack(">I", len(content)) + b"iCCP" + content
    chunk += struct.pack(">I", zlib.crc32(b"iCCP" + content))
    header = 8 + 25
    return plain[:header] + chunk + plain[header:]


def endless_jpeg(scans=4000, side=4000):
    """A progressive JPEG of a few hundred kB, whose last scan is repeated thousands of times: minutes to decode."""
    whole = save(Image.new("L", (side, side), 77), "JPEG", progressive=True)
    start = whole.rindex(b"\xff\xda")
    return whole[:start] + whole[start:-2] * scans + whole[-2:]


@functools.cache
def good():
    """Name to (data, the upright pixels, grey or RGB)."""
    cmyk = Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0))
    return {
        "16 bit.png": (save(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"), GREY),
        "cmyk.tiff": (save(cmyk, "TIFF"), np.full((SIDE, SIDE, 3), (0, 255, 255), np.uint8)),
        "animated.gif": (animated("GIF"), GREY),
        "animated.webp": (animated("WEBP", lossless=True), GREY),
        "profile.png": (png_with_profile(900_000), COLOUR),
        "huge profile.png": (png_with_profile(50_000_000), COLOUR),
        "text in name.txt.png": (save(Image.fromarray(COLOUR), "PNG"), COLOUR),
        **{f"exif {number}.png": (turned(number), COLOUR) for number in _STORED},
    }


@functools.cache
def bad():
    """Name to (data, what `kind: reason` must match)."""
    jpeg = save(Image.fromarray(np.kron(COLOUR, np.ones((8, 8, 1), np.uint8))), "JPEG")
    return {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "^format: truncated"),
        "bomb.png": (save(Image.new("1", (20_000, 20_000)), "PNG"), "^limit: too many pixels: 20000 x 20000"),
        "small bomb.png": (save(Image.new("1", (9_000, 9_000)), "PNG"), "^limit: too many pixels: 9000 x 9000"),
        "empty.png": (b"", "^format: empty file"),
        "text.jpg": (b"this is a text, not an image", "^format: not an image"),
        "photo.heic": (b"\x00\x00\x00\x18ftypheic" + bytes(40), "^format: unsupported format: HEIC"),
        "document.png": (b"%PDF-1.7 ...", "^format: unsupported format: PDF"),
        "endless.jpg": (endless_jpeg(), "^limit: takes more than 1 s of processor time"),
    }
