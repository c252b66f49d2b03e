"""Copy codes: low frequencies of a grey image, compared with their own median. They find copies, and need no fit.

pdq    PDQ, 256 bits (Meta, "The TMK+PDQF video-hashing algorithm and the PDQ image-hashing algorithm", 2019): the image
       at 512 x 512, smoothed twice by a box of 4, at 64 x 64, and its frequencies 1 to 16 in both directions.
       The reference smooths smaller images at their own size, so that a few bits may differ from its.
phash  pHash, 64 bits, as ImageHash computes it (Krawetz, "Looks like it", 2011): the image at 32 x 32, and its
       frequencies 0 to 7.

All steps are linear and act on rows and columns in the same way, so that the frequencies are `A P A'` for one matrix A.

Shapes: N images, R of them in a call, S their side, F frequencies, B = F * F bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.runtimes.protocol import Outputs, PixelsOf
from hashlight.encoders.runtimes.threads import run_batches, usable_threads

Float64Array = NDArray[np.float64]

_IMAGES_A_CALL = 16
# Rounding differs between processors, by some 1e-10. Frequencies that are equal, such as those that an image with a
# symmetry does not have, must stay equal, or the bits would be those of the rounding.
_DECIMALS = 6


class CopyCode(NamedTuple):
    """A copy code.

    Attributes
    ----------
    title : str
    preprocessing : Preprocessing
    rows : callable
        Returns the matrix A, shape (F, S), float64.
    """

    title: str
    preprocessing: Preprocessing
    rows: Callable[[], Float64Array]


def _cosines(frequencies: range, side: int) -> Float64Array:
    """Return rows of the DCT-II, (F, S), of length 1."""
    frequency_F, position_S = np.array(frequencies, np.float64), np.arange(side)
    rows_FS: Float64Array = np.sqrt(2 / side) * np.cos(np.pi / (2 * side) * frequency_F[:, None] * (2 * position_S + 1))
    return rows_FS


def _pdq_rows() -> Float64Array:
    side, small, before, after = 512, 64, 1, 2
    position_S = np.arange(side)
    offset_SS = position_S[None, :] - position_S[:, None]
    box_SS = ((offset_SS >= -before) & (offset_SS <= after)).astype(np.float64)
    box_SS /= box_SS.sum(axis=1, keepdims=True)
    middle = ((np.arange(small) + 0.5) * (side / small)).astype(np.int64)
    rows_FS: Float64Array = _cosines(range(1, 17), small) @ (box_SS @ box_SS)[middle]
    return rows_FS


def _grey(size: int, interpolation: str, draft: int) -> Preprocessing:
    return Preprocessing(size=size, channels=1, mean=(0.5,), std=(0.5,), interpolation=interpolation, draft=draft)


COPY_CODES = {
    "pdq": CopyCode("PDQ", _grey(512, "bilinear", 2), _pdq_rows),
    "phash": CopyCode("pHash", _grey(32, "lanczos", 8), lambda: _cosines(range(8), 32) * np.sqrt(32 / 2) * 2),
}


class DctRuntime:
    """Computes frequencies, and how far each is above their median.

    Parameters
    ----------
    rows : ndarray of float64, shape (F, S)
    """

    def __init__(self, rows: Float64Array) -> None:
        self._row_FS = rows

    @property
    def feature_dim(self) -> int:
        """Number of frequencies."""
        return len(self._row_FS) ** 2

    @property
    def batch_size(self) -> int:
        """How many images one call computes."""
        return _IMAGES_A_CALL

    @property
    def images_at_once(self) -> int:
        """How many images are computed at a time, by all threads."""
        return usable_threads()

    def run(self, num_images: int, pixels_of: PixelsOf) -> Outputs:
        """Return the outputs for N images; see `Runtime`."""
        outputs = Outputs.empty(num_images, self.feature_dim, self.feature_dim)

        def run(index: int) -> None:
            rows = slice(index * _IMAGES_A_CALL, min((index + 1) * _IMAGES_A_CALL, num_images))
            pixels_RSS = pixels_of(rows)[..., 0].astype(np.float64)
            frequency_RFF = np.round(self._row_FS @ pixels_RSS @ self._row_FS.T, _DECIMALS)
            frequency_RB = frequency_RFF.reshape(len(pixels_RSS), -1)
            outputs.features[rows] = frequency_RB
            outputs.z[rows] = frequency_RB - np.median(frequency_RB, axis=1, keepdims=True)

        run_batches(run, -(-num_images // _IMAGES_A_CALL), usable_threads())
        return outputs
