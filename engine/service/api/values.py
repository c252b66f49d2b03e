"""Attributes from JSON: the values that answers show, read back into the types that a collection stores."""

from __future__ import annotations

import base64
import datetime
import decimal
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from hashlight.engine.service.problems import invalid

Parse = Callable[[Any], Any]

_DURATION = TypeAdapter(datetime.timedelta)
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
_TEXTS = (pa.types.is_string, pa.types.is_large_string)
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
_TIMES = (pa.types.is_date, pa.types.is_timestamp)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


class _WrongValueError(ValueError):
    """A value is not one of the type; the message says what was expected."""


def column_of(values: Sequence[Any], kind: pa.DataType, fields: Sequence[str]) -> pa.Array:
    """Return JSON values as a column.

    Parameters
    ----------
    values : sequence
        As a JSON parser gives them, and bytes for long base64.
    kind : pyarrow.DataType
        That of the attribute.
    fields : sequence of str
        The name of each value in the request.

    Raises
    ------
    RequestError
        422 naming the first value that is not of the type.
    """
    parse = _parser(kind)
    parsed = []
    for value, field in zip(values, fields, strict=True):
        try:
            parsed.append(parse(value))
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise _wrong(value, kind, field, error) from error
    try:
        return pa.array(parsed, kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        for value, one, field in zip(values, parsed, fields, strict=True):
            try:
                pa.array([one], kind)
            except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
                raise _wrong(value, kind, field, error) from error
        raise


def _wrong(value: Any, kind: pa.DataType, field: str, error: Exception) -> Exception:
    expected = str(error) if isinstance(error, _WrongValueError) else " ".join(str(error).split())[:200]
    return invalid(f"`{field}` must be {kind}, got {repr(value)[:100]}: {expected}", field)


def _parser(kind: pa.DataType) -> Parse:
    """Return a function from JSON to what pyarrow takes for a type."""
    inner = _parser_of_values(kind)
    return lambda value: None if value is None else inner(value)


def _parser_of_values(kind: pa.DataType) -> Parse:
    if any(is_one(kind) for is_one in _NUMBERS):
        return _number(kind)
    if any(is_one(kind) for is_one in _TEXTS):
        return _text
    if any(is_one(kind) for is_one in _BYTES):
        return _bytes
    if pa.types.is_decimal(kind):
        return _decimal
    if any(is_one(kind) for is_one in _TIMES):
        return lambda value: pa.scalar(_text(value)).cast(kind).value
    if pa.types.is_time(kind):
        return _time
    if pa.types.is_duration(kind):
        return _duration
    if any(is_one(kind) for is_one in _LISTS):
        item = _parser(kind.value_type)
        return lambda value: [item(one) for one in _of(list, value, "a list")]
    if pa.types.is_struct(kind):
        return _struct(kind)
    if pa.types.is_map(kind):
        key, item = _parser(kind.key_type), _parser(kind.item_type)
        return lambda value: [(key(one[0]), item(one[1])) for one in _pairs(value)]
    return _refuse


def _refuse(value: Any) -> Any:
    raise _WrongValueError("JSON has no values of this type, send it as Arrow")


def _number(kind: pa.DataType) -> Parse:
    if pa.types.is_boolean(kind):
        return lambda value: _of(bool, value, "true or false")
    if pa.types.is_integer(kind):
        return lambda value: _of(int, value, "a whole number")
    largest = float(np.finfo(kind.to_pandas_dtype()).max)
    return lambda value: _within(largest, _of((int, float), value, "a number"))


def _within(largest: float, value: float) -> float:
    """Return a number that a type can hold; Arrow would make it infinite."""
    if not abs(value) <= largest:
        raise _WrongValueError(f"expected a number of at most {largest:.5g} in size")
    return value


def _of(kinds: type | tuple[type, ...], value: Any, expected: str) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise _WrongValueError(f"expected {expected}")
    return value


def _time(value: Any) -> datetime.time:
    found = datetime.time.fromisoformat(_text(value))
    if found.tzinfo is not None:
        raise _WrongValueError("expected a time of day without an offset")
    return found


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        raise _WrongValueError("text that reads like base64 may have 16,384 characters in JSON, send it as Arrow")
    text: str = _of(str, value, "text")
    return text


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(_of(str, value, "bytes in base64"), validate=True)
    except ValueError as error:
        raise _WrongValueError(f"expected bytes in base64 ({error})") from error


def _decimal(value: Any) -> decimal.Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _WrongValueError("expected a number, or its digits in quotes")
    try:
        return decimal.Decimal(repr(value) if isinstance(value, float) else value)
    except decimal.InvalidOperation as error:
        raise _WrongValueError("expected a number, or its digits in quotes") from error


def _duration(value: Any) -> datetime.timedelta:
    try:
        return _DURATION.validate_python(_text(value))
    except ValidationError as error:
        raise _WrongValueError("expected a duration such as P1DT12H30M5.5S") from error


def _struct(kind: pa.DataType) -> Parse:
    fields = {kind.field(number).name: _parser(kind.field(number).type) for number in range(kind.num_fields)}

    def parse(value: Any) -> dict[str, Any]:
        given = _of(dict, value, "an object")
        if unknown := sorted(set(given) - set(fields)):
            raise _WrongValueError(f"it has no {unknown[0]}")
        return {name: inner(given.get(name)) for name, inner in fields.items()}

    return parse


def _pairs(value: Any) -> list[Any]:
    pairs: list[Any] = _of(list, value, "a list of pairs")
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise _WrongValueError("expected a list of pairs")
    return pairs
