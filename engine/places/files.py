"""Files that are either whole or not there: write aside, fsync, rename, fsync the folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from hashlight.engine.errors import CollectionBusyError

_HASH_CHUNK_BYTES = 1 << 20


def sync_file(path: Path) -> None:
    """Force a file's bytes to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Force a folder's entries to the disk, without which a rename may be forgotten."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def aside_of(path: Path) -> Path:
    """Return a name beside a file to write it under; no other process has it, in no container that shares the folder.

    Where the file goes when it is whole, the rename is one step. `remove_leftovers` removes what was not.
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes wrote aside in a folder, which nobody else writes to now."""
    for aside in folder.glob(".*.tmp"):
        aside.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a reader sees the old bytes or the new ones, never a mixture."""
    aside = aside_of(path)
    try:
        aside.write_bytes(data)
        sync_file(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def writer_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `folder` for one writer; the kernel lets go when the process ends, however it ends.

    Parameters
    ----------
    folder : Path
    wait : bool
        Wait for another process that holds it.

    Raises
    ------
    CollectionBusyError
        If another process holds it, and this one does not wait.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise CollectionBusyError(
                f"{folder} is being written by another process: wait until it ends, then try again"
            ) from error
        yield
