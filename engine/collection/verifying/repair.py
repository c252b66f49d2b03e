"""Repair: what can be made from codes, ids and attributes is made again, as new shards of a new version."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import IdArray
from hashlight.engine.collection.verifying.report import Report
from hashlight.engine.collection.verifying.shards import check_dead_rows
from hashlight.engine.collection.verifying.verify import Progress, live_ids, local_folder, verify
from hashlight.engine.collection.verifying.versions import find_versions
from hashlight.engine.collection.writing.compaction import merge_shards
from hashlight.engine.collection.writing.opening import locked
from hashlight.engine.collection.writing.rows import Reader
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import CollectionBusyError
from hashlight.engine.places.arrays import map_array
from hashlight.engine.places.opening import open_target
from hashlight.engine.places.place import Place
from hashlight.engine.storage.manifest import ShardSpec


def repair(path: str | Path, *, live_only: bool = False, progress: Progress | None = None) -> Report:
    """Verify a collection, mend what can be mended, and verify it again.

    What no version has is removed, unless CURRENT was mended: then it may be of the version that is lost, and stays
    until the next repair.

    Parameters
    ----------
    path, live_only, progress
        As in `verify`.

    Raises
    ------
    CollectionNotFoundError
        If there is no collection.
    CollectionBusyError, OSError, PlaceError
        If it cannot be written.
    """
    place = open_target(path)
    before = verify(path, live_only=live_only, progress=progress)
    found, is_restored = before, False
    if any(fault.kind == "current" and fault.is_mendable for fault in before.faults):
        _restore_current(place)
        is_restored = True
        found = verify(path, live_only=live_only, progress=progress)
    if not _mend(path, place, found, remove=not is_restored) and not is_restored:
        return before
    after = verify(path, live_only=live_only, progress=progress)
    left = {(each.kind, each.where) for each in after.faults if not each.versions or after.version in each.versions}
    seen = {(fault.kind, fault.where): fault for fault in (*before.faults, *found.faults)}
    mended = tuple(fault for key, fault in seen.items() if fault.is_mendable and key not in left)
    return dataclasses.replace(after, mended=mended)


def _restore_current(place: Place) -> None:
    """Have CURRENT name the newest version that is whole, unless another process has written it meanwhile."""
    with contextlib.ExitStack() as stack:
        if place.local is not None:
            stack.enter_context(locked(place))
        found = place.find("CURRENT")
        versions = find_versions(place, live_only=True)
        live = versions.live
        if versions.is_current or live is None:
            return
        line = live.file_name if live.format_version > 1 else f"{live.file_name} {live.digest}"
        if not place.replace("CURRENT", f"{line}\n".encode(), found):
            raise CollectionBusyError(f"another process has written {place} meanwhile: repair it again")


def _mend(path: str | Path, place: Place, report: Report, *, remove: bool) -> bool:
    """Mend faults of the live version; return whether anything was done."""
    of_shards = [fault for fault in report.faults if fault.shard is not None and report.version in fault.versions]
    shards = {fault.shard for fault in of_shards if fault.is_mendable}
    shards -= {fault.shard for fault in of_shards if not fault.is_mendable}
    is_low = any(fault.kind == "next-id" and fault.is_mendable for fault in report.faults)
    if shards or is_low:
        _rewrite(path, shards, raise_ids=is_low)
    leftovers = [fault.where for fault in report.faults if fault.kind == "leftover"] if remove else []
    for name in leftovers:
        place.remove(name)
    return bool(shards or is_low or leftovers)


def _rewrite(path: str | Path, shards: Collection[str | None], *, raise_ids: bool) -> None:
    """Write some shards anew, and raise the next id above all that are there."""
    with Transaction(path, leases=True) as change, tempfile.TemporaryDirectory(prefix="hashlight-repair-") as scratch:
        live = change.live
        assert live is not None, "there is a live version, or beginning would have failed"
        salvage = Salvage(change.place, bits=live.bits, scratch=Path(scratch))
        change.reader = salvage
        for spec in live.shards:
            if raise_ids and (read := live_ids(change.place, spec)) is not None:
                change.keep_ids_free(read[1] + 1)
            if spec.name in shards:
                new = merge_shards(change, live, [spec])
                change.replace([spec], [] if new is None else [new])
        change.commit()


class Salvage(Reader):
    """Reads shards whose derived files are damaged: of all others, `verify` has found that they are sound.

    Parameters
    ----------
    place : Place
    bits : int
    scratch : Path
        For copies of shards in a bucket.
    """

    def __init__(self, place: Place, *, bits: int, scratch: Path) -> None:
        super().__init__(place, bits=bits)
        self._copies = scratch

    def path(self, spec: ShardSpec, name: str) -> Path:
        """Return the path of a file of a shard, as it is."""
        return local_folder(self.place, spec, self._copies) / name

    def ids(self, spec: ShardSpec) -> IdArray:
        """Return the ids (N,) of all rows."""
        ids_N: IdArray = map_array(self.path(spec, "ids.npy"), np.int64, (spec.rows,), at_random=True)
        return ids_N

    def _numbered(self, spec: ShardSpec) -> tuple[IdArray, NDArray[np.uint32]]:
        ids_N = self.ids(spec)
        return ids_N, np.argsort(ids_N).astype(np.uint32)

    def dead(self, spec: ShardSpec) -> NDArray[np.uint32]:
        """Return the deleted rows, ascending; none if they cannot be told, of a shard that stays as it is."""
        if spec.dead is None:
            return super().dead(spec)
        if spec.dead.name not in self._dead:
            found = self.place.find(f"deletions/{spec.dead.name}")
            dead_D, _ = check_dead_rows(None if found is None else found.data, spec)
            self._dead[spec.dead.name] = np.zeros(0, np.uint32) if dead_D is None else dead_D
        return self._dead[spec.dead.name]
