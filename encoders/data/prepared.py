"""Resized images, kept in memory if they are few, else in a file that is gone with the process."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.data.preprocessing import Preprocessing

# Of all images together: 300,000 grey ones of 28x28, or 1,600 coloured ones of 224x224.
MEMORY_BYTES = 250_000_000


class PreparedImages:
    """Resized images, as `Preprocessing.pixels` makes them.

    Attributes
    ----------
    pixels_NHWC : ndarray of uint8, shape (N, size, size, channels)
        In memory, or mapped from a file that is gone with the process.
    preprocessing : Preprocessing
    """

    def __init__(self, pixels_NHWC: NDArray[np.uint8], preprocessing: Preprocessing):
        self.pixels_NHWC = pixels_NHWC
        self.preprocessing = preprocessing

    @classmethod
    def gather(
        cls, batches: Iterable[NDArray[np.uint8]], preprocessing: Preprocessing, folder: Path | None = None
    ) -> PreparedImages:
        """Keep the pixels of all batches: in memory as long as they are few, else in a file.

        Parameters
        ----------
        batches : iterable of ndarray of uint8, shape (R, size, size, channels)
            Each is copied before the next is asked for.
        preprocessing : Preprocessing
        folder : Path, optional
            Where the file is, which has no name; by default the folder for temporary files.

        Raises
        ------
        OSError
            If the disk is full.
        """
        shape = (preprocessing.size, preprocessing.size, preprocessing.channels)
        held: list[NDArray[np.uint8]] = []
        num_bytes, file = 0, None
        with contextlib.ExitStack() as stack:
            for pixels_RHWC in batches:
                num_bytes += pixels_RHWC.nbytes
                if file is None and num_bytes <= MEMORY_BYTES:
                    held.append(pixels_RHWC.copy())
                    continue
                if file is None:
                    file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
                    file.writelines(pixels.data for pixels in held)
                    held.clear()
                # Written, not mapped: a full disk is then an error and not a signal.
                file.write(np.ascontiguousarray(pixels_RHWC).data)
            if file is None:
                return cls(np.concatenate([np.empty((0, *shape), np.uint8), *held]), preprocessing)
            file.flush()
            # The map outlives the file.
            return cls(np.memmap(file, np.uint8, "r").reshape(-1, *shape), preprocessing)

    def __len__(self) -> int:
        return len(self.pixels_NHWC)
