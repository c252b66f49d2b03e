"""Probing the tables: scratch space and arguments for the kernels of `engine.kernels.multi_index`."""

from __future__ import annotations

import itertools
import math
import threading
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.indexes.answers import Found, Heaps, Hits, gather_hits
from hashlight.engine.indexes.arrays import after_pair, bytes_of, read_only
from hashlight.engine.indexes.masks import RowMask, mask_words
from hashlight.engine.indexes.multi_index.tables import Tables
from hashlight.engine.indexes.stopping import current
from hashlight.engine.kernels.arguments import Budget, Prices, Rows, Scratch, Sizes, Work
from hashlight.engine.kernels.multi_index import knn_tables, price_radius, range_tables

SCRATCH_BUCKETS = 128  # looked up and prefetched together; 512 were a tenth slower at 10 million codes
SCRATCH_CANDIDATES = 256
FIRST_HITS = 1024
EVEN = 8.0  # uniform codes may by chance have buckets up to this many times the mean size
UNLIMITED = 2**62
SAMPLE_EVERY = 64  # in large steps, one mask in this many is counted
SAMPLED_CANDIDATES = 16  # per query, to estimate the share of near ones to about an eighth


class RadiusPlan(NamedTuple):
    """The lookups that a radius search needs in the tables, and the candidates to expect.

    Attributes
    ----------
    reach : ndarray of int64, shape (T,)
        Substring radius of each table that together find everything; -1 for a table that is not needed.
    lookups : int
        Buckets that a query looks up.
    max_candidates : int
        Candidates if every bucket looked up were the largest of its table.
    mean : float
        Candidates if the buckets looked up have the mean size.
    by_table : list of int
        Lookups in each table.
    """

    reach: NDArray[np.int64]
    lookups: int
    max_candidates: int
    mean: float
    by_table: list[int]


