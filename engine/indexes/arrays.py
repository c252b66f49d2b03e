"""Arrays as kernels take them: one type each, whatever was given, so that each kernel is compiled once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray

NO_MASK = np.empty(0, np.uint8)
NO_MASK.flags.writeable = False


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only plain view, of a memory map too; a copy if it is not aligned, which kernels rely on."""
    view = np.asarray(array).view() if array.flags.aligned else np.array(array)
    view.flags.writeable = False
    return view


def bytes_of(codes_NW: CodeArray) -> NDArray[np.uint8]:
    """Return the bytes of codes, which may start at any address."""
    return read_only(np.asarray(codes_NW).reshape(-1).view(np.uint8))  # bytes are aligned anywhere


def mask_bytes(mask: NDArray[np.bool_] | None) -> NDArray[np.uint8]:
    """Return a mask as uint8, empty for none."""
    return NO_MASK if mask is None else read_only(mask.view(np.uint8))
