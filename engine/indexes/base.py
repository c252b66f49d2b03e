"""What every index over one shard's codes does, and the checks they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray, check_bits, check_codes, num_words
from hashlight.engine.ids import check_ids
from hashlight.engine.indexes.masks import RowMask
from hashlight.engine.query import Query
from hashlight.engine.results import RangeResult, Result, SearchResult

MAX_ROWS = 2**32 - 1  # rows are uint32 in the tables

Mask = RowMask | NDArray[np.bool_]


class Index(ABC):
    """Exact Hamming search over fixed codes. Thread-safe."""

    bits: int
    ids_N: IdArray  # noqa: N815 - the shape is part of the name

    @classmethod
    @abstractmethod
    def build(cls, codes_NW: CodeArray, ids_N: IdArray, *, bits: int) -> Self:
        """Index `codes_NW` (uint64, shape (N, W)) under `ids_N` (distinct int64 of 0 or more, shape (N,))."""

    def __len__(self) -> int:
        """Return the number of codes."""
        return len(self.ids_N)

    def answer(
        self,
        queries_QW: CodeArray,
        query: Query,
        *,
        mask: Mask | None = None,
        farthest_Q: NDArray[np.int32] | None = None,
    ) -> Result:
        """Answer the same query for each of several codes.

        Parameters
        ----------
        queries_QW : ndarray of uint64, shape (Q, W)
        query : Query
            An index has no attributes: the caller turns `query.filter` into `mask`.
        mask : RowMask or ndarray of bool, shape (N,), or None
            True for the rows that may be returned, in the order of `ids_N`, which is the order of the index's rows.
        farthest_Q : ndarray of int32, shape (Q,), or None
            With `query.k`: maximum distance of an answer to each query, such as the k-th distance in other shards.

        Returns
        -------
        SearchResult or RangeResult
            For `query.k` or `query.radius`, ascending by (distance, id).

        Raises
        ------
        TypeError, ValueError
            If codes, query or mask do not fit the index.
        """
        check_codes(queries_QW, bits=self.bits, name="queries")
        checked = check_mask(mask, rows=len(self))
        return self.answer_checked(queries_QW, query.checked(bits=self.bits), mask=checked, farthest_Q=farthest_Q)

    @abstractmethod
    def answer_checked(
        self,
        queries_QW: CodeArray,
        query: Query,
        *,
        mask: RowMask | None = None,
        farthest_Q: NDArray[np.int32] | None = None,
    ) -> Result:
        """Answer like `answer`, with codes, query and mask that were checked: once for all shards, for example."""

    def find_fault(self, codes_NW: CodeArray) -> str | None:
        """Check that the index finds a few of its own codes; return what is wrong, or None.

        Tries every way that the index has to answer, whatever a plan would choose. `codes_NW` are the codes that it
        should hold, in its row order.
        """
        return self._fault_of_first_code(codes_NW, "the index")

    def _fault_of_first_code(self, codes_NW: CodeArray, way: str, **more: Any) -> str | None:
        """Search for the first code with the keywords `more`; return that it was not found, or None."""
        if not len(self):
            return None
        found = self.search(np.array(codes_NW[:1], np.uint64), 1, threads=1, **more)
        if found.distances[0, 0] == 0:
            return None
        return (
            f"{way} does not find the first code: nearest is id {found.ids[0, 0]} at distance {found.distances[0, 0]}"
        )

    def search(
        self, queries_QW: CodeArray, k: int, *, threads: int | None = None, explain: bool = False, **more: Any
    ) -> SearchResult:
        """Return the `k` nearest codes of each query; `more` are the keywords of `answer`."""
        query = Query(k, None, None, None, None, threads, explain)  # by place, which is faster
        return cast(SearchResult, self.answer(queries_QW, query, **more))

    def range_search(
        self,
        queries_QW: CodeArray,
        radius: int,
        limit: int | None = None,
        *,
        threads: int | None = None,
        explain: bool = False,
        **more: Any,
    ) -> RangeResult:
        """Return the codes within `radius`, at most the `limit` nearest; `more` are the keywords of `answer`."""
        query = Query(None, radius, limit, None, None, threads, explain)
        return cast(RangeResult, self.answer(queries_QW, query, **more))


def check_rows(rows: int) -> int:
    """Return `rows` if one index can hold that many.

    Raises
    ------
    ValueError
        If it cannot.
    """
    if rows > MAX_ROWS:
        raise ValueError(f"an index can have at most {MAX_ROWS} codes, got {rows}: spread them over more shards")
    return rows


def check_build(codes_NW: CodeArray, ids_N: IdArray, bits: int) -> int:
    """Check all arguments of `Index.build`; return `bits`."""
    bits = check_bits(bits)
    if isinstance(codes_NW, np.ndarray):
        check_rows(len(codes_NW) if codes_NW.ndim else 0)
    check_codes(codes_NW, bits=bits, name="codes")
    check_ids(ids_N, rows=len(codes_NW))
    return bits


def check_arrays(codes_NW: CodeArray, ids_N: IdArray, bits: int) -> int:
    """Check dtype, shape and layout of arrays that were validated when they were written; return `bits`."""
    bits = check_bits(bits)
    for name, array in (("codes_NW", codes_NW), ("ids_N", ids_N)):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"`{name}` must be a numpy array, got {type(array).__name__}")
    shape = (len(codes_NW), num_words(bits))
    if codes_NW.dtype != np.uint64 or codes_NW.shape != shape or not codes_NW.flags.c_contiguous:
        raise ValueError(
            f"`codes_NW` must be C-contiguous uint64 of shape {shape} for {bits}-bit codes, "
            f"got {codes_NW.dtype} of shape {codes_NW.shape} with strides {codes_NW.strides}"
        )
    if ids_N.dtype != np.int64 or ids_N.shape != shape[:1] or not ids_N.flags.c_contiguous:
        raise ValueError(
            f"`ids_N` must be C-contiguous int64 of shape {shape[:1]}, got {ids_N.dtype} of shape {ids_N.shape}"
        )
    check_rows(len(codes_NW))
    return bits


def check_mask(mask: object, *, rows: int) -> RowMask | None:
    """Return a mask if it is None or tells of each of `rows` rows whether it may be returned.

    Raises
    ------
    TypeError
        If it is neither a mask nor an array of bool.
    ValueError
        If the shape or the layout is wrong.
    """
    if mask is None:
        return None
    if isinstance(mask, RowMask):
        if len(mask) != rows:
            raise ValueError(f"`mask` must be of {rows} rows, got {mask!r}")
        return mask
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        got = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise TypeError(f"`mask` must be a bool array of shape ({rows},), True for rows that may answer, got {got}")
    if mask.shape != (rows,) or not mask.flags.c_contiguous:
        raise ValueError(
            f"`mask` must be contiguous of shape ({rows},), one entry per row, "
            f"got shape {mask.shape} with strides {mask.strides}"
        )
    return RowMask.of(mask)


def check_farthest(farthest_Q: NDArray[np.int32] | None, *, rows: int, bits: int) -> NDArray[np.int32]:
    """Return the maximum distance of an answer to each of `rows` queries, as a new array; None means any distance.

    Raises
    ------
    TypeError, ValueError
        If it is not an int32 array of that length.
    """
    if farthest_Q is None:
        return np.full(rows, bits, np.int32)
    if not isinstance(farthest_Q, np.ndarray) or farthest_Q.dtype != np.int32:
        got = farthest_Q.dtype if isinstance(farthest_Q, np.ndarray) else type(farthest_Q).__name__
        raise TypeError(f"`farthest_Q` must be an int32 array of shape ({rows},), got {got}")
    if farthest_Q.shape != (rows,):
        raise ValueError(f"`farthest_Q` must have shape ({rows},), one distance per query, got {farthest_Q.shape}")
    return np.minimum(farthest_Q, np.int32(bits))
