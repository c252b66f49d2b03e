"""What kernels take together, as named tuples: a legend of every array that travels with others.

Shapes: N rows, sorted by (code, id), W words a code, D distinct codes, T tables, Q queries, K nearest, H places for
hits, B codes of a block, P buckets and C candidates of scratch, S = widest substring + 1.

A kernel that is called from Python takes each as a plain tuple in this order, `rows_` for `Rows`, and names it first of
all. Measured for a tuple of 12 arrays: to recognise it at a call, numba takes 1.4 us if it is named and 0.2 us if it is
plain. Inside kernels tuples cost nothing.
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
        The bytes of the codes, which may start at any address (see `popcount`).
    id_N : ndarray of int64, shape (N,)
    num_words, num_rows : int
        W and N.
    """

    code_bytes: NDArray[np.uint8]
    id_N: NDArray[np.int64]
    num_words: int
    num_rows: int


class TableArrays(NamedTuple):
    """The tables of a multi-index.

    Attributes
    ----------
    low_T, width_T : ndarray of int64, shape (T,)
        Substring t is bits [low, low + width) of the code; substring 0 holds the highest bits.
    begin_T : ndarray of int64, shape (T,)
        Where the 2^width + 1 offsets of table t begin in `offset_O`.
    submask_TW : ndarray of uint64, shape (T, W)
        The bits of substring t.
    sketch_T4 : ndarray of int64, shape (T, 4)
        (low, width, low, width): the two runs of bits, none of substring t, that the sketches of table t hold.
    offset_O : ndarray of uint32, shape (sum of 2^width + 1,)
        Bucket v of table t is entries [offset[v], offset[v + 1]) of that table's list.
    entry_bytes : ndarray of uint8, shape (8 ((T - 1) D + 8),)
        The lists of tables 1.., D entries each, and eight to read beyond; each a uint64 with the first row of a
        distinct code in the low `row_bits` and a sketch of the code above.
    start_D : ndarray of uint32, shape (D,) or (0,)
        The list of table 0, ascending because rows are sorted; empty if all codes are distinct, as the list is then
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
    """How much work a step of the tables is.

    Attributes
    ----------
    count_TS : ndarray of int64, shape (T, S + 1)
        Masks, which is buckets looked up, of each substring radius.
    mean_T : ndarray of float64, shape (T,)
        Mean size of a bucket.
    """

    count_TS: NDArray[np.int64]
    mean_T: NDArray[np.float64]


class Step(NamedTuple):
    """One step of a search through the tables: all buckets of one table at one substring distance.

    Attributes
    ----------
    query, table : int
        Their numbers.
    reach : int
        The substring distance.
    """

    query: int
    table: int
    reach: int


class Scratch(NamedTuple):
    """Arrays of one thread for the tables, undefined between kernels.

    Attributes
    ----------
    from_P, to_P : ndarray of int64, shape (P,)
        Entries [from, to) of the buckets looked up that are not empty.
    place_2 : ndarray of int64, shape (2,)
        The (bucket, entry) to go on from.
    row_C : ndarray of int64, shape (C,)
        Rows that may be near.
    seen_T : ndarray of int64, shape (T,)
        How far each table was probed, -1 for not at all.
    met_T : ndarray of float64, shape (T,)
        How many entries a table's last step met, -1 before its first.
    """

    from_P: NDArray[np.int64]
    to_P: NDArray[np.int64]
    place_2: NDArray[np.int64]
    row_C: NDArray[np.int64]
    seen_T: NDArray[np.int64]
    met_T: NDArray[np.float64]


class Work(NamedTuple):
    """What the tables were asked, by query.

    Attributes
    ----------
    probes_Q, candidates_Q : ndarray of int64, shape (Q,)
        Buckets looked up, and entries met there.
    """

    probes_Q: NDArray[np.int64]
    candidates_Q: NDArray[np.int64]


class Budget(NamedTuple):
    """When a kNN query gives the tables up.

    Attributes
    ----------
    mask_ns, candidate_ns, read_ns : float
        Cost of looking up a bucket, of an entry in it, and of reading the code of an entry that was not dismissed.
    scan_ns : float
        Give up when the steps that remain cost more than this, which is what a scan costs...
    trial_ns : float
        ...but not before this much was spent.
    likely_radius : int
        How far the k-th is thought to be.
    """

    mask_ns: float
    candidate_ns: float
    read_ns: float
    scan_ns: float
    trial_ns: float
    likely_radius: int


class Prices(NamedTuple):
    """What a radius search is priced by, in nanoseconds.

    Attributes
    ----------
    lookups_ns : float
        All lookups of a query.
    candidate_ns, read_ns, near_ns : float
        An entry of a bucket; what comes on top where its code is read; and where it is near.
    scan_ns, shared_scan_ns : float
        A scan for one query, and a query's part in the scan of the batch.
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
        The codes, plane by plane; B is a multiple of `scan.STRIDE`.
    row_B : ndarray of uint32, shape (B,)
        Their rows.
    dist_B : ndarray of uint64, shape (B,)
        Their distances from one query.
    """

    word_WB: NDArray[np.uint64]
    row_B: NDArray[np.uint32]
    dist_B: NDArray[np.uint64]


class Hits(NamedTuple):
    """Places for hits of a radius search.

    Attributes
    ----------
    query_H, dist_H : ndarray of int32, shape (H,)
        The query's number among those that were asked together, and the distance.
    row_H : ndarray of uint32, shape (H,)
    """

    query_H: NDArray[np.int32]
    row_H: NDArray[np.uint32]
    dist_H: NDArray[np.int32]


class Heaps(NamedTuple):
    """The nearest so far of each query, a heap each (see `select`).

    Attributes
    ----------
    dist_QK : ndarray of int32, shape (Q, K)
    id_QK : ndarray of int64, shape (Q, K)
    """

    dist_QK: NDArray[np.int32]
    id_QK: NDArray[np.int64]
