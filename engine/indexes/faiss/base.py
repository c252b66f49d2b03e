"""What the two FAISS indexes share: rows to ids, the strict radius, exact order, masks.

FAISS counts a radius strictly (`distance < radius`), ours is inclusive: `radius + 1` is asked of it, here and nowhere
else. At the k-th place it keeps any of several codes of equal distance; here the lowest ids are kept, so kNN asks
FAISS how far the k-th is and then for everything within that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray, check_codes, check_k, check_limit, check_radius
from hashlight.engine.extras import import_faiss
from hashlight.engine.indexes.answers import empty_heaps, range_result
from hashlight.engine.indexes.base import RowMask, check_build, check_mask
from hashlight.engine.indexes.threads import check_threads, usable_cores
from hashlight.engine.results import PAD_ID, RangeResult, SearchResult

# lims (Q + 1,), distances (H,), rows (H,)
FaissHits = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]


class FaissIndex(ABC):
    """Base of the indexes that FAISS searches. Rows keep the order they were given in.

    Several threads may search one index at once. `explain=True` is refused: FAISS does not say what it did.

    Parameters
    ----------
    faiss_index : faiss.IndexBinary
        Holds the codes, in the order of `ids_N`.
    ids_N : ndarray of int64, shape (N,)
    bits : int
    """

    def __init__(self, *, faiss_index: Any, ids_N: IdArray, bits: int) -> None:
        self.bits = bits
        self.ids_N = ids_N
        self._index = faiss_index
        self._faiss = import_faiss()

    @classmethod
    def build(cls, codes_NW: CodeArray, ids_N: IdArray, *, bits: int) -> Self:
        """Index `codes_NW` (uint64, shape (N, W)) under `ids_N` (distinct int64 of 0 or more, shape (N,)).

        Raises
        ------
        MissingDependencyError
            If FAISS is not installed.
        TypeError, ValueError
            If codes or ids are not as `engine.codes` describes them.
        """
        check_build(codes_NW, ids_N, bits)
        faiss_index = cls._empty_index(bits, len(codes_NW))
        if len(codes_NW):
            faiss_index.add(codes_NW.view(np.uint8))
        return cls(faiss_index=faiss_index, ids_N=ids_N.copy(), bits=bits)

    @classmethod
    @abstractmethod
    def _empty_index(cls, bits: int, rows: int) -> Any:
        """Return an empty FAISS index of `64 * W` bits, to hold `rows` codes."""

    @abstractmethod
    def _rows_within(self, queries_QW: CodeArray, radius: int, mask: RowMask | None) -> FaissHits:
        """Return (lims, distances, rows) of all rows within `radius` that may answer, in any order."""

    @abstractmethod
    def _reach(self, queries_QW: CodeArray, k: int, mask: RowMask | None) -> NDArray[np.int64]:
        """Return a radius (Q,) for each query that holds its `k` nearest, or all if there are fewer than `k`."""

    def __len__(self) -> int:
        """Return the number of codes."""
        return len(self.ids_N)

    def __repr__(self) -> str:
        """Name kind, bits and rows."""
        return f"{type(self).__name__}({self.bits} bits, {len(self):,} codes)"

    def search(
        self,
        queries_QW: CodeArray,
        k: int,
        *,
        mask: RowMask | None = None,
        threads: int | None = None,
        explain: bool = False,
    ) -> SearchResult:
        """Return the `k` nearest codes of each query; see `engine.indexes.base.Index.search`."""
        check_codes(queries_QW, bits=self.bits, name="queries")
        k, mask = check_k(k), check_mask(mask, rows=len(self))
        self._refuse(explain)
        distances_QK, ids_QK = empty_heaps(len(queries_QW), k)
        if len(self) and len(queries_QW):
            with self._threads(len(queries_QW), threads):
                reach_Q = self._reach(queries_QW, min(k, len(self)), mask)
                for radius in np.unique(reach_Q):
                    group = np.flatnonzero(reach_Q == radius)
                    found = self._ordered(queries_QW[group], int(radius), mask)
                    for place, query in enumerate(group):
                        begin, end = found.lims[place], min(found.lims[place + 1], found.lims[place] + k)
                        distances_QK[query, : end - begin] = found.distances[begin:end]
                        ids_QK[query, : end - begin] = found.ids[begin:end]
        return SearchResult(distances_QK, ids_QK)

    def range_search(
        self,
        queries_QW: CodeArray,
        radius: int,
        limit: int | None = None,
        *,
        mask: RowMask | None = None,
        threads: int | None = None,
        explain: bool = False,
    ) -> RangeResult:
        """Return the codes within `radius`; see `engine.indexes.base.Index.range_search`."""
        check_codes(queries_QW, bits=self.bits, name="queries")
        radius, limit = check_radius(radius, bits=self.bits), check_limit(limit)
        mask = check_mask(mask, rows=len(self))
        self._refuse(explain)
        with self._threads(len(queries_QW), threads):
            found = self._ordered(queries_QW, radius, mask)
        return found if limit is None else _cut(found, limit)

    def _ordered(self, queries_QW: CodeArray, radius: int, mask: RowMask | None) -> RangeResult:
        num_queries = len(queries_QW)
        if not num_queries or not len(self):
            return range_result([], self.ids_N, num_queries, radius)
        lims, distances, rows = self._rows_within(queries_QW, radius, mask)
        query = np.repeat(np.arange(num_queries, dtype=np.int32), lims[1:] - lims[:-1])
        if mask is not None:
            may = mask[rows]
            query, distances, rows = query[may], distances[may], rows[may]
        hits = query, rows.astype(np.uint32), distances.astype(np.int32)
        return range_result([(np.arange(num_queries), hits)], self.ids_N, num_queries, radius)

    def _refuse(self, explain: bool) -> None:
        if explain:
            raise ValueError(f"`explain` must be False for {type(self).__name__}, got True: FAISS keeps no account")

    @contextmanager
    def _threads(self, num_queries: int, threads: int | None) -> Iterator[None]:
        """Let FAISS use as many threads as were asked for; the setting is this thread's own."""
        wanted = check_threads(threads) or (1 if num_queries == 1 else usable_cores())
        before = self._faiss.omp_get_max_threads()
        self._faiss.omp_set_num_threads(wanted)
        try:
            yield
        finally:
            self._faiss.omp_set_num_threads(before)


