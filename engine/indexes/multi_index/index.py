"""The multi-index: tables for narrow searches, a scan for wide ones, and a planner that chooses for each query."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray, check_codes
from hashlight.engine.indexes.account import Account
from hashlight.engine.indexes.answers import (
    MAX_COUNTERS,
    MAX_HEAP_PLACES,
    Found,
    Heaps,
    empty_heaps,
    limited_search,
    range_result,
    search_result,
)
from hashlight.engine.indexes.base import (
    Index,
    Mask,
    check_arrays,
    check_build,
    check_farthest,
    check_mask,
)
from hashlight.engine.indexes.masks import RowMask
from hashlight.engine.indexes.multi_index.checking import find_missing
from hashlight.engine.indexes.multi_index.planner import (
    WORTH_ASKING_NS,
    Span,
    current_costs,
    likely_radius,
    plan_nearest,
    plan_range,
    trial_budget,
)
from hashlight.engine.indexes.multi_index.probe import TableProbe
from hashlight.engine.indexes.multi_index.tables import Tables
from hashlight.engine.indexes.order import sort_rows
from hashlight.engine.indexes.scan import ScanIndex
from hashlight.engine.indexes.threads import run_cut, usable_cores
from hashlight.engine.kernels.arguments import Budget, Work
from hashlight.engine.query import Query, check_threads
from hashlight.engine.results import (
    PAD_DISTANCE,
    PAD_ID,
    RangeResult,
    Result,
    SearchResult,
    join_ranges,
    join_searches,
    take_after,
)

Plan = Literal["auto", "scan", "tables", "gather"]
PLANS = ("auto", "scan", "tables", "gather")
NO_QUERIES = np.empty(0, np.intp)
FIRST_QUERY = np.zeros(1, np.intp)


class MultiIndex(Index):
    """Exact search through tables of substrings, or by scan where that is cheaper.

    Several threads may search one index at once.

    Parameters
    ----------
    codes_NW : ndarray of uint64, shape (N, W)
        In the order of `engine.indexes.order`; may be a read-only memory map and need not be aligned. Bits and order
        are trusted; `build` takes any order and checks the bits.
    ids_N : ndarray of int64, shape (N,)
    tables : Tables
        Built over `codes_NW`.
    bits : int
    scanned_NW : ndarray of uint64, shape (N, W), optional
        The same codes in a map of its own for scans, because a map is advised for reads either at random or in order.

    Attributes
    ----------
    plan : {"auto", "scan", "tables", "gather"}
        The plan that `answer` follows unless it is given another; "auto", the planner, by default. "gather" goes to
        each row that the mask allows; without a mask it is a scan.
    """

    def __init__(
        self, *, codes_NW: CodeArray, ids_N: IdArray, tables: Tables, bits: int, scanned_NW: CodeArray | None = None
    ) -> None:
        self.plan: Plan = "auto"
        check_arrays(codes_NW, ids_N, bits)
        self._scan = ScanIndex(codes_NW=codes_NW if scanned_NW is None else scanned_NW, ids_N=ids_N, bits=bits)
        if (tables.rows, tables.bits) != (len(ids_N), bits):
            raise ValueError(
                f"`tables` were built over {tables.rows} codes of {tables.bits} bits, "
                f"got {len(ids_N)} codes of {bits} bits: build them again"
            )
        self.bits = bits
        self.codes_NW: CodeArray = codes_NW
        self.ids_N: IdArray = self._scan.ids_N
        self.tables = tables
        self.probe = TableProbe(self.codes_NW, self.ids_N, tables)
        self._every_row = Span.of(None, len(ids_N))

    @classmethod
    def build(cls, codes_NW: CodeArray, ids_N: IdArray, *, bits: int, threads: int | None = None) -> Self:
        """Build tables over sorted copies of `codes_NW` and `ids_N`, with `threads` threads (None: one per core).

        Raises
        ------
        TypeError, ValueError
            If codes or ids are not as `engine.codes` describes them.
        """
        check_build(codes_NW, ids_N, bits)
        cores = check_threads(threads) or usable_cores()
        order_N = sort_rows(codes_NW, ids_N)
        codes_NW, ids_N = codes_NW[order_N], ids_N[order_N]
        return cls(codes_NW=codes_NW, ids_N=ids_N, tables=Tables.build(codes_NW, bits=bits, threads=cores), bits=bits)

    @classmethod
    def open(
        cls, folder: Path, *, codes_NW: CodeArray, ids_N: IdArray, bits: int, scanned_NW: CodeArray | None = None
    ) -> Self:
        """Map the tables that `save` wrote into `folder`; the other arguments are those of the constructor.

        Raises
        ------
        CorruptDataError
            If the folder holds no tables, or tables of other codes.
        """
        tables = Tables.open(folder, bits=bits, rows=len(ids_N))
        return cls(codes_NW=codes_NW, ids_N=ids_N, tables=tables, bits=bits, scanned_NW=scanned_NW)

    def save(self, folder: Path) -> None:
        """Write the tables, without codes and ids, into the new folder `folder`."""
        self.tables.save(folder)

    def __repr__(self) -> str:
        """Name kind, bits, rows, tables and size."""
        widths = "+".join(str(width) for width in self.tables.widths)
        return (
            f"MultiIndex({self.bits} bits, {len(self):,} codes, {self.tables.distinct:,} distinct, "
            f"tables of {widths} bits, {self.nbytes / 2**20:,.1f} MiB)"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of codes, ids and tables, in memory or mapped."""
        return self._scan.nbytes + self.tables.nbytes

    def answer(
        self,
        queries_QW: CodeArray,
        query: Query,
        *,
        mask: Mask | None = None,
        farthest_Q: NDArray[np.int32] | None = None,
        plan: Plan | None = None,
    ) -> Result:
        """Answer from the tables or by a scan; see `engine.indexes.base.Index.answer`.

        `plan` overrides the index's own. The answer does not depend on it.
        """
        check_codes(queries_QW, bits=self.bits, name="queries")
        query, checked = query.checked(bits=self.bits), check_mask(mask, rows=len(self))
        return self.answer_checked(queries_QW, query, mask=checked, farthest_Q=farthest_Q, plan=_check_plan(plan))

    def answer_checked(
        self,
        queries_QW: CodeArray,
        query: Query,
        *,
        mask: RowMask | None = None,
        farthest_Q: NDArray[np.int32] | None = None,
        plan: Plan | None = None,
    ) -> Result:
        """Answer like `answer`, with arguments that were checked."""
        plan = plan or self.plan
        if query.k is not None:
            bound_Q = check_farthest(farthest_Q, rows=len(queries_QW), bits=self.bits)
            return self._nearest(queries_QW, query.k, bound_Q, mask, query, plan)
        radius, limit = cast(int, query.radius), query.limit
        if limit is not None and limit < len(self):

            def ask(numbers_Q: NDArray[np.intp], k: int) -> SearchResult:
                bound_Q = np.full(len(numbers_Q), radius, np.int32)
                return self._nearest(queries_QW[numbers_Q], k, bound_Q, mask, query, plan)

            return limited_search(ask, len(queries_QW), limit)

        def work(part: slice) -> RangeResult:
            return self._within(queries_QW[part], radius, mask, query.explain, plan)

        found = join_ranges(run_cut(work, len(queries_QW), query.threads, most=MAX_COUNTERS // (radius + 1)))
        return found if query.after is None else take_after(found, query.after)

    def find_fault(self, codes_NW: CodeArray) -> str | None:
        """Look for a few codes in every table, and search for the first code by tables and by a scan; see `Index`."""
        return (
            find_missing(self.tables, codes_NW)
            or self._fault_of_first_code(codes_NW, "a search by tables", plan="tables")
            or self._fault_of_first_code(codes_NW, "a scan", plan="scan")
        )

    def _within(
        self, queries_QW: CodeArray, radius: int, mask: RowMask | None, explain: bool, plan: Plan
    ) -> RangeResult:
        """Answer a part of a batch in the calling thread: first the queries for the tables, then those for the scan."""
        if len(queries_QW) == 1 and plan == "auto" and not explain and (rows := len(self.ids_N)):
            span, words = self._span(mask), self.codes_NW.shape[1]
            budget = trial_budget(self.probe, radius, current_costs(rows), span, words)
            hits_in_budget = self.probe.within_budget(queries_QW, FIRST_QUERY, radius, mask, budget) if budget else None
            if hits_in_budget is not None:
                return range_result(hits_in_budget, self.ids_N, 1, radius)
        account = self._account(len(queries_QW), mask) if explain else None
        by_tables, by_scan = self._plan_range(queries_QW, radius, mask, plan)
        found: Found = []
        for group in _one_by_one(by_tables) if account else [by_tables] * bool(len(by_tables)):
            start = time.perf_counter()
            hits, work = self.probe.within(_gathered(queries_QW, group), group, radius, mask)
            found += hits
            if account:
                account.add_tables(group, work, start)
        if len(by_scan):
            start, listed = time.perf_counter(), _is_gather(plan, mask)
            found += self._scan.find_hits(_gathered(queries_QW, by_scan), by_scan, radius, mask, listed=listed)
            if account:
                account.add_scan(by_scan, start, listed=listed)
        result = range_result(found, self.ids_N, len(queries_QW), radius)
        return result._replace(explain=account.explanation()) if account else result

    def _plan_range(
        self, queries_QW: CodeArray, radius: int, mask: RowMask | None, plan: Plan
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return which queries are answered from the tables, and which by a scan."""
        every = np.arange(len(queries_QW))
        if plan != "auto" or not len(self):
            return (every, NO_QUERIES) if plan == "tables" else (NO_QUERIES, every)
        by_tables_Q = plan_range(self.probe, queries_QW, radius, current_costs(len(self)), self._span(mask))
        if isinstance(by_tables_Q, bool):
            return (every, NO_QUERIES) if by_tables_Q else (NO_QUERIES, every)
        return every[by_tables_Q], every[~by_tables_Q]

    def _nearest(
        self,
        queries_QW: CodeArray,
        k: int,
        bound_Q: NDArray[np.int32],
        mask: RowMask | None,
        query: Query,
        plan: Plan,
    ) -> SearchResult:
        """Return the `k` nearest within the bounds, which are lowered.

        Of `query`, only `after`, `threads` and `explain` are used.
        """
        allowed = len(self) if mask is None else mask.count
        heap_k = max(1, min(k, allowed))
        reach = likely_radius(self.bits, allowed, heap_k)
        if query.after is not None:
            reach = max(reach, query.after[0])

        def work(part: slice) -> SearchResult:
            return self._nearest_of_part(queries_QW[part], k, heap_k, reach, bound_Q[part], mask, query, plan)

        return join_searches(run_cut(work, len(queries_QW), query.threads, most=MAX_HEAP_PLACES // heap_k))

    def _nearest_of_part(
        self,
        queries_QW: CodeArray,
        k: int,
        heap_k: int,
        reach: int,
        bound_Q: NDArray[np.int32],
        mask: RowMask | None,
        query: Query,
        plan: Plan,
    ) -> SearchResult:
        """Answer a part of a batch in the calling thread: from the tables, then one scan for the queries given up."""
        account = self._account(len(queries_QW), mask) if query.explain else None
        heaps = empty_heaps(len(queries_QW), heap_k)
        open_Q = FIRST_QUERY if len(queries_QW) == 1 else np.arange(len(queries_QW))
        sharing = 0
        # The fewer queries share the scan, the more it costs each of them, so the tables may be worth another try.
        while self._may_ask_tables(plan, mask, len(open_Q)) and sharing != len(open_Q):
            sharing = len(open_Q)
            budget = self._budget(plan, mask, reach, sharing)
            open_Q = self._ask_tables(queries_QW, open_Q, bound_Q, mask, query.after, heaps, budget, account)
        if len(open_Q):
            listed = _is_gather(plan, mask)
            self._ask_scan(queries_QW, open_Q, bound_Q, mask, query.after, heaps, account, listed=listed)
        result = search_result(heaps, k)
        return result._replace(explain=account.explanation()) if account else result

    def _span(self, mask: RowMask | None) -> Span:
        return self._every_row if mask is None else Span.of(mask, len(self))

    def _account(self, num_queries: int, mask: RowMask | None) -> Account:
        return Account(num_queries, len(self) if mask is None else mask.count)

    def _may_ask_tables(self, plan: Plan, mask: RowMask | None, num_queries: int) -> bool:
        """Whether the tables may be worth a call for `num_queries` queries."""
        if plan in ("scan", "gather") or not len(self) or not num_queries:
            return False
        if plan == "tables" or mask is None:
            return True
        span, words = self._span(mask), self.codes_NW.shape[1]
        return num_queries * current_costs(len(self)).scan_ns(span, words, num_queries) > WORTH_ASKING_NS

    def _budget(self, plan: Plan, mask: RowMask | None, reach: int, sharing: int) -> Budget:
        if plan == "tables":
            return Budget(
                mask_ns=1.0,
                candidate_ns=1.0,
                tested_ns=0.0,
                read_ns=1.0,
                scan_ns=np.inf,
                trial_ns=np.inf,
                likely_radius=self.bits,
            )
        words = self.codes_NW.shape[1]
        span = self._span(mask)
        return plan_nearest(current_costs(len(self)), span, self.tables.distinct, words, sharing, reach)

    def _ask_tables(
        self,
        queries_QW: CodeArray,
        open_Q: NDArray[np.intp],
        bound_Q: NDArray[np.int32],
        mask: RowMask | None,
        after: tuple[int, int] | None,
        heaps: Heaps,
        budget: Budget,
        account: Account | None,
    ) -> NDArray[np.intp]:
        """Answer the open queries from the tables; return those given up, with their heaps emptied."""
        if not account:
            return self._ask_tables_together(queries_QW, open_Q, bound_Q, mask, after, heaps, budget)[0]
        given_up = []
        for query in _one_by_one(open_Q):
            start = time.perf_counter()
            open_G, work = self._ask_tables_together(queries_QW, query, bound_Q, mask, after, heaps, budget)
            account.add_tables(query, work, start)
            given_up.append(open_G)
        return np.concatenate(given_up)

    def _ask_tables_together(
        self,
        queries_QW: CodeArray,
        group: NDArray[np.intp],
        bound_Q: NDArray[np.int32],
        mask: RowMask | None,
        after: tuple[int, int] | None,
        heaps: Heaps,
        budget: Budget,
    ) -> tuple[NDArray[np.intp], Work]:
        """Answer a group of queries from the tables; return those given up, and the work done."""
        if len(group) == len(queries_QW):  # the whole batch: no rows to gather and scatter
            done_G, work = self.probe.nearest(queries_QW, bound_Q, mask, heaps, budget, after)
        else:
            bound_G, heaps_G = bound_Q[group], (heaps[0][group], heaps[1][group])
            done_G, work = self.probe.nearest(queries_QW[group], bound_G, mask, heaps_G, budget, after)
            bound_Q[group], heaps[0][group], heaps[1][group] = bound_G, *heaps_G
        given_up = group[~done_G]
        if len(given_up):
            heaps[0][given_up], heaps[1][given_up] = PAD_DISTANCE, PAD_ID
        return given_up, work

    def _ask_scan(
        self,
        queries_QW: CodeArray,
        open_Q: NDArray[np.intp],
        bound_Q: NDArray[np.int32],
        mask: RowMask | None,
        after: tuple[int, int] | None,
        heaps: Heaps,
        account: Account | None,
        *,
        listed: bool,
    ) -> None:
        """Answer the open queries by one scan, or from the list of allowed rows."""
        start = time.perf_counter()
        heaps_G = heaps[0][open_Q], heaps[1][open_Q]
        self._scan.improve_heaps(queries_QW[open_Q], bound_Q[open_Q], mask, heaps_G, after, listed=listed)
        heaps[0][open_Q], heaps[1][open_Q] = heaps_G
        if account:
            account.add_scan(open_Q, start, listed=listed)


def _is_gather(plan: Plan, mask: RowMask | None) -> bool:
    """Return whether what the tables do not answer is answered from a list of the allowed rows."""
    return mask is not None and (plan == "gather" or (plan != "scan" and mask.is_listed))


def _check_plan(plan: Plan | None) -> Plan | None:
    if plan is not None and plan not in PLANS:
        raise ValueError(f"`plan` must be one of {PLANS}, got {plan!r}")
    return plan


def _one_by_one(group: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return [group[place : place + 1] for place in range(len(group))]


def _gathered(queries_QW: CodeArray, group: NDArray[np.intp]) -> CodeArray:
    return queries_QW if len(group) == len(queries_QW) else queries_QW[group]
