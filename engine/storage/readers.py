"""Which versions of a collection are open: a reader holds the manifest of its version, and writers keep what is held.

The kernel releases a hold when the reader's process ends, however it ends. On a file system without locks nothing is
held, and only the version before the live one is kept.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

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


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Keep readers away from a manifest that is to be removed; yield False if one holds it already.

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


def _lock(descriptor: int, how: int) -> bool:
    """Lock an open file; return False if another process's lock excludes it."""
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
