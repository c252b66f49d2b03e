"""What the columns of attributes may be, and the types they are stored in.

Most types of Arrow are stored as they are. Dictionaries are stored as their values, because compression finds repeated
values anyway, and views as the text or the bytes that they show. Readers see the same types, so that no other code
knows of either. What cannot be stored, searched or shown is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from hashlight.engine.codes import CodeArray
from hashlight.engine.features import FLOAT16, FeatureKind, FeatureValues, value_type
from hashlight.engine.filters.literals import zone_of

# Names that no attribute may have, because answers have columns of these names.
RESERVED = frozenset({"id", "code", "query", "distance"})

# What is stored of an item besides its code and its attributes; an attribute of the same name takes precedence.
FEATURES = "features"
THUMBNAIL = "thumbnail"

_VIEWS = {pa.lib.Type_STRING_VIEW: pa.string(), pa.lib.Type_BINARY_VIEW: pa.binary()}
_NOT_STORED = {*_VIEWS, pa.lib.Type_DICTIONARY, pa.lib.Type_RUN_END_ENCODED}
_MAX_PRECISION = 76  # of the longest decimals


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """Return the names and types in which columns are stored."""
    return pa.schema([field.with_type(_stored_type(field.type)) for field in schema], schema.metadata)


def as_stored(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return rows in the types of `schema`, the `stored_schema` of theirs."""
    if batch.schema.equals(schema):
        return batch
    columns = [_as_type(column, kind) for column, kind in zip(batch.columns, schema.types, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def check_columns(schema: pa.Schema) -> None:
    """Refuse columns that cannot be attributes.

    Raises
    ------
    ValueError
        If a name is empty, reserved or occurs twice, or a type cannot be stored, searched and shown.
    """
    names = schema.names
    if reserved := sorted(RESERVED & set(names)):
        raise ValueError(
            f"`attributes` must not be named {reserved}, which are columns of answers themselves: rename them"
        )
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"`attributes` must have distinct names, got {repeated} more than once: rename all but one")
    if "" in names:
        raise ValueError(f"`attributes` must have names, got none for column {names.index('')}: rename it")
    for field in schema:
        if (remedy := _remedy(field.type)) is not None:
            raise ValueError(f"attribute `{field.name}` is {field.type}, which cannot be stored: {remedy}")


def item_schema(
    attributes: pa.Schema,
    columns: Sequence[str] | None,
    *,
    words: int,
    features: int | None,
    features_as: FeatureKind = FLOAT16,
) -> pa.Schema:
    """Return the columns of stored items: `id` (int64), `code` (binary of `8 * words` bytes), and more.

    Parameters
    ----------
    attributes : pyarrow.Schema
    columns : sequence of str, optional
        Names of attributes, of `features` (see `features_type`), and of `thumbnail` (binary, null for items without
        one); by default all attributes. `id` and `code` come first even if they are named.
    words : int
        Of a code.
    features : int or None
        Dimensions; None if there are no features.
    features_as : {"float16", "bfloat16", "int8"}

    Raises
    ------
    ValueError
        If there is no such column, or one is named twice.
    """
    others = {THUMBNAIL: pa.binary()}
    if features is not None:
        others[FEATURES] = features_type(features, features_as)
    fields = [pa.field("id", pa.int64()), pa.field("code", pa.binary(8 * words))]
    for name in attributes.names if columns is None else columns:
        if name in ("id", "code"):
            continue
        if name not in attributes.names and name not in others:
            known = ", ".join(["id", "code", *attributes.names, *others])
            raise ValueError(f"`columns` must be of {known}, got {name!r}")
        kind = attributes.field(name).type if name in attributes.names else others[name]
        fields.append(pa.field(name, kind))
    names = [field.name for field in fields]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"`columns` must name each column once, got {', '.join(repeated)} more than once")
    return pa.schema(fields)


def code_column(codes_NW: CodeArray) -> pa.Array:
    """Return codes as binary of `8 * W` bytes each, words in little-endian order."""
    data = pa.py_buffer(np.ascontiguousarray(codes_NW, "<u8"))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(8 * codes_NW.shape[1]), len(codes_NW), [None, data])


def features_type(dims: int, kind: FeatureKind) -> pa.DataType:
    """Return the type in which features are given back: lists of float16, or of float32 if they are kept as others."""
    return pa.list_(pa.from_numpy_dtype(value_type(kind)), dims)


def features_column(features_NF: FeatureValues) -> pa.Array:
    """Return features as lists of F numbers each."""
    values = pa.array(np.ascontiguousarray(features_NF).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(values, features_NF.shape[1])


def _as_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        # Not cast, which Arrow does for few types of values.
        return _as_type(column.dictionary, kind).take(column.indices)
    return column.cast(kind)


def _stored_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _stored_type(kind.value_type)
    if kind.id in _VIEWS:
        return _VIEWS[kind.id]
    inner = [kind.field(number) for number in range(kind.num_fields)]
    stored = [field.with_type(_stored_type(field.type)) for field in inner]
    if stored == inner:
        return kind
    if pa.types.is_struct(kind):
        return pa.struct(stored)
    if pa.types.is_list(kind):
        return pa.list_(stored[0])
    if pa.types.is_large_list(kind):
        return pa.large_list(stored[0])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(stored[0], kind.list_size)
    return kind


def _remedy(kind: pa.DataType) -> str | None:
    """Return what to do about a type that cannot be stored; None for those that can."""
    stored = _stored_type(kind)
    if (fault := _fault(stored)) is not None:
        return fault
    try:
        _as_type(pa.nulls(1, kind), stored)
    except pa.ArrowException:
        return f"cast it to {stored}"
    return None


def _fault(kind: pa.DataType) -> str | None:
    """Return what to do about a type that cannot be stored as it is."""
    if isinstance(kind, pa.BaseExtensionType):
        return _fault(kind.storage_type)
    if pa.types.is_run_end_encoded(kind):
        return f"cast it to {kind.value_type}"
    if pa.types.is_union(kind):
        return "store a column for each of its kinds"  # Arrow does not take rows of them from several chunks
    if kind.id in _NOT_STORED:
        return f"cast {kind} to {_stored_type(kind)}"
    if pa.types.is_decimal(kind) and kind.precision - kind.scale > _MAX_PRECISION:
        return f"cast {kind} to {pa.decimal256(_MAX_PRECISION, 0)}"
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        try:
            zone_of(kind.tz)
        except ValueError as error:
            return f"{error}: cast it to {pa.timestamp(kind.unit, 'UTC')}"
    inner = (_fault(kind.field(number).type) for number in range(kind.num_fields))
    return next((fault for fault in inner if fault is not None), None)
