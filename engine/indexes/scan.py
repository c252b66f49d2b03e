"""An index without data structures: every query is compared with every code."""

from __future__ import annotations

import time
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.indexes.account import Account
from hashlight.engine.indexes.answers import (
    MAX_COUNTERS,
    MAX_HEAP_PLACES,
    Found,
    Heaps,
    Hits,
    empty_heaps,
    gather_hits,
    limited_search,
    range_result,
    search_result,
)
from hashlight.engine.indexes.arrays import after_pair, bytes_of, read_only
from hashlight.engine.indexes.base import Index, check_arrays, check_build, check_farthest
from hashlight.engine.indexes.masks import RowMask, allowed_rows, is_listed
from hashlight.engine.indexes.order import sort_rows
from hashlight.engine.indexes.stopping import current
from hashlight.engine.indexes.threads import run_cut
from hashlight.engine.kernels.arguments import Rows
from hashlight.engine.kernels.scan import STRIDE, knn_scan, range_scan
from hashlight.engine.query import Query
from hashlight.engine.results import (
    Explanation,
    RangeResult,
    Result,
    SearchResult,
    join_ranges,
    join_searches,
    take_after,
)

BLOCK_WORDS = 4096  # 32 KiB: a block of codes that stays in the L1 cache
MIN_BLOCK = 256
MAX_BLOCK = 2048
FIRST_HITS = 2**14  # initial room for hits


