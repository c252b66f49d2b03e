"""How the values of each Arrow type compare with what a filter writes: the one table, for comparisons, `in` and lists.

A value is read once, as an exact fraction, and compared as the attribute's type stores it: whole numbers, decimals,
dates and times are whole multiples of a unit, so that any bound on them is a bound on a whole number. Floating-point
attributes are compared with the nearest number of their precision, so that a stored float32 of 0.1 equals 0.1.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hashlight.engine.filters.literals import duration_of, instant_of, number_of, time_of, zone_of
from hashlight.engine.filters.membership import Test, is_in, is_whole_in, never
from hashlight.engine.filters.outcomes import Range, possibly, surely
from hashlight.engine.filters.tokens import Token, unquote

_MAX_SHORT = 18  # digits of a decimal that an int64 holds, whatever they are

_DAY = Fraction(86_400)
_UNITS = {"s": Fraction(1), "ms": Fraction(1, 10**3), "us": Fraction(1, 10**6), "ns": Fraction(1, 10**9)}


class Kind(ABC):
    """The values of one type.

    Parameters
    ----------
    expected : str
        What to write for a value, for messages.
    read : callable
        Returns the value that a token writes, or raises ValueError: with a reason, unless `expected` says it all.
    """

    def __init__(self, expected: str, read: Callable[[Token], Any]) -> None:
        self.expected = expected
        self.read = read

    @abstractmethod
    def compare(self, sign: str, value: Any) -> Test:
        """Return the comparison `attribute sign value`; `sign` is one of ==, !=, <, <=, > and >=."""

    @abstractmethod
    def is_one_of(self, values: Sequence[Any]) -> Test:
        """Return whether a stored value equals one of `values`."""

    def between(self, sign: str, value: Any) -> Range:
        """Return what `compare` comes to for values between bounds."""
        test = self.compare(sign, value)
        if sign in ("<", "<="):
            return lambda least, most: (possibly(test(least)), surely(test(most)))
        if sign in (">", ">="):
            return lambda least, most: (possibly(test(most)), surely(test(least)))
        equal, around = self.compare("==", value), self.around([value])

        def outcomes(least: pa.Array, most: pa.Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
            may_B, _ = around(least, most)
            must_B = surely(equal(least)) & surely(equal(most))
            return (may_B, must_B) if sign == "==" else (~must_B, ~may_B)

        return outcomes

    def around(self, values: Sequence[Any]) -> Range:
        """Return what `is_one_of` comes to for values between bounds."""
        below, above = self.compare("<=", max(values)), self.compare(">=", min(values))

        def outcomes(least: pa.Array, most: pa.Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
            return possibly(below(least)) & possibly(above(most)), np.zeros(len(least), np.bool_)

        return outcomes


class Words(Kind):
    """Text, ordered by code points, and true and false."""

    def __init__(self, kind: pa.DataType, expected: str, read: Callable[[Token], Any]) -> None:
        super().__init__(expected, read)
        self._kind = kind

    def compare(self, sign: str, value: Any) -> Test:
        """See `Kind.compare`."""
        comparison, operand = _COMPARISONS[sign], pa.scalar(value, self._kind)
        return lambda stored: comparison(stored, operand)

    def is_one_of(self, values: Sequence[Any]) -> Test:
        """See `Kind.is_one_of`."""
        return is_in(pa.array(values, self._kind))


class Multiples(Kind):
    """Whole multiples of a unit: whole numbers, decimals, dates, times, durations.

    Parameters
    ----------
    expected, read
        As in `Kind`; `read` returns fractions.
    unit : Fraction
    counts : pyarrow.DataType
        The type to compare stored values in.
    least, most : int
        The bounds of stored values, in units.
    """

    def __init__(
        self,
        expected: str,
        read: Callable[[Token], Fraction],
        *,
        unit: Fraction,
        counts: pa.DataType,
        least: int,
        most: int,
    ) -> None:
        super().__init__(expected, read)
        self._unit, self._counts, self._least, self._most = unit, counts, least, most

    def compare(self, sign: str, value: Fraction) -> Test:
        """See `Kind.compare`."""
        if sign == "!=":
            equal = self.compare("==", value)
            return lambda stored: pc.invert(equal(stored))
        count = value / self._unit
        comparisons: dict[str, tuple[Callable[[Any, Any], pa.Array], Fraction | int]] = {
            "==": (pc.equal, count),
            "<": (pc.less_equal, math.ceil(count) - 1),
            "<=": (pc.less_equal, math.floor(count)),
            ">": (pc.greater_equal, math.floor(count) + 1),
            ">=": (pc.greater_equal, math.ceil(count)),
        }
        comparison, bound = comparisons[sign]
        if comparison is pc.less_equal:
            bound = min(bound, self._most)
        elif comparison is pc.greater_equal:
            bound = max(bound, self._least)
        if not self._holds(bound):
            return never
        operand = self._array([int(bound)])[0]
        return lambda stored: comparison(self._counted(stored), operand)

    def is_one_of(self, values: Sequence[Fraction]) -> Test:
        """See `Kind.is_one_of`."""
        counts = [value / self._unit for value in values]
        is_among = self._is_among([int(count) for count in counts if self._holds(count)])
        return lambda stored: is_among(self._counted(stored))

    def _holds(self, count: Fraction | int) -> bool:
        """Whether a stored value may be so many units."""
        return count == int(count) and self._least <= count <= self._most

    def _is_among(self, counts: list[int]) -> Test:
        return is_whole_in(counts, self._counts)

    def _array(self, counts: list[int]) -> pa.Array:
        return pa.array(counts, self._counts)

    def _counted(self, stored: pa.Array) -> pa.Array:
        return stored.view(self._counts)


class Decimals(Multiples):
    """Decimals of any precision; short ones may also be stored as int64, in units of their last digit."""

    def __init__(self, kind: pa.DataType) -> None:
        # Arrow has no sets of the shorter ones, and compares none whose unit is above 1.
        make = pa.decimal256 if kind.id == pa.lib.Type_DECIMAL256 or kind.scale < 0 else pa.decimal128
        precision, self._scale = kind.precision - min(kind.scale, 0), max(kind.scale, 0)
        most = 10**precision - 1
        unit = Fraction(1, 10**self._scale)
        counts = make(precision, self._scale)
        super().__init__("a number", _read_number, unit=unit, counts=counts, least=-most, most=most)
        self._short: Multiples | None = None
        if is_short_decimal(kind):
            most, unit = 10**kind.precision - 1, Fraction(10) ** -kind.scale
            self._short = Multiples("a number", _read_number, unit=unit, counts=pa.int64(), least=-most, most=most)

    def compare(self, sign: str, value: Fraction) -> Test:
        """See `Kind.compare`."""
        return _by_width(
            None if self._short is None else self._short.compare(sign, value), super().compare(sign, value)
        )

    def is_one_of(self, values: Sequence[Fraction]) -> Test:
        """See `Kind.is_one_of`."""
        return _by_width(None if self._short is None else self._short.is_one_of(values), super().is_one_of(values))

    def _is_among(self, counts: list[int]) -> Test:
        return is_in(self._array(counts))

    def _array(self, counts: list[int]) -> pa.Array:
        return pa.array([Decimal(f"{count}E{-self._scale}") for count in counts], self._counts)

    def _counted(self, stored: pa.Array) -> pa.Array:
        return stored.cast(self._counts)


class Floats(Kind):
    """Floating-point numbers, which compare as IEEE 754 says: NaN is neither less, nor greater, nor equal."""

    def __init__(self, kind: pa.DataType) -> None:
        super().__init__("a number", _read_number)
        self._numpy: Any = kind.to_pandas_dtype()
        # Arrow compares no float16.
        self._kind = pa.float32() if pa.types.is_float16(kind) else kind

    def compare(self, sign: str, value: Fraction) -> Test:
        """See `Kind.compare`."""
        nearest, comparison = self._nearest(value), _COMPARISONS[sign]
        if math.isinf(nearest):
            # Beyond the largest number of this type there is only infinity, which is beyond whatever can be written.
            if sign in ("==", "!="):
                return never if sign == "==" else lambda stored: pc.invert(never(stored))
            below = sign in ("<", "<=")
            comparison = pc.less_equal if below else pc.greater_equal
            if below == (nearest > 0):
                nearest = math.copysign(float(np.finfo(self._numpy).max), nearest)
        operand = pa.scalar(nearest, self._kind)
        return lambda stored: comparison(stored.cast(self._kind), operand)

    def is_one_of(self, values: Sequence[Fraction]) -> Test:
        """See `Kind.is_one_of`."""
        numbers = [number for number in map(self._nearest, values) if math.isfinite(number)]
        # Arrow's sets tell -0.0 from 0.0, which are equal.
        is_among = is_in(pa.array([*numbers, *([-0.0, 0.0] if 0.0 in numbers else [])], self._kind))
        return lambda stored: is_among(stored.cast(self._kind))

    def _nearest(self, value: Fraction) -> float:
        """Return the nearest number of this precision; infinity beyond the largest."""
        with np.errstate(over="ignore"):
            try:
                guess = self._numpy(float(value))
            except OverflowError:
                return math.inf if value > 0 else -math.inf
            if not np.isfinite(guess):
                return float(guess)
            # Rounded twice, to float64 and from there, it may be the neighbour of the nearest.
            around = [guess, np.nextafter(guess, -self._numpy(np.inf)), np.nextafter(guess, self._numpy(np.inf))]
        return float(min(filter(np.isfinite, around), key=lambda number: abs(Fraction(float(number)) - value)))


def kind_of(kind: pa.DataType) -> Kind | None:
    """Return how values of an Arrow type compare; None for types of which only `is [not] null` can be asked."""
    make = _KINDS.get(kind.id)
    return None if make is None else make(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a type holds lists."""
    return kind.id in _LISTS


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds text."""
    return kind.id in (pa.lib.Type_STRING, pa.lib.Type_LARGE_STRING)


def is_short_decimal(kind: pa.DataType) -> bool:
    """Whether a type holds decimals whose digits an int64 has room for."""
    return bool(pa.types.is_decimal(kind)) and kind.precision <= _MAX_SHORT


def _by_width(short: Test | None, long: Test) -> Test:
    """Return the test of decimals that are stored as int64, or as they are."""
    return long if short is None else lambda stored: (short if pa.types.is_int64(stored.type) else long)(stored)


def _read_text(token: Token) -> str:
    if token.kind != "text":
        raise ValueError
    return unquote(token.text)


def _read_truth(token: Token) -> bool:
    if token.word not in ("true", "false"):
        raise ValueError
    return token.word == "true"


def _read_number(token: Token) -> Fraction:
    if token.kind != "number":
        raise ValueError
    return number_of(token.text)


def _text(kind: pa.DataType) -> Kind:
    return Words(kind, "a string in quotes", _read_text)


def _truth(kind: pa.DataType) -> Kind:
    return Words(kind, "true or false", _read_truth)


def _whole_number(kind: pa.DataType) -> Kind:
    bounds = np.iinfo(kind.to_pandas_dtype())
    return Multiples(
        "a number", _read_number, unit=Fraction(1), counts=kind, least=int(bounds.min), most=int(bounds.max)
    )


def _clock(expected: str, read: Callable[[str], Fraction], unit: Fraction, counts: pa.DataType) -> Kind:
    """Return the kind of a type that counts time."""
    bounds = np.iinfo(counts.to_pandas_dtype())
    return Multiples(
        f"{expected} in quotes",
        lambda token: read(_read_text(token)),
        unit=unit,
        counts=counts,
        least=int(bounds.min),
        most=int(bounds.max),
    )


def _instant(kind: pa.DataType, unit: Fraction, counts: pa.DataType) -> Kind:
    zone = getattr(kind, "tz", None)

    def read(text: str) -> Fraction:
        return instant_of(text, None if zone is None else zone_of(zone))

    return _clock('an ISO 8601 date or time, such as "2024-01-31" or "2024-01-31T08:30",', read, unit, counts)


def _time(kind: pa.DataType) -> Kind:
    counts = pa.int32() if pa.types.is_time32(kind) else pa.int64()
    return _clock('an ISO 8601 time, such as "08:30" or "08:30:59.5",', time_of, _UNITS[kind.unit], counts)


def _duration(kind: pa.DataType) -> Kind:
    return _clock('an ISO 8601 duration, such as "P1DT12H" or "PT1.5S",', duration_of, _UNITS[kind.unit], pa.int64())


_COMPARISONS: dict[str, Callable[[Any, Any], pa.Array]] = {
    "==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip

# What a comparison may be written as, and the one sign of each.
SIGNS = {sign: sign for sign in _COMPARISONS} | {"=": "==", "<>": "!="}

_LISTS = {
    pa.lib.Type_LIST, pa.lib.Type_LARGE_LIST, pa.lib.Type_FIXED_SIZE_LIST, pa.lib.Type_LIST_VIEW,
    pa.lib.Type_LARGE_LIST_VIEW,
}  # fmt: skip

_KINDS: dict[int, Callable[[pa.DataType], Kind]] = {
    pa.lib.Type_BOOL: _truth,
    **dict.fromkeys((pa.lib.Type_STRING, pa.lib.Type_LARGE_STRING), _text),
    **dict.fromkeys((pa.lib.Type_INT8, pa.lib.Type_INT16, pa.lib.Type_INT32, pa.lib.Type_INT64), _whole_number),
    **dict.fromkeys((pa.lib.Type_UINT8, pa.lib.Type_UINT16, pa.lib.Type_UINT32, pa.lib.Type_UINT64), _whole_number),
    **dict.fromkeys((pa.lib.Type_HALF_FLOAT, pa.lib.Type_FLOAT, pa.lib.Type_DOUBLE), Floats),
    **dict.fromkeys((pa.lib.Type_DECIMAL32, pa.lib.Type_DECIMAL64), Decimals),
    **dict.fromkeys((pa.lib.Type_DECIMAL128, pa.lib.Type_DECIMAL256), Decimals),
    pa.lib.Type_DATE32: functools.partial(_instant, unit=_DAY, counts=pa.int32()),
    pa.lib.Type_DATE64: functools.partial(_instant, unit=_UNITS["ms"], counts=pa.int64()),
    pa.lib.Type_TIMESTAMP: lambda kind: _instant(kind, _UNITS[kind.unit], pa.int64()),
    **dict.fromkeys((pa.lib.Type_TIME32, pa.lib.Type_TIME64), _time),
    pa.lib.Type_DURATION: _duration,
}
