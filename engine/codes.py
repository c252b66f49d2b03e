"""Binary codes: how bits are packed, and the checks on every batch of codes before a kernel runs.

A code of `bits` bits is `W = ceil(bits / 64)` little-endian uint64 words. Bit `i` is bit `i % 8` of byte `i // 8`,
which is `numpy.packbits(..., bitorder="little")` and FAISS's own order; the bits past `bits` in the last word are
zero.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

CodeArray = NDArray[np.uint64]
_UINT64 = np.dtype(np.uint64)
IdArray = NDArray[np.int64]

WORD_BITS = 64
MAX_ANSWERS = 2**31 - 1  # to one query
MAX_PADDED = 10_000  # `k` may be this large even if there are fewer codes
MIN_BITS = 1
MAX_BITS = 1024


def num_words(bits: int) -> int:
    """Return the number of 64-bit words in a code of `bits` bits."""
    return -(-bits // WORD_BITS)


def check_bits(bits: int) -> int:
    """Return `bits`, checked.

    Raises
    ------
    TypeError
        If `bits` is not an integer.
    ValueError
        If `bits` is not within 1 to 1024.
    """
    value = as_integer(bits, "bits")
    if not MIN_BITS <= value <= MAX_BITS:
        raise ValueError(f"`bits` must be {MIN_BITS} to {MAX_BITS}, got {value}")
    return value


def pack_bits(bits_NB: NDArray[np.bool_]) -> CodeArray:
    """Pack rows of bits into words.

    Parameters
    ----------
    bits_NB : ndarray of bool, shape (N, B)
        One row for each code.

    Returns
    -------
    ndarray of uint64, shape (N, ceil(B / 64))
    """
    if bits_NB.ndim != 2 or bits_NB.dtype != np.bool_:
        raise TypeError(f"`bits_NB` must be a bool array of shape (N, B), got {_describe(bits_NB)}")
    rows, bits = bits_NB.shape
    packed_NC = np.zeros((rows, 8 * num_words(check_bits(bits))), np.uint8)
    packed_NC[:, : -(-bits // 8)] = np.packbits(bits_NB, axis=1, bitorder="little")
    return packed_NC.view("<u8").astype(np.uint64, copy=False)


def unpack_bits(codes_NW: CodeArray, bits: int) -> NDArray[np.bool_]:
    """Undo `pack_bits`: words of shape (N, W) to bits of shape (N, `bits`)."""
    codes_NW = check_codes(codes_NW, bits=bits, name="codes")
    bytes_NC = codes_NW.astype("<u8", copy=False).view(np.uint8)
    return np.unpackbits(bytes_NC, axis=1, count=bits, bitorder="little").astype(np.bool_)


def read_hex(text: str, *, bits: int) -> NDArray[np.uint64]:
    """Return a code, shape (W,), of its bytes in hexadecimal: `ceil(bits / 8)`, or zero-padded to whole words.

    Raises
    ------
    ValueError
        If there are more or fewer digits, or something else; the message says what `text` has.
    """
    exact, padded = 2 * -(-bits // 8), 16 * num_words(bits)
    other = re.search(r"[^0-9a-fA-F]", text)
    if other is not None:
        raise ValueError(f"{other[0]!r}, which is not a hexadecimal digit")
    if len(text) not in (exact, padded):
        wanted = str(exact) if exact == padded else f"{exact} (or {padded}, in whole words)"
        got = f"{len(text)} {_plural(len(text), 'digit')}"
        raise ValueError(f"{got}, expected {wanted} for the {bits} bits of this collection")
    return np.frombuffer(bytes.fromhex(text).ljust(padded // 2, b"\0"), "<u8").astype(np.uint64)


def check_codes(codes_NW: object, *, bits: int, name: str) -> CodeArray:
    """Return `codes_NW` if it is a batch of `bits`-bit codes. Nothing is cast, because a cast would change the bits.

    Parameters
    ----------
    codes_NW : ndarray of uint64, shape (N, W)
        C-contiguous, `W = ceil(bits / 64)`, unused high bits of the last word zero.
    bits : int
        Number of bits in the index or collection.
    name : str
        The argument's name, for the messages.

    Raises
    ------
    TypeError
        If it is not an array of uint64.
    ValueError
        If the shape, the layout or the unused bits are wrong.
    """
    words = num_words(bits)
    if not isinstance(codes_NW, np.ndarray):
        raise TypeError(
            f"`{name}` must be a uint64 array of shape (N, {words}), got {type(codes_NW).__name__}: "
            "pack bits with `hashlight.engine.codes.pack_bits`"
        )
    if codes_NW.dtype != _UINT64:
        raise TypeError(
            f"`{name}` must have dtype uint64, got {codes_NW.dtype}: view packed bytes as '<u8' (never cast), "
            "or pack bits with `hashlight.engine.codes.pack_bits`"
        )
    if codes_NW.ndim != 2:
        raise ValueError(f"`{name}` must have shape (N, {words}), got {codes_NW.shape}: one row per code")
    if codes_NW.shape[1] != words:
        got = codes_NW.shape[1]
        raise ValueError(
            f"`{name}` has {got} {_plural(got, 'word')} per code ({got * WORD_BITS} bits), {bits}-bit codes have "
            f"{words} {_plural(words, 'word')}: encode with the encoder that made the stored codes"
        )
    if not codes_NW.flags.c_contiguous:
        raise ValueError(
            f"`{name}` must be C-contiguous, got strides {codes_NW.strides} for shape {codes_NW.shape}: "
            "pass `numpy.ascontiguousarray(...)`"
        )
    used = bits % WORD_BITS
    if used and len(codes_NW):
        stray_N = (codes_NW[:, -1] >> np.uint64(used)) != 0
        if stray_N.any():
            raise ValueError(
                f"`{name}` has bits set past bit {bits - 1} in {int(stray_N.sum())} of {len(codes_NW)} rows "
                f"(first: row {int(stray_N.argmax())}), expected {bits}-bit codes padded with zeros: "
                "were they made with more bits?"
            )
    return codes_NW


def check_k(k: object, *, rows: int = MAX_ANSWERS) -> int:
    """Return `k` if it is an integer of at least 1 and not far above the number of codes: padding takes memory too."""
    value, max_k = as_integer(k, "k"), max(rows, MAX_PADDED)
    if not 1 <= value <= max_k:
        there = "" if rows == MAX_ANSWERS else f" (there are {rows} codes; short answers are padded)"
        raise ValueError(f"`k` must be at least 1 and at most {max_k}{there}, got {value}")
    return value


def check_radius(radius: object, *, bits: int) -> int:
    """Return `radius` if it is a whole number from 0 to `bits`."""
    value = as_integer(radius, "radius")
    if not 0 <= value <= bits:
        raise ValueError(f"`radius` must be 0 to {bits} (the codes have {bits} bits), got {value}")
    return value


def check_limit(limit: object) -> int | None:
    """Return `limit` if it is None or a whole number of at least 1."""
    if limit is None:
        return None
    value = as_integer(limit, "limit")
    if not 1 <= value <= MAX_ANSWERS:
        raise ValueError(f"`limit` must be None or at least 1 and at most {MAX_ANSWERS}, got {value}")
    return value


def as_integer(value: object, name: str) -> int:
    """Return `value` as an int if it is a Python or numpy integer, but not a bool."""
    if type(value) is int:  # checked for every query, where a microsecond counts
        return value
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be a whole number, got {value!r} ({type(value).__name__})")
    return int(value)


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else noun + "s"


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__
