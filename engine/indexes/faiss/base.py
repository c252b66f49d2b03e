"""Common parts of the FAISS indexes: rows to ids, the strict radius, exact order, masks.

FAISS's radius is strict (`distance < radius`) and ours is inclusive, so this module (and only this one) passes
`radius + 1`. Among codes tied at the k-th distance FAISS keeps arbitrary ones; we keep the lowest ids, so kNN first
asks FAISS for the k-th distance and then for everything within it.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.extras import import_faiss
from hashlight.engine.indexes.answers import empty_heaps, range_result
from hashlight.engine.indexes.base import Index, check_arrays, check_build, check_farthest
from hashlight.engine.indexes.masks import RowMask
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.query import Query
from hashlight.engine.results import PAD_ID, Explanation, RangeResult, Result, SearchResult, cut_range, take_after

# lims (Q + 1,), distances (H,), rows (H,)
FaissHits = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]


class FaissIndex(Index):
    """Base of the indexes that FAISS searches. Rows keep the order in which they were given.

    Several threads may search one index at once. FAISS does not report its work: an explanation has the name of the
    index and the time, and 0 probes and candidates.

    Parameters
    ----------
    faiss_index : faiss.IndexBinary
        Holds the codes, in the order of `ids_N`.
    ids_N : ndarray of int64, shape (N,)
    bits : int
    """

    plan: ClassVar[str]  # its name in explanations

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
        return cls.fill(codes_NW, ids_N.copy(), bits=bits)

    @classmethod
    def fill(cls, codes_NW: CodeArray, ids_N: IdArray, *, bits: int) -> Self:
        """Index arrays that were validated when they were written, such as a shard's; FAISS copies the codes.

        Raises
        ------
        MissingDependencyError
            If FAISS is not installed.
        """
        check_arrays(codes_NW, ids_N, bits)
        faiss_index = cls._empty_index(bits, len(codes_NW))
        if len(codes_NW):
            faiss_index.add(codes_NW.view(np.uint8))
        return cls(faiss_index=faiss_index, ids_N=ids_N, bits=bits)

    @classmethod
    @abstractmethod
    def _empty_index(cls, bits: int, rows: int) -> Any:
        """Return an empty FAISS index of `64 * W` bits, to hold `rows` codes."""

    @abstractmethod
    def _rows_within(self, queries_QW: CodeArray, radius: int, mask: RowMask | None) -> FaissHits:
        """Return (lims, distances, rows) of all allowed rows within `radius`, in any order."""

    @abstractmethod
    def _reach(self, queries_QW: CodeArray, k: int, mask: RowMask | None) -> NDArray[np.int64]:
        """Return, for each query, a radius (Q,) that contains its `k` nearest, or all if there are fewer."""

    def __repr__(self) -> str:
        """Name kind, bits and rows."""
        return f"{type(self).__name__}({self.bits} bits, {len(self):,} codes)"

    def answer_checked(
        self,
        queries_QW: CodeArray,
        query: Query,
        *,
        mask: RowMask | None = None,
        farthest_Q: NDArray[np.int32] | None = None,
    ) -> Result:
        """Answer with FAISS; see `engine.indexes.base.Index.answer`."""
        bound_Q = check_farthest(farthest_Q, rows=len(queries_QW), bits=self.bits)
        start = time.perf_counter()
        found: Result
        with self._threads(len(queries_QW), query.threads):
            if query.k is not None:
                found = self._nearest(queries_QW, query.k, bound_Q, mask)
            else:
                found = self._ordered(queries_QW, cast(int, query.radius), mask)
        if isinstance(found, RangeResult) and query.after is not None:
            found = take_after(found, query.after)
        if isinstance(found, RangeResult) and query.limit is not None:
            found = cut_range(found, query.limit)
        return found._replace(explain=self._explain(len(queries_QW), start)) if query.explain else found

    def _nearest(self, queries_QW: CodeArray, k: int, bound_Q: NDArray[np.int32], mask: RowMask | None) -> SearchResult:
        distances_QK, ids_QK = empty_heaps(len(queries_QW), k)
        if len(self) and len(queries_QW):
            reach_Q = np.minimum(self._reach(queries_QW, min(k, len(self)), mask), bound_Q)
            for radius in np.unique(reach_Q):
                group = np.flatnonzero(reach_Q == radius)
                found = self._ordered(queries_QW[group], int(radius), mask)
                for place, number in enumerate(group):
                    begin, end = found.lims[place], min(found.lims[place + 1], found.lims[place] + k)
                    distances_QK[number, : end - begin] = found.distances[begin:end]
                    ids_QK[number, : end - begin] = found.ids[begin:end]
        return SearchResult(distances_QK, ids_QK)

    def _ordered(self, queries_QW: CodeArray, radius: int, mask: RowMask | None) -> RangeResult:
        num_queries = len(queries_QW)
        if not num_queries or not len(self):
            return range_result([], self.ids_N, num_queries, radius)
        lims, distances, rows = self._rows_within(queries_QW, radius, mask)
        query = np.repeat(np.arange(num_queries, dtype=np.int32), lims[1:] - lims[:-1])
        if mask is not None:
            may = mask.allows(rows)
            query, distances, rows = query[may], distances[may], rows[may]
        hits = query, rows.astype(np.uint32), distances.astype(np.int32)
        return range_result([(np.arange(num_queries), hits)], self.ids_N, num_queries, radius)

    def _explain(self, num_queries: int, start: float) -> Explanation:
        """Record which index answered, and divide the time since `start` (`time.perf_counter`) evenly."""
        seconds = (time.perf_counter() - start) / max(1, num_queries)
        nothing_Q = np.zeros(num_queries, np.int64)
        return Explanation((self.plan,) * num_queries, nothing_Q, nothing_Q.copy(), np.full(num_queries, seconds))

    @contextmanager
    def _threads(self, num_queries: int, threads: int | None) -> Iterator[None]:
        """Let FAISS use as many threads as requested; the setting is local to the calling thread."""
        wanted = threads or (1 if num_queries == 1 else usable_cores())
        before = self._faiss.omp_get_max_threads()
        self._faiss.omp_set_num_threads(wanted)
        try:
            yield
        finally:
            self._faiss.omp_set_num_threads(before)


def faiss_range_search(faiss_index: Any, queries_QW: CodeArray, radius: int) -> FaissHits:
    """Ask FAISS, whose radius is strict, for everything within `radius`, inclusive."""
    lims, distances, rows = faiss_index.range_search(queries_QW.view(np.uint8), radius + 1)
    return lims.astype(np.int64), distances, rows


def flat_reach(faiss: Any, flat_index: Any, queries_QW: CodeArray, k: int, mask: RowMask | None) -> NDArray[np.int64]:
    """Return the distance of the k-th allowed row from each query, or of the last if there are fewer."""
    params = None
    if mask is not None:
        params = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(mask.words.view(np.uint8)))
    distances_QK, rows_QK = flat_index.search(queries_QW.view(np.uint8), k, params=params)
    reach_Q: NDArray[np.int64] = np.where(rows_QK == PAD_ID, 0, distances_QK).max(axis=1).astype(np.int64)
    return reach_Q
