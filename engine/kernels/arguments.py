"""Named tuples of the arrays that kernels take together, with the shape and meaning of each array.

Shapes: N rows, sorted by (code, id), W words per code, V words of a mask, L listed rows, D distinct codes, T tables,
Q queries, K nearest, H slots for hits, B codes per block, P buckets and C candidates of scratch, S = widest
substring + 1.

A kernel that is called from Python takes each of them as a plain tuple in this order (`rows_` for `Rows`) and rebuilds
the named tuple first. Measured with 12 arrays: numba needs 1.4 us to identify the type of a named tuple at each call,
0.2 us for a plain one. Inside kernels tuples cost nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Rows(NamedTuple):
    """The rows of an index.

    Attributes
    ----------
    code_bytes : ndarray of uint8, shape (8 N W,)
        The bytes of the codes; they need not be aligned (see `popcount`).
    id_N : ndarray of int64, shape (N,)
    num_words, num_rows : int
        W and N.
    """

    code_bytes: NDArray[np.uint8]
    id_N: NDArray[np.int64]
    num_words: int
    num_rows: int


class Allowed(NamedTuple):
    """The rows that may be returned (see `masks`).

    Attributes
    ----------
    word_V : ndarray of uint64, shape (ceil(N / 64),) or (0,)
        The mask; empty if every row may be returned, or if they are listed.
    row_L : ndarray of uint32, shape (L,)
        The rows, ascending, if they are listed.
    listed : bool
    num_allowed : int
        How many they are.
    """

    word_V: NDArray[np.uint64]
    row_L: NDArray[np.uint32]
    listed: bool
    num_allowed: int


class TableArrays(NamedTuple):
    """The tables of a multi-index.

    Attributes
    ----------
    low_T, width_T : ndarray of int64, shape (T,)
        Substring t is bits [low, low + width) of the code; substring 0 is the most significant.
    begin_T : ndarray of int64, shape (T,)
        Where the 2^width + 1 offsets of table t start in `offset_O`.
    submask_TW : ndarray of uint64, shape (T, W)
        Mask of the bits of substring t.
    sketch_T4 : ndarray of int64, shape (T, 4)
        (low, width, low, width): the two runs of bits outside substring t that the sketches of table t hold.
    offset_O : ndarray of uint32, shape (sum of 2^width + 1,)
        Bucket v of table t is entries [offset[v], offset[v + 1]) of that table's list.
    entry_bytes : ndarray of uint8, shape (8 ((T - 1) D + 8),)
        The lists of tables 1, 2, ... with D entries each, then eight entries of padding, because kernels read eight at
        a time. An entry is a uint64: the first row of a distinct code in the low `row_bits`, a sketch of the code in
        the bits above.
    start_D : ndarray of uint32, shape (D,) or (0,)
        The list of table 0, ascending because rows are sorted. Empty if all codes are distinct: the list would be
        0, 1, 2...
    num_distinct, row_bits : int
        D, and the low bits of an entry that hold the row.
    """

    low_T: NDArray[np.int64]
    width_T: NDArray[np.int64]
    begin_T: NDArray[np.int64]
    submask_TW: NDArray[np.uint64]
    sketch_T4: NDArray[np.int64]
    offset_O: NDArray[np.uint32]
    entry_bytes: NDArray[np.uint8]
    start_D: NDArray[np.uint32]
    num_distinct: int
    row_bits: int


class Sizes(NamedTuple):
    """How much work each step of a search through the tables is.

    Attributes
    ----------
    count_TS : ndarray of int64, shape (T, S + 1)
        Number of masks, and so of buckets looked up, for each substring radius.
    mean_T : ndarray of float64, shape (T,)
        Mean bucket size.
    """

    count_TS: NDArray[np.int64]
    mean_T: NDArray[np.float64]


class Step(NamedTuple):
    """One step of a search through the tables: all buckets of one table at one substring distance.

    Attributes
    ----------
    query, table : int
        Index of the query in the batch, and of the table.
    reach : int
        The substring distance.
    """

    query: int
    table: int
    reach: int


class Scratch(NamedTuple):
    """Scratch arrays of one thread for searches through the tables; their contents are undefined between kernels.

    Attributes
    ----------
    from_P, to_P : ndarray of int64, shape (P,)
        Entries [from, to) of the non-empty buckets.
    place_2 : ndarray of int64, shape (2,)
        The (bucket, entry) to resume from.
    row_C : ndarray of int64, shape (C,)
        Candidate rows.
    seen_T : ndarray of int64, shape (T,)
        Largest substring distance probed in each table, -1 for none.
    met_T : ndarray of float64, shape (T,)
        Number of entries that a table's last step met, -1 before its first.
    stop_1 : ndarray of uint8, shape (1,)
        Not 0 once the search is to end; what is found then is not an answer.
    """

    from_P: NDArray[np.int64]
    to_P: NDArray[np.int64]
    place_2: NDArray[np.int64]
    row_C: NDArray[np.int64]
    seen_T: NDArray[np.int64]
    met_T: NDArray[np.float64]
    stop_1: NDArray[np.uint8]


class Work(NamedTuple):
    """Work done in the tables for each query.

    Attributes
    ----------
    probes_Q, candidates_Q : ndarray of int64, shape (Q,)
        Buckets looked up, and entries met in them.
    """

    probes_Q: NDArray[np.int64]
    candidates_Q: NDArray[np.int64]


class Budget(NamedTuple):
    """When a kNN query gives up on the tables.

    Attributes
    ----------
    mask_ns, candidate_ns : float
        Cost of looking up a bucket, and of an entry in it.
    tested_ns, read_ns : float
        What an entry that was not dismissed adds: asking the filter for its row, and reading its code if allowed.
    scan_ns : float
        Cost of a scan: give up when the remaining steps cost more...
    trial_ns : float
        ...but not before this much has been spent.
    likely_radius : int
        Expected distance of the k-th neighbour.
    """

    mask_ns: float
    candidate_ns: float
    tested_ns: float
    read_ns: float
    scan_ns: float
    trial_ns: float
    likely_radius: int


class Prices(NamedTuple):
    """Costs from which the price of a radius search is computed, in nanoseconds.

    Attributes
    ----------
    lookups_ns : float
        All lookups of a query.
    candidate_ns, read_ns, near_ns : float
        Cost of a bucket entry, and what reading its code and reporting it as a hit add.
    scan_ns, shared_scan_ns : float
        A scan for one query, and a query's share of a scan for the batch.
    """

    lookups_ns: float
    candidate_ns: float
    read_ns: float
    near_ns: float
    scan_ns: float
    shared_scan_ns: float


class Block(NamedTuple):
    """A block of codes that stays in the L1 cache while queries pass over it.

    Attributes
    ----------
    word_WB : ndarray of uint64, shape (W, B)
        The codes, one plane per word; B is a multiple of `scan.STRIDE`.
    row_B : ndarray of uint32, shape (B,)
        Row of each code.
    dist_B : ndarray of uint64, shape (B,)
        Distance of each code from one query.
    stop_1 : ndarray of uint8, shape (1,)
        Not 0 once the search is to end; what is found then is not an answer.
    """

    word_WB: NDArray[np.uint64]
    row_B: NDArray[np.uint32]
    dist_B: NDArray[np.uint64]
    stop_1: NDArray[np.uint8]


class Hits(NamedTuple):
    """Buffers for the hits of a radius search.

    Attributes
    ----------
    query_H, dist_H : ndarray of int32, shape (H,)
        Index of the query among those asked together, and the distance.
    row_H : ndarray of uint32, shape (H,)
    """

    query_H: NDArray[np.int32]
    row_H: NDArray[np.uint32]
    dist_H: NDArray[np.int32]


class Heaps(NamedTuple):
    """The nearest rows found so far, one heap per query (see `select`).

    Attributes
    ----------
    dist_QK : ndarray of int32, shape (Q, K)
    id_QK : ndarray of int64, shape (Q, K)
    """

    dist_QK: NDArray[np.int32]
    id_QK: NDArray[np.int64]
