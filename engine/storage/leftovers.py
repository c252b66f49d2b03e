"""What a collection no longer needs is removed: versions that are not kept, and what writers left that did not commit.

Nothing is removed because no version names it: it may be about to be named. A writer announces in `intents/` how the
names of what it makes will begin; when it is dead, what begins so and is in no version goes. A version goes with
whatever only versions consist of that go with it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import re
import uuid
from collections.abc import Iterable
from typing import Self

from hashlight.engine.errors import CorruptDataError, PlaceError
from hashlight.engine.places.files import sync_folder
from hashlight.engine.places.place import Entry, Place
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.readers import Clock, claim, hold, leased
from hashlight.engine.storage.versions import read_named

logger = logging.getLogger(__name__)

# The folders of a collection whose contents versions consist of.
FOLDERS = ("shards", "columns", "deletions", "encoder")

# A writer in a bucket, or on a file system without locks, counts as dead after this long.
_DEAD_AFTER_S = 7 * 24 * 3600
_PREFIX = 32
# An announcement, or what remains of one that was being written.
_INTENT = re.compile(r"\.?([0-9a-f]{32})(\.[0-9a-f]{32}\.tmp)?")
_HALF = re.compile(r"\.(([0-9a-f]{32})-[0-9]{4,})\.[0-9a-f]{32}\.tmp")
# Swept at once: each is an open file meanwhile.
_SWEPT_AT_ONCE = 200


def utc_now() -> str:
    """Return the time as manifests have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Intent:
    """What one writer makes before it commits. As a context manager it removes what was not kept.

    Parameters
    ----------
    place : Place
        The collection's.
    until_gone : str, optional
        Name of a file in the place that speaks for what was made: as long as it exists, nothing is removed, even if the
        writer is dead.
    """

    def __init__(self, place: Place, *, until_gone: str | None = None) -> None:
        self._place = place
        self._until_gone = until_gone
        self._prefix = uuid.uuid4().hex
        self._made: list[str] = []
        self._held: int | None = None

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Remove what was made and not kept."""
        self.keep(set())

    def new_name(self, folder: str) -> str:
        """Return an unused name for a part of a version, which is to be in one of `FOLDERS`."""
        if not self._made:
            self._announce()
        name = f"{self._prefix}-{len(self._made) + 1:04d}"
        self._made.append(f"{folder}/{name}")
        return name

    def keep(self, names: set[str]) -> None:
        """Remove what was made, except for what is among `names`, which a version has.

        What cannot be removed now is removed by a sweep, once this writer counts as dead.
        """
        try:
            with contextlib.suppress(OSError, PlaceError):
                _remove_for_good(self._place, [name for name in self._made if name not in names])
                if self._made:
                    self._place.remove(f"intents/{self._prefix}")
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Leave what was made where it is, to be removed once this writer counts as dead if no version names it."""
        self._made = []
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _announce(self) -> None:
        name = f"intents/{self._prefix}"
        while True:
            self._place.put(name, json.dumps({"written": utc_now(), "until_gone": self._until_gone}).encode())
            if self._place.local is None:
                return
            self._held = hold(self._place.local / name)
            if self._held is not None:  # else taken for one of a dead writer in between
                return


def settle(place: Place, parts: Iterable[str]) -> None:
    """Remove the announcements of parts that were made under an `Intent` of their own and are in a version, or gone."""
    with contextlib.suppress(OSError, PlaceError):  # a sweep removes them, too
        for prefix in sorted({name[:_PREFIX] for name in parts}):
            place.remove(f"intents/{prefix}")


def sweep_intents(place: Place) -> None:
    """Remove what writers made that died before they committed; failing to do so affects no version."""
    try:
        intents = [entry for entry in place.children("intents", hidden=True) if _INTENT.fullmatch(entry.name)]
        for start in range(0, len(intents), _SWEPT_AT_ONCE):
            _sweep_dead(place, intents[start : start + _SWEPT_AT_ONCE])
    except (OSError, PlaceError) as error:
        logger.warning("cannot remove what dead writers left in %s (%s): the next write tries again", place, error)


def _sweep_dead(place: Place, intents: list[Entry]) -> None:
    with contextlib.ExitStack() as claims:
        clock = Clock(place)
        dead = [entry.name for entry in intents if _is_dead(place, entry, clock, claims)]
        # Read after that: to commit may be the last thing that a writer did.
        kept = names_of(place) if dead else None
        if kept is None:
            return
        logger.info("removing from %s what %d writers left that did not commit", place, len(dead))
        _remove_prefixes(place, [name for name in dead if len(name) == _PREFIX], kept=kept)
        for name in dead:
            place.remove(f"intents/{name}")


