"""Codes that depend only on a seed: the generator is written out, because numpy's may change between versions."""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
CENTRES = 40
FLIPS = 6


def random_words(seed: int, count: int) -> np.ndarray:
    """Return words `seed * 2**40 + 1..count` of SplitMix64 (Steele, Lea, Flood, 2014): uint64, shape (count,)."""
    word = (np.uint64(seed << 40) + np.arange(1, count + 1, dtype=np.uint64)) * GOLDEN
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def uniform(seed: int, rows: int, bits: int) -> np.ndarray:
    """Return codes whose bits are fair coins: (rows, bits // 64)."""
    return random_words(seed, rows * bits // 64).reshape(rows, bits // 64)


def clustered(seed: int, rows: int, bits: int) -> np.ndarray:
    """Return codes in a few clusters, each code within `FLIPS` bits of its centre: (rows, bits // 64)."""
    code_NW = uniform(1000, CENTRES, bits)[random_words(seed, rows) % np.uint64(CENTRES)].copy()
    for flip in range(FLIPS):
        bit_N = random_words(seed + 100 * (flip + 1), rows) % np.uint64(2 * bits)  # half the flips are beyond the code
        for word in range(bits // 64):
            here = bit_N // np.uint64(64) == word
            code_NW[here, word] ^= np.uint64(1) << (bit_N[here] % np.uint64(64))
    return code_NW


def near(seed: int, codes: np.ndarray, count: int) -> np.ndarray:
    """Return queries (count, W): some of the codes, with two bits of the first word flipped."""
    chosen = codes[random_words(seed, count) % np.uint64(len(codes))].copy()
    for flip in (1, 2):
        chosen[:, 0] ^= np.uint64(1) << (random_words(seed + flip, count) % np.uint64(64))
    return chosen
