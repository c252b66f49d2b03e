"""The next version of a collection while it is put together, from the live one and the changes to it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.collection.writing.rows import Reader
from hashlight.engine.errors import IdNotFoundError
from hashlight.engine.features import Features
from hashlight.engine.places.place import Place
from hashlight.engine.storage.leftovers import Intent, utc_now
from hashlight.engine.storage.manifest import DeadRows, Manifest, ShardSpec
from hashlight.engine.storage.shard import read_ids, read_layout, write_shard

# Versions that stay without being asked for: a day's work of a careful operator can be undone, and readers in a bucket,
# which cannot hold a version, have that many commits of time. Only every tenth commit removes some, and reads their
# manifests: the others cost nothing.
KEPT_VERSIONS = 10
_REMOVED_AT_ONCE = 10

Found = list[tuple[ShardSpec, NDArray[np.int64]]]


class Draft:
    """A version that does not exist yet. Changes are applied one after another; `finish` describes the result.

    Parameters
    ----------
    start : Manifest
        What to begin with, of format 2.
    before : Manifest or None
        The live version; None if there is none, or none that can be read.
    intent : Intent
        Of the writer, for the names of new files.
    reader : Reader
    tables : bool
        Whether new shards get a multi-index.

    Attributes
    ----------
    manifest : Manifest
        Without the rows that `kill` marks.
    shards : dict of str to ShardSpec
    added, deleted : int
        Rows so far.
    """

    def __init__(
        self, start: Manifest, before: Manifest | None, intent: Intent, reader: Reader, *, tables: bool = True
    ) -> None:
        self.place: Place = reader.place
        self.before = before
        self.intent = intent
        self.reader = reader
        self.tables = tables
        self._start = start
        self.restart(start)

    def restart(self, start: Manifest) -> None:
        """Begin with another version."""
        self.added = self.deleted = 0
        self.manifest = start
        self.shards = {spec.name: spec for spec in start.shards}
        self._killed: dict[str, NDArray[np.uint32]] = {}

    def change(self, **changes: object) -> None:
        """Replace fields of the manifest."""
        self.manifest = dataclasses.replace(self.manifest, **changes)  # type: ignore[arg-type]

    @property
    def schema(self) -> pa.Schema:
        """The attributes, none if there are none."""
        return self.manifest.schema if self.manifest.schema is not None else pa.schema([])

    # Rows.

    def dead(self, spec: ShardSpec) -> NDArray[np.uint32]:
        """Return the deleted rows of a shard so far."""
        return self._killed[spec.name] if spec.name in self._killed else self.reader.dead(spec)

    def find(self, ids_M: IdArray, *, but: frozenset[str] = frozenset()) -> Found:
        """Return where some ids are, without deleted rows, and without the shards of `but`."""
        found: Found = []
        for spec in self.shards.values():
            low, high = spec.ids or (0, 2**63 - 1)
            near_M = ids_M[(ids_M >= low) & (ids_M <= high)]
            if spec.name in but or not len(near_M):
                continue
            rows_M = self.reader.rows_of(spec, near_M)
            rows_M = rows_M[rows_M >= 0]
            rows_M = rows_M[~np.isin(rows_M, self.dead(spec))]
            if len(rows_M):
                found.append((spec, rows_M))
        return found

    def find_all(self, ids_M: IdArray) -> Found:
        """Return where some distinct ids are.

        Raises
        ------
        IdNotFoundError
            If one of them is nowhere.
        """
        found = self.find(ids_M)
        there_M = self.ids_of(found)
        if len(there_M) < len(ids_M):
            missing = np.setdiff1d(ids_M, there_M)
            raise IdNotFoundError.of(missing.tolist(), wanted=len(ids_M))
        return found

    def ids_of(self, found: Found) -> IdArray:
        """Return the ids of rows that were found."""
        return np.concatenate([np.zeros(0, np.int64), *(self.reader.ids(spec)[rows] for spec, rows in found)])

    def kill(self, found: Found) -> int:
        """Delete rows; return how many."""
        for spec, rows_M in found:
            self._killed[spec.name] = np.union1d(self.dead(spec), rows_M.astype(np.uint32))
        return sum(len(rows_M) for _, rows_M in found)

    # Shards.

    def add(self, spec: ShardSpec) -> None:
        """Add a shard, whose ids are in no other live row."""
        self.shards[spec.name] = spec
        if spec.ids is not None:
            self.change(next_id=max(self.manifest.next_id, spec.ids[1] + 1))

    def remove(self, name: str) -> None:
        """Remove a shard."""
        del self.shards[name]
        self._killed.pop(name, None)

    def write(
        self,
        codes_NW: CodeArray,
        ids_N: IdArray,
        attributes: pa.Table | None,
        features: Features | None = None,
        thumbnails: pa.Table | None = None,
    ) -> ShardSpec:
        """Write a shard, without adding it; arguments as in `write_shard`."""
        with new_shard(self.place, self.intent) as folder:
            return write_shard(
                folder,
                codes_NW,
                ids_N,
                attributes,
                bits=self.manifest.bits,
                tables=self.tables,
                features=features,
                thumbnails=None if thumbnails is None else [thumbnails],
            )

    # The end.

    @property
    def is_unchanged(self) -> bool:
        """Whether this is the version that it began with."""
        return self.before is self._start and self.manifest == self._start and self._has_same_rows()

    def _has_same_rows(self) -> bool:
        return not self._killed and tuple(self.shards.values()) == self._start.shards

    def finish(self) -> Manifest:
        """Write the deleted rows, and describe the version."""
        shards = tuple(self._finished(spec) for spec in self.shards.values() if self._alive(spec))
        version = self.before.version + 1 if self.before else self._start.version
        oldest = self.manifest.oldest
        if version - oldest >= KEPT_VERSIONS + _REMOVED_AT_ONCE:
            oldest = version - KEPT_VERSIONS
        return dataclasses.replace(
            self.manifest,
            version=version,
            shards=shards,
            parent=self.before.file_name if self.before else None,
            written=utc_now(),
            oldest=min(oldest, version),
            commit=uuid.uuid4().hex,
        )

    def _alive(self, spec: ShardSpec) -> int:
        killed_D = self._killed.get(spec.name)
        return spec.alive if killed_D is None else spec.rows - len(killed_D)

    def _finished(self, spec: ShardSpec) -> ShardSpec:
        killed_D = self._killed.get(spec.name)
        if killed_D is None or (spec.dead is not None and len(killed_D) == spec.dead.count):
            return spec
        out = io.BytesIO()
        np.save(out, killed_D)
        name, data = self.intent.new_name("deletions"), out.getvalue()
        self.place.put(f"deletions/{name}", data)
        dead = DeadRows(name, len(killed_D), len(data), hashlib.sha256(data).hexdigest())
        return dataclasses.replace(spec, dead=dead)


@contextlib.contextmanager
def new_shard(place: Place, intent: Intent) -> Iterator[Path]:
    """Yield the path of a new shard's folder; see `engine.places.place.Place.new_folder`."""
    with place.new_folder(f"shards/{intent.new_name('shards')}") as folder:
        yield folder


def upgraded(place: Place, manifest: Manifest) -> Manifest:
    """Return a manifest of format 2; one of format 1 lacks what only its shards say."""
    if manifest.format_version > 1:
        return manifest
    layout = read_layout(place, manifest.shards[0])
    shards = tuple(_with_ids(place, spec) for spec in manifest.shards)
    return Manifest(
        version=manifest.version,
        bits=manifest.bits,
        encoder=manifest.encoder,
        shards=shards,
        encoder_folder=manifest.encoder_folder,
        schema=layout.schema,
        features=layout.features,
        features_as=layout.features_as,
        thumbnails=layout.thumbnails,
        collection=uuid.uuid4().hex,
        next_id=max(spec.ids[1] for spec in shards if spec.ids) + 1,
    )


def _with_ids(place: Place, spec: ShardSpec) -> ShardSpec:
    ids_N = read_ids(place, spec)
    return dataclasses.replace(spec, ids=(int(ids_N.min()), int(ids_N.max())))
