"""Codes as bytes: bit i of a code is bit `i % 8` of byte `i // 8`, in numpy, in Arrow, in FAISS alike.

A code of `bits` bits takes `ceil(bits / 8)` bytes, and may be padded with zeros up to whole 64-bit words, which is how
codes leave: `8 * W` bytes, the words of the code in little-endian order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hashlight.engine.codes import MAX_BITS, CodeArray, check_bits, check_codes, num_words

_KINDS = "fixed-size or variable-size binary, or lists of uint8 of one length, or a fixed-size list of uint64 (words)"


def pack_bytes(bytes_NB: NDArray[np.uint8], *, bits: int, name: str) -> CodeArray:
    """Return codes of bytes as words.

    Parameters
    ----------
    bytes_NB : ndarray of uint8, shape (N, B)
        `ceil(bits / 8)` to `8 * ceil(bits / 64)` bytes a code.
    bits : int
    name : str
        Of what they are, for messages.

    Returns
    -------
    ndarray of uint64, shape (N, ceil(bits / 64))

    Raises
    ------
    ValueError
        If a code has another number of bytes, or bits set past `bits`.
    """
    (rows, size), words = bytes_NB.shape, num_words(bits)
    if not -(-bits // 8) <= size <= 8 * words:
        raise ValueError(
            f"`{name}` has {size} bytes per code, {bits}-bit codes take {-(-bits // 8)} to {8 * words}: give `bits` "
            "as the codes have them"
        )
    padded_NC = np.zeros((rows, 8 * words), np.uint8)
    padded_NC[:, :size] = bytes_NB
    return check_codes(padded_NC.view("<u8").astype(np.uint64, copy=False), bits=bits, name=name)


def pack_array(codes: object, *, bits: int | None, name: str) -> tuple[CodeArray, int]:
    """Return codes, packed bytes (uint8, shape (N, B)) or words (uint64, shape (N, W)), as words, and their bits.

    Parameters
    ----------
    codes : ndarray
    bits : int, optional
        As many as the bytes or words have if left out.
    name : str

    Raises
    ------
    TypeError, ValueError
        If it is not such an array, or does not hold codes of `bits` bits.
    """
    if not isinstance(codes, np.ndarray) or codes.dtype not in (np.uint8, np.uint64) or codes.ndim != 2:
        got = f"{codes.dtype} of shape {codes.shape}" if isinstance(codes, np.ndarray) else type(codes).__name__
        raise TypeError(f"`{name}` must be packed bytes, uint8 of shape (N, B), or words, uint64 of (N, W), got {got}")
    bits = check_bits(8 * codes.itemsize * codes.shape[1] if bits is None else bits)
    if codes.dtype == np.uint64:
        return check_codes(np.ascontiguousarray(codes), bits=bits, name=name), bits
    return pack_bytes(codes, bits=bits, name=name), bits


def bits_of(column: pa.Array, *, name: str) -> int:
    """Return the number of bits that the codes of a column have room for.

    Raises
    ------
    ValueError
        If it is not a column of codes, or their size cannot be told.
    """
    column = _plain(column, name)
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size * kind.value_type.bit_width // 8
    elif pa.types.is_fixed_size_binary(kind):
        size = kind.byte_width
    elif len(column):
        size = len(column[0].as_py())
    else:
        raise ValueError(f"the bits of `{name}` ({kind}) are not known without a code: give `bits`")
    if not 1 <= size <= MAX_BITS // 8:
        raise ValueError(f"`{name}` has {size} bytes per code, expected 1 to {MAX_BITS // 8}")
    return int(8 * size)


def read_codes(column: pa.Array, *, bits: int, name: str) -> CodeArray:
    """Return the codes of a column as words.

    Parameters
    ----------
    column : pyarrow.Array
        Fixed-size, variable-size or large binary, lists of uint8 (all of one length), or fixed-size lists of uint64.
    bits : int
    name : str
        The column's, for messages.

    Returns
    -------
    ndarray of uint64, shape (N, ceil(bits / 64))

    Raises
    ------
    ValueError
        If it is not such a column, has nulls, or does not hold codes of `bits` bits.
    """
    column = _plain(column, name)
    kind = column.type
    if pa.types.is_fixed_size_list(kind) and kind.value_type == pa.uint64():
        words_NW = _values(column, name).to_numpy().reshape(len(column), kind.list_size)
        return check_codes(np.ascontiguousarray(words_NW), bits=bits, name=name)
    return pack_bytes(_bytes_of(column, bits, name), bits=bits, name=name)


def column_of(codes_NW: CodeArray) -> pa.Array:
    """Return codes as a column of fixed-size binary, `8 * W` bytes each."""
    rows, words = codes_NW.shape
    data = np.ascontiguousarray(codes_NW, "<u8")
    return pa.Array.from_buffers(pa.binary(8 * words), rows, [None, pa.py_buffer(data)])


def _plain(column: pa.Array, name: str) -> pa.Array:
    """Return a column without the wrapping that changes nothing about its bytes; refuse what cannot hold codes."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_binary_view(kind) or pa.types.is_binary(kind):
        column = column.cast(pa.large_binary())
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        words = pa.types.is_fixed_size_list(kind) and kind.value_type == pa.uint64()
        if kind.value_type != pa.uint8() and not words:
            raise ValueError(f"`{name}` is {kind}, which does not hold codes: expected {_KINDS}")
    elif not (pa.types.is_fixed_size_binary(kind) or pa.types.is_large_binary(kind)):
        raise ValueError(f"`{name}` is {kind}, which does not hold codes: expected {_KINDS}")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"`{name}` is null in {column.null_count} rows, first {row}: leave out rows without a code")
    return column


def _values(column: pa.Array, name: str) -> pa.Array:
    values = column.flatten()
    if values.null_count:
        raise ValueError(f"`{name}` has nulls within {values.null_count} codes or words: leave out rows without a code")
    return values


def _bytes_of(column: pa.Array, bits: int, name: str) -> NDArray[np.uint8]:
    """Return the bytes (N, B) of a column of binary values or lists of uint8."""
    kind, rows = column.type, len(column)
    if not rows:
        return np.empty((0, -(-bits // 8)), np.uint8)
    if pa.types.is_fixed_size_binary(kind):
        size = kind.byte_width
    elif pa.types.is_fixed_size_list(kind):
        size = kind.list_size
    else:
        lengths = pc.binary_length(column) if pa.types.is_large_binary(kind) else pc.list_value_length(column)
        size = _common(lengths.to_numpy(), name)
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_large_binary(kind):
        fixed = column.cast(pa.binary(size))
        data, start = fixed.buffers()[1], fixed.offset * size
        return np.frombuffer(data, np.uint8, count=rows * size, offset=start).reshape(rows, size)
    bytes_NB: NDArray[np.uint8] = _values(column, name).to_numpy().reshape(rows, size)
    return bytes_NB


def _common(size_N: NDArray[np.integer[Any]], name: str) -> int:
    size, wrong = int(size_N[0]), np.flatnonzero(size_N != size_N[0])
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"`{name}` must have codes of one length, got {size} bytes in row 0 and {size_N[row]} in row {row}"
        )
    if not size:
        raise ValueError(f"`{name}` has empty codes, expected at least 1 byte")
    return size
