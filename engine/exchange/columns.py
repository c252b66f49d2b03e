"""The columns of record batches that come in and go out.

::

    id          int64
    code        fixed-size binary of 8 * W bytes: the words of the code in little-endian order
    ...         the attributes, in the types in which they are stored
    features    fixed-size list of float16, or of float32 if they are kept as others, if there are fine features
    thumbnail   binary, if there are thumbnails

The schema's metadata has a key `hashlight`, a JSON object with what the columns do not show: `bits`, `encoder` (the
fingerprint, or null), the names of the columns of `features` and `thumbnails` (or null), and `features_as` what
features are kept, if that is not float16. An attribute of such a
name keeps it, and the other column gets a name with an underscore after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from hashlight.engine.codes import IdArray, check_bits, num_words
from hashlight.engine.exchange.codes import bits_of, read_codes
from hashlight.engine.exchange.rows import Incoming, Rows
from hashlight.engine.features import FLOAT16, FeatureKind, Features, FeatureValues, check_kind, value_type
from hashlight.engine.storage.columns import check_columns

METADATA = b"hashlight"


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns of a source that are no attributes.

    Attributes
    ----------
    code : str
    id : str or None
        None: rows are numbered.
    features, thumbnails : str or None
        None: those that the source's metadata names, if any.
    features_as : {"float16", "bfloat16", "int8"}, optional
        What features are kept as; by default what the metadata says, or float16.
    """

    code: str = "code"
    id: str | None = "id"
    features: str | None = None
    thumbnails: str | None = None
    features_as: FeatureKind | None = None

    @property
    def names(self) -> list[str]:
        """Those that there are."""
        return [name for name in (self.code, self.id, self.features, self.thumbnails) if name is not None]


def read_batches(
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    columns: Columns,
    *,
    bits: int | None = None,
    default_bits: int | None = None,
    fingerprint: str | None = None,
) -> Incoming:
    """Return the rows of record batches of one schema.

    Parameters
    ----------
    schema : pyarrow.Schema
    batches : iterable of pyarrow.RecordBatch
        Read once, one at a time.
    columns : Columns
    bits : int, optional
        By default what the metadata says, or else `default_bits`.
    default_bits : int, optional
        By default all bits of the codes' bytes.
    fingerprint : str, optional
        By default what the metadata says.

    Raises
    ------
    ValueError
        If a column is missing or is not what it must be, or another one cannot be an attribute.
    """
    said = _read_metadata(schema)
    columns = replace(
        columns,
        features=columns.features or said.get("features"),
        thumbnails=columns.thumbnails or said.get("thumbnails"),
        features_as=columns.features_as or said.get("features_as"),
    )
    _check_names(schema, columns)
    stored = _attribute_schema(schema, columns)
    batches = (batch for batch in batches if len(batch))
    bits = next((each for each in (bits, said.get("bits"), default_bits) if each is not None), None)
    if bits is None:
        first = next(batches, None)
        if first is None:
            raise ValueError("the source has no rows, expected at least 1")
        batches = _chained(first, batches)
        bits = bits_of(first.column(columns.code), name=columns.code)
    rows = _rows(batches, columns, check_bits(bits), stored)
    kept_as = None if columns.features is None else columns.features_as or FLOAT16
    return Incoming(bits, fingerprint or said.get("encoder"), rows, kept_as)


def outgoing_schema(
    attributes: pa.Schema,
    *,
    bits: int,
    fingerprint: str | None,
    features: int | None,
    features_as: FeatureKind,
    thumbnails: bool,
) -> pa.Schema:
    """Return the schema of the batches that go out.

    Parameters
    ----------
    attributes : pyarrow.Schema
    bits : int
    fingerprint : str or None
    features : int or None
        Dimensions of the fine features.
    features_as : {"float16", "bfloat16", "int8"}
    thumbnails : bool
    """
    fields = [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("code", pa.binary(8 * num_words(bits)), nullable=False),
        *attributes,
    ]
    said: dict[str, Any] = {"bits": bits, "encoder": fingerprint, "features": None, "thumbnails": None}
    if features is not None:
        said["features"] = _free_name("features", attributes.names)
        if features_as != FLOAT16:
            said["features_as"] = features_as
        item = pa.field("item", pa.from_numpy_dtype(value_type(features_as)), nullable=False)
        fields.append(pa.field(said["features"], pa.list_(item, features)))
    if thumbnails:
        said["thumbnails"] = _free_name("thumbnail", attributes.names)
        fields.append(pa.field(said["thumbnails"], pa.binary()))
    return pa.schema(fields, {**(attributes.metadata or {}), METADATA: json.dumps(said)})


