"""Image files by format: each is opened by its decoder, or refused with the true reason."""

from __future__ import annotations

import io
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from hashlight.encoders.errors import ImageError

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")

_HEADS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
)

# Other formats, recognised by their first bytes, so that "unsupported" can be told from "not an image".
_OTHER_FORMATS = (
    (b"%PDF", 0, "PDF"),
    (b"8BPS", 0, "Photoshop"),
    (b"\x00\x00\x01\x00", 0, "ICO"),
    (b"\x00\x00\x02\x00", 0, "CUR"),
    (b"ftyphe", 4, "HEIC"),
    (b"ftypmif1", 4, "HEIC"),
    (b"ftypmsf1", 4, "HEIC"),
    (b"ftypavi", 4, "AVIF"),
    (b"ftypcrx", 4, "Canon raw"),
    (b"ftyp", 4, "video"),
    (b"\xff\x0a", 0, "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", 0, "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", 0, "JPEG 2000"),
    (b"\xff\x4f\xff\x51", 0, "JPEG 2000"),
    (b"II\xbc\x01", 0, "JPEG XR"),
    (b"\x8aMNG", 0, "MNG"),
    (b"\x8bJNG", 0, "JNG"),
    (b"v/1\x01", 0, "OpenEXR"),
    (b"#?RADIANCE", 0, "Radiance HDR"),
    (b"gimp xcf", 0, "GIMP"),
    (b"DDS ", 0, "DDS"),
    (b"icns", 0, "ICNS"),
    (b"qoif", 0, "QOI"),
    (b"SIMPLE  =", 0, "FITS"),
    (b"DICM", 128, "DICOM"),
    (b"WAVE", 8, "audio"),
    (b"AVI ", 8, "video"),
    (b"<svg", 0, "SVG"),
    (b"<?xml", 0, "SVG or other XML"),
    (b"%!PS", 0, "PostScript"),
)

# What Pillow says of files that are whole, and that it does not read.
_NOT_READ = re.compile(r"unsupported|not (yet )?supported|cannot handle|unknown pixel mode|unknown raw mode", re.I)
# Text chunks of a PNG that may hold its orientation; the others are not needed.
_ORIENTED_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")
# Who reads a TIFF is a setting of the whole process.
_tiff_setting = threading.Lock()


def open_file(data: bytes) -> ImageFile:
    """Read the header of an image file; its pixels are decoded when they are first used.

    Raises
    ------
    ImageError
        If it is not an image, of another format, of a kind of its format that is not read, or damaged.
    """
    name = _format_of(data)
    if name is None:
        raise ImageError(_name_other(data))
    try:
        return _DECODERS[name](data)
    except ImageError:
        raise
    except Exception as error:  # Decoders raise SyntaxError, OSError, ValueError, struct.error and more.
        raise ImageError(_why_not(error, name, data)) from error


def refusal_of(error: Exception) -> str:
    """Return why a file whose header was read cannot be decoded, from what the decoder raised."""
    words = " ".join(str(error).split())[:120] or type(error).__name__
    if _NOT_READ.search(words):
        return f"unsupported pixels: {words}"
    return f"truncated: {words}" if "truncated" in words.lower() else f"damaged: {words}"


def _format_of(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for head, name in _HEADS if data.startswith(head)), None)


def _name_other(data: bytes) -> str:
    expected = ", ".join(FORMATS)
    for magic, offset, name in _OTHER_FORMATS:
        if data[offset : offset + len(magic)] == magic:
            return f"unsupported format: {name}, expected one of {expected}"
    if len(data) < 12 and any(head.startswith(data) for head, _ in _HEADS):
        return "truncated: the header is incomplete"
    return f"not an image: expected one of {expected}"


def _why_not(error: Exception, name: str, data: bytes) -> str:
    words = " ".join(str(error).split())[:120]
    if not _NOT_READ.search(words):
        return "damaged: the header cannot be read"
    if name == "TIFF":
        words = _layout_of_tiff(data) or words
    return f"unsupported pixels: {name}, {words}"


