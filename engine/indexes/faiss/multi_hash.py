"""FAISS's multi-hash behind the `Index` interface, made exact, as a baseline to compare with."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import WORD_BITS, CodeArray, IdArray, num_words
from hashlight.engine.extras import import_faiss
from hashlight.engine.indexes.faiss.base import FaissHits, FaissIndex, faiss_range_search, flat_reach
from hashlight.engine.indexes.masks import RowMask

MAX_TABLES = 16
MAX_WIDTH = 24


class FaissMultiHashIndex(FaissIndex):
    """`faiss.IndexBinaryMultiHash` with settings that make it exact.

    FAISS looks up buckets within `nflip` bits in each of `nhash` tables, so a code within `radius` is guaranteed to be
    found only with `nflip = radius // nhash`. Its own kNN uses a fixed `nflip` and may miss neighbours; here the radius
    grows until k codes are within it. If more buckets would be looked up than there are codes, the codes are scanned.
    """

    plan = "faiss-multi-hash"

    def __init__(self, *, faiss_index: Any, ids_N: IdArray, bits: int) -> None:
        super().__init__(faiss_index=faiss_index, ids_N=ids_N, bits=bits)
        self._nflip_lock = threading.Lock()  # `nflip` is a field of FAISS's index

    @classmethod
    def _empty_index(cls, bits: int, rows: int) -> Any:
        # Substrings of about log2(rows) bits: about one code per bucket.
        wanted = min(max(math.log2(max(rows, 2)), 1.0), MAX_WIDTH)
        nhash = max(1, min(round(bits / wanted), MAX_TABLES))
        width = min(bits // nhash, math.ceil(wanted))
        return import_faiss().IndexBinaryMultiHash(WORD_BITS * num_words(bits), nhash, width)

    def _rows_within(self, queries_QW: CodeArray, radius: int, mask: RowMask | None) -> FaissHits:
        nflip = radius // self._index.nhash
        if self._lookups(nflip) > len(self):
            return faiss_range_search(self._index.storage, queries_QW, radius)
        with self._nflip_lock:
            self._index.nflip = min(nflip, self._index.b)  # beyond the width FAISS would loop forever
            return faiss_range_search(self._index, queries_QW, radius)

    def _reach(self, queries_QW: CodeArray, k: int, mask: RowMask | None) -> NDArray[np.int64]:
        reach_Q = np.full(len(queries_QW), -1, np.int64)
        # With all bits of a substring flipped, every row was looked at: fewer than `k` may answer.
        for nflip in range(self._index.b + 1):
            open_Q = np.flatnonzero(reach_Q < 0)
            if not len(open_Q) or self._lookups(nflip) > len(self):
                break
            radius = min(self._index.nhash * (nflip + 1) - 1, self.bits)
            lims, distances, rows = self._rows_within(queries_QW[open_Q], radius, mask)
            for place, query in enumerate(open_Q):
                found = slice(lims[place], lims[place + 1])
                near = distances[found] if mask is None else distances[found][mask.allows(rows[found])]
                if len(near) >= k:
                    reach_Q[query] = np.partition(near, k - 1)[k - 1]
        open_Q = np.flatnonzero(reach_Q < 0)
        if len(open_Q):
            reach_Q[open_Q] = flat_reach(self._faiss, self._index.storage, queries_QW[open_Q], k, mask)
        return reach_Q

    def _lookups(self, nflip: int) -> int:
        """Return how many buckets a query looks up."""
        width = self._index.b
        return int(self._index.nhash * sum(math.comb(width, ones) for ones in range(min(nflip, width) + 1)))
