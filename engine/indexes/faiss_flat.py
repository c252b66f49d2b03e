"""FAISS's own scan behind the protocol: the reference to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.codes import CodeArray
from engine.indexes.base import RowMask
from engine.indexes.faiss_base import FaissHits, FaissIndex, reach_of
from engine.storage.faiss_file import import_faiss


class FaissFlatIndex(FaissIndex):
    """`faiss.IndexBinaryFlat`: every query is compared with every code."""

    @classmethod
    def _empty_index(cls, dimension: int, rows: int) -> Any:
        return import_faiss().IndexBinaryFlat(dimension)

    def _rows_within(self, queries_QW: CodeArray, radius: int, mask: RowMask | None) -> FaissHits:
        return self._faiss_range_search(queries_QW, radius)

    def _reach(self, queries_QW: CodeArray, k: int, mask: RowMask | None) -> NDArray[np.int64]:
        params = None
        if mask is not None:
            bitmap = np.packbits(mask, bitorder="little")
            params = self._faiss.SearchParameters(sel=self._faiss.IDSelectorBitmap(bitmap))
        return reach_of(*self._index.search(queries_QW.view(np.uint8), k, params=params))
