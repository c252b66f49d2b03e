"""Fine features as they are kept for re-ranking: in half of single precision, or in a quarter.

=========  ================  ============  ==============================================================
kind       `features.npy`    bytes a row   a number
=========  ================  ============  ==============================================================
float16    `<f2` (N, F)      2 F           11 significant bits, up to 65,504
bfloat16   `<u2` (N, F)      2 F           the upper half of a float32: 8 significant bits, up to 3.4e38
int8       `|u1` (N, 4 + F)  4 + F         a whole number of steps, -127 to 127; each row begins with its
                                           own step, a float32
=========  ================  ============  ==============================================================

A step of int8 is the row's largest magnitude divided by 127, rounded up to 17 significant bits: then a product of step
and number is exact in single precision, and numbers that were kept are kept again as they are. One step a dimension
keeps no more of the order (float's ten nearest among 6,786 pictures, EfficientNet-Lite0, cosine: 99.5 % both; float16
99.96 %, bfloat16 99.9 %), and would depend on the other rows.

N items, F dimensions, E columns of the file, M items asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.errors import CorruptDataError
from hashlight.engine.places.arrays import HEADER_BYTES, map_file, parse_array, parse_header, write_parts

FeatureKind = Literal["float16", "bfloat16", "int8"]
FLOAT16: FeatureKind = "float16"
KINDS: tuple[FeatureKind, ...] = get_args(FeatureKind)

_DTYPES: dict[FeatureKind, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int8": np.dtype("|u1"),
}
_MAX_STEPS = 127
_STEP_BYTES = 4
# The last bits of a float32 that a step leaves zero, so that 127 times it is exact.
_FREE_BITS = np.uint32(2**7 - 1)
# Below it single precision has fewer bits.
_LEAST_STEP = np.finfo(np.float32).tiny
# The largest finite number of each kind; a step that is rounded up must not become infinite.
_LARGEST: dict[FeatureKind, float] = {
    "float16": float(np.finfo(np.float16).max),
    "bfloat16": float(np.array(0x7F7F0000, np.uint32).view(np.float32)),
    "int8": 2.0**127,
}
_COPIED_ROWS = 65_536
_REMEDY = "restore it from a copy, or build the collection again"


def check_kind(kind: object, name: str = "features_as") -> FeatureKind:
    """Return the name of a kind; ValueError for any other."""
    for known in KINDS:
        if kind == known:
            return known
    raise ValueError(f"`{name}` must be one of {', '.join(KINDS)}, got {kind!r}")


def row_bytes(kind: FeatureKind, dims: int) -> int:
    """Return how many bytes the features of an item take."""
    return _STEP_BYTES + dims if kind == "int8" else 2 * dims


def dims_of(kind: FeatureKind, num_bytes: int) -> int:
    """Return how many numbers a row of so many bytes has."""
    return num_bytes - _STEP_BYTES if kind == "int8" else num_bytes // 2


def value_type(kind: FeatureKind) -> type[np.float16] | type[np.float32]:
    """Return the type in which features that are kept are given back, exactly."""
    return np.float16 if kind == "float16" else np.float32


@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Features:
    """Fine features of N items, as they are kept; indexed by rows, it gives their values.

    Attributes
    ----------
    packed : ndarray, shape (N, E)
        Rows of `features.npy`; perhaps mapped from one.
    kind : {"float16", "bfloat16", "int8"}
    """

    packed: NDArray[Any]
    kind: FeatureKind

    @classmethod
    def of(
        cls, values_NF: NDArray[np.floating[Any]], kind: FeatureKind = FLOAT16, *, name: str = "features"
    ) -> Features:
        """Round values to a kind.

        Parameters
        ----------
        values_NF : ndarray of float16 or float32, shape (N, F)
        kind : {"float16", "bfloat16", "int8"}
        name : str
            For the message.

        Raises
        ------
        ValueError
            If one is not finite, or would not be.
        """
        pack = {"float16": _as_float16, "bfloat16": _as_bfloat16, "int8": _as_int8}[check_kind(kind)]
        largest = min(_LARGEST[kind], float(np.finfo(values_NF.dtype).max))
        with np.errstate(over="ignore"):
            packed = pack(values_NF)
        # Of what is rounded away at the end of float16 and bfloat16, only the result tells.
        fits_N = (np.abs(values_NF) <= largest).all(axis=1) & np.isfinite(cls(packed, kind)[:]).all(axis=1)
        if not fits_N.all():
            raise ValueError(
                f"`{name}` must be finite as {kind}, up to {_text(_LARGEST[kind])}, got others in "
                f"{int((~fits_N).sum())} rows, first {int(fits_N.argmin())}: scale the features"
            )
        return cls(packed, kind)

    @property
    def shape(self) -> tuple[int, int]:
        """N and F."""
        return len(self.packed), dims_of(self.kind, self.packed.shape[1] * self.packed.itemsize)

    def __repr__(self) -> str:
        """Describe them."""
        return f"Features({self.shape[0]:,} of {self.shape[1]:,} dimensions, {self.kind})"

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.packed)

    def __getitem__(self, rows: Any) -> NDArray[np.float16] | NDArray[np.float32]:
        """Return the values (M, F) of some rows, as a slice or an array: float16, or float32 of the other kinds."""
        packed_ME = self.packed[rows]
        if self.kind == "float16":
            halves: NDArray[np.float16] = packed_ME.astype(np.float16, copy=False)
            return halves
        if self.kind == "bfloat16":
            upper: NDArray[np.float32] = (packed_ME.astype(np.uint32) << np.uint32(16)).view(np.float32)
            return upper
        step_M1 = np.ascontiguousarray(packed_ME[:, :_STEP_BYTES]).view("<f4").astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # of a file with a step that is not finite
            return np.asarray(packed_ME[:, _STEP_BYTES:].view(np.int8) * step_M1, np.float32)

    def take(self, rows: Any) -> Features:
        """Return some rows, as a slice or an array, as they are kept."""
        return Features(self.packed[rows], self.kind)

    def kept_as(self, kind: FeatureKind) -> Features:
        """Return them rounded to another kind; errors as in `of`."""
        return self if kind == self.kind else Features.of(self[:], kind)


# As values are given back, (N, F).
FeatureValues = NDArray[np.float16 | np.float32]

# What a collection takes as features of N items: values (N, F), or those that are rounded already.
FeaturesLike = FeatureValues | Features


def joined(parts: Iterable[Features]) -> Features:
    """Return the rows of features of one kind, one part after another."""
    found = list(parts)
    return Features(np.concatenate([part.packed for part in found]), found[0].kind)


def map_features(path: Path, rows: int | None = None) -> Features:
    """Map a file of features, whose type says of which kind they are.

    Raises
    ------
    CorruptDataError
        If it is not such a file, or has not this number of rows.
    """
    try:
        data = map_file(path)
    except FileNotFoundError as error:
        raise CorruptDataError(f"{path} is missing: {_REMEDY}") from error
    kind, _ = parse_kind(path, bytes(memoryview(data)[:HEADER_BYTES]))
    return Features(parse_array(path, data, _DTYPES[kind], (rows, None)), kind)


def parse_kind(name: object, head: bytes) -> tuple[FeatureKind, int]:
    """Return the kind and the dimensions of a file of features, from its first `HEADER_BYTES`.

    Raises
    ------
    CorruptDataError
        If it is not such a file.
    """
    stored, shape, _ = parse_header(name, head)
    for kind, dtype in _DTYPES.items():
        if stored == dtype.str and len(shape) == 2 and (dims := dims_of(kind, shape[1] * dtype.itemsize)) > 0:
            return kind, dims
    expected = "float16 (<f2), bfloat16 (<u2) or int8 (|u1, four more columns)"
    raise CorruptDataError(f"{name}: expected {expected}, got {stored} of shape {shape}: {_REMEDY}")


def write_features(
    path: Path, features: Features, order_N: NDArray[np.integer[Any]], kind: FeatureKind | None = None
) -> None:
    """Write features as a file, rounded to `kind` (theirs by default); row n is row `order_N[n]`."""
    kept_as = kind or features.kind
    runs = (order_N[start : start + _COPIED_ROWS] for start in range(0, len(order_N), _COPIED_ROWS))
    parts = (features.take(run_P).kept_as(kept_as).packed for run_P in runs)
    write_packed(path, parts, kept_as, len(order_N), features.shape[1])


def write_packed(path: Path, parts: Iterable[NDArray[Any]], kind: FeatureKind, rows: int, dims: int) -> None:
    """Write features of which one part after another is at hand, as they are kept."""
    dtype = _DTYPES[kind]
    write_parts(path, parts, dtype, (rows, row_bytes(kind, dims) // dtype.itemsize))


def from_bytes(data: Any, kind: FeatureKind, dims: int) -> Features:
    """View the bytes of rows, one after another, as features."""
    dtype = _DTYPES[kind]
    return Features(np.frombuffer(data, dtype).reshape(-1, row_bytes(kind, dims) // dtype.itemsize), kind)


def _as_float16(values_NF: NDArray[np.floating[Any]]) -> NDArray[Any]:
    return values_NF.astype("<f2", copy=False)


def _as_bfloat16(values_NF: NDArray[np.floating[Any]]) -> NDArray[Any]:
    """Round to the nearest, of two equally near ones to the even one."""
    bits_NF = np.ascontiguousarray(values_NF, np.float32).view(np.uint32)
    odd_NF = (bits_NF >> np.uint32(16)) & np.uint32(1)
    return ((bits_NF + (odd_NF + np.uint32(0x7FFF))) >> np.uint32(16)).astype("<u2")


def _as_int8(values_NF: NDArray[np.floating[Any]]) -> NDArray[Any]:
    single_NF = values_NF.astype(np.float32, copy=False)
    largest_N = np.nan_to_num(np.abs(single_NF).max(axis=1, initial=0.0), posinf=0.0)
    bits_N = (largest_N / np.float32(_MAX_STEPS)).view(np.uint32)
    step_N = ((bits_N + _FREE_BITS) & ~_FREE_BITS).view(np.float32)
    step_N = np.maximum(step_N, _LEAST_STEP)
    packed_NE = np.empty((len(single_NF), _STEP_BYTES + single_NF.shape[1]), np.uint8)
    packed_NE[:, :_STEP_BYTES] = step_N.astype("<f4")[:, None].view(np.uint8)
    steps_NF = np.nan_to_num(np.rint(single_NF / step_N[:, None]), posinf=0.0, neginf=0.0)
    packed_NE[:, _STEP_BYTES:] = np.clip(steps_NF, -_MAX_STEPS, _MAX_STEPS).astype(np.int8).view(np.uint8)
    return packed_NE


def _text(number: float) -> str:
    return f"{number:,.0f}" if number < 1e9 else f"{number:.2g}"
