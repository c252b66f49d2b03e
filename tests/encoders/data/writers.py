"""Image files written byte by byte from arrays of samples, so that the array is the oracle of every decoder."""

from __future__ import annotations

import struct
import zlib

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types of PNG
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def packed(samples_HWC: np.ndarray, bits: int, order: str = ">") -> list[bytes]:
    """Rows of samples of `bits` bits each, the first in the highest bits, padded to whole bytes."""
    rows = samples_HWC.reshape(len(samples_HWC), -1)
    if bits in (8, 16, 32):
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in rows]
    bits_HN = (rows[..., None].astype(np.uint32) >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row.astype(np.uint8).ravel()).tobytes() for row in bits_HN]


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(samples, bits, colour, *, transparent=None, palette=None, interlaced=False, before=b"", after=b""):
    """A PNG of samples (H, W) or (H, W, C); `transparent` is the content of tRNS, `before` and `after` are chunks."""
    samples = samples.reshape(*samples.shape[:2], -1)
    height, width = samples.shape[:2]
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in _ADAM7] if interlaced else [samples]
    rows = [b"\0" + row for part in passes if part.size for row in packed(part, bits)]
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced)))]
    if palette is not None:
        parts.append(chunk(b"PLTE", palette.astype(np.uint8).tobytes()))
    if transparent is not None:
        parts.append(chunk(b"tRNS", transparent))
    parts += [before, chunk(b"IDAT", zlib.compress(b"".join(rows))), after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    samples, bits, photometric, *, order="<", planar=False, deflate=False, reversed_bits=False, extra=(), kind=1,
    palette=None, tags=(),
):  # fmt: skip
    """A TIFF of samples (H, W) or (H, W, C) in one strip, or in one for each channel if it is `planar`.

    `extra` are the kinds of channels beyond those of the photometric interpretation, `kind` is the format of samples
    (1 unsigned, 2 signed, 3 float), `tags` are more numbers (tag, type, values).
    """
    samples = samples.reshape(*samples.shape[:2], -1)
    height, width, channels = samples.shape
    planes = [samples[..., c : c + 1] for c in range(channels)] if planar else [samples]
    strips = [b"".join(packed(plane, bits, order)) for plane in planes]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    if reversed_bits:
        flip = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)[:, ::-1], axis=1).ravel()
        strips = [flip[np.frombuffer(strip, np.uint8)].tobytes() for strip in strips]
    offsets = (8 + np.cumsum([0, *map(len, strips)])).tolist()
    short, long = 3, 4
    fields = [
        (256, long, [width]), (257, long, [height]), (258, short, [bits] * channels),
        (259, short, [8 if deflate else 1]), (262, short, [photometric]), (266, short, [2 if reversed_bits else 1]),
        (273, long, offsets[:-1]), (277, short, [channels]), (278, long, [height]),
        (279, long, [len(strip) for strip in strips]), (284, short, [2 if planar else 1]), *tags,
    ]  # fmt: skip
    if palette is not None:
        fields.append((320, short, (palette.astype(int).T * 257).ravel().tolist()))
    if extra:
        fields.append((338, short, list(extra)))
    if kind != 1:
        fields.append((339, short, [kind] * channels))
    directory, beyond = b"", b""
    start = offsets[-1] + 2 + 12 * len(fields) + 4
    for tag, type_, values in sorted(fields):
        content = b"".join(struct.pack(order + {short: "H", long: "I"}[type_], value) for value in values)
        if len(content) > 4:
            place = struct.pack(order + "I", start + len(beyond))
            beyond += content
        else:
            place = content.ljust(4, b"\0")
        directory += struct.pack(order + "HHI", tag, type_, len(values)) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", offsets[-1])
    return head + b"".join(strips) + struct.pack(order + "H", len(fields)) + directory + bytes(4) + beyond


def bmp(samples, bits, *, palette=None, masks=(), top_down=False):
    """A BMP of samples (H, W) of `bits` bits, or of 24 or 32 bits (H, W, C) in the order blue, green, red."""
    height, width = samples.shape[:2]
    rows = packed(samples, 16, "<") if bits == 16 else packed(samples, min(bits, 8))
    rows = [row.ljust(-(-len(row) // 4) * 4, b"\0") for row in (rows if top_down else rows[::-1])]
    body = b"".join(rows)
    more = b"".join(struct.pack("<I", mask) for mask in masks)
    if palette is not None:
        more += np.hstack([palette[:, ::-1], np.zeros((len(palette), 1))]).astype(np.uint8).tobytes()
    colours = 0 if palette is None else len(palette)
    size = 40 if len(masks) < 4 else 56  # the version of the header that has a mask for alpha
    info = struct.pack(
        "<IiiHHIIiiII", size, width, -height if top_down else height, 1, bits, 3 if masks else 0, len(body), 0, 0,
        colours, 0,
    )  # fmt: skip
    start = 14 + len(info) + len(more)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + more + body
