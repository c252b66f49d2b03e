"""Writes that are in the log and in no version yet: what they come to together, whatever they are made to.

Their sum is rows that are put, ids that are gone, and attributes that change of rows that are elsewhere. No id is in
two of these, so that they can be made in any order, and an id that another process has deleted meanwhile is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.features import Features, joined
from hashlight.engine.storage.columns import as_stored, stored_schema
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.writing.records import Logged
from hashlight.engine.writing.writes import Delete, Put, Update

logger = logging.getLogger(__name__)


class Rows(NamedTuple):
    """Complete rows.

    Attributes
    ----------
    ids : ndarray of int64, shape (N,)
    codes : ndarray of uint64, shape (N, W)
    attributes : pyarrow.Table or None
        With all columns of the collection; None if it has none.
    features : Features of N rows, or None
    thumbnails : pyarrow.ChunkedArray of binary, length N
    """

    ids: IdArray
    codes: CodeArray
    attributes: pa.Table | None
    features: Features | None
    thumbnails: pa.ChunkedArray


class Sum(NamedTuple):
    """What pending writes come to.

    Attributes
    ----------
    put : Rows or None
    gone : ndarray of int64, shape (M,)
        Ids, as far as they are there.
    changed : list of (ndarray of int64, pyarrow.Table)
        Ids, as far as they are there, and their new attributes.
    """

    put: Rows | None
    gone: IdArray
    changed: list[tuple[IdArray, pa.Table]]


class Pending:
    """Pending writes, added one after another. Not thread-safe.

    Parameters
    ----------
    manifest : Manifest
        Of the collection that they are to be written to: what its rows store.
    logged : iterable of Logged
        Without deletions by a filter.

    Attributes
    ----------
    logged : list of Logged
    num_items, num_bytes : int
        That they name, and that they take.
    """

    def __init__(self, manifest: Manifest, logged: Iterable[Logged] = ()) -> None:
        self._schema = manifest.schema if manifest.schema is not None else pa.schema([])
        self._features_as = manifest.features_as
        self.logged: list[Logged] = []
        self.num_items = self.num_bytes = 0
        # Each row that was ever put has a slot, and an id the last one.
        self._slot_of: dict[int, int] = {}
        self._puts: list[Rows] = []
        self._num_slots = 0
        self._gone: set[int] = set()
        # Values that updates bring, by attribute; and which of them a slot has, or a row elsewhere.
        self._values: dict[str, list[pa.Array]] = {}
        self._num_values: dict[str, int] = {}
        self._changed_slots: dict[str, dict[int, int]] = {}
        self._changed: dict[int, dict[str, int]] = {}
        for one in logged:
            self.add(one)

    def __len__(self) -> int:
        """Return the number of writes."""
        return len(self.logged)

    @property
    def last(self) -> int:
        """Number of the last write; 0 if there is none."""
        return self.logged[-1].number if self.logged else 0

    def add(self, logged: Logged) -> None:
        """Add the next write."""
        write = logged.write
        match write:
            case Put():
                self._put(write)
            case Delete():
                self._delete(write.ids.tolist())
            case Update():
                for ids, table in write.parts:
                    self._update(ids.tolist(), table)
            case _:
                raise TypeError(f"expected a put, an update or a deletion of ids, got {type(write).__name__}")
        self.logged.append(logged)
        self.num_items += write.num_items
        self.num_bytes += logged.num_bytes

    def _put(self, put: Put) -> None:
        rows = len(put.ids)
        if not rows:
            return
        thumbnails = pa.nulls(rows, pa.binary()) if put.thumbnails is None else put.thumbnails.cast(pa.binary())
        table = fitted(put.attributes, self._schema, rows=rows)
        features = None if put.features is None else Features.of(put.features, self._features_as)
        self._puts.append(Rows(put.ids, put.codes, table, features, pa.chunked_array([thumbnails])))
        ids = put.ids.tolist()
        self._slot_of.update(zip(ids, range(self._num_slots, self._num_slots + rows), strict=True))
        self._num_slots += rows
        self._gone.difference_update(ids)
        if self._changed:
            for id_ in ids:
                self._changed.pop(id_, None)

    def _delete(self, ids: list[int]) -> None:
        for id_ in ids:
            self._slot_of.pop(id_, None)
            self._changed.pop(id_, None)
        self._gone.update(ids)

    def _update(self, ids: list[int], table: pa.Table) -> None:
        schema = pa.schema([self._schema.field(name) for name in table.schema.names if name in self._schema.names])
        found = fitted(table, schema, rows=len(ids))
        if found is None:
            return
        for name, column in zip(schema.names, found.columns, strict=True):
            first = self._num_values.get(name, 0)
            self._values.setdefault(name, []).extend(column.chunks)
            self._num_values[name] = first + len(ids)
            slots = self._changed_slots.setdefault(name, {})
            for place, id_ in enumerate(ids, first):
                if (slot := self._slot_of.get(id_)) is not None:
                    slots[slot] = place
                elif id_ not in self._gone:
                    self._changed.setdefault(id_, {})[name] = place

    # What they come to.

    def has(self, ids_M: IdArray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which ids (M,) are put, and which are gone; of others the collection knows."""
        ids = ids_M.tolist()
        return np.array([id_ in self._slot_of for id_ in ids], bool), np.array([id_ in self._gone for id_ in ids], bool)

    @property
    def changed(self) -> list[int]:
        """Ids of rows elsewhere whose attributes change, as far as they are there."""
        return list(self._changed)

    @property
    def hidden(self) -> IdArray:
        """Ids of rows elsewhere that are replaced or gone, besides those of `changed`."""
        return np.array([*self._slot_of, *self._gone], np.int64)

    def rows(self, elsewhere: Rows | None = None) -> Rows | None:
        """Return all rows that are put, and those of `changed` with their new attributes; None if there are none.

        Parameters
        ----------
        elsewhere : Rows or None
            Rows of `changed`, as the collection has them.
        """
        slots_P = np.fromiter(self._slot_of.values(), np.int64, len(self._slot_of))
        ids_P = np.fromiter(self._slot_of.keys(), np.int64, len(self._slot_of))
        parts, moved = list(self._puts), 0
        if elsewhere is not None:
            parts.append(elsewhere)
            moved = len(elsewhere.ids)
        row_P = np.concatenate([slots_P, self._num_slots + np.arange(moved)])
        if not len(row_P):
            return None
        features = [part.features for part in parts if part.features is not None]
        thumbnails = pa.chunked_array([chunk for part in parts for chunk in part.thumbnails.chunks], pa.binary())
        return Rows(
            np.concatenate([ids_P, *([] if elsewhere is None else [elsewhere.ids])]),
            np.concatenate([part.codes for part in parts])[row_P],
            self._attributes(parts, row_P, [] if elsewhere is None else elsewhere.ids.tolist()),
            joined(features).take(row_P) if features else None,
            thumbnails.take(pa.array(row_P)),
        )

    def _attributes(self, parts: Sequence[Rows], row_P: NDArray[np.int64], moved: list[int]) -> pa.Table | None:
        tables = [part.attributes for part in parts if part.attributes is not None]
        if not self._schema.names:
            return None
        total = self._num_slots + len(moved)
        columns = []
        for number, field in enumerate(self._schema):
            chunks = [chunk for table in tables for chunk in table.column(number).chunks]
            place_R = np.arange(total)
            if (slots := self._changed_slots.get(field.name)) is not None:
                place_R[list(slots)] = [total + place for place in slots.values()]
            for row, id_ in enumerate(moved, self._num_slots):
                if (place := self._changed[id_].get(field.name)) is not None:
                    place_R[row] = total + place
            whole = pa.chunked_array([*chunks, *self._values.get(field.name, ())], field.type)
            columns.append(whole.take(pa.array(place_R[row_P])))
        return pa.table(columns, schema=_nullable(self._schema))

    def sum(self) -> Sum:
        """Return what all come to."""
        alike: dict[tuple[str, ...], list[int]] = {}
        for id_, places in self._changed.items():
            alike.setdefault(tuple(sorted(places)), []).append(id_)
        changed = []
        for names, ids in alike.items():
            columns = []
            for name in names:
                whole = pa.chunked_array(self._values[name], self._schema.field(name).type)
                columns.append(whole.take(pa.array([self._changed[id_][name] for id_ in ids])))
            changed.append((np.array(ids, np.int64), pa.table(columns, names=list(names))))
        return Sum(self.rows(), np.array(sorted(self._gone), np.int64), changed)


