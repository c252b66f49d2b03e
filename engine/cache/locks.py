"""Locks by name in one file: a byte range each, so that a process with a thousand open shards needs one descriptor.

They are Linux's locks of open file descriptions. The kernel releases them when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from hashlight.engine.errors import PlaceError
from hashlight.engine.places.files import make_folder

# struct flock: type, whence, start, length, process.
_FLOCK = "hhqqi0q"
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
# Each name has two bytes.
_USING, _FETCHING = 0, 1


class Uses:
    """What this process uses of one folder. Names are counted, and locked while their count is not 0. Thread-safe.

    Use `uses_of`: two objects for one folder would not know of each other's locks.

    Parameters
    ----------
    path : Path
        The file of the locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts: Counter[str] = Counter()
        # A shard that is collected as garbage releases its names, in whatever this thread is doing.
        self._lock = threading.RLock()
        self._descriptor: int | None = None

    def take(self, names: Sequence[str]) -> None:
        """Use some names; waits for a process that is removing one of them, which takes milliseconds."""
        with self._lock:
            self._counts.update(names)
            try:
                if self._descriptor is None:
                    self._descriptor = _open(self._path)
                for name in names:
                    if self._counts[name] == 1:
                        _lock(self._path, self._descriptor, fcntl.F_RDLCK, name, _USING)
            except BaseException:
                self.release(names)
                raise

    def release(self, names: Sequence[str]) -> None:
        """Undo `take`."""
        with self._lock:
            for name in names:
                self._counts[name] -= 1
                if not self._counts[name]:
                    del self._counts[name]
                    if self._descriptor is not None:
                        _lock(self._path, self._descriptor, fcntl.F_UNLCK, name, _USING)
            if not self._counts and self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


_uses: dict[Path, Uses] = {}
_guard = threading.Lock()


def uses_of(path: Path) -> Uses:
    """Return what this process uses of the folder whose locks are in the file `path`."""
    with _guard:
        return _uses.setdefault(path, Uses(path))


@contextlib.contextmanager
def fetching(path: Path, name: str) -> Iterator[None]:
    """Be the only one, thread or process, that fetches `name`."""
    descriptor = _open(path)
    try:
        _lock(path, descriptor, fcntl.F_WRLCK, name, _FETCHING)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def removing(path: Path, name: str) -> Iterator[bool]:
    """Be the only one that uses or fetches `name`; yield False if somebody else does."""
    descriptor = _open(path)
    try:
        yield all(_lock(path, descriptor, fcntl.F_WRLCK, name, which, wait=False) for which in (_USING, _FETCHING))
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    make_folder(path.parent)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _lock(path: Path, descriptor: int, kind: int, name: str, which: int, *, wait: bool = True) -> bool:
    """Lock or unlock a byte; return whether that was possible without waiting."""
    start = 2 * int(hashlib.sha256(name.encode()).hexdigest()[:15], 16) + which
    command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
    try:
        fcntl.fcntl(descriptor, command, struct.pack(_FLOCK, kind, os.SEEK_SET, start, 1, 0))
    except OSError as error:
        if not wait and error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno in _NO_LOCKS:
            raise PlaceError(
                f"{path} cannot be locked ({os.strerror(error.errno)}), so that processes would remove each other's "
                "files: set XDG_CACHE_HOME to a folder on a file system with locks"
            ) from error
        raise
    return True
