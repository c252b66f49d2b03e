"""Bits to words: bit i is bit `i % 8` of byte `i // 8`, zero-padded to whole little-endian 64-bit words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CodeArray = NDArray[np.uint64]


def pack_bits(bits_NB: NDArray[np.bool_]) -> CodeArray:
    """Pack rows of bits (N, B) into codes (N, ceil(B / 64)) uint64."""
    num_rows, num_bits = bits_NB.shape
    packed_NC = np.zeros((num_rows, -(-num_bits // 64) * 8), np.uint8)
    packed_NC[:, : -(-num_bits // 8)] = np.packbits(bits_NB, axis=1, bitorder="little")
    return packed_NC.view("<u8").astype(np.uint64, copy=False)


def unpack_bits(codes_NW: CodeArray, bits: int) -> NDArray[np.bool_]:
    """Undo `pack_bits`: codes (N, W) uint64 to their first `bits` bits (N, `bits`)."""
    bytes_NC = np.ascontiguousarray(codes_NW, "<u8").view(np.uint8)
    return np.unpackbits(bytes_NC, axis=1, count=bits, bitorder="little").astype(np.bool_)