def fitted(table: pa.Table | None, schema: pa.Schema, *, rows: int) -> pa.Table | None:
    """Return attributes as a collection stores them: all that `schema` has, null where they are missing.

    Another process may have changed the collection's attributes since they were logged: those it no longer has are left
    out, and those of another type are cast, or null if they cannot be. None if the schema is empty.
    """
    if not schema.names:
        return None
    given = {} if table is None else dict(zip(table.schema.names, _as_stored(table).columns, strict=True))
    columns = [_of_type(given.get(field.name), field, rows) for field in schema]
    return pa.table(columns, schema=_nullable(schema))


def _as_stored(table: pa.Table) -> pa.Table:
    schema = stored_schema(table.schema)
    return pa.Table.from_batches([as_stored(batch, schema) for batch in table.to_batches()], schema)


def _of_type(column: pa.ChunkedArray | None, field: pa.Field, rows: int) -> pa.ChunkedArray:
    if column is None or (pa.types.is_null(column.type) and column.type != field.type):
        return pa.chunked_array([pa.nulls(rows, field.type)])
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        logger.warning(
            "attribute %s was changed from %s to %s meanwhile, and %d pending values are lost: %s",
            field.name, column.type, field.type, rows, error,
        )  # fmt: skip
        return pa.chunked_array([pa.nulls(rows, field.type)])


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema], schema.metadata)
