"""What the answers must be, in plain numpy that shares nothing with the code it judges."""

from __future__ import annotations

import numpy as np

BITS_IN_BYTE = np.array([bin(byte).count("1") for byte in range(256)], np.int64)


def hamming_distances(queries_QW: np.ndarray, codes_NW: np.ndarray) -> np.ndarray:
    """All distances, (Q, N) int64, by xor and a byte table."""
    bytes_Q = (
        np.ascontiguousarray(queries_QW)
        .view(np.uint8)
        .reshape(len(queries_QW), queries_QW.itemsize * queries_QW.shape[1])
    )
    bytes_N = (
        np.ascontiguousarray(codes_NW).view(np.uint8).reshape(len(codes_NW), codes_NW.itemsize * codes_NW.shape[1])
    )
    rows = [BITS_IN_BYTE[bytes_N ^ query].sum(axis=1) for query in bytes_Q]
    return np.array(rows, np.int64).reshape(len(queries_QW), len(codes_NW))


def knn(queries_QW, codes_NW, ids_N, k):
    """(distances, ids), each (Q, k), ordered by (distance, id), padded with (2**31 - 1, -1)."""
    distances = np.full((len(queries_QW), k), 2**31 - 1, np.int64)
    ids = np.full((len(queries_QW), k), -1, np.int64)
    for q, row in enumerate(hamming_distances(queries_QW, codes_NW)):
        order = np.lexsort((ids_N, row))[:k]
        distances[q, : len(order)] = row[order]
        ids[q, : len(order)] = ids_N[order]
    return distances, ids


def within_radius(queries_QW, codes_NW, ids_N, radius, limit=None):
    """One ordered list of (distance, id) pairs per query, cut at `limit`, and whether it was cut."""
    answers, cut = [], []
    for row in hamming_distances(queries_QW, codes_NW):
        pairs = sorted((int(d), int(i)) for d, i in zip(row, ids_N, strict=True) if d <= radius)
        cut.append(limit is not None and len(pairs) > limit)
        answers.append(pairs[:limit])
    return answers, cut


def distance_histograms(queries_QW, codes_NW, relevant_QN, bits):
    """Numbers of codes and of relevant codes at each distance, each (Q, bits + 1)."""
    total, relevant = (np.zeros((len(queries_QW), bits + 1), np.int64) for _ in range(2))
    for q, row in enumerate(hamming_distances(queries_QW, codes_NW)):
        total[q] = np.bincount(row, minlength=bits + 1)
        relevant[q] = np.bincount(row[relevant_QN[q]], minlength=bits + 1)
    return total, relevant


def clustered_codes(rng, rows, bits, centres=7, flips=3):
    """Codes of few distinct values, so that ties and equal codes are common: (rows, W) uint64."""
    centre_bits = rng.random((centres, bits)) < 0.5
    chosen = centre_bits[rng.integers(centres, size=rows)]
    for _ in range(flips):
        chosen[np.arange(rows), rng.integers(bits, size=rows)] ^= rng.random(rows) < 0.5
    words = -(-bits // 64)
    padded = np.zeros((rows, words * 64), bool)
    padded[:, :bits] = chosen
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)
