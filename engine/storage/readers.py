"""What of a collection is in use: a reader holds the manifest of its version, a writer the file of its intent.

The kernel releases a hold when the reader's process ends, however it ends. On a file system without locks nothing is
held, and only the versions that the live one keeps stay. In a bucket, a job says in `leases/` what it reads, as long as
it does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from hashlight.engine.errors import PlaceError
from hashlight.engine.places.place import Place

logger = logging.getLogger(__name__)

# A lease that was not renewed for that long is that of a dead process, or of one that has lost its network for so long
# that it will fail anyway.
_LEASE_S = 900.0
_RENEWED_S = 60.0

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


def hold(path: Path) -> int | None:
    """Hold a manifest for as long as the returned file descriptor is open; None if a writer has removed it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        _lock(descriptor, fcntl.LOCK_SH)  # waits for a writer that is removing it
        if os.fstat(descriptor).st_nlink:
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def is_held(descriptor: int | None) -> bool:
    """Whether writers see that a manifest is in use: `descriptor` is from `hold`, and the file system has locks."""
    return descriptor is not None and _lock(descriptor, fcntl.LOCK_SH) is True


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool | None]:
    """Keep readers away from a file that is to be removed; yield False if one holds it, None where nothing can tell.

    NFS takes an exclusive lock only on a file that is open for writing.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except PermissionError:  # another user's
        descriptor = os.open(path, os.O_RDONLY)
    try:
        yield _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool | None:
    """Lock an open file; return False if another process's lock excludes it, None if the file system has no locks."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


class Clock:
    """The time by the clock of a place, which may be another than this machine's; asked once, if it is needed."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._seconds: float | None = None

    def now_s(self) -> float:
        """Return seconds since 1970."""
        if self._seconds is None:
            self._place.put("intents/.now", b"", durable=False)
            entry = self._place.entry("intents/.now")
            self._seconds = entry.modified_s if entry else 0.0
            self._place.remove("intents/.now")
        return self._seconds


class Lease:
    """Says in a bucket that a version is read, as long as the context lasts; a thread renews it.

    Parameters
    ----------
    place : Place
    manifest : str
        File name.
    """

    def __init__(self, place: Place, manifest: str) -> None:
        self._place, self._data = place, manifest.encode()
        self._name = f"leases/{uuid.uuid4().hex}"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        """Take it. Who may only read goes without."""
        try:
            self._place.put(self._name, self._data)
        except (PermissionError, PlaceError) as error:
            logger.info("reading a version that writers may remove: %s", error)
            self._ending.set()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Give it back."""
        is_held = not self._ending.is_set()
        self._ending.set()
        self._thread.join()
        if is_held:
            with contextlib.suppress(OSError, PlaceError):  # it ends by itself
                self._place.remove(self._name)

    def _renew(self) -> None:
        while not self._ending.wait(_RENEWED_S):
            try:
                self._place.put(self._name, self._data)
            except (OSError, PlaceError) as error:
                logger.warning("cannot renew a lease on a version of %s: %s", self._place, error)


def leased(place: Place) -> set[str]:
    """Return the file names of the manifests that jobs read; leases of dead jobs are removed."""
    clock = Clock(place)
    found = set()
    for entry in place.children("leases"):
        name = f"leases/{entry.name}"
        if clock.now_s() - entry.modified_s > _LEASE_S:
            place.remove(name)
        elif (lease := place.find(name)) is not None:
            found.add(lease.data.decode(errors="replace"))
    return found
