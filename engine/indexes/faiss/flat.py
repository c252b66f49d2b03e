"""FAISS's own scan behind the `Index` interface."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import WORD_BITS, CodeArray, num_words
from hashlight.engine.extras import import_faiss
from hashlight.engine.indexes.faiss.base import FaissHits, FaissIndex, faiss_range_search, flat_reach
from hashlight.engine.indexes.masks import RowMask


class FaissFlatIndex(FaissIndex):
    """`faiss.IndexBinaryFlat`: every query is compared with every code."""

    plan = "faiss-flat"

    @classmethod
    def _empty_index(cls, bits: int, rows: int) -> Any:
        return import_faiss().IndexBinaryFlat(WORD_BITS * num_words(bits))

    def _rows_within(self, queries_QW: CodeArray, radius: int, mask: RowMask | None) -> FaissHits:
        return faiss_range_search(self._index, queries_QW, radius)

    def _reach(self, queries_QW: CodeArray, k: int, mask: RowMask | None) -> NDArray[np.int64]:
        return flat_reach(self._faiss, self._index, queries_QW, k, mask)
