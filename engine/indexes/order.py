"""The order of rows: ascending (code, id).

Codes compare as unsigned integers of `64 * W` bits whose last word is the most significant. So codes that agree in
their highest bits stand together, equal codes stand together, and among those ids ascend.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.codes import CodeArray, IdArray


def sort_rows(codes_NW: CodeArray, ids_N: IdArray, *, threads: int = 1) -> NDArray[np.int64]:
    """Return the permutation that puts rows into ascending order of (code, id).

    Parameters
    ----------
    codes_NW : ndarray of uint64, shape (N, W)
    ids_N : ndarray of int64, shape (N,)
    threads : int
        Parts that are sorted side by side.

    Returns
    -------
    ndarray of int64, shape (N,)
        `codes_NW[order]` and `ids_N[order]` are in order.
    """
    return np.lexsort((ids_N, *codes_NW.T))
