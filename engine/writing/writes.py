"""Writes as plain data: what is to change, and how a transaction is told."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray, check_codes
from hashlight.engine.collection.writing import given
from hashlight.engine.collection.writing.columns import completed, fit_columns, fit_features
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import EncoderMismatchError
from hashlight.engine.features import FeatureValues
from hashlight.engine.filters.filter import Filter
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.ids import check_ids
from hashlight.engine.storage.manifest import Manifest

# What messages call the collection: whoever sends a write need not know where it is stored.
_WHERE = "the collection"


class Write(Protocol):
    """A change that one request asks for."""

    @property
    def num_items(self) -> int:
        """Items that the request names; 0 if it names them by a filter."""
        ...

    def check(self, live: Manifest) -> None:
        """Raise TypeError, ValueError or EncoderMismatchError if it does not fit what a collection stores."""
        ...

    def record(self, change: Transaction) -> None:
        """Record it in a transaction."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Put:
    """Items that are added, in place of those that have their ids or only if there are none.

    Attributes
    ----------
    codes : ndarray of uint64, shape (N, W)
    ids : ndarray of int64, shape (N,)
        Distinct.
    attributes : pyarrow.Table or None
        N rows, in the types that are stored.
    features : ndarray of float16 or float32, shape (N, F), or None
    thumbnails : pyarrow.Array of binary, length N, or None
    replaces : bool
    encoder : str or None
        Fingerprint of the encoder that made the codes, if that is known.
    """

    codes: CodeArray
    ids: IdArray
    attributes: pa.Table | None = None
    features: FeatureValues | None = None
    thumbnails: pa.Array | None = None
    replaces: bool = True
    encoder: str | None = None

    @property
    def num_items(self) -> int:
        """See `Write.num_items`."""
        return len(self.ids)

    def check(self, live: Manifest) -> None:
        """See `Write.check`."""
        if self.encoder is not None and live.encoder not in (None, self.encoder):
            raise EncoderMismatchError(
                f"the collection stores codes of encoder {live.encoder}, these are of {self.encoder}: encode the "
                "images with the collection's"
            )
        check_codes(self.codes, bits=live.bits, name="codes")
        check_ids(self.ids, rows=len(self.codes))
        beside = self.attributes, self.features, self.thumbnails
        table, features, _ = given.checked(beside, rows=len(self.codes), features_as=live.features_as)
        fit_columns(pa.schema([]) if table is None else table.schema, live.schema, where=_WHERE)
        fit_features(live.features, None if features is None else features.shape[1], where=_WHERE)

    def record(self, change: Transaction) -> None:
        """See `Write.record`."""
        add = change.upsert if self.replaces else change.add
        add(self.codes, self.ids, self.attributes, self.features, self.thumbnails)


@dataclasses.dataclass(frozen=True, slots=True)
class Delete:
    """Items that are deleted, as far as they are there: their ids (M,)."""

    ids: IdArray

    @property
    def num_items(self) -> int:
        """See `Write.num_items`."""
        return len(self.ids)

    def check(self, live: Manifest) -> None:
        """See `Write.check`."""
        given.some_ids(self.ids)

    def record(self, change: Transaction) -> None:
        """See `Write.record`."""
        change.delete(self.ids)


@dataclasses.dataclass(frozen=True, slots=True)
class DeleteWhere:
    """Items that satisfy a filter when they are deleted."""

    filter: str
    parameters: Parameters | None = None

    @property
    def num_items(self) -> int:
        """See `Write.num_items`."""
        return 0

    def check(self, live: Manifest) -> None:
        """See `Write.check`."""
        Filter(self.filter, live.schema or pa.schema([]), self.parameters)

    def record(self, change: Transaction) -> None:
        """See `Write.record`."""
        change.delete_where(self.filter, self.parameters)


@dataclasses.dataclass(frozen=True, slots=True)
class Update:
    """Items that get other attributes: several tables, each with its ids, since items may change in unlike ones."""

    parts: Sequence[tuple[IdArray, pa.Table]]

    @property
    def num_items(self) -> int:
        """See `Write.num_items`."""
        return sum(len(ids) for ids, _ in self.parts)

    def check(self, live: Manifest) -> None:
        """See `Write.check`."""
        ids = np.concatenate([ids for ids, _ in self.parts])
        check_ids(ids, rows=len(ids), remedy=given.ONE_VALUE)
        for part_ids, table in self.parts:
            given.checked((table, None, None), rows=len(part_ids))
            fit_columns(table.schema, live.schema, where=_WHERE)

    def record(self, change: Transaction) -> None:
        """See `Write.record`."""
        for ids, table in self.parts:
            change.update(ids, table)


