"""Verify a collection: all that its versions consist of, a shard in memory at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import IdArray
from hashlight.engine.collection.verifying.report import RESTORE, UNCLEAR, Fault, Report
from hashlight.engine.collection.verifying.shards import ShardFiles, check_column, check_dead_rows, check_described
from hashlight.engine.collection.verifying.versions import Versions, find_versions
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.ids import RepeatedIds
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.place import Place
from hashlight.engine.storage.leftovers import FOLDERS, names_of
from hashlight.engine.storage.manifest import Manifest, ShardSpec
from hashlight.engine.storage.shard import read_ids
from hashlight.engine.storage.versions import holding_live
from hashlight.engine.wording import counted

Progress = Callable[[int, int], None]

_NO_ROWS = np.zeros(0, np.uint32)


def verify(path: str | Path, *, live_only: bool = False, progress: Progress | None = None) -> Report:
    """Hash and check everything that a collection consists of.

    Parameters
    ----------
    path : str or Path
        A folder, or a prefix in a bucket, of which one shard at a time is copied to a temporary folder.
    live_only : bool
        Verify the live version; by default all that are kept.
    progress : callable, optional
        Called with (shards verified, shards in all).

    Raises
    ------
    CollectionNotFoundError
        If there is no collection.
    """
    place = open_place(path)
    with contextlib.ExitStack() as stack:
        if find_versions(place, live_only=True).is_current:
            stack.enter_context(holding_live(place))
        found = find_versions(place, live_only=live_only)
        checker = _Checker(place, found, progress or (lambda _done, _total: None))
        checker.check()
        faults = [*found.faults, *checker.faults]
        return Report(
            location=str(place),
            version=found.live.version if found.live else None,
            versions=tuple(manifest.version for manifest in found.kept),
            shards=len(checker.shards),
            rows=sum(each[0][0].rows for each in checker.shards.values()),
            faults=tuple([*(_still_there(place, found, checker.faults) if faults else ()), *_leftovers(place)]),
        )


def _still_there(place: Place, found: Versions, faults: list[Fault]) -> list[Fault]:
    """Return the faults that have not gone with their versions, which other processes may have let go meanwhile."""
    now = find_versions(place)
    if now.live is None or found.live is None or now.live.file_name == found.live.file_name:
        return [*found.faults, *faults]
    kept, names = {each.version for each in now.kept}, now.live.names
    still = (each for each in faults if kept & set(each.versions) or "/".join(each.where.split("/")[:2]) in names)
    return [*now.faults, *still]


class _Checker:
    """Checks each shard once for all versions that have it, and then the versions as wholes.

    Parameters
    ----------
    place : Place
    found : Versions
    report : callable
        See `verify`.
    """

    def __init__(self, place: Place, found: Versions, report: Progress) -> None:
        self._place, self._report = place, report
        self._kept = found.kept
        self._live = found.live.version if found.live else 0
        self.faults: list[Fault] = []
        self.shards: dict[str, list[tuple[ShardSpec, Manifest]]] = {}
        for manifest in found.kept:
            for spec in manifest.shards:
                self.shards.setdefault(spec.name, []).append((spec, manifest))

    def check(self) -> None:
        """Check everything."""
        for done, versions in enumerate(self.shards.values()):
            self._report(done, len(self.shards))
            self._check_shard(versions)
        self._report(len(self.shards), len(self.shards))
        for manifest in self._kept:
            self._add(self._check_ids(manifest), (manifest.version,))
            self._add(_check_encoder(self._place, manifest), (manifest.version,))

    def _add(self, faults: Iterator[Fault] | list[Fault], versions: tuple[int, ...]) -> None:
        self.faults += [fault.of(versions, self._live) for fault in faults]

    def _check_shard(self, versions: list[tuple[ShardSpec, Manifest]]) -> None:
        """Check a shard, and what each of some versions says about it."""
        first, newest = versions[0]
        numbers = tuple(manifest.version for _, manifest in versions)
        with tempfile.TemporaryDirectory(prefix="hashlight-verify-") as scratch:
            folder = local_folder(self._place, first, Path(scratch))
            files = ShardFiles(folder, first, bits=newest.bits)
            self._add(files.faults, numbers)
            # Most versions say the same.
            said: dict[str, list[int]] = {}
            alike: dict[str, tuple[ShardSpec, Manifest]] = {}
            for spec, manifest in versions:
                key = repr((spec, manifest.schema))
                alike.setdefault(key, (spec, manifest))
                said.setdefault(key, []).append(manifest.version)
            for key, (spec, manifest) in alike.items():
                self._add(self._check_changes(files, spec, manifest, Path(scratch)), tuple(said[key]))

    def _check_changes(self, files: ShardFiles, spec: ShardSpec, manifest: Manifest, scratch: Path) -> Iterator[Fault]:
        if spec.files != files.spec.files:
            what = "the manifests of several versions describe its files differently"
            yield Fault("manifest", f"shards/{spec.name}", what, RESTORE, shard=spec.name)
            return
        dead_D: NDArray[np.uint32] = _NO_ROWS
        if spec.dead is not None:
            found = self._place.find(f"deletions/{spec.dead.name}")
            told, fault = check_dead_rows(None if found is None else found.data, spec)
            dead_D = _NO_ROWS if told is None else told
            if fault is not None:
                yield _of_shard(fault, spec)
        columns: dict[str, Path] = {}
        schema = manifest.schema
        for attribute, file in spec.columns.items():
            path = _local_file(self._place, f"columns/{file.name}", scratch)
            kind = schema.field(attribute).type if schema is not None and attribute in schema.names else None
            fault = check_column(path, file.name, attribute, spec, kind)
            if fault is None:
                columns[attribute] = path
            else:
                yield _of_shard(fault, spec)
        yield from check_described(files, spec, schema, columns, dead_D)

    def _check_ids(self, manifest: Manifest) -> Iterator[Fault]:
        """Check that no id is in two shards of a version, and that all are below the next one."""
        where, highest = f"manifests/{manifest.file_name}", -1
        with RepeatedIds() as ids:
            for spec in manifest.shards:
                read = live_ids(self._place, spec)
                if read is not None:
                    alive, most = read
                    ids.add(np.unique(alive))
                    highest = max(highest, most)
            repeated = ids.find()
        if len(repeated):
            what = f"{counted(len(repeated), 'id')}, first {repeated[0]}, in several shards"
            yield Fault("repeated-ids", where, what, UNCLEAR)
        if manifest.format_version > 1 and manifest.next_id <= highest:
            what = f"the next id is {manifest.next_id}, but {highest} is there"
            yield Fault("next-id", where, what, "a repair raises it", is_mendable=True)


def _of_shard(fault: Fault, spec: ShardSpec) -> Fault:
    """Return a fault of what has changed about a shard, without which that cannot be written anew."""
    return dataclasses.replace(fault, shard=spec.name)


def local_folder(place: Place, spec: ShardSpec, scratch: Path) -> Path:
    """Return the folder of a shard, as it is; one in a bucket is copied to `scratch`."""
    name = f"shards/{spec.name}"
    if place.local is not None:
        return place.local / name
    target = scratch / spec.name
    if not target.is_dir():
        target.mkdir(parents=True)
        for entry in place.walk(name):
            (target / entry.name).parent.mkdir(parents=True, exist_ok=True)
            place.download(f"{name}/{entry.name}", target / entry.name)
    return target


def _local_file(place: Place, name: str, scratch: Path) -> Path:
    if place.local is not None:
        return place.local / name
    target = scratch / Path(name).name
    if not target.exists() and place.exists(name):
        place.download(name, target)
    return target


def live_ids(place: Place, spec: ShardSpec) -> tuple[IdArray, int] | None:
    """Return the ids of the rows that are not deleted, and the highest of all; None if that cannot be told."""
    try:
        ids_N = read_ids(place, spec)
    except (CorruptDataError, OSError):
        return None
    highest = int(ids_N.max())
    if spec.dead is None:
        return ids_N, highest
    found = place.find(f"deletions/{spec.dead.name}")
    dead_D, _ = check_dead_rows(None if found is None else found.data, spec)
    if dead_D is None:
        return None
    alive_N = np.ones(spec.rows, np.bool_)
    alive_N[dead_D] = False
    return ids_N[alive_N], highest


def _check_encoder(place: Place, manifest: Manifest) -> Iterator[Fault]:
    name = f"encoder/{manifest.encoder_folder}"
    if manifest.format_version > 1 and manifest.encoder_folder and not place.names(name):
        yield Fault(
            "encoder", name, "the copy of the encoder is missing", f"{RESTORE}; searches by code do not need it"
        )


def _leftovers(place: Place) -> Iterator[Fault]:
    """Find what neither a version names nor a writer has announced.

    Writers announce a name before there is anything of that name, and have made it part of a version when they take
    the announcement back: so announcements are read after the folders, and manifests after these.
    """
    there = [(folder, name) for folder in FOLDERS for name in place.names(folder, hidden=True)]
    announced = {name.removeprefix(".")[:32] for name in place.names("intents", hidden=True)}
    kept = names_of(place)
    if kept is None:
        return
    for folder, name in there:
        if name.removeprefix(".")[:32] in announced or f"{folder}/{name}" in kept:
            continue
        if place.entry(f"{folder}/{name}") is not None:  # else it went with a version, whose manifest goes last
            remedy = "a repair removes it"
            yield Fault("leftover", f"{folder}/{name}", "no version has it", remedy, is_mendable=True)
