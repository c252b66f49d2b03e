"""Types of Arrow that Parquet does not have, as types that it has: every attribute can be written and read back.

| Arrow | in Parquet |
|---|---|
| date64 | timestamp in milliseconds |
| time32, timestamp in seconds | the same in milliseconds |
| interval of months, days and nanoseconds | struct of the three |
| decimals of whole tens, hundreds, ... | decimal without places |
| fixed-size binary, fixed-size lists of length 0 | binary, list |
| struct without fields | struct of `present`: true |
| an extension type of one of these | what stands for its storage |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

_INTERVAL = np.dtype([("months", "<i4"), ("days", "<i4"), ("nanoseconds", "<i8")])
_INTERVAL_STRUCT = pa.struct([("months", pa.int32()), ("days", pa.int32()), ("nanoseconds", pa.int64())])
_PRESENT = pa.struct([("present", pa.bool_())])
_DECIMAL128_DIGITS = 38
# Buffers that are a nested array's own; those of its children follow.
_OWN_BUFFERS = {
    pa.lib.Type_STRUCT: 1,
    pa.lib.Type_FIXED_SIZE_LIST: 1,
    pa.lib.Type_LIST: 2,
    pa.lib.Type_LARGE_LIST: 2,
    pa.lib.Type_MAP: 2,
    pa.lib.Type_LIST_VIEW: 3,
    pa.lib.Type_LARGE_LIST_VIEW: 3,
}


def portable_schema(schema: pa.Schema) -> pa.Schema:
    """Return the names and types in which columns are written to Parquet."""
    return pa.schema([field.with_type(portable_type(field.type)) for field in schema], schema.metadata)


def to_portable(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return rows in the types of `schema`, the `portable_schema` of theirs.

    Raises
    ------
    ValueError
        If a value is beyond those of its type in Parquet.
    """
    columns = []
    for field, column in zip(schema, batch.columns, strict=True):
        try:
            columns.append(_convert(column, column.type, field.type, _leaf_to_portable))
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"attribute `{field.name}` ({column.type}) has a value that {field.type}, its type in Parquet, cannot "
                f"hold ({error}): export to Arrow"
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def from_portable(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Undo `to_portable`: return rows in the types of `schema`, of which theirs are the portable ones."""
    columns = [
        _convert(column, field.type, field.type, _leaf_from_portable)
        for field, column in zip(schema, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def portable_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which a column is written to Parquet."""
    if isinstance(kind, pa.BaseExtensionType):
        storage = portable_type(kind.storage_type)
        return kind if storage == kind.storage_type else storage
    if (leaf := _portable_leaf(kind)) is not None:
        return leaf
    if kind.id not in _OWN_BUFFERS:
        return kind
    if pa.types.is_map(kind):
        key, item = (field.with_type(portable_type(field.type)) for field in (kind.key_field, kind.item_field))
        return pa.map_(key, item, keys_sorted=kind.keys_sorted)
    inner = [kind.field(number) for number in range(kind.num_fields)]
    return _with_fields(kind, [field.with_type(portable_type(field.type)) for field in inner])


def _with_fields(kind: pa.DataType, fields: list[pa.Field]) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct(fields)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(fields[0], kind.list_size)
    make: dict[int, Callable[[pa.Field], pa.DataType]] = {
        pa.lib.Type_LIST: pa.list_,
        pa.lib.Type_LARGE_LIST: pa.large_list,
        pa.lib.Type_LIST_VIEW: pa.list_view,
        pa.lib.Type_LARGE_LIST_VIEW: pa.large_list_view,
    }
    return make[kind.id](fields[0])


def _portable_leaf(kind: pa.DataType) -> pa.DataType | None:
    """Return the type that stands for one that Parquet does not have; None for others."""
    if pa.types.is_date64(kind):
        return pa.timestamp("ms")
    if pa.types.is_time32(kind) and kind.unit == "s":
        return pa.time32("ms")
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("ms", kind.tz)
    if pa.types.is_interval(kind):
        return _INTERVAL_STRUCT
    if pa.types.is_decimal(kind) and kind.scale < 0:
        digits = kind.precision - kind.scale
        return pa.decimal128(digits, 0) if digits <= _DECIMAL128_DIGITS else pa.decimal256(digits, 0)
    if pa.types.is_fixed_size_binary(kind) and not kind.byte_width:
        return pa.binary()
    if pa.types.is_fixed_size_list(kind) and not kind.list_size:
        return pa.list_(portable_type(kind.value_type))
    if pa.types.is_struct(kind) and not kind.num_fields:
        return _PRESENT
    return None


def _convert(
    column: pa.Array, kind: pa.DataType, target: pa.DataType, leaf: Callable[[pa.Array, pa.DataType], pa.Array]
) -> pa.Array:
    """Return a column as `target`. `kind` is the type of the two that an attribute has; it may contain others."""
    if column.type == target:
        return column
    if isinstance(kind, pa.BaseExtensionType):
        return _convert_extension(column, kind, target, leaf)
    if _portable_leaf(kind) is not None:
        return leaf(column, target)
    if column.offset:
        column = column.take(pa.array(np.arange(len(column))))
    if pa.types.is_struct(kind):
        children = [column.field(number) for number in range(kind.num_fields)]
    else:
        children = [column.values]
    inner = [(kind.field(number).type, target.field(number).type) for number in range(kind.num_fields)]
    converted = [_convert(child, *types, leaf) for child, types in zip(children, inner, strict=True)]
    own = column.buffers()[: _OWN_BUFFERS[kind.id]]
    return pa.Array.from_buffers(target, len(column), own, column.null_count, children=converted)


def _convert_extension(
    column: pa.Array, kind: Any, target: pa.DataType, leaf: Callable[[pa.Array, pa.DataType], pa.Array]
) -> pa.Array:
    if isinstance(column, pa.ExtensionArray):
        return _convert(column.storage, kind.storage_type, target, leaf)
    return pa.ExtensionArray.from_storage(kind, _convert(column, kind.storage_type, kind.storage_type, leaf))


def _leaf_to_portable(column: pa.Array, target: pa.DataType) -> pa.Array:
    kind = column.type
    if pa.types.is_date64(kind):
        return column.view(target)
    if pa.types.is_interval(kind):
        values = np.frombuffer(column.buffers()[1], _INTERVAL, len(column), column.offset * _INTERVAL.itemsize)
        parts = [pa.array(np.ascontiguousarray(values[name])) for name in _INTERVAL.names or ()]
        return pa.StructArray.from_arrays(parts, fields=list(target), mask=_nulls(column))
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays(
            [pa.array(np.ones(len(column), bool))], fields=list(target), mask=_nulls(column)
        )
    return column.cast(target)


def _leaf_from_portable(column: pa.Array, target: pa.DataType) -> pa.Array:
    if pa.types.is_date64(target):
        return column.view(target)
    if pa.types.is_interval(target):
        values = np.zeros(len(column), _INTERVAL)
        for number, name in enumerate(_INTERVAL.names or ()):
            values[name] = column.field(number).fill_null(0).to_numpy()
        return pa.Array.from_buffers(target, len(column), [_validity(column), pa.py_buffer(values)])
    if pa.types.is_struct(target):
        return pa.Array.from_buffers(target, len(column), [_validity(column)])
    return column.cast(target)


def _nulls(column: pa.Array) -> pa.Array:
    return pa.array(column.is_null().to_numpy(zero_copy_only=False))


def _validity(column: pa.Array) -> pa.Buffer | None:
    """Return the bits of a column that say which values are not null."""
    if not column.null_count:
        return None
    return pa.py_buffer(np.packbits(column.is_valid().to_numpy(zero_copy_only=False), bitorder="little"))
