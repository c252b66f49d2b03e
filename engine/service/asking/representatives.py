"""Items that stand for a collection: medoids of a random sample of its codes.

Medoids are seeded one by one, each the best of a few that are drawn from the sample, by the square of their distance
from the medoids before (greedy k-means++; Arthur and Vassilvitskii, SODA 2007). Then each group of nearest codes moves
its medoid to the code of the smallest sum of distances, until nothing moves (Park and Jun, 2009). Farthest-first
traversal alone would choose outliers.

Shapes: N codes of the sample, W words per code, K medoids, T trials.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.results import Coverage
from hashlight.engine.service.asking.searcher import Searcher

SAMPLED = 4096  # codes: all their distances from each other are 32 MB, and take some 0.1 s

_SEED = 1
_ROUNDS = 10
_WORDS_AT_ONCE = 1 << 21


class Representatives(NamedTuple):
    """Items that stand for a collection, those of the largest groups first.

    Attributes
    ----------
    ids : ndarray of int64, shape (K,)
    codes : ndarray of uint64, shape (K, W)
    sizes : ndarray of int64, shape (K,)
        Codes of the sample that are nearer to this one than to any other.
    sampled : int
        Codes of the sample.
    coverage : Coverage
        Of the sample.
    """

    ids: IdArray
    codes: CodeArray
    sizes: NDArray[np.int64]
    sampled: int
    coverage: Coverage


def find_representatives(searcher: Searcher, count: int, *, timeout_s: float | None) -> Representatives:
    """Return up to `count` items that stand for a collection, each with another code; the same ones for a version.

    Errors as in `Searcher.sample`; if shards are missing, they stand for the others.
    """
    ids_N, codes_NW, coverage = searcher.sample(SAMPLED, timeout_s=timeout_s, allow_partial=True)
    medoid_K, nearest_N = find_medoids(codes_NW, count)
    size_K = np.bincount(nearest_N, minlength=len(medoid_K))
    order_K = np.lexsort((ids_N[medoid_K], -size_K))
    medoid_K = medoid_K[order_K]
    return Representatives(ids_N[medoid_K], codes_NW[medoid_K], size_K[order_K], len(ids_N), coverage)


def find_medoids(codes_NW: CodeArray, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return which codes are medoids (K,), and the number of the nearest one, among those, for each code (N,).

    There are `count` of them, or as many as there are distinct codes. Of equally near ones the first counts.
    """
    if not len(codes_NW):
        return np.empty(0, np.intp), np.empty(0, np.intp)
    distance_NN = _distances(codes_NW)
    medoid_K = _seeds(distance_NN, count)
    for _ in range(_ROUNDS):
        nearest_N = distance_NN[medoid_K].argmin(axis=0)
        moved_K = np.array([_centre(distance_NN, np.flatnonzero(nearest_N == k)) for k in range(len(medoid_K))])
        if (moved_K == medoid_K).all():
            break
        medoid_K = moved_K
    return medoid_K, distance_NN[medoid_K].argmin(axis=0)


def _seeds(distance_NN: NDArray[np.uint16], count: int) -> NDArray[np.intp]:
    random, trials = np.random.default_rng(_SEED), 2 + int(np.log(count))
    chosen = [int(distance_NN.sum(axis=0, dtype=np.int64).argmin())]
    least_N = distance_NN[chosen[0]].astype(np.int64)
    while len(chosen) < count and (sums_N := np.cumsum(least_N**2))[-1] > 0:
        drawn_T = np.searchsorted(sums_N, random.random(trials) * sums_N[-1], side="right")
        least_TN = np.minimum(least_N, distance_NN[drawn_T])
        best = int((least_TN**2).sum(axis=1).argmin())
        chosen.append(int(drawn_T[best]))
        least_N = least_TN[best]
    return np.array(chosen, np.intp)


def _centre(distance_NN: NDArray[np.uint16], members_M: NDArray[np.intp]) -> int:
    """Return which of some codes has the smallest sum of distances from the others."""
    sums_M = distance_NN[np.ix_(members_M, members_M)].sum(axis=1, dtype=np.int64)
    return int(members_M[sums_M.argmin()])


def _distances(codes_NW: CodeArray) -> NDArray[np.uint16]:
    """Return the Hamming distances of all codes from each other."""
    distance_NN = np.zeros((len(codes_NW), len(codes_NW)), np.uint16)
    rows = max(1, _WORDS_AT_ONCE // len(codes_NW))
    for begin in range(0, len(codes_NW), rows):
        for word_N in codes_NW.T:
            distance_NN[begin : begin + rows] += np.bitwise_count(word_N[begin : begin + rows, None] ^ word_N)
    return distance_NN