class TableProbe:
    """Tables over the rows of one index, for use by several threads at once.

    Parameters
    ----------
    codes_NW : ndarray of uint64, shape (N, W)
    ids_N : ndarray of int64, shape (N,)
        Read-only.
    tables : Tables

    Attributes
    ----------
    even : bool
        Whether all buckets are about as full as with uniform codes.
    """

    def __init__(self, codes_NW: CodeArray, ids_N: IdArray, tables: Tables) -> None:
        self.tables = tables
        self._rows = tuple(Rows(bytes_of(codes_NW), ids_N, codes_NW.shape[1], len(codes_NW)))
        self._arrays = tuple(tables.kernel_arrays())
        self._plans: dict[int, RadiusPlan] = {}
        self._crowds: dict[int, float] = {}
        widest = max(tables.widths)
        self.count_TS = np.array(
            [[math.comb(width, ones) for ones in range(widest + 2)] for width in tables.widths], np.int64
        )
        self.mean_T = np.array([tables.distinct / 2**width for width in tables.widths])
        self._sizes = tuple(Sizes(self.count_TS, self.mean_T))
        self.even = max(tables.largest) <= EVEN * float(self.mean_T.max()) + EVEN

    def plan(self, radius: int) -> RadiusPlan:
        """Return what a query with `radius` needs."""
        plan = self._plans.get(radius)
        if plan is None:
            each, more = divmod(radius, len(self.tables.widths))
            reach_T = np.full(len(self.tables.widths), each - 1, np.int64)
            reach_T[: more + 1] += 1
            reach_T = np.minimum(reach_T, self.tables.widths)
            lookups = [sum(counts[: reach + 1].tolist()) for counts, reach in zip(self.count_TS, reach_T, strict=True)]
            max_candidates = sum(count * largest for count, largest in zip(lookups, self.tables.largest, strict=True))
            mean = float(self.mean_T @ np.array(lookups))
            plan = self._plans[radius] = RadiusPlan(reach_T, sum(lookups), max_candidates, mean, lookups)
        return plan

    def crowd(self, radius: int) -> float:
        """Return how many candidates a query among the stored codes meets; most queries are."""
        crowd = self._crowds.get(radius)
        if crowd is None:
            lookups_T = np.array(self.plan(radius).by_table)
            met_T = self._own_bucket_T + (lookups_T - 1) * self.mean_T
            crowd = self._crowds[radius] = float(met_T[lookups_T > 0].sum())
        return crowd

    @cached_property
    def _own_bucket_T(self) -> NDArray[np.float64]:  # noqa: N802
        """The mean, over all codes, of the size of the bucket that holds the code, for each table."""
        edges = np.cumsum([0, *(2**width + 1 for width in self.tables.widths)])
        sizes = [np.diff(self.tables.offsets[a:b].astype(np.float64)) for a, b in itertools.pairwise(edges)]
        return np.array([size @ size / max(size.sum(), 1.0) for size in sizes])

    def price_radius(self, queries_QW: CodeArray, radius: int, prices: Prices) -> NDArray[np.float64]:
        """Estimate what a radius search in the tables would cost for each query (Q,), in nanoseconds."""
        price_Q, queries_QW = np.empty(len(queries_QW)), read_only(queries_QW)
        price_radius(
            self._rows, self._arrays, self.count_TS, queries_QW, radius, self.plan(radius).reach,
            SAMPLE_EVERY, SAMPLED_CANDIDATES, tuple(prices), price_Q,
        )  # fmt: skip
        return price_Q

    def within(
        self, queries_QW: CodeArray, numbers_Q: NDArray[np.intp], radius: int, mask: RowMask | None
    ) -> tuple[Found, Work]:
        """Return the rows within `radius` of each query, in any order, and the work done."""
        found, work, _ = self._collect(queries_QW, numbers_Q, radius, mask, UNLIMITED)
        return found, work

    def within_budget(
        self,
        queries_QW: CodeArray,
        numbers_Q: NDArray[np.intp],
        radius: int,
        mask: RowMask | None,
        budget: int,
    ) -> Found | None:
        """Return the rows within `radius` of each query, in any order; None if one meets over `budget` candidates."""
        found, _, is_whole = self._collect(queries_QW, numbers_Q, radius, mask, budget)
        return found if is_whole else None

    def _collect(
        self,
        queries_QW: CodeArray,
        numbers_Q: NDArray[np.intp],
        radius: int,
        mask: RowMask | None,
        budget: int,
    ) -> tuple[Found, Work, bool]:
        work, queries_QW = _new_work(len(queries_QW)), read_only(queries_QW)
        reach_T = self.plan(radius).reach
        scratch = self._scratch()
        word_V = mask_words(mask)
        cursor_2 = np.zeros(2, np.int64)

        def fill(hits: Hits) -> tuple[int, int]:
            count = range_tables(
                self._rows, self._arrays, word_V, queries_QW, radius, reach_T, budget, cursor_2,
                scratch, tuple(work), hits,
            )  # fmt: skip
            done = int(cursor_2[0]) == len(queries_QW)
            return count, 0 if done else max(int(cursor_2[1]), 0)

        return gather_hits(numbers_Q, fill, places=FIRST_HITS), work, int(cursor_2[1]) >= 0

    def nearest(
        self,
        queries_QW: CodeArray,
        bound_Q: NDArray[np.int32],
        mask: RowMask | None,
        heaps: Heaps,
        budget: Budget,
        after: tuple[int, int] | None = None,
    ) -> tuple[NDArray[np.bool_], Work]:
        """Fill `heaps` with the nearest rows within `bound_Q` that come after the (distance, id) `after`.

        Returns which queries (Q,) are done. For the others `bound_Q` is lowered to a radius that is sure to contain
        their answers, and their heaps are to be discarded.
        """
        work, queries_QW = _new_work(len(queries_QW)), read_only(queries_QW)
        done_Q = np.zeros(len(queries_QW), np.bool_)
        knn_tables(
            self._rows, self._arrays, self._sizes, mask_words(mask), queries_QW, bound_Q, after_pair(after),
            tuple(budget), self._scratch(), tuple(work), done_Q, heaps,
        )  # fmt: skip
        return done_Q, work

    def _scratch(self) -> tuple[NDArray[Any], ...]:
        """Return the `Scratch` of this thread, undefined between kernels."""
        kept = _of_thread.scratch
        tables = len(self.mean_T)
        if tables not in kept:
            scratch = Scratch(
                from_P=np.empty(SCRATCH_BUCKETS, np.int64),
                to_P=np.empty(SCRATCH_BUCKETS, np.int64),
                place_2=np.empty(2, np.int64),
                row_C=np.empty(SCRATCH_CANDIDATES, np.int64),
                seen_T=np.empty(tables, np.int64),
                met_T=np.empty(tables),
                stop_1=current().flag_1,
            )
            kept[tables] = tuple(scratch)
        return *kept[tables][:-1], current().flag_1


class _Scratch(threading.local):
    """Scratch arrays that a thread keeps, by the number of tables."""

    def __init__(self) -> None:
        self.scratch: dict[int, tuple[NDArray[Any], ...]] = {}


_of_thread = _Scratch()


def _new_work(num_queries: int) -> Work:
    return Work(*np.zeros((2, num_queries), np.int64))
