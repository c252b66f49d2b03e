"""Evaluating a filter on a batch of rows: comparisons, membership and logic on Arrow columns, with SQL's nulls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Condition = Callable[[pa.RecordBatch], pa.Array]

COMPARISONS: dict[str, Callable[[Any, Any], pa.Array]] = {
    "==": pc.equal, "=": pc.equal, "!=": pc.not_equal, "<>": pc.not_equal,
    "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip


def join(combine: Callable[[Any, Any], pa.Array], conditions: list[Condition]) -> Condition:
    """Join conditions row by row, with nulls as in SQL."""
    if len(conditions) == 1:
        return conditions[0]
    return lambda batch: functools.reduce(combine, (condition(batch) for condition in conditions))


def negate(condition: Condition) -> Condition:
    """Negate a condition; null stays null."""
    return lambda batch: pc.invert(condition(batch))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values behind a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def comparable_type(kind: pa.DataType) -> pa.DataType:
    """Return the type to compare `kind` as, because Arrow cannot compare every type."""
    if pa.types.is_float16(kind):
        return pa.float32()
    return pa.string() if pa.types.is_string_view(kind) else kind


def values_of(batch: pa.RecordBatch, column: pa.Field) -> pa.Array:
    """Return a column's values in a type that Arrow can compare."""
    values = batch.column(column.name)
    values = values.dictionary_decode() if pa.types.is_dictionary(column.type) else values
    return values.cast(comparable_type(values.type))


def compare(comparison: Callable[[Any, Any], pa.Array], values: pa.Array, operand: pa.Scalar) -> pa.Array:
    """Compare a column with a value."""
    if pa.types.is_floating(operand.type) and pa.types.is_integer(values.type):
        # Exact although the cast rounds beyond 2**53: an operand with a fraction is smaller than that.
        values = values.cast(pa.float64(), safe=False)
    return comparison(values, operand)


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_number(kind: pa.DataType) -> bool:
    """Whether a type holds numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a type holds lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_in(values: pa.Array, sets: list[pa.Array]) -> pa.Array:
    """Return whether each value is in one of `sets`; null where there is no value."""
    parts = (pc.is_in(values.cast(accepted.type, safe=False), value_set=accepted) for accepted in sets)
    return pc.if_else(pc.is_valid(values), functools.reduce(pc.or_, parts), pa.scalar(None, pa.bool_()))


def contains(lists: pa.Array, operand: pa.Scalar) -> pa.Array:
    """Return whether each list holds `operand`; null where there is no list."""
    values = pc.list_flatten(lists)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    equal = pc.fill_null(pc.equal(values, operand), False).to_numpy(zero_copy_only=False).astype(np.bool_)
    found_N = np.zeros(len(lists), np.bool_)
    found_N[pc.list_parent_indices(lists).to_numpy()[equal]] = True
    return pa.array(found_N, mask=lists.is_null().to_numpy(zero_copy_only=False))