class ScanIndex(Index):
    """Exact search by comparing with every code; fast for batches and wide radii.

    Several threads may search one index at once.

    Parameters
    ----------
    codes_NW : ndarray of uint64, shape (N, W)
        May be a read-only memory map at any address. Its bits are trusted; `build` checks them.
    ids_N : ndarray of int64, shape (N,)
        Distinct, 0 or more.
    bits : int
        Bits of a code; `W = ceil(bits / 64)`.
    """

    def __init__(self, *, codes_NW: CodeArray, ids_N: IdArray, bits: int) -> None:
        self.bits = check_arrays(codes_NW, ids_N, bits)
        self.codes_NW: CodeArray = codes_NW
        self.ids_N: IdArray = read_only(ids_N)
        self._rows = tuple(Rows(bytes_of(codes_NW), self.ids_N, codes_NW.shape[1], len(codes_NW)))

    @classmethod
    def build(cls, codes_NW: CodeArray, ids_N: IdArray, *, bits: int) -> Self:
        """Index copies of `codes_NW` and `ids_N` in the order of `engine.indexes.order`.

        Raises
        ------
        TypeError, ValueError
            If codes or ids are not as `engine.codes` describes them.
        """
        check_build(codes_NW, ids_N, bits)
        order_N = sort_rows(codes_NW, ids_N)
        return cls(codes_NW=codes_NW[order_N], ids_N=ids_N[order_N], bits=bits)

    def __repr__(self) -> str:
        """Name kind, bits, rows and size."""
        return f"ScanIndex({self.bits} bits, {len(self):,} codes, {self.nbytes / 2**20:,.1f} MiB)"

    @property
    def nbytes(self) -> int:
        """Bytes of codes and ids, in memory or mapped."""
        return self.codes_NW.nbytes + self.ids_N.nbytes

    def answer_checked(
        self,
        queries_QW: CodeArray,
        query: Query,
        *,
        mask: RowMask | None = None,
        farthest_Q: NDArray[np.int32] | None = None,
    ) -> Result:
        """Answer by comparing every query with every allowed code; see `engine.indexes.base.Index.answer`."""
        if query.k is not None:
            bound_Q = check_farthest(farthest_Q, rows=len(queries_QW), bits=self.bits)
            return self._nearest(queries_QW, query.k, bound_Q, mask, query)
        radius, limit = cast(int, query.radius), query.limit
        if limit is None or limit >= len(self):
            found = self._within(queries_QW, radius, mask, query)
            return found if query.after is None else take_after(found, query.after)

        def ask(numbers_Q: NDArray[np.intp], k: int) -> SearchResult:
            bound_Q = np.full(len(numbers_Q), radius, np.int32)
            return self._nearest(queries_QW[numbers_Q], k, bound_Q, mask, query)

        return limited_search(ask, len(queries_QW), limit)

    def _nearest(
        self,
        queries_QW: CodeArray,
        k: int,
        bound_Q: NDArray[np.int32],
        mask: RowMask | None,
        query: Query,
    ) -> SearchResult:
        """Return the `k` nearest within the bounds; of `query`, only `after`, `threads` and `explain` are used."""
        heap_k = max(1, min(k, len(self) if mask is None else mask.count))

        def work(part: slice) -> SearchResult:
            start = time.perf_counter()
            heaps = empty_heaps(len(queries_QW[part]), heap_k)
            self.improve_heaps(queries_QW[part], bound_Q[part], mask, heaps, query.after, listed=is_listed(mask))
            result = search_result(heaps, k)
            return result._replace(explain=self._explain(len(bound_Q[part]), mask, start)) if query.explain else result

        return join_searches(run_cut(work, len(queries_QW), query.threads, most=MAX_HEAP_PLACES // heap_k))

    def _within(self, queries_QW: CodeArray, radius: int, mask: RowMask | None, query: Query) -> RangeResult:
        def work(part: slice) -> RangeResult:
            start = time.perf_counter()
            num_queries = len(queries_QW[part])
            found = self.find_hits(queries_QW[part], np.arange(num_queries), radius, mask, listed=is_listed(mask))
            result = range_result(found, self.ids_N, num_queries, radius)
            return result._replace(explain=self._explain(num_queries, mask, start)) if query.explain else result

        return join_ranges(run_cut(work, len(queries_QW), query.threads, most=MAX_COUNTERS // (radius + 1)))

    def improve_heaps(
        self,
        queries_QW: CodeArray,
        bound_Q: NDArray[np.int32],
        mask: RowMask | None,
        heaps: Heaps,
        after: tuple[int, int] | None = None,
        *,
        listed: bool,
    ) -> None:
        """Offer every allowed row within each query's bound that comes after `after` to its heap.

        In the calling thread. `listed`: go to each row that `mask` allows, instead of passing over the mask.
        """
        if len(queries_QW) and len(self):
            block = empty_block(self.codes_NW.shape[1], len(queries_QW))
            allowed = allowed_rows(mask, len(self), listed=listed)
            knn_scan(self._rows, allowed, read_only(queries_QW), bound_Q, after_pair(after), block, heaps)

    def find_hits(
        self,
        queries_QW: CodeArray,
        numbers_Q: NDArray[np.intp],
        radius: int,
        mask: RowMask | None,
        *,
        listed: bool,
    ) -> Found:
        """Return the allowed rows within `radius` of each query, in any order; see `improve_heaps`."""
        if not len(queries_QW):
            return []
        queries_QW = read_only(queries_QW)
        block = empty_block(self.codes_NW.shape[1], len(queries_QW))
        cursor_2 = np.zeros(2, np.int64)
        allowed = allowed_rows(mask, len(self), listed=listed)
        places = mask.count if mask is not None and listed else len(self)

        def fill(hits: Hits) -> tuple[int, int]:
            count = range_scan(self._rows, allowed, queries_QW, radius, cursor_2, block, hits)
            return count, 0 if cursor_2[0] >= places else 1

        return gather_hits(numbers_Q, fill, places=max(FIRST_HITS, 4 * len(block[1])))

    def _explain(self, num_queries: int, mask: RowMask | None, start: float) -> Explanation:
        account = Account(num_queries, len(self) if mask is None else mask.count)
        account.add_scan(np.arange(num_queries), start, listed=is_listed(mask))
        return account.explanation()


def empty_block(
    words: int, num_queries: int
) -> tuple[CodeArray, NDArray[np.uint32], NDArray[np.uint64], NDArray[np.uint8]]:
    """Return the arrays of an `engine.kernels.arguments.Block`, which ends with what this thread computes."""
    places = MIN_BLOCK if num_queries == 1 else min(max(BLOCK_WORDS // words // STRIDE * STRIDE, MIN_BLOCK), MAX_BLOCK)
    return (
        np.empty((words, places), np.uint64),
        np.empty(places, np.uint32),
        np.empty(places, np.uint64),
        current().flag_1,
    )
