"""Arrays in the form that kernels take: always the same type, so that each kernel is compiled only once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray

BEFORE_ALL = np.array([-1, -1], np.int64)
BEFORE_ALL.flags.writeable = False


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a plain read-only view, even of a memory map; a copy if it is not aligned, because kernels rely on it."""
    view = np.asarray(array).view() if array.flags.aligned else np.array(array)
    view.flags.writeable = False
    return view


def bytes_of(codes_NW: CodeArray) -> NDArray[np.uint8]:
    """Return the bytes of codes, which need not be aligned."""
    return read_only(np.asarray(codes_NW).reshape(-1).view(np.uint8))  # bytes are always aligned


def after_pair(after: tuple[int, int] | None) -> NDArray[np.int64]:
    """Return the (distance, id) that answers come after, as an array (2,); one before all answers for None."""
    return BEFORE_ALL if after is None else read_only(np.array(after, np.int64))