def outgoing_batch(
    items: pa.RecordBatch,
    schema: pa.Schema,
    features_NF: FeatureValues | None,
    thumbnails: Sequence[bytes | None] | None,
) -> pa.RecordBatch:
    """Return rows (`id`, `code`, attributes) with what is stored beside them, in the columns of `outgoing_schema`."""
    arrays = list(items.columns)
    if features_NF is not None:
        kind = schema.field(len(arrays)).type
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(features_NF.ravel()), type=kind))
    if thumbnails is not None:
        arrays.append(pa.array(thumbnails, pa.binary()))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _free_name(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _chained(first: pa.RecordBatch, rest: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _read_metadata(schema: pa.Schema) -> dict[str, Any]:
    """Return what `outgoing_schema` has written, which another program may have changed since."""
    said = (schema.metadata or {}).get(METADATA)
    if said is None:
        return {}
    try:
        found = json.loads(said)
        bits, names = found.get("bits"), [found.get(key) for key in ("encoder", "features", "thumbnails")]
        if not isinstance(bits, int | None) or not all(isinstance(name, str | None) for name in names):
            raise ValueError(f"expected a number of bits and names, got {said.decode()}")
        if "features_as" in found:
            check_kind(found["features_as"])
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"the metadata `hashlight` of the source is not readable ({error}): remove it, and give `bits`"
        ) from error
    # Columns that have been left out or renamed since are not missed.
    return {
        key: value for key, value in found.items() if key not in ("features", "thumbnails") or value in schema.names
    }


def _check_names(schema: pa.Schema, columns: Columns) -> None:
    for name in columns.names:
        if (count := schema.names.count(name)) != 1:
            hint = " (`id_column=None` numbers the rows)" if name == columns.id else ""
            raise ValueError(
                f"expected one column `{name}`{hint}, got {count} among {', '.join(schema.names) or 'no columns'}: "
                "name the columns of codes, ids and features as the source has them"
            )
    if len(set(columns.names)) < len(columns.names):
        raise ValueError(f"codes, ids, features and thumbnails must be columns of their own, got {columns.names}")


def _attribute_schema(schema: pa.Schema, columns: Columns) -> pa.Schema | None:
    fields = [field for field in schema if field.name not in columns.names]
    if not fields:
        return None
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != METADATA}
    stored = pa.schema(fields, metadata or None)
    check_columns(stored)
    return stored


def _rows(batches: Iterable[pa.RecordBatch], columns: Columns, bits: int, stored: pa.Schema | None) -> Iterator[Rows]:
    start = 0
    for batch in batches:
        attributes = None
        if stored is not None:
            arrays = [batch.column(name) for name in stored.names]
            attributes = pa.RecordBatch.from_arrays(arrays, schema=stored)
        try:
            yield Rows(
                read_codes(batch.column(columns.code), bits=bits, name=columns.code),
                np.arange(start, start + len(batch)) if columns.id is None else _read_ids(batch, columns.id),
                attributes,
                None
                if columns.features is None
                else _read_features(batch, columns.features, columns.features_as or FLOAT16),
                None if columns.thumbnails is None else _read_thumbnails(batch, columns.thumbnails),
            )
        except ValueError as error:
            raise ValueError(f"rows {start:,} to {start + len(batch) - 1:,} of the source: {error}") from error
        start += len(batch)


def _read_ids(batch: pa.RecordBatch, name: str) -> IdArray:
    column = batch.column(name)
    if not pa.types.is_integer(column.type):
        raise ValueError(f"`{name}` is {column.type}, expected whole numbers: ids are int64 of 0 or more")
    if column.null_count:
        raise ValueError(f"`{name}` is null in {column.null_count} rows: give each row an id")
    try:
        ids_N: IdArray = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise ValueError(f"`{name}` must fit int64: {error}") from error
    if len(ids_N) and ids_N.min() < 0:
        row = int(ids_N.argmin())
        raise ValueError(f"`{name}` must be 0 or more, got {ids_N[row]} in row {row}")
    return ids_N


def _read_features(batch: pa.RecordBatch, name: str, features_as: FeatureKind) -> Features:
    column = batch.column(name)
    kind = column.type
    if not (pa.types.is_fixed_size_list(kind) and kind.value_type in (pa.float16(), pa.float32())):
        raise ValueError(f"`{name}` is {kind}, expected features as fixed-size lists of float16 or float32")
    if column.null_count or (values := column.flatten()).null_count:
        raise ValueError(f"`{name}` has nulls: give each row its features")
    return Features.of(values.to_numpy().reshape(len(batch), kind.list_size), features_as, name=name)


def _read_thumbnails(batch: pa.RecordBatch, name: str) -> pa.Array:
    column = batch.column(name)
    if column.type not in (pa.binary(), pa.large_binary(), pa.binary_view()):
        raise ValueError(f"`{name}` is {column.type}, expected thumbnails as binary")
    return column.cast(pa.binary())