def _is_dead(place: Place, intent: Entry, clock: Clock, claims: contextlib.ExitStack) -> bool:
    claimed = None
    # One that is being written is not locked yet.
    if place.local is not None and len(intent.name) == _PREFIX:
        try:
            claimed = claims.enter_context(claim(place.local / "intents" / intent.name))
        except FileNotFoundError:  # it has committed
            return False
    if claimed is False or (claimed is None and clock.now_s() - intent.modified_s <= _DEAD_AFTER_S):
        return False
    found = place.find(f"intents/{intent.name}")
    if found is None:
        return False
    spoken_for = _until_gone(found.data)
    return spoken_for is None or not place.exists(spoken_for)


def _until_gone(intent: bytes) -> str | None:
    try:
        name = json.loads(intent)["until_gone"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def _remove_prefixes(place: Place, prefixes: Iterable[str], *, kept: set[str]) -> None:
    wanted = {f"{prefix}-" for prefix in prefixes}
    made = [
        f"{folder}/{name}"
        for folder in FOLDERS
        for name in place.names(folder, hidden=True)
        if name.removeprefix(".")[:33] in wanted
    ]
    _remove_for_good(place, [name for name in made if name not in kept])


def _remove_for_good(place: Place, names: Iterable[str]) -> None:
    """Remove parts of versions; see `_sync_folders`."""
    folders = set()
    for name in names:
        place.remove(name)
        folders.add(name.partition("/")[0])
    _sync_folders(place, folders)


def _sync_folders(place: Place, folders: Iterable[str]) -> None:
    """Let no power failure bring back what was removed, when what speaks of it is removed next."""
    if place.local is not None:
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                sync_folder(place.local / folder)


def sweep_versions(place: Place, live: Manifest) -> None:
    """Remove the versions that `live` no longer keeps and nobody reads, and what only they consist of.

    A version is in use while a reader holds its manifest, or a job has a lease on it; see `engine.storage.readers`.
    Failing to remove one affects no other: the next sweep tries again.
    """
    try:
        _sweep_versions(place, live)
    except (OSError, PlaceError) as error:
        logger.warning("cannot remove old versions of %s (%s): the next write tries again", place, error)


def _sweep_versions(place: Place, live: Manifest) -> None:
    names = place.names("manifests")
    spared = {live.file_name, *live.tags.values()}
    old = [name for name in names if name not in spared and _number_of(name) < live.oldest]
    # Listed only now: who takes a lease later sees in CURRENT that the version is no longer kept.
    read = leased(place) if old and place.local is None else set()
    with contextlib.ExitStack() as claims:
        dropped = [name for name in old if name not in read and not _is_read(place, name, claims)]
        if not dropped:
            return
        kept = names_of(place, (name for name in names if name not in dropped))
        if kept is not None:
            _remove_versions(place, dropped, kept | live.names)
            _remove_halves(place, kept | live.names)


def _remove_halves(place: Place, kept: set[str]) -> None:
    """Remove folders of old versions whose removal was interrupted: it begins by renaming them."""
    announced = {entry.removeprefix(".")[:32] for entry in place.names("intents", hidden=True)}
    for folder in FOLDERS:
        for name in place.names(folder, hidden=True):
            half = _HALF.fullmatch(name)
            if half and half[2] not in announced and f"{folder}/{half[1]}" not in kept:
                place.remove(f"{folder}/{name}")


def _number_of(name: str) -> int:
    return int(name[:8]) if name[:8].isdigit() else 0


def _is_read(place: Place, name: str, claims: contextlib.ExitStack) -> bool:
    if place.local is None:
        return False
    try:
        return claims.enter_context(claim(place.local / "manifests" / name)) is False
    except FileNotFoundError:  # another writer was first
        return True


def names_of(place: Place, manifests: Iterable[str] | None = None) -> set[str] | None:
    """Return what some versions (None: all) consist of, None if one cannot be read: nothing may be removed then."""
    found: set[str] = set()
    for name in place.names("manifests") if manifests is None else manifests:
        try:
            manifest = read_named(place, name)
        except (CorruptDataError, ValueError, OSError) as error:
            logger.warning("removing nothing from %s, where %s may be in use (%s)", place, name, error)
            return None
        found |= manifest.names if manifest else set()
    return found


def _remove_versions(place: Place, names: list[str], kept: set[str]) -> None:
    removed = [name for name in names if _remove_parts(place, name, kept)]
    _sync_folders(place, FOLDERS)
    for name in removed:
        place.remove(f"manifests/{name}")


def _remove_parts(place: Place, name: str, kept: set[str]) -> bool:
    try:
        manifest = read_named(place, name)
        logger.info("removing version %s of %s", name, place)
        for each in sorted(manifest.names - kept if manifest else ()):
            place.remove(each)
    except (CorruptDataError, ValueError, OSError) as error:
        logger.warning("cannot remove version %s of %s (%s): the next write tries again", name, place, error)
        return False
    return True
