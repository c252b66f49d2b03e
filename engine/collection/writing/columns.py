"""Attributes: whether given ones fit those of a collection, and columns that are set or dropped in all shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.codes import IdArray
from hashlight.engine.collection.writing.draft import Draft
from hashlight.engine.places.files import sha256_of
from hashlight.engine.storage.attributes import BATCH_ROWS, write_batches
from hashlight.engine.storage.columns import stored_schema
from hashlight.engine.storage.manifest import ColumnFile, ShardSpec
from hashlight.engine.storage.scalars import column_statistics, merge_statistics
from hashlight.engine.storage.shard import Layout


def fit_columns(given: pa.Schema, schema: pa.Schema | None, *, where: object) -> None:
    """Check that a collection has some attributes, with these types.

    Raises
    ------
    ValueError
        If it does not have one of them, or has it with another type.
    """
    known = pa.schema([]) if schema is None else schema
    for field in stored_schema(given):
        if field.name not in known.names:
            raise ValueError(
                f"{where} stores {describe(schema)}, got attribute {field.name} ({field.type}), too: leave it out, or "
                "add it to the collection first (`set_column`)"
            )
        here = known.field(field.name).type
        if field.type not in (here, pa.null()):
            raise ValueError(
                f"{where} stores {describe(schema)}, got attribute {field.name} ({field.type}): cast it to {here}, or "
                "change the collection's first (`set_column`)"
            )


def describe(schema: pa.Schema | None) -> str:
    """Name the attributes of a collection and their types."""
    fields = ", ".join(f"{field.name} ({field.type})" for field in schema or ())
    return f"attributes {fields}" if fields else "no attributes"


def completed(table: pa.Table | None, schema: pa.Schema | None, *, rows: int) -> pa.Table | None:
    """Return attributes that fit with all columns of a collection, null where they are missing; None if it has none."""
    if schema is None:
        return None
    given = {} if table is None else dict(zip(table.schema.names, table.columns, strict=True))
    columns, fields = [], []
    for field in schema:
        column = given.get(field.name)
        if column is None or (pa.types.is_null(column.type) and column.type != field.type):
            column = pa.nulls(rows, field.type)
        columns.append(column)
        fields.append(field.with_type(column.type).with_nullable(field.nullable or column.null_count > 0))
    return pa.table(columns, schema=pa.schema(fields, schema.metadata))


def fit_features(stored: int | None, given: int | None, *, where: object) -> None:
    """Raise ValueError unless rows come with the fine features that a collection has, or with none."""
    if stored != given:
        names = [f"features of {dimensions} dimensions" if dimensions else "none" for dimensions in (stored, given)]
        advice = (
            "give those of the same encoder (`features`; `hashlight encode --features` keeps them)"
            if stored
            else "leave them out (`features`; `hashlight encode` without `--features`)"
        )
        raise ValueError(f"{where} stores {names[0]} beside its codes, got {names[1]}: {advice}")


class Define:
    """Says what a collection stores beside its codes: all of it, or only that there are thumbnails."""

    def __init__(self, layout: Layout, *, is_whole: bool) -> None:
        self._layout, self._is_whole = layout, is_whole

    def apply(self, draft: Draft) -> None:
        """Say so in a draft."""
        draft.change(thumbnails=self._layout.thumbnails)
        if self._is_whole:
            layout = self._layout
            draft.change(schema=layout.schema, features=layout.features, features_as=layout.features_as)


class SetColumn:
    """Gives some rows values of one attribute, which the collection has or gets; other rows keep theirs, or are null.

    Parameters
    ----------
    name : str
    ids_M : ndarray of int64, shape (M,)
        Distinct.
    values : pyarrow.Array
        M values, of a type as it is stored.
    """

    def __init__(self, name: str, ids_M: IdArray, values: pa.Array) -> None:
        order_M = np.argsort(ids_M)
        self._name, self._ids_M, self._values = name, ids_M[order_M], values.take(pa.array(order_M))

    def apply(self, draft: Draft) -> None:
        """Set it in a draft.

        Raises
        ------
        IdNotFoundError
            If there is no row of an id.
        ValueError
            If the attribute has another type, to which values that stay cannot be converted.
        """
        before = draft.schema.field(self._name) if self._name in draft.schema.names else None
        field = pa.field(self._name, self._values.type)
        rows = {spec.name: rows_M for spec, rows_M in draft.find_all(self._ids_M)}
        for spec in list(draft.shards.values()):
            # A shard may have been written with an attribute of this name that was dropped since.
            stale = before is None and self._name in draft.reader.own_columns(spec).names
            converted = before is not None and before.type != field.type
            if spec.name in rows or stale or converted:
                rows_M = np.sort(rows.get(spec.name, np.zeros(0, np.int64)))
                draft.shards[spec.name] = self._with_column(draft, spec, rows_M, before, field)
            elif before is None:
                draft.shards[spec.name] = _without_values(spec, field)
        draft.change(schema=with_field(draft.schema, field))

    def _with_column(
        self, draft: Draft, spec: ShardSpec, rows_M: NDArray[np.int64], before: pa.Field | None, field: pa.Field
    ) -> ShardSpec:
        name = draft.intent.new_name("columns")
        values = self._values.take(pa.array(np.searchsorted(self._ids_M, draft.reader.ids(spec)[rows_M])))
        schema = pa.schema([field])
        found = _Statistics()
        with draft.place.scratch(f"columns/{name}") as path:
            stays_N = np.ones(spec.rows, np.bool_)
            stays_N[rows_M] = stays_N[draft.dead(spec)] = False
            column = _overlaid(_column(draft, spec, before, field, stays_N), rows_M, values, schema)
            write_batches(path, found.of(column), schema)
            file = ColumnFile(name, path.stat().st_size, sha256_of(path))
            draft.place.put_file(f"columns/{name}", path)
        others = {each: about for each, about in spec.statistics.items() if each != field.name}
        return dataclasses.replace(
            spec, columns={**spec.columns, field.name: file}, statistics={**others, **found.merged()}
        )


def _without_values(spec: ShardSpec, field: pa.Field) -> ShardSpec:
    """Record that an attribute is null in all rows of a shard, so that filters need not look."""
    nulls = pa.record_batch([pa.nulls(1, field.type)], schema=pa.schema([field]))
    known = {name: {**about, "nulls": spec.rows} for name, about in column_statistics(nulls).items()}
    return dataclasses.replace(spec, statistics={**spec.statistics, **known})


class _Statistics:
    """The bounds of a column, found as its batches pass."""

    def __init__(self) -> None:
        self._parts: list[dict[str, Any]] = []
        self._rows: list[int] = []

    def of(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            self._parts.append(column_statistics(batch))
            self._rows.append(len(batch))
            yield batch

    def merged(self) -> dict[str, Any]:
        return merge_statistics(self._parts, self._rows)


def _column(
    draft: Draft, spec: ShardSpec, before: pa.Field | None, field: pa.Field, stays_N: NDArray[np.bool_]
) -> Iterator[pa.Array]:
    """Yield what a shard has so far, 1,024 rows at a time, as the new type; null in rows whose values do not stay."""
    if before is None:
        for start in range(0, spec.rows, BATCH_ROWS):
            yield pa.nulls(min(BATCH_ROWS, spec.rows - start), field.type)
        return
    start = 0
    for batch in draft.reader.batches(spec, pa.schema([before])):
        column, stays_B = batch.column(0), stays_N[start : start + len(batch)]
        start += len(batch)
        if before.type == field.type or not stays_B.any():
            yield column if before.type == field.type else pa.nulls(len(column), field.type)
            continue
        try:
            yield column.take(pa.array(np.arange(len(column)), mask=~stays_B)).cast(field.type)
        except pa.ArrowException as error:
            raise ValueError(
                f"attribute {field.name} of {draft.place} cannot become {field.type} ({error}): give values for all "
                "ids, or of the type that it has, or set another attribute"
            ) from error


def _overlaid(
    columns: Iterator[pa.Array], rows_M: NDArray[np.int64], values: pa.Array, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Yield a column with other values in some rows, which ascend."""
    start = 0
    for column in columns:
        first, last = np.searchsorted(rows_M, [start, start + len(column)])
        if first < last:
            picked_N = np.arange(len(column))
            picked_N[rows_M[first:last] - start] = len(column) + np.arange(last - first)
            column = pa.concat_arrays([column, values.slice(first, last - first)]).take(pa.array(picked_N))
        yield pa.RecordBatch.from_arrays([column], schema=schema)
        start += len(column)


def with_field(schema: pa.Schema, field: pa.Field) -> pa.Schema:
    """Return a schema in which an attribute is new, or has another type."""
    number = schema.get_field_index(field.name)
    return schema.append(field) if number < 0 else schema.set(number, field)


class DropColumn:
    """Drops an attribute. Shards that were written with it keep it, unseen, until they are compacted."""

    def __init__(self, name: str) -> None:
        self._name = name

    def apply(self, draft: Draft) -> None:
        """Drop it from a draft.

        Raises
        ------
        ValueError
            If there is no such attribute.
        """
        if self._name not in draft.schema.names:
            raise ValueError(f"{draft.place} stores {describe(draft.schema)}: there is no {self._name!r} to drop")
        for spec in draft.shards.values():
            draft.shards[spec.name] = dataclasses.replace(
                spec,
                columns={name: file for name, file in spec.columns.items() if name != self._name},
                statistics={name: about for name, about in spec.statistics.items() if name != self._name},
            )
        schema = draft.schema.remove(draft.schema.get_field_index(self._name))
        draft.change(schema=schema if len(schema) else None)
