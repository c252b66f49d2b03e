"""Arrays in the form that kernels take: always the same type, so that each kernel is compiled only once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a plain read-only view, even of a memory map; a copy if it is not aligned, because kernels rely on it."""
    view = np.asarray(array).view() if array.flags.aligned else np.array(array)
    view.flags.writeable = False
    return view


def bytes_of(codes_NW: CodeArray) -> NDArray[np.uint8]:
    """Return the bytes of codes, which need not be aligned."""
    return read_only(np.asarray(codes_NW).reshape(-1).view(np.uint8))  # bytes are always aligned
