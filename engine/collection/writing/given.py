"""What callers give beside codes: attributes, features, thumbnails, ids, a column; checked, in one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from hashlight.engine.codes import IdArray
from hashlight.engine.features import FLOAT16, FeatureKind, Features, FeaturesLike
from hashlight.engine.storage.columns import as_stored, check_columns, stored_schema

ONE_VALUE = "give each id once, with the value that it is to have"

# Attributes, fine features, and thumbnails.
Beside = tuple[Any, FeaturesLike | None, Any]


class Checked(NamedTuple):
    """Attributes, fine features, and thumbnails (a column of binary), each None if there are none."""

    table: pa.Table | None
    features: Features | None
    thumbnails: pa.Table | None


def checked(beside: Beside, *, rows: int, features_as: FeatureKind | None = None) -> Checked:
    """Check what is given beside some codes.

    Parameters
    ----------
    beside : tuple
    rows : int
    features_as : {"float16", "bfloat16", "int8"}, optional
        What a collection keeps features as; if there is none yet, float16 or what is given.

    Raises
    ------
    TypeError, ValueError
        If it has another number of rows, or cannot be stored.
    """
    attributes, features, thumbnails = beside
    return Checked(
        None if attributes is None else _as_table(attributes, rows),
        None if features is None else _check_features(features, rows, features_as),
        None if thumbnails is None else _as_thumbnails(thumbnails, rows),
    )


def part_of(part: slice, table: pa.Table | None, features: Features | None, thumbnails: pa.Table | None) -> Checked:
    """Return some of the rows."""
    start, rows = part.start, part.stop - part.start
    return Checked(
        None if table is None else table.slice(start, rows),
        None if features is None else features.take(part),
        None if thumbnails is None else thumbnails.slice(start, rows),
    )


def _check_features(features: FeaturesLike, rows: int, features_as: FeatureKind | None) -> Features:
    given = features[:0] if isinstance(features, Features) else features
    if given.dtype not in (np.float16, np.float32) or given.ndim != 2 or len(features) != rows:
        raise ValueError(
            f"`features` must be float16 or float32 of shape ({rows}, F), one row per code, got {given.dtype} of shape "
            f"{features.shape}"
        )
    if isinstance(features, Features):
        return features.kept_as(features_as or features.kind)
    return Features.of(features, features_as or FLOAT16)


def _as_table(attributes: pa.Table | Mapping[str, Any], rows: int) -> pa.Table:
    try:
        table = attributes if isinstance(attributes, pa.Table) else pa.table(dict(attributes))
    except OverflowError as error:
        raise ValueError(f"`attributes` must be numbers that 64 bits hold: {error}") from error
    if len(table) != rows and table.schema.names:
        raise ValueError(f"`attributes` must have {rows} rows, one per code, got {len(table)}")
    check_columns(table.schema)
    return table


def _as_thumbnails(thumbnails: Sequence[bytes | None] | pa.Array, rows: int) -> pa.Table:
    try:
        column = thumbnails if isinstance(thumbnails, pa.Array) else pa.array(thumbnails)
        if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type) or column.null_count == rows):
            raise TypeError(f"got {column.type}")
        column = column.cast(pa.binary())
    except (pa.ArrowException, TypeError) as error:
        raise TypeError(f"`thumbnails` must be encoded pictures (bytes) or None: {error}") from error
    if len(column) != rows:
        raise ValueError(f"`thumbnails` must have {rows} entries, one per code, got {len(column)}")
    return pa.table({"thumbnail": column})


def some_ids(ids: IdArray | Sequence[int]) -> IdArray:
    """Return ids (M,) as an array.

    Raises
    ------
    TypeError, ValueError
        If they are not whole numbers, or have another shape.
    """
    found = np.asarray(ids)
    if found.size and found.dtype.kind not in "iu":
        raise TypeError(f"`ids` must be whole numbers, got {found.dtype}")
    if found.ndim != 1:
        raise ValueError(f"`ids` must have shape (M,), got {found.shape}")
    if found.dtype == np.uint64 and found.size and found.max() > np.iinfo(np.int64).max:
        raise ValueError(f"`ids` must be at most {np.iinfo(np.int64).max}, got {found.max()}")
    return found.astype(np.int64)


def column(name: str, values: Any, kind: pa.DataType | None, schema: pa.Schema, *, rows: int) -> pa.Array:
    """Return values of one attribute, in a type that is stored.

    Parameters
    ----------
    name : str
    values : sequence, ndarray or pyarrow.Array, length M
    kind : pyarrow.DataType or None
        None: that of the values, or of the attribute if they are all null.
    schema : pyarrow.Schema
        Of the collection.
    rows : int
        M.

    Raises
    ------
    ValueError
        If there are not M values, or they cannot be stored.
    """
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    try:
        if not isinstance(array, pa.Array):
            array = pa.array(array, kind)
        elif kind is not None:
            array = array.cast(kind)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ValueError(f"`values` are not {kind or 'of one type'}: {error}") from error
    if kind is None and pa.types.is_null(array.type):
        if name not in schema.names:
            raise ValueError(f"`values` of the new attribute {name!r} are all null: give `type`")
        array = array.cast(schema.field(name).type)
    if len(array) != rows:
        raise ValueError(f"`values` must have {rows} entries, one per id, got {len(array)}")
    given = pa.schema([pa.field(name, array.type)])
    check_columns(given)
    return as_stored(pa.record_batch([array], schema=given), stored_schema(given)).column(0)