def _open_png(data: bytes) -> ImageFile:
    return PngImagePlugin.PngImageFile(io.BytesIO(_without_metadata(data)))


def _open_tiff(data: bytes) -> ImageFile:
    """Refuse what Pillow would get wrong without a word, and have libtiff read what Pillow's own reader cannot."""
    try:
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    except SyntaxError:  # of a layout that it does not know, or of planes that its own reader cannot tell apart
        image = _open_with_libtiff(data)
    tags = image.tag_v2
    planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2
    if 2 in tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)):
        raise ImageError("unsupported pixels: signed numbers, expected unsigned ones")
    if planar and image.mode in ("LA", "La", "PA", "LAB"):
        raise ImageError(f"unsupported pixels: {image.mode} in separate planes")
    needs_libtiff = planar or tags.get(TiffImagePlugin.FILLORDER, 1) == 2 or image.mode == "YCbCr"
    return _open_with_libtiff(data) if needs_libtiff and not image.use_load_libtiff else image


def _open_with_libtiff(data: bytes) -> TiffImagePlugin.TiffImageFile:
    with _tiff_setting:
        before, TiffImagePlugin.READ_LIBTIFF = TiffImagePlugin.READ_LIBTIFF, True
        try:
            return TiffImagePlugin.TiffImageFile(io.BytesIO(data))
        finally:
            TiffImagePlugin.READ_LIBTIFF = before


def _layout_of_tiff(data: bytes) -> str | None:
    """Describe the pixels of a TIFF that Pillow does not open."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2:3] in b"+" else data[:8])
    stream = io.BytesIO(data)
    try:
        stream.seek(directory.next)
        directory.load(stream)
        bits = directory.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        photometric = directory.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, "missing")
    except Exception:  # So it is damaged as well, and what Pillow said of it is all there is.
        return None
    return f"{' + '.join(map(str, bits))} bits, photometric interpretation {photometric}"


def _without_metadata(png: bytes) -> bytes:
    """Leave out colour profiles and texts: nothing here uses them, and Pillow refuses files with large ones."""
    kept: list[bytes | memoryview] = [png[:8]]
    for name, chunk in _chunks(png):
        if name != b"iCCP" and (name not in (b"tEXt", b"zTXt", b"iTXt") or _may_orient(name, chunk[8:-4])):
            kept.append(chunk)
    return b"".join(kept)


def _chunks(png: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the name of each chunk and all its bytes; the last may be incomplete."""
    view, start = memoryview(png), 8
    while start < len(png):
        end = len(png)
        if start + 8 <= len(png):
            end = start + 12 + struct.unpack_from(">I", png, start)[0]
        yield png[start + 4 : start + 8], view[start:end]
        start = end


def _may_orient(name: bytes, content: memoryview) -> bool:
    """Return whether a text may hold the orientation, and is not larger than Pillow reads."""
    keyword, _, text = bytes(content).partition(b"\0")
    if keyword not in _ORIENTED_TEXTS:
        return False
    if name == b"iTXt":
        is_packed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
    else:
        is_packed, text = name == b"zTXt", text[1:]
    if not is_packed:
        return True
    try:
        return len(zlib.decompressobj().decompress(text, PngImagePlugin.MAX_TEXT_CHUNK)) < PngImagePlugin.MAX_TEXT_CHUNK
    except zlib.error:
        return False


# Not `Image.open`, which hides why a decoder refuses a header, and has a limit on pixels of its own.
_DECODERS: dict[str, Callable[[bytes], ImageFile]] = {
    "PNG": _open_png,
    "JPEG": lambda data: JpegImagePlugin.jpeg_factory(io.BytesIO(data)),
    "GIF": lambda data: GifImagePlugin.GifImageFile(io.BytesIO(data)),
    "WEBP": lambda data: WebPImagePlugin.WebPImageFile(io.BytesIO(data)),
    "BMP": lambda data: BmpImagePlugin.BmpImageFile(io.BytesIO(data)),
    "TIFF": _open_tiff,
}