def _cut(found: RangeResult, limit: int) -> RangeResult:
    """Keep the nearest `limit` of each query."""
    counts_Q = np.diff(found.lims)
    rank_H = np.arange(found.lims[-1]) - np.repeat(found.lims[:-1], counts_Q)
    kept_H = rank_H < limit
    lims = np.concatenate([[0], np.cumsum(np.minimum(counts_Q, limit))]).astype(np.int64)
    return RangeResult(lims, found.distances[kept_H], found.ids[kept_H], counts_Q > limit)


def faiss_range_search(faiss_index: Any, queries_QW: CodeArray, radius: int) -> FaissHits:
    """Ask FAISS, whose radius is strict, for everything within `radius`."""
    lims, distances, rows = faiss_index.range_search(queries_QW.view(np.uint8), radius + 1)
    return lims.astype(np.int64), distances, rows


def flat_reach(faiss: Any, flat_index: Any, queries_QW: CodeArray, k: int, mask: RowMask | None) -> NDArray[np.int64]:
    """Return how far the k-th row that may answer is from each query, or the last if there are fewer."""
    params = None
    if mask is not None:
        params = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little")))
    distances_QK, rows_QK = flat_index.search(queries_QW.view(np.uint8), k, params=params)
    reach_Q: NDArray[np.int64] = np.where(rows_QK == PAD_ID, 0, distances_QK).max(axis=1).astype(np.int64)
    return reach_Q
