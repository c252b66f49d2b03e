"""Rows that are deleted, or moved into a new shard with other attributes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from hashlight.engine.codes import IdArray
from hashlight.engine.collection.writing.columns import completed, fit_columns
from hashlight.engine.collection.writing.draft import Draft, Found
from hashlight.engine.features import Features, joined
from hashlight.engine.filters.filter import Filter
from hashlight.engine.filters.outcomes import TRUE, Blocks
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.storage.columns import as_stored, stored_schema
from hashlight.engine.storage.manifest import ShardSpec
from hashlight.engine.storage.scalars import outcomes_in_shards


class Delete:
    """Deletes the rows that have some ids, as far as they are there."""

    def __init__(self, ids_M: IdArray) -> None:
        self._ids_M = np.unique(ids_M)

    def apply(self, draft: Draft) -> None:
        """Delete them from a draft."""
        draft.deleted += draft.kill(draft.find(self._ids_M))


class Tally:
    """Counts what the changes before it delete.

    Attributes
    ----------
    deleted : int
        Rows, once it was applied.
    """

    deleted = 0

    def apply(self, draft: Draft) -> None:
        """Count the rows that a draft lacks."""
        self.deleted = draft.deleted


class LookUp:
    """Finds which of some ids are there before the changes after it.

    Attributes
    ----------
    there : ndarray of int64
        Once it was applied.
    """

    def __init__(self, ids_M: IdArray) -> None:
        self._ids_M = np.unique(ids_M)
        self.there: IdArray = np.zeros(0, np.int64)

    def apply(self, draft: Draft) -> None:
        """Look for them in a draft."""
        self.there = draft.ids_of(draft.find(self._ids_M))


class DeleteWhere:
    """Deletes the rows that satisfy a filter when they are committed."""

    def __init__(self, text: str, parameters: Parameters | None) -> None:
        self._text, self._parameters = text, parameters

    def apply(self, draft: Draft) -> None:
        """Delete them from a draft.

        Raises
        ------
        FilterError
            If the filter is not a condition on these attributes and parameters.
        """
        parsed = Filter(self._text, draft.schema, self._parameters)
        columns = pa.schema([draft.schema.field(name) for name in parsed.columns])
        specs = list(draft.shards.values())
        outcomes = outcomes_in_shards(parsed, specs, draft.schema, where=draft.place)
        for spec, outcome in zip(specs, outcomes.tolist(), strict=True):
            if not outcome & TRUE:
                continue
            bits = parsed.mask(_Attributes(draft, spec, columns), _Ids(draft, spec))
            mask_N = np.unpackbits(bits, count=spec.rows, bitorder="little").view(np.bool_)
            mask_N[draft.dead(spec)] = False
            if mask_N.any():
                draft.deleted += draft.kill([(spec, np.flatnonzero(mask_N))])


class _Attributes:
    """The attributes of a shard in a draft, of which filters are evaluated; see `engine.filters.evaluation.Columns`."""

    def __init__(self, draft: Draft, spec: ShardSpec, columns: pa.Schema) -> None:
        self._draft, self._spec, self._columns = draft, spec, columns

    def blocks(self, names: tuple[str, ...]) -> Blocks:
        return Blocks(np.array([self._spec.rows]), {})

    def read(self, number: int, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
        return self._draft.reader.batches(self._spec, self._columns)


class _Ids:
    """The ids of a shard; see `engine.filters.evaluation.Ids`."""

    def __init__(self, draft: Draft, spec: ShardSpec) -> None:
        self.ids_N = draft.reader.ids(spec)
        self._draft, self._spec = draft, spec

    def rows_of(self, ids_M: IdArray) -> IdArray:
        return self._draft.reader.rows_of(self._spec, ids_M)


class Update:
    """Gives rows other attributes: they move into a new shard, with their codes and whatever else they have.

    Parameters
    ----------
    ids_M : ndarray of int64, shape (M,)
        Distinct.
    table : pyarrow.Table
        M rows with the attributes that change.
    skip_missing : bool
        Leave out ids of which there is no row.
    """

    def __init__(self, ids_M: IdArray, table: pa.Table, *, skip_missing: bool = False) -> None:
        schema = stored_schema(table.schema)
        # Arrow takes rows of few other types.
        self._table = pa.Table.from_batches([as_stored(batch, schema) for batch in table.to_batches()], schema)
        self._ids_M = ids_M
        self._skip_missing = skip_missing

    def apply(self, draft: Draft) -> None:
        """Move them in a draft.

        Raises
        ------
        IdNotFoundError
            If there is no row of an id, unless they are left out.
        ValueError
            If the collection does not have an attribute, or has it with another type.
        """
        fit_columns(self._table.schema, draft.manifest.schema, where=draft.place)
        found = draft.find(self._ids_M) if self._skip_missing else draft.find_all(self._ids_M)
        if not found:
            return
        ids_M = draft.ids_of(found)
        order_M = np.argsort(self._ids_M)
        place_M = order_M[np.searchsorted(self._ids_M, ids_M, sorter=order_M)]
        changed = completed(self._table.take(pa.array(place_M)), draft.manifest.schema, rows=len(ids_M))
        rows = [draft.reader.take(spec, draft.schema, rows_M) for spec, rows_M in found]
        table = pa.concat_tables(rows)
        for number, field in enumerate(draft.schema):
            if changed is not None and field.name in self._table.schema.names:
                table = table.set_column(number, field.name, changed[field.name])
        spec = draft.write(
            np.concatenate([draft.reader.codes(spec)[rows_M] for spec, rows_M in found]),
            ids_M,
            table if len(draft.schema) else None,
            _features(draft, found),
            thumbnails_of(draft, found),
        )
        draft.kill(found)
        draft.add(spec)


def _features(draft: Draft, found: Found) -> Features | None:
    if draft.manifest.features is None:
        return None
    parts = [(draft.reader.features(spec), rows_M) for spec, rows_M in found]
    return joined(features.take(rows_M) for features, rows_M in parts if features is not None)


def thumbnails_of(draft: Draft, found: Found) -> pa.Table | None:
    """Return the thumbnails of rows that were found, a column of binary; None if no shard has any."""
    files = [(draft.reader.thumbnails(spec), rows_M) for spec, rows_M in found]
    if all(file is None for file, _ in files):
        return None
    parts = [
        pa.nulls(len(rows_M), pa.binary()) if file is None else file.take(rows_M)["thumbnail"].cast(pa.binary())
        for file, rows_M in files
    ]
    chunks = [chunk for part in parts for chunk in (part.chunks if isinstance(part, pa.ChunkedArray) else [part])]
    return pa.table({"thumbnail": pa.chunked_array(chunks, pa.binary())})