# How many items each of some writes has deleted; None for those that are not deletions.
Counts = Callable[[], list[int | None]]


def record_all(writes: Sequence[Write], live: Manifest, change: Transaction) -> Counts:
    """Record writes in a transaction, `folded`, and return what counts their deletions once it is committed."""
    counts: list[Counts] = []
    for are_joined, run in itertools.groupby(writes, key=_is_joined):
        if are_joined:
            counts.append(_record_run(list(run), live, change))
        else:
            counts += [_record_alone(write, change) for write in run]
    return lambda: [number for count in counts for number in count()]


def _is_joined(write: Write) -> bool:
    return isinstance(write, Delete) or (isinstance(write, Put) and write.replaces)


def _record_alone(write: Write, change: Transaction) -> Counts:
    if not isinstance(write, DeleteWhere):
        write.record(change)
        return lambda: [None]
    before = change.tally()
    write.record(change)
    after = change.tally()
    return lambda: [after.deleted - before.deleted]


def _record_run(run: Sequence[Write], live: Manifest, change: Transaction) -> Counts:
    named = [write.ids for write in run if isinstance(write, Delete)]
    found = change.look_up(np.concatenate(named)) if named else None
    for write in folded(run, live):
        write.record(change)
    return lambda: _deleted_by(run, [] if found is None else found.there.tolist())


def _deleted_by(run: Sequence[Write], there: Iterable[int]) -> list[int | None]:
    """Return how many items each deletion of a run finds, of those that were there before and what the run puts."""
    present, counts = set(there), list[int | None]()
    for write in run:
        ids = set(write.ids.tolist()) if isinstance(write, Put | Delete) else set[int]()
        counts.append(len(present & ids) if isinstance(write, Delete) else None)
        present = present - ids if isinstance(write, Delete) else present | ids
    return counts


def folded(writes: Sequence[Write], live: Manifest) -> list[Write]:
    """Return fewer writes that do the same: runs of puts that replace, and of deletions by id, become one of each.

    Each write of items makes a shard, and what many requests have put there is better in one.
    """
    found: list[Write] = []
    for are_joined, group in itertools.groupby(writes, key=_is_joined):
        run = list(group)
        found += _joined([write for write in run if isinstance(write, Put | Delete)], live) if are_joined else run
    return found


def _joined(run: Sequence[Put | Delete], live: Manifest) -> list[Write]:
    """Return a deletion and a put that do what a run does: the last that is said of an id counts."""
    if len(run) < 2:
        return list(run)
    last: dict[int, int] = {}  # id -> number of the last write that names it
    for number, write in enumerate(run):
        last.update(dict.fromkeys(write.ids.tolist(), number))
    deleted = [id_ for id_, number in last.items() if isinstance(run[number], Delete)]
    kept = [
        _taken(write, np.array([last[id_] == number for id_ in write.ids.tolist()]), live)
        for number, write in enumerate(run)
        if isinstance(write, Put)
    ]
    kept = [put for put in kept if len(put.ids)]
    joined: list[Write] = [Delete(np.array(sorted(deleted), np.int64))] if deleted else []
    return [*joined, _stacked(kept)] if kept else joined


def _taken(put: Put, keeps_N: NDArray[np.bool_], live: Manifest) -> Put:
    """Return some items of a put, with all attributes of the collection, and thumbnails if only null ones."""
    rows = pa.array(np.flatnonzero(keeps_N))
    table = completed(put.attributes, live.schema, rows=len(put.ids))
    thumbnails = pa.nulls(len(put.ids), pa.binary()) if put.thumbnails is None else put.thumbnails.cast(pa.binary())
    return Put(
        put.codes[keeps_N],
        put.ids[keeps_N],
        None if table is None else table.take(rows),
        None if put.features is None else put.features[keeps_N],
        thumbnails.take(rows),
    )


def _stacked(puts: Sequence[Put]) -> Put:
    """Return the items of several puts that have the same columns."""
    tables = [put.attributes for put in puts if put.attributes is not None]
    parts = [put.features for put in puts if put.features is not None]
    features: FeatureValues | None = np.concatenate(parts) if parts else None
    thumbnails = pa.concat_arrays([put.thumbnails for put in puts])
    return Put(
        np.concatenate([put.codes for put in puts]),
        np.concatenate([put.ids for put in puts]),
        pa.concat_tables(tables) if tables else None,
        features,
        None if thumbnails.null_count == len(thumbnails) else thumbnails,
    )
