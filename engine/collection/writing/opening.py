"""What a transaction builds on: the live version of a collection, or nothing, where one is created or replaced."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from typing import NamedTuple

from hashlight.engine.errors import (
    CollectionBusyError,
    CollectionExistsError,
    CollectionNotFoundError,
    CorruptDataError,
)
from hashlight.engine.places.place import Found, Place
from hashlight.engine.storage.leftovers import FOLDERS
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.versions import read_current

# Where a job that writes shards one by one may record finished ones; no collection version needs it.
JOB_FOLDER = "build"

_OWN_ENTRIES = {".lock", "CURRENT", "manifests", "intents", "leases", *FOLDERS, JOB_FOLDER}
_MARKS = {".lock", "CURRENT", "manifests", "intents"}

# Locks are held for milliseconds, by whoever has been overtaken often for as long as its commit takes.
_LOCK_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.1


class Fresh(NamedTuple):
    """A collection that is created, or replaces another.

    Attributes
    ----------
    bits : int
    encoder : str or None
        Fingerprint of the encoder that makes the codes.
    overwrite : bool
        Whether an existing collection may be replaced.
    """

    bits: int
    encoder: str | None
    overwrite: bool = False

    def start(self, place: Place, before: Manifest | None) -> Manifest:
        """Return a version without rows, to begin with."""
        number = before.version + 1 if before else number_after_unreadable(place)
        return Manifest(
            version=number,
            bits=self.bits,
            encoder=self.encoder,
            shards=(),
            collection=uuid.uuid4().hex,
            # The version before stays for readers that have read CURRENT but not yet opened its files.
            oldest=max(1, number - 1),
        )


class Ground(NamedTuple):
    """The live version, and CURRENT as it was read."""

    manifest: Manifest | None
    found: Found | None


def ground_of(place: Place, fresh: Fresh) -> Ground:
    """Return what a new collection replaces; its manifest may be damaged.

    Raises
    ------
    CollectionExistsError, CorruptDataError
        If there is a collection that may not be replaced.
    """
    found = place.find("CURRENT")
    try:
        live = read_current(place)
    except (CollectionNotFoundError, CorruptDataError) as error:
        if fresh.overwrite or not place.names("manifests"):
            return Ground(None, found)
        raise CorruptDataError(
            f"{place} holds a collection that cannot be read ({error}); it can be replaced "
            "(`overwrite=True`, `--overwrite`)"
        ) from error
    if not fresh.overwrite:
        raise CollectionExistsError(
            f"{place} is a collection (version {live.version}, {live.rows:,} codes): choose another path, allow it to "
            "be replaced (`overwrite=True`, `--overwrite`), or add to it (`Collection.add`, `--append`)"
        )
    return Ground(live, found)


def number_after_unreadable(place: Place) -> int:
    """Return the number of the first version after those that have left a manifest."""
    return 1 + max((int(name[:8]) for name in place.names("manifests") if name[:8].isdigit()), default=0)


def refuse_foreign_folder(place: Place) -> None:
    """Raise CollectionExistsError if a place holds anything that is not a collection's."""
    if place.local and place.local.exists() and not place.local.is_dir():
        raise CollectionExistsError(f"{place} is a file, expected a folder for the collection: choose another path")
    names = set(place.names(hidden=True))
    foreign = sorted(name for name in names - _OWN_ENTRIES if not name.endswith(".tmp"))
    if foreign or (names and not names & _MARKS):
        raise CollectionExistsError(
            f"{place} is not a collection and not empty (it has {', '.join(sorted(names)[:3])}): choose another path"
        )


@contextlib.contextmanager
def locked(place: Place) -> Iterator[None]:
    """Hold the lock of a place, for which others are waited for.

    Raises
    ------
    CollectionBusyError
        If another process holds it for a minute.
    """
    until_s, pause_s = time.monotonic() + _LOCK_S, _FIRST_PAUSE_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(place.lock())
                break
            except CollectionBusyError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        yield
