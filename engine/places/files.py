"""Local files that are either complete or absent: write to a temporary name, fsync, rename, fsync the folder.

Crash tests observe the steps of every write through `on_step`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from hashlight.engine.errors import CollectionBusyError

_HASH_CHUNK_BYTES = 1 << 20
# What file systems without hard links (exFAT, many network and FUSE mounts) say of one.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}

_steps: list[Callable[[str, object], None]] = []


def on_step(call: Callable[[str, object], None]) -> None:
    """Register `call(step, name)`: "aside" before a write to a temporary name, "published" after the rename."""
    if call not in _steps:
        _steps.append(call)


def report_step(step: str, name: str) -> None:
    """Tell the registered observers that a write has reached a step."""
    for call in _steps:
        call(step, name)


def sync_file(path: Path) -> None:
    """Fsync a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Fsync a folder, without which a crash may undo a rename."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, and fsync their entries."""
    if path.is_dir():
        return
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def aside_of(path: Path) -> Path:
    """Return a temporary path in the same folder, unique even among containers that share the folder.

    From there a rename to `path` is atomic. `remove_leftovers` removes the files of writers that did not get that far.
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files of killed processes from a folder that nobody else is writing to.

    With `name`, only those of the file of this name, to which nobody else is writing.
    """
    unique = "[0-9a-f]" * 32
    pattern = ".*.tmp" if name is None else f".{glob.escape(name)}.{unique}.tmp"
    for aside in folder.glob(pattern):
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def publish(aside: Path, path: Path, *, only_new: bool = False, durable: bool = True) -> bool:
    """Move a temporary file to `path`; return whether it was moved.

    Parameters
    ----------
    aside : Path
        In the same file system.
    path : Path
    only_new : bool
        Do not replace an existing file; the temporary file then stays where it is. Without hard links in the file
        system, two processes that publish at the same time may both succeed: the lock must keep one of them away.
    durable : bool
        Whether it must survive a crash of the machine.
    """
    if durable:
        sync_file(aside)
    if not only_new:
        aside.replace(path)
    elif not _link(aside, path):
        return False
    if durable:
        sync_folder(path.parent)
    report_step("published", path.name)
    return True


def _link(aside: Path, path: Path) -> bool:
    """Link a file to `path` unless that exists, which a rename would replace; return whether it was linked."""
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            return False
        aside.replace(path)
    return True


@contextlib.contextmanager
def written_aside(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path for a file; if the context exits without an error, the file replaces `path` in one step.

    `durable` says whether it must survive a crash of the machine.
    """
    aside = aside_of(path)
    report_step("aside", path.name)
    try:
        yield aside
        publish(aside, path, durable=durable)
    finally:
        aside.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes, *, only_new: bool = False, durable: bool = True) -> bool:
    """Replace `path` by `data`: a reader sees the old bytes or the new ones, never a mixture.

    With `only_new` an existing file is kept; the return value says whether `data` was written. `durable` says whether
    it must survive a crash of the machine.
    """
    aside = aside_of(path)
    try:
        with aside.open("wb") as file:
            report_step("aside", path.name)
            file.write(data)
        return publish(aside, path, only_new=only_new, durable=durable)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_aside(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path for a folder; if the context exits without an error, two renames exchange it for `path`.

    `durable` says whether it must survive a crash of the machine.

    Raises
    ------
    OSError
        If the exchange fails; the old folder is restored.
    """
    aside = aside_of(path)
    try:
        yield aside
        if durable:
            for entry in aside.rglob("*"):
                (sync_folder if entry.is_dir() else sync_file)(entry)
            sync_folder(aside)
        _exchange(aside, path, durable=durable)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(aside: Path, path: Path, *, durable: bool) -> None:
    replaced = aside_of(path)
    if path.is_dir():
        path.rename(replaced)
    try:
        aside.rename(path)
    except OSError:
        if replaced.is_dir():
            replaced.rename(path)
        raise
    if durable:
        # Before the old folder is removed: until the fsync, a crash may bring back its old name.
        sync_folder(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def stamp_of(path: Path) -> tuple[int, ...]:
    """Return numbers that differ after a file was changed or replaced; none while it cannot be found."""
    try:
        about = path.stat()
    except OSError:
        return ()
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def writer_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock `folder`, made if missing, for one writer; the kernel releases the lock when the process ends in any way.

    Parameters
    ----------
    folder : Path
    wait : bool
        Wait for another process to release it.

    Raises
    ------
    CollectionBusyError
        If another process holds the lock and `wait` is False.
    """
    while True:
        make_folder(folder)
        with (folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise CollectionBusyError(
                    f"{folder} is being written by another process: wait until it ends, then try again"
                ) from error
            # A finished job removes its folder before it unlocks it: a lock on the removed file excludes nobody.
            if _is_at(file.fileno(), folder / ".lock"):
                yield
                return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
