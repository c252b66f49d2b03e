"""Rows that are added: new shards, written when they are given, whose ids are checked when they are committed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from hashlight.engine.collection.writing.draft import Draft
from hashlight.engine.errors import CollectionBusyError, IdExistsError
from hashlight.engine.ids import next_ids
from hashlight.engine.places.arrays import write_array
from hashlight.engine.places.files import sha256_of
from hashlight.engine.places.integrity import FileSpec, remember_verified
from hashlight.engine.storage.manifest import ShardSpec


class Add:
    """Adds shards whose ids are given. With `upsert` the rows that have them are deleted, otherwise they are refused.

    Parameters
    ----------
    shards : list of ShardSpec
    schema : pyarrow.Schema or None
        Their attributes.
    upsert : bool
    checked : frozenset of str
        Names of shards that are known to have none of the ids.
    """

    def __init__(
        self,
        shards: list[ShardSpec],
        schema: pa.Schema | None,
        *,
        upsert: bool = False,
        checked: frozenset[str] = frozenset(),
    ) -> None:
        self._shards, self._schema, self._upsert, self._checked = shards, schema, upsert, checked

    def apply(self, draft: Draft) -> None:
        """Add them to a draft.

        Raises
        ------
        IdExistsError
            If an id is there already.
        """
        ids_N = np.concatenate([draft.reader.ids(spec) for spec in self._shards])
        found = draft.find(ids_N, but=self._checked)
        if found and not self._upsert:
            known = np.sort(draft.ids_of(found))
            raise IdExistsError.of(known.tolist(), wanted=len(ids_N), where=draft.place)
        refuse_other_types(draft, self._schema)
        draft.deleted += draft.kill(found)
        for spec in self._shards:
            draft.add(spec)
        draft.added += len(ids_N)


class AddNumbered:
    """Adds shards whose rows take the next ids, in their order.

    They are written with the ids that come next at that time. If those are taken until the commit, only the ids are
    written again: rows of equal codes are in the order of their ids, which all grow by the same number.
    """

    def __init__(self, shards: list[ShardSpec], schema: pa.Schema | None, first: int, rows: int) -> None:
        self._shards, self._schema, self._first, self._rows = shards, schema, first, rows

    def apply(self, draft: Draft) -> None:
        """Add them to a draft.

        Raises
        ------
        ValueError
            If there are not that many ids any more.
        """
        first = draft.manifest.next_id
        next_ids(first - 1, self._rows)
        if first != self._first:
            self._shards = [renumbered(draft, spec, first - self._first) for spec in self._shards]
            self._first = first
        refuse_other_types(draft, self._schema)
        for spec in self._shards:
            draft.add(spec)
        draft.added += self._rows


class Adopt:
    """Adds shards that others have written into the collection's place.

    Parameters
    ----------
    shards : list of ShardSpec
        Their ids are distinct.
    schema : pyarrow.Schema or None
        Their attributes.
    checked : sequence of ShardSpec
        Shards that are known to have none of the ids in a row alive, as a version had them.
    upsert : bool
        As in `Add`.
    """

    def __init__(
        self,
        shards: list[ShardSpec],
        schema: pa.Schema | None,
        *,
        checked: Sequence[ShardSpec] = (),
        upsert: bool = False,
    ) -> None:
        self._shards, self._schema, self._upsert = shards, schema, upsert
        # A rollback may have brought back rows that were deleted then.
        self._checked = {spec.name: spec.dead for spec in checked}

    def apply(self, draft: Draft) -> None:
        """Add them to a draft.

        Raises
        ------
        IdExistsError
            If an id is there already.
        """
        refuse_other_types(draft, self._schema)
        own = {spec.name for spec in self._shards}
        others = {spec.name: spec.dead for spec in draft.shards.values()}
        checked = {name for name, dead in others.items() if name in self._checked and self._checked[name] == dead}
        if others.keys() <= checked:
            for spec in self._shards:
                draft.add(spec)
                draft.added += spec.rows
            return
        for spec in self._shards:
            Add([spec], self._schema, upsert=self._upsert, checked=frozenset(checked | own)).apply(draft)


def split_rows(rows: int, shards: int) -> Iterator[slice]:
    """Divide `rows` rows into `shards` runs whose lengths differ by at most one.

    Raises
    ------
    ValueError
        If there are no rows, or `shards` is not within 1 to `rows`.
    """
    if rows == 0:
        raise ValueError("shards must have at least 1 code, got 0")
    if not 1 <= shards <= rows:
        raise ValueError(f"`shards` must be 1 to {rows} (the number of codes), got {shards}")
    edges = [rows * number // shards for number in range(shards + 1)]
    return (slice(start, stop) for start, stop in itertools.pairwise(edges))


def refuse_other_types(draft: Draft, schema: pa.Schema | None) -> None:
    """Raise CollectionBusyError if an attribute was given another type since rows with it were written."""
    for field in schema or ():
        here = draft.schema.field(field.name) if field.name in draft.schema.names else field
        if here.type != field.type:
            raise CollectionBusyError(
                f"another process has changed attribute {field.name} of {draft.place} to {here.type}, while rows with "
                f"{field.type} were added: add them again"
            )


def renumbered(draft: Draft, spec: ShardSpec, more: int) -> ShardSpec:
    """Add a number to all ids of a shard that no version has yet."""
    name, old = f"shards/{spec.name}/ids.npy", spec.ids
    assert old is not None, "format 2 has the range of ids"
    ids_N = draft.reader.ids(spec) + more
    with draft.place.scratch(name) as path:
        write_array(path, ids_N)
        described = FileSpec(path.stat().st_size, sha256_of(path))
        draft.place.put_file(name, path)
    draft.reader.forget(spec)
    spec = dataclasses.replace(spec, files={**spec.files, "ids.npy": described}, ids=(old[0] + more, old[1] + more))
    if draft.place.local is not None:
        remember_verified(draft.place.local / "shards" / spec.name, spec.files)
    return spec
