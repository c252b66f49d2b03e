"""A transaction: changes that are recorded, prepared without a lock, and become visible together.

A commit applies the changes to the live version, writes the manifest of the next one, and exchanges CURRENT if it is
still what was read. If another writer was faster, the changes are applied again, to what is live then:

- rows are added beside others that were added meanwhile, unless they have the same ids;
- rows are deleted by their ids whatever happened to them meanwhile, and a filter is evaluated again;
- compaction deletes from its new shards what was deleted from the old ones, and is refused if one of them is gone.

Only the exchange needs the lock of a local folder; in a bucket it is a conditional put.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import pyarrow as pa
from numpy.typing import ArrayLike

from hashlight.engine.codes import CodeArray, IdArray, check_bits, check_codes
from hashlight.engine.collection.writing import given, history
from hashlight.engine.collection.writing.adding import Add, AddNumbered, Adopt, split_rows
from hashlight.engine.collection.writing.changing import Delete, DeleteWhere, LookUp, Tally, Update
from hashlight.engine.collection.writing.columns import (
    Define,
    DropColumn,
    SetColumn,
    completed,
    fit_columns,
    fit_features,
    with_field,
)
from hashlight.engine.collection.writing.draft import Draft, new_shard, upgraded
from hashlight.engine.collection.writing.opening import Fresh, Ground, ground_of, locked, refuse_foreign_folder
from hashlight.engine.collection.writing.replacing import (
    KeepEncoder,
    MarkLog,
    Replace,
    ReserveIds,
    is_stored,
    store_encoder,
)
from hashlight.engine.collection.writing.rows import Reader
from hashlight.engine.errors import CollectionBusyError, CollectionExistsError, CorruptDataError, EncoderMismatchError
from hashlight.engine.features import FLOAT16, FeatureKind, Features, FeaturesLike
from hashlight.engine.filters.filter import Filter
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.ids import check_ids, next_ids
from hashlight.engine.places.opening import open_target
from hashlight.engine.places.place import Place
from hashlight.engine.storage.columns import stored_schema
from hashlight.engine.storage.leftovers import Intent, sweep_intents, sweep_versions
from hashlight.engine.storage.manifest import Manifest, ShardSpec, check_name
from hashlight.engine.storage.shard import Layout, read_layout, write_shard
from hashlight.engine.storage.versions import close_held, find_version, holding_live, publish, read_live_held

# A commit that is overtaken this often in a local folder then keeps the others away.
_FREE_ATTEMPTS = 5
_MAX_ATTEMPTS = 30
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 1.0


class Commit(NamedTuple):
    """What a transaction has done.

    Attributes
    ----------
    version : int
        The first that shows it; the live one if there was nothing to change.
    added, deleted : int
        Rows. An upsert deletes those that it replaces; an update does neither.
    """

    version: int
    added: int
    deleted: int


class Preview(NamedTuple):
    """What a transaction would do if it was committed now.

    Attributes
    ----------
    live : Manifest
        The version that is live.
    added, deleted : int
        As in `Commit`.
    oldest : int
        The lowest version that would be kept, but for tagged ones.
    """

    live: Manifest
    added: int
    deleted: int
    oldest: int


class Operation(Protocol):
    """A change that can be applied to any version; see the module."""

    def apply(self, draft: Draft) -> None:
        """Apply it."""
        ...


class Transaction:
    """Changes to one collection; see the module. As a context manager it removes what was not committed.

    Not thread-safe. Other processes may write at the same time.

    Parameters
    ----------
    path : str or Path
        A folder, or the URI of a place in a bucket; see `engine.places.uris`.
    fresh : Fresh, optional
        For a new collection; by default there must be one.
    tables : bool
        Whether new shards get a multi-index.
    leases : bool
        Whether `live` stays until the transaction ends, so that all of it can be read, however long that takes. In a
        folder it does so anyway; in a bucket a lease says so, which a short write is better off without.

    Attributes
    ----------
    place : Place
    live : Manifest or None
        The version that was live when it began, of format 2; None if there was none, or none that can be read.
    reader : Reader
        Reads its shards.
    """

    def __init__(
        self, path: str | Path, *, fresh: Fresh | None = None, tables: bool = True, leases: bool = False
    ) -> None:
        self.place: Place = open_target(path)
        self.live: Manifest | None = None
        if fresh is not None:
            check_bits(fresh.bits)
            if fresh.encoder is not None:
                check_name(fresh.encoder, "an encoder")
        self._fresh = fresh
        self._tables = tables
        self._leases = leases and fresh is None
        self._intent = Intent(self.place)
        self._operations: list[Operation] = []
        self._stack = contextlib.ExitStack()
        self._is_done = False
        self._is_alone = False

    def __enter__(self) -> Self:
        """Begin: check that a collection may be written here."""
        refuse_foreign_folder(self.place)
        try:
            start = self._begin()
            if self.place.local is None:
                self._stack.enter_context(self.place.lock())  # refuses a store without conditional puts
                if self._leases:
                    start = self._begin_leased()
            self._layout = None if self._fresh else _layout_of(start)
            self._next_id = start.next_id
            self.reader = Reader(self.place, bits=start.bits)
            # Before writing: a disk filled by a dead writer would otherwise stay full until a write succeeds.
            sweep_intents(self.place)
            self._stack.enter_context(self._intent)
        except BaseException:
            self._stack.close()
            raise
        return self

    def _begin(self) -> Manifest:
        """Return the version that the transaction begins with."""
        if self._fresh is not None:
            self._ground = ground_of(self.place, self._fresh)
            self.live = self._ground.manifest
            return self._fresh.start(self.place, self.live)
        self._ground = self._read_live(self._stack)
        assert self._ground.manifest is not None, "reading it would have failed"
        self.live = upgraded(self.place, self._ground.manifest)
        return self.live

    def _begin_leased(self) -> Manifest:
        """Begin with the version that is live now, and keep it in the bucket."""
        manifest = self._stack.enter_context(holding_live(self.place))
        self._ground = Ground(manifest, None)
        self.live = upgraded(self.place, manifest)
        return self.live

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove everything uncommitted."""
        self._is_done = True
        self._stack.close()

    def require_columns(self, attributes: pa.Schema, features: int | None) -> None:
        """Raise ValueError unless rows of these attributes, and features of so many dimensions, can be added."""
        layout = self._layout
        assert layout is not None, "of an existing collection"
        fit_columns(attributes, layout.schema, where=self.place)
        fit_features(layout.features, features, where=self.place)

    @property
    def features_as(self) -> FeatureKind | None:
        """What the collection keeps features as; None as long as it has none."""
        return None if self._layout is None or self._layout.features is None else self._layout.features_as

    def require(self, *, bits: int, encoder: str | None) -> None:
        """Raise EncoderMismatchError unless the collection stores codes of this length, of this encoder."""
        live = self._start
        if (live.bits, live.encoder) != (bits, encoder):
            raise EncoderMismatchError(
                f"{self.place} stores {live.bits}-bit codes of encoder {_short(live.encoder)}, got {bits}-bit codes of "
                f"encoder {_short(encoder)}: add codes of the same encoder, or build a collection of their own"
            )

    @property
    def _start(self) -> Manifest:
        assert self.live is not None, "of an existing collection"
        return self.live

    # Changes.

    def add(
        self,
        codes: CodeArray,
        ids: IdArray | None = None,
        attributes: pa.Table | Mapping[str, Any] | None = None,
        features: FeaturesLike | None = None,
        thumbnails: Sequence[bytes | None] | pa.Array | None = None,
        shards: int = 1,
    ) -> None:
        """Add rows; they are written now.

        Parameters
        ----------
        codes : ndarray of uint64, shape (N, W)
        ids : ndarray of int64, shape (N,), optional
            0 or more, in no live row; by default the next ones when it is committed, in the order of the codes.
        attributes : pyarrow.Table or mapping of columns, optional
            N rows; attributes of the collection that are missing are null.
        features : ndarray of float16 or float32, shape (N, F), or Features, optional
            Needed if the collection has fine features; they are rounded to what it keeps.
        thumbnails : sequence of bytes or None, or pyarrow.Array of binary, length N, optional
            Small encoded pictures.
        shards : int
            Number of new shards, 1 to N.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid, or the collection does not have an attribute (see `set_column`).
        """
        self._add(codes, ids, (attributes, features, thumbnails), shards, upsert=False)

    def upsert(
        self,
        codes: CodeArray,
        ids: IdArray,
        attributes: pa.Table | Mapping[str, Any] | None = None,
        features: FeaturesLike | None = None,
        thumbnails: Sequence[bytes | None] | pa.Array | None = None,
        shards: int = 1,
    ) -> None:
        """Add rows, as `add` does, in place of those that have their ids."""
        if ids is None:
            raise TypeError("`ids` must be given to `upsert`; `add` takes the next ones")
        self._add(codes, ids, (attributes, features, thumbnails), shards, upsert=True)

    def _add(self, codes: CodeArray, ids: IdArray | None, beside: given.Beside, shards: int, *, upsert: bool) -> None:
        self._refuse_done()
        codes = check_codes(codes, bits=self.reader.bits, name="codes")
        first, rows = self._next_id, len(codes)
        ids_N = next_ids(first - 1, rows) if ids is None else check_ids(ids, rows=rows)
        table, features, thumbnails = given.checked(beside, rows=rows, features_as=self.features_as)
        table = self._fit(table, features, thumbnails, rows)
        parts = list(split_rows(rows, shards)) if rows else []
        if not parts:
            return
        specs = [
            self._write(codes[part], ids_N[part], given.part_of(part, table, features, thumbnails)) for part in parts
        ]
        self._next_id = max(first, int(ids_N.max()) + 1)
        if ids is None:
            self._operations.append(AddNumbered(specs, self._schema, first, rows))
        else:
            self._operations.append(Add(specs, self._schema, upsert=upsert))

    def _write(self, codes_NW: CodeArray, ids_N: IdArray, beside: given.Checked) -> ShardSpec:
        with self.new_shard() as folder:
            return write_shard(
                folder,
                codes_NW,
                ids_N,
                beside.table,
                bits=self.reader.bits,
                tables=self._tables,
                features=beside.features,
                thumbnails=None if beside.thumbnails is None else [beside.thumbnails],
            )

    def _fit(
        self, table: pa.Table | None, features: Features | None, thumbnails: pa.Table | None, rows: int
    ) -> pa.Table | None:
        """Return attributes with all columns of the collection; the first rows of a new one say which it has."""
        dimensions, kind = (None, FLOAT16) if features is None else (features.shape[1], features.kind)
        if self._layout is None:
            schema = None if table is None or not table.schema.names else stored_schema(table.schema)
            self._set_layout(Layout(schema, dimensions, thumbnails is not None, kind))
        layout = self._layout
        assert layout is not None, "set above"
        fit_columns(pa.schema([]) if table is None else table.schema, layout.schema, where=self.place)
        fit_features(layout.features, dimensions, where=self.place)
        if thumbnails is not None and not layout.thumbnails:
            self._set_layout(dataclasses.replace(layout, thumbnails=True))
        return completed(table, layout.schema, rows=rows)

    @property
    def _schema(self) -> pa.Schema | None:
        return self._layout.schema if self._layout else None

    def _set_layout(self, layout: Layout) -> None:
        self._operations.append(Define(layout, is_whole=self._layout is None))
        self._layout = layout

    @contextlib.contextmanager
    def new_shard(self) -> Iterator[Path]:
        """Yield the path of a new shard's folder, for `write_shard` and `adopt`."""
        self._refuse_done()
        with new_shard(self.place, self._intent) as folder:
            yield folder

    def check_shard(self, spec: ShardSpec) -> None:
        """Check that a shard can be adopted. The first of a new collection says what all of them store.

        Raises
        ------
        ValueError
            If it stores other things than the collection's other shards.
        """
        self._refuse_done()
        got = read_layout(self.place, spec)
        if self._layout is None:
            self._set_layout(got)
        layout = self._layout
        assert layout is not None, "set above"
        fit_columns(got.schema or pa.schema([]), layout.schema, where=self.place)
        fit_features(layout.features, got.features, where=self.place)
        if got.features_as != layout.features_as:
            raise ValueError(
                f"{self.place} keeps features as {layout.features_as}, got a shard that has them as {got.features_as}: "
                f"write it with `Features.of(features, {layout.features_as!r})`"
            )
        if got.thumbnails and not layout.thumbnails:
            self._set_layout(dataclasses.replace(layout, thumbnails=True))

    def adopt(
        self,
        specs: Sequence[ShardSpec],
        *,
        checked: bool = True,
        upsert: bool = False,
        numbered_from: int | None = None,
    ) -> None:
        """Add shards that were written into `new_shard`, or by other processes in the same way; see `check_shard`.

        What others have written stays if there is no commit: it is theirs to remove.

        Parameters
        ----------
        specs : sequence of ShardSpec
        checked : bool
            Whether the caller has made sure that their ids, which are distinct, are new in the version `live`. If not,
            they are compared with those of all other shards.
        upsert : bool
            Delete the rows of other shards that have the same ids.
        numbered_from : int, optional
            The rows have ids from this one on, and take the next ones when it is committed.
        """
        self._refuse_done()
        if numbered_from is not None:
            rows = sum(spec.rows for spec in specs)
            self._operations.append(AddNumbered(list(specs), self._schema, numbered_from, rows))
            return
        known = self.live.shards if self.live and checked and not upsert else ()
        self._operations.append(Adopt(list(specs), self._schema, checked=known, upsert=upsert))

    def delete(self, ids: IdArray | Sequence[int]) -> None:
        """Delete the rows that have some ids, as far as they are there.

        Parameters
        ----------
        ids : ndarray of int64 or sequence of int, shape (M,)
        """
        self._record(Delete(given.some_ids(ids)))

    def delete_where(self, filter: str, parameters: Mapping[str, ArrayLike] | None = None) -> None:
        """Delete the rows that satisfy a filter when it is committed.

        Parameters
        ----------
        filter : str
            See `engine.filters.filter`.
        parameters : mapping of str to sequence of int, optional
            Lists of ids that `filter` names.

        Raises
        ------
        FilterError
            If the filter is not a condition on these attributes and parameters.
        """
        lists = Parameters.of(parameters)
        layout = self._layout
        Filter(filter, (layout.schema if layout else None) or pa.schema([]), lists)
        self._record(DeleteWhere(filter, lists))

    def look_up(self, ids: IdArray | Sequence[int]) -> LookUp:
        """Find which of some ids are there, after the changes so far; it is known once this is committed."""
        found = LookUp(given.some_ids(ids))
        self._record(found)
        return found

    def tally(self) -> Tally:
        """Count the rows that the changes so far delete; the number is known once this is committed."""
        tally = Tally()
        self._record(tally)
        return tally

    def update(
        self,
        ids: IdArray | Sequence[int],
        attributes: pa.Table | Mapping[str, Any],
        *,
        skip_missing: bool = False,
    ) -> None:
        """Give rows other attributes. They move into a new shard, with all else that they have.

        Parameters
        ----------
        ids : ndarray of int64 or sequence of int, shape (M,)
            Distinct, of live rows.
        attributes : pyarrow.Table or mapping of columns
            M rows, with the attributes that change.
        skip_missing : bool
            Leave out ids of which there is no row when it is committed; otherwise that is an error.

        Raises
        ------
        ValueError
            If an argument is invalid, or the collection does not have an attribute.
        """
        ids_M = given.some_ids(ids)
        check_ids(ids_M, rows=len(ids_M), remedy=given.ONE_VALUE)
        table, _, _ = given.checked((attributes, None, None), rows=len(ids_M))
        assert table is not None, "attributes were given"
        fit_columns(table.schema, self._layout.schema if self._layout else None, where=self.place)
        self._record(Update(ids_M, table, skip_missing=skip_missing))

    def set_column(
        self, name: str, values: Any, *, ids: IdArray | Sequence[int], type: pa.DataType | None = None
    ) -> None:
        """Give rows values of one attribute, which the collection has or gets. No code is written again.

        Parameters
        ----------
        name : str
        values : sequence, ndarray or pyarrow.Array, length M
        ids : ndarray of int64 or sequence of int, shape (M,)
            Distinct, of live rows. Other rows keep their values, or are null. None at all only make the attribute.
        type : pyarrow.DataType, optional
            That of `values` by default. An attribute that has another becomes this one.

        Raises
        ------
        TypeError, ValueError
            If an argument is invalid.
        """
        ids_M = given.some_ids(ids)
        check_ids(ids_M, rows=len(ids_M), remedy=given.ONE_VALUE)
        schema = (self._layout.schema if self._layout else None) or pa.schema([])
        column = given.column(name, values, type, schema, rows=len(ids_M))
        self._record(SetColumn(name, ids_M, column))
        if self._layout is not None:
            self._layout = dataclasses.replace(self._layout, schema=with_field(schema, pa.field(name, column.type)))

    def drop_column(self, name: str) -> None:
        """Drop an attribute."""
        self._record(DropColumn(name))
        if self._layout is not None and self._layout.schema is not None:
            fields = [field for field in self._layout.schema if field.name != name]
            self._layout = dataclasses.replace(self._layout, schema=pa.schema(fields) if fields else None)

    def replace(self, old: Sequence[ShardSpec], new: Sequence[ShardSpec]) -> None:
        """Replace shards by others that hold the same rows, as compaction does; see `Replace`.

        Parameters
        ----------
        old : sequence of ShardSpec
            As the version `live` has them, from whose rows the new ones were made.
        new : sequence of ShardSpec
            With all attributes of that version.
        """
        self._record(Replace(list(old), list(new), self._start.schema))

    def mark_log(self, log: str, through: int, *, after: int) -> None:
        """Say that what is committed are the records of a write log from `after` through `through`; see `MarkLog`."""
        self._record(MarkLog(log, through, after))

    def keep_ids_free(self, next_id: int) -> None:
        """Give no id below a number by itself."""
        self._record(ReserveIds(next_id))

    def add_encoder(self, files: Mapping[str, bytes]) -> None:
        """Store a copy of the encoder that made the codes: the files of its folder, by name.

        It is written beside the copy of the version before, or that one is kept if the files are the same.
        """
        self._refuse_done()
        fingerprint = self._fresh.encoder if self._fresh else self._start.encoder
        if fingerprint is None:
            raise ValueError("an encoder is kept under its fingerprint: give `fingerprint` with `encoder`")
        before = self.live.encoder_folder if self.live and self.live.encoder == fingerprint else None
        if before is None or not is_stored(self.place, before, files):
            before = store_encoder(self.place, self._intent, files)
        self._operations.append(KeepEncoder(before))

    # Versions.

    def tag(self, name: str, version: int | None = None) -> None:
        """Keep a version under a name; by default the one that is live when this is committed."""
        self._record(history.Tag(name, version))

    def untag(self, name: str) -> None:
        """Remove a tag."""
        self._record(history.Untag(name))

    def rollback(self, version: int | str) -> None:
        """Make the next version what an earlier one was, by its number or its tag; what follows changes that.

        Raises
        ------
        CollectionNotFoundError
            If the version is gone.
        """
        self._refuse_done()
        found = upgraded(self.place, find_version(self.place, self._start, version))
        self._is_alone |= (found.bits, found.encoder) != (self._start.bits, self._start.encoder)
        self._layout = _layout_of(found)
        self._record(history.Rollback(found.version))

    def prune(self, *, keep: int | None = None, older_than: datetime.timedelta | None = None) -> None:
        """Let versions go; see `Prune`."""
        self._record(history.Prune(keep, older_than))

    def _record(self, operation: Operation) -> None:
        self._refuse_done()
        self._operations.append(operation)

    def _refuse_done(self) -> None:
        if self._is_done:
            raise ValueError("this transaction has ended: begin another")

    # The commit.

    def commit(self) -> Commit:
        """Make all changes visible in one step, or none of them.

        Raises
        ------
        TypeError, ValueError, IdNotFoundError, FilterError
            If a change cannot be made to the version that is live.
        CollectionExistsError, CollectionBusyError
            If another process has created or replaced the collection meanwhile, or writes without a pause.
        OSError, PlaceError
            If the place fails; if it does in the last step, the changes may be visible.
        """
        self._refuse_done()
        if self._is_alone and len(self._operations) > 1:
            raise ValueError(
                f"codes of the version of {self.place} to roll back to have other bits, or another encoder: roll back "
                "in a transaction of its own"
            )
        for attempt in range(_MAX_ATTEMPTS):
            if attempt:
                time.sleep(random.uniform(0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)))
            done = self._attempt(alone=attempt >= _FREE_ATTEMPTS)
            if done is not None:
                self._is_done = True
                return done
        raise self._overtaken()

    def _overtaken(self) -> CollectionBusyError:
        return CollectionBusyError(
            f"{self.place} was written by other processes {_MAX_ATTEMPTS} times while this write was to be committed: "
            "it was discarded, try again"
        )

    def preview(self) -> Preview:
        """Apply the changes to the version that is live, and say what would come of it. Nothing is committed.

        Raises
        ------
        TypeError, ValueError, IdNotFoundError, FilterError, CollectionBusyError
            As in `commit`.
        """
        self._refuse_done()
        for _ in range(_MAX_ATTEMPTS):
            with contextlib.ExitStack() as stack:
                draft = self._applied(self._ground if self._fresh else self._read_live(stack))
                if draft is not None:
                    return Preview(draft.before or draft.manifest, draft.added, draft.deleted, draft.manifest.oldest)
        raise self._overtaken()

    def _attempt(self, *, alone: bool) -> Commit | None:
        """Apply the changes and commit them; return None if another process was faster."""
        with contextlib.ExitStack() as stack:
            if alone and self.place.local is not None:
                stack.enter_context(locked(self.place))
            ground = self._ground if self._fresh else self._read_live(stack)
            draft = self._applied(ground)
            if draft is None:
                return None
            if draft.is_unchanged:
                self._after(draft.manifest, ground)
                return Commit(draft.manifest.version, 0, 0)
            manifest = draft.finish()
            if not alone and self.place.local is not None:
                stack.enter_context(locked(self.place))
            if not self._publish(manifest, ground):
                return None
        self._intent.keep(manifest.names)
        self._after(manifest, ground)
        return Commit(manifest.version, draft.added, draft.deleted)

    def _read_live(self, stack: contextlib.ExitStack) -> Ground:
        """Read the live version, and keep what it consists of in a local folder."""
        manifest, found, held = read_live_held(self.place)
        stack.callback(close_held, held)
        first = self._ground.manifest if self.live else None
        if first is not None and first.collection and first.collection != manifest.collection:
            raise CollectionBusyError(
                f"{self.place} was replaced by another collection meanwhile: this write was discarded"
            )
        return Ground(manifest, found)

    def _applied(self, ground: Ground) -> Draft | None:
        """Apply the changes to a version; return None if it has gone meanwhile, because others are live."""
        try:
            draft = self._draft(ground)
            for operation in self._operations:
                operation.apply(draft)
            return draft
        except (FileNotFoundError, CorruptDataError):
            if self._has_moved(ground):
                return None
            raise

    def _draft(self, ground: Ground) -> Draft:
        if self._fresh is not None:
            start = self._fresh.start(self.place, ground.manifest)
        else:
            assert ground.manifest is not None, "reading it would have failed"
            start = upgraded(self.place, ground.manifest)
        return Draft(start, ground.manifest, self._intent, self.reader, tables=self._tables)

    def _has_moved(self, ground: Ground) -> bool:
        now = self.place.find("CURRENT")
        return now is not None and ground.found is not None and now.data != ground.found.data

    def _publish(self, manifest: Manifest, ground: Ground) -> bool:
        # The intent says what to remove if the version does not become live.
        published = publish(self.place, manifest, ground.found, in_doubt=self._intent.abandon)
        if published or self._fresh is None:
            return published
        if not self._fresh.overwrite:
            raise CollectionExistsError(
                f"{self.place} was made by another process meanwhile: choose another path, or add to it"
            )
        raise CollectionBusyError(
            f"{self.place} was written by another process meanwhile: this write was discarded, try again"
        )

    def _after(self, live: Manifest, ground: Ground) -> None:
        """Remove the versions that are no longer kept; most commits let none go."""
        before = ground.manifest
        same = before is not None and (before.oldest, before.tags) == (live.oldest, live.tags)
        if not same or any(isinstance(operation, history.Prune) for operation in self._operations):
            sweep_versions(self.place, live)


def _layout_of(manifest: Manifest) -> Layout:
    return Layout(manifest.schema, manifest.features, manifest.thumbnails, manifest.features_as)


def _short(fingerprint: str | None) -> str:
    return "unknown" if fingerprint is None else f"{fingerprint[:12]}…"
