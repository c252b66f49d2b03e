"""JSON bodies: their pictures are taken out before they are parsed, so that what is parsed is small.

Parsing holds the interpreter's lock, so that a thread does not help: a body of 32 MiB would stop every other request
for as long as it takes. Base64 is decoded bit by bit instead, and the rest has to fit into `Limits.text_bytes`.
"""

from __future__ import annotations

import binascii
import io
import secrets

from hashlight.engine.service.api.slices import too_large

# A longer run of base64 is a picture: no other string may be that long, and no number.
_LONG = 16_384
_SLICE = 4 * 2**18  # characters decoded at once

# Commas and opening brackets, of which there is one for each value, and colons, one for each key: ten thousand queries
# and 250,000 ids. Each may cost a hundred times its size once it is parsed, a wrong key even more.
_MAX_VALUES = 300_000
_MAX_KEYS = 40_000

# Parsing a number takes the square of its digits. Codes in hexadecimal have up to 256, which may all be zero.
_DIGITS = 400

# Of the names that stand for pictures, so that no text in a body can be one.
_PICTURE = f"picture {secrets.token_hex(8)} "


def is_picture_name(text: str) -> bool:
    """Whether a text stands for a picture that was taken out of its body."""
    return text.startswith(_PICTURE)


def take_pictures(body: bytes | bytearray, *, max_text_bytes: int) -> tuple[bytes, dict[str, bytes]]:
    """Return the text of a JSON body, in which a name stands for each long picture, and the pictures by their names.

    What stands between two quotes and is over 16,384 characters of base64 is a string or the end of one, whatever was
    escaped before it, so that valid JSON stays valid. Base64 that is wrong stays in the text.

    Raises
    ------
    RequestError
        413 if the text has more than `max_text_bytes`, or more values than any question.
    """
    view, begin = memoryview(body), 0
    kept: list[bytes | memoryview] = []
    pictures: dict[str, bytes] = {}
    quote = body.find(b'"')
    while quote >= 0 and len(body) - quote > _LONG:
        nearer = body.rfind(b'"', quote + 1, quote + 1 + _LONG)
        if nearer >= 0:
            quote = nearer
            continue
        end = body.find(b'"', quote + 1 + _LONG)
        picture = None if end < 0 else _decoded(view[quote + 1 : end])
        if picture is not None:
            name = f"{_PICTURE}{len(pictures)}"
            kept += [view[begin : quote + 1], name.encode()]
            pictures[name], begin = picture, end
        quote = end
    kept.append(view[begin:])
    size = sum(map(len, kept))
    if size > max_text_bytes:
        raise too_large(f"at most {max_text_bytes} bytes besides pictures in base64, got {size}")
    text = b"".join(kept)
    values, keys = (sum(_count(text, byte) for byte in bytes_) for bytes_ in (b",[{", b":"))
    if values > _MAX_VALUES or keys > _MAX_KEYS:
        raise too_large(f"at most {_MAX_VALUES} values and {_MAX_KEYS} keys, got about {values} and {keys}")
    # A number of twice as many digits has a block of nothing else, wherever it begins.
    if any(text[begin : begin + _DIGITS].isdigit() for begin in range(0, len(text) - _DIGITS + 1, _DIGITS)):
        raise too_large(f"numbers of at most {_DIGITS} digits")
    return text, pictures


def _count(text: bytes, byte: int) -> int:
    """Count a byte, and let others at the interpreter's lock meanwhile."""
    return sum(text.count(byte, begin, begin + _SLICE) for begin in range(0, len(text), _SLICE))


def _decoded(text: memoryview) -> bytes | None:
    """Return what stands in base64, None if that is wrong."""
    data = io.BytesIO()  # gives its bytes without a copy
    try:
        for begin in range(0, len(text), _SLICE):
            data.write(binascii.a2b_base64(text[begin : begin + _SLICE], strict_mode=True))
            if data.tell() % 3 and begin + _SLICE < len(text):
                return None  # padding before the end
    except binascii.Error:
        return None
    return data.getvalue()
