"""Embeddings to bits, in numpy, by signs that are exact.

Products of matrices are rounded, in an order that depends on their shapes, on the number of threads and on the
processor, and a number next to zero may come out on either side of it. Here a bit is the sign of the exact sum: a
product in single precision decides where it is farther from zero than the error can be, and the others, about one in a
thousand, are computed again in double precision, and exactly where that is not enough either. So an embedding's code
depends on the embedding and on the weights alone.

Of a cosine (spectral hashing) the sign is that of double precision, summed in a fixed order.

Shapes: N embeddings, R of them in a block, D numbers each, B bits, P bits in doubt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hashlight.encoders.fits.hashers import LINEAR, SPECTRAL, Features, Hasher, LinearHasher, SpectralHasher
from hashlight.encoders.fits.streaming import ArrayStream, Stream
from hashlight.encoders.packing import CodeArray, pack_bits

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

# Rows and their outputs stay in the caches between one pass over them and the next.
_BLOCK_ROWS = 2048
_PAIRS_AT_ONCE = 2048
_EXAMPLES = 1000
_UNIT_32, _UNIT_64 = 2.0**-24, 2.0**-53
# What a product may lose below the smallest normal number, generously.
_UNDERFLOW = 2.0**-120
_OVERFLOW = 1e37


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EmbeddingHead:
    """The hash layer of an encoder of embeddings: `x @ weight + s * bias`, or the cosine of 1 / s of it; 1 above 0.

    s is the length of x, rounded to single precision, if embeddings are normalised: the sign of the sum is then that of
    the normalised embedding, which need not be computed. Otherwise it is 1.

    Attributes
    ----------
    kind : str
        "linear" or "spectral".
    weight : ndarray of float32, shape (D, B)
    bias : ndarray of float32, shape (B,)
    normalise : bool
    """

    kind: str
    weight: Float32Array
    bias: Float32Array
    normalise: bool
    _bounds: _Bounds = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[1:] or 0 in self.weight.shape:
            raise ValueError(
                f"`weight` and `bias` must have shapes (D, B) and (B,), got {self.weight.shape} and {self.bias.shape}"
            )
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise ValueError("`weight` and `bias` must be finite: fit the encoder again")
        object.__setattr__(self, "_bounds", _Bounds.of(self.weight, self.bias))

    @classmethod
    def of(cls, hasher: Hasher, *, normalise: bool) -> EmbeddingHead:
        """Return the head that computes what a fitted hasher computes, in single precision."""
        if isinstance(hasher, SpectralHasher):
            kind, bias = SPECTRAL, hasher.bias
        else:
            assert isinstance(hasher, LinearHasher), f"no head for {type(hasher).__name__}"
            kind, bias = LINEAR, -hasher.mean @ hasher.weight
        weight_DB = np.ascontiguousarray(hasher.weight, np.float32)
        return cls(kind, weight_DB, bias.astype(np.float32), normalise)

    @property
    def dims(self) -> int:
        """Numbers in an embedding."""
        return int(self.weight.shape[0])

    @property
    def bits(self) -> int:
        """Number of bits in a code."""
        return int(self.weight.shape[1])

    def encode(self, x_ND: Features) -> CodeArray:
        """Return the codes (N, ceil(B / 64)) uint64 of usable embeddings."""
        codes_NW = np.empty((len(x_ND), -(-self.bits // 64)), np.uint64)
        for rows, block_RD in blocks(x_ND):
            codes_NW[rows] = pack_bits(self._bits_of(block_RD))
        return codes_NW

    def project(self, x_ND: Features) -> Float32Array:
        """Return the real numbers (N, B) of usable embeddings, whose signs are the bits but for rounding."""
        z_NB = np.empty((len(x_ND), self.bits), np.float32)
        for rows, block_RD in blocks(x_ND):
            z_NB[rows] = self._entering(block_RD) @ self.weight + self.bias
        return np.asarray(np.cos(z_NB), np.float32) if self.kind == SPECTRAL else z_NB

    def features(self, x_ND: Features) -> Float32Array:
        """Return embeddings (N, D) as they enter the hash layer: normalised, if that is asked."""
        feature_ND = np.empty(x_ND.shape, np.float32)
        for rows, block_RD in blocks(x_ND):
            feature_ND[rows] = self._entering(block_RD)
        return feature_ND

    def _entering(self, block_RD: Float32Array) -> Float32Array:
        return normalised(block_RD, lengths(block_RD)) if self.normalise else block_RD

    def unusable(self, x_ND: Features) -> dict[int, str]:
        """Return the rows that have no code, and why."""
        return unusable(x_ND, normalise=self.normalise)

    def _bits_of(self, block_RD: Float32Array) -> NDArray[np.bool_]:
        length_R = lengths(block_RD)
        scale_R = length_R.astype(np.float32) if self.normalise else np.ones(len(block_RD), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            z_RB = block_RD @ self.weight
            z_RB += scale_R[:, None] * self.bias if self.normalise else self.bias
            margin_R = self._bounds.margins(length_R, scale_R)
            if self.kind == SPECTRAL:
                z_RB /= scale_R[:, None]
                np.cos(z_RB, out=z_RB)
                margin_R = margin_R / scale_R + np.float32(4 * _UNIT_32)
            bit_RB = z_RB > 0
            np.abs(z_RB, out=z_RB)
            # A comparison with nan, or with an infinite margin, leaves a bit in doubt.
            in_doubt_RB = ~(z_RB > margin_R[:, None])
        row_P, column_P = np.divmod(np.flatnonzero(in_doubt_RB), self.bits)
        for start in range(0, len(row_P), _PAIRS_AT_ONCE):
            some = slice(start, start + _PAIRS_AT_ONCE)
            bit_RB[row_P[some], column_P[some]] = self._settle(block_RD, scale_R, row_P[some], column_P[some])
        return bit_RB

    def _settle(
        self,
        block_RD: Float32Array,
        scale_R: Float32Array,
        row_P: NDArray[np.intp],
        column_P: NDArray[np.intp],
    ) -> NDArray[np.bool_]:
        """Return bits that single precision left in doubt."""
        # The product of two numbers of single precision is exact in double precision; only their sum is rounded.
        product_PE = np.empty((len(row_P), self.dims + 1))
        np.multiply(block_RD[row_P], self._bounds.by_bit[column_P], out=product_PE[:, :-1], dtype=np.float64)
        np.multiply(scale_R[row_P], self.bias[column_P], out=product_PE[:, -1], dtype=np.float64)
        z_P = product_PE.sum(axis=1)
        error_P = (self.dims + 8) * _UNIT_64 * np.abs(product_PE).sum(axis=1)
        if self.kind == SPECTRAL:
            return np.asarray(np.cos(z_P / scale_R[row_P]) > 0, np.bool_)
        bit_P: NDArray[np.bool_] = z_P > 0
        for place in np.flatnonzero(~(np.abs(z_P) > error_P)).tolist():
            bit_P[place] = math.fsum(product_PE[place].tolist()) > 0
        return bit_P


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Bounds:
    """How far from the exact sum a product in single precision can be, whatever the order of its sums.

    A sum of D + 1 products is off by at most (D + 1) units of rounding, relative to the sum of their magnitudes, which
    is at most the product of the lengths (Higham, "Accuracy and stability of numerical algorithms", section 3.1).
    """

    by_bit: Float32Array
    longest: float
    largest: float
    units: float

    @classmethod
    def of(cls, weight_DB: Float32Array, bias_B: Float32Array) -> _Bounds:
        longest = float(np.sqrt(np.square(weight_DB, dtype=np.float64).sum(axis=0)).max())
        largest = float(np.abs(bias_B).max())
        units = 1.01 * (len(weight_DB) + 8) * _UNIT_32
        return cls(np.ascontiguousarray(weight_DB.T), longest, largest, units)

    def margins(self, length_R: Float64Array, scale_R: Float32Array) -> Float32Array:
        """Return for each row how far from zero a number must be to have a sign that is certain."""
        size_R = length_R * self.longest + scale_R * self.largest
        margin_R = self.units * size_R + len(self.by_bit[0]) * _UNDERFLOW * (1 + self.longest + self.largest)
        # Part of a sum may overflow where the sum does not.
        return np.where(size_R < _OVERFLOW, margin_R, np.inf).astype(np.float32)


class EmbeddingStream:
    """Embeddings as they enter the hash layer: usable ones in single precision, normalised if that is asked.

    Parameters
    ----------
    embeddings : ndarray of float, shape (N, D), or Stream
    normalise : bool

    Attributes
    ----------
    rows : int
        Of the last pass, so far.
    examples : ndarray of float32, shape (up to 1000, D)
        The first ones.
    """

    def __init__(self, embeddings: Features | Stream, *, normalise: bool) -> None:
        self._stream = ArrayStream(check_embeddings(embeddings)) if isinstance(embeddings, np.ndarray) else embeddings
        self._normalise = normalise
        self.rows = 0
        self.examples = np.empty((0, self.dims), np.float32)

    @property
    def dims(self) -> int:
        """Numbers in an embedding."""
        return self._stream.dims

    def __iter__(self) -> Iterator[Float32Array]:
        """Start a pass."""
        self.rows = 0
        for batch_RD in self._stream:
            for _, block_RD in blocks(batch_RD):
                if bad := unusable(block_RD, normalise=self._normalise):
                    raise _refusal({self.rows + row: words for row, words in bad.items()})
                if self._normalise:
                    block_RD = normalised(block_RD, lengths(block_RD))
                if not self.rows:
                    self.examples = block_RD[:_EXAMPLES].copy()
                self.rows += len(block_RD)
                yield block_RD


def check_embeddings(embeddings: object, dims: int | None = None) -> Features:
    """Return embeddings, or raise TypeError or ValueError unless they are floats of shape (N, `dims`)."""
    if not isinstance(embeddings, np.ndarray) or embeddings.dtype.kind != "f":
        got = embeddings.dtype if isinstance(embeddings, np.ndarray) else type(embeddings).__name__
        raise TypeError(f"`embeddings` must be an array of floats, got {got}: convert them with numpy.asarray")
    if embeddings.ndim != 2 or 0 in embeddings.shape[1:] or dims not in (None, embeddings.shape[1]):
        raise ValueError(
            f"`embeddings` must have shape (N, {dims or 'D'}), got {embeddings.shape}: use embeddings of one network "
            "throughout, one in each row"
        )
    return embeddings


def check_usable(head: EmbeddingHead, x_ND: Features) -> Features:
    """Return embeddings, or raise ValueError if one of them has no code."""
    if bad := head.unusable(x_ND):
        raise _refusal(bad)
    return x_ND


def unusable(x_ND: Features, *, normalise: bool) -> dict[int, str]:
    """Return the rows of embeddings that have no code, and why."""
    found: dict[int, str] = {}
    for rows, block_RD in blocks(x_ND):
        length_R = lengths(block_RD)
        wrong_R = ~np.isfinite(length_R)
        if normalise:
            wrong_R |= length_R < np.finfo(np.float32).tiny
        for row in np.flatnonzero(wrong_R).tolist():
            bad = int((~np.isfinite(block_RD[row])).sum())
            words = f"{bad} of its {x_ND.shape[1]} numbers are nan or infinite" if bad else "its length is 0"
            found[rows.start + row] = words
    return found


def _refusal(bad: dict[int, str]) -> ValueError:
    row, words = next(iter(bad.items()))
    return ValueError(f"{len(bad)} of the `embeddings` have no code, the first in row {row}: {words}. Leave them out")


def blocks(x_ND: Features) -> Iterator[tuple[slice, Float32Array]]:
    """Yield the rows of embeddings, a few at a time, in single precision."""
    for start in range(0, len(x_ND), _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, len(x_ND)))
        with np.errstate(over="ignore"):  # what is beyond single precision becomes infinite, and is refused
            yield rows, np.ascontiguousarray(x_ND[rows], np.float32)


def normalised(block_RD: Float32Array, length_R: Float64Array) -> Float32Array:
    """Return rows of these lengths scaled to length 1."""
    return np.asarray(block_RD / length_R[:, None], np.float32)


def lengths(block_RD: Float32Array) -> Float64Array:
    """Return the length of each row; nan or infinite if one of its numbers is.

    Each row is summed by itself, in an order that depends on D alone.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt(np.square(block_RD, dtype=np.float64).sum(axis=1)), np.float64)
