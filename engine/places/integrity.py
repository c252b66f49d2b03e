"""Checksums: no stored file is trusted before its bytes have been verified.

Hashing reads the whole file, but a shard must open in milliseconds whatever its size. So each machine hashes a file
once and keeps a stamp of it in the user's cache folder: device, inode, size, modification time and change time, which
programs cannot set. As long as the stamp matches, the file has not been written since. Stamps are kept once the
contents make sense, too, which whoever knows the format checks at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from hashlight.engine.errors import CorruptDataError
from hashlight.engine.places.files import sha256_of, write_atomically

logger = logging.getLogger(__name__)

Stamp = list[int]

# Part of every stamp. A release that checks more than the one before counts on, and checks again what that one passed.
_CHECKS = 1


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A manifest's record of one file: its size in bytes and its SHA-256 in hex."""

    bytes: int
    sha256: str


def describe_files(folder: Path) -> dict[str, FileSpec]:
    """Hash every file under `folder`; keys are paths relative to it, with `/`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileSpec(bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in files
    }


def verify_files(
    folder: Path,
    files: dict[str, FileSpec],
    *,
    check: Callable[[], object],
    full: bool = False,
    name: str | None = None,
) -> None:
    """Check that the files of a shard match its manifest, and that they make sense.

    Parameters
    ----------
    folder : Path
    files : dict of str to FileSpec
    check : callable
        Called if a file was hashed, once all match: raises CorruptDataError if their contents make no sense.
    full : bool
        Hash every file again and ignore the stamps.
    name : str, optional
        Under which the stamps are kept, unique to these files; by default that of the folder.

    Raises
    ------
    CorruptDataError
        If a file is missing, or has another size or checksum, or fails `check`.
    """
    name = name or folder.name
    stamps = {} if full else _read_stamps(name)
    fresh = {file: _verify_file(f"{folder}/{file}", spec, stamps.get(file)) for file, spec in files.items()}
    if fresh != stamps:
        check()
        _write_stamps(name, fresh)


def check_bytes(name: str, data: bytes | None, spec: FileSpec) -> None:
    """Verify the bytes of one file against its manifest.

    Raises
    ------
    CorruptDataError
        If they differ or are missing.
    """
    if data is None:
        raise CorruptDataError(f"{name} is missing, expected {spec.bytes} bytes: {_REMEDY}")
    checksum = hashlib.sha256(data).hexdigest()
    if checksum != spec.sha256:
        raise CorruptDataError(
            f"{name} is damaged: expected {spec.bytes} bytes with SHA-256 {spec.sha256[:16]}…, got {len(data)} with "
            f"{checksum[:16]}…: {_REMEDY}"
        )


def remember_verified(folder: Path, files: dict[str, FileSpec]) -> None:
    """Store stamps of files that this process has just written and hashed."""
    _write_stamps(folder.name, {name: _stamp_of((folder / name).stat(), spec) for name, spec in files.items()})


def _verify_file(path: str, spec: FileSpec, known: Stamp | None) -> Stamp:
    status: os.stat_result | None = None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        status = os.stat(path)
    if status is None or not stat.S_ISREG(status.st_mode):
        raise CorruptDataError(f"{path} is missing, expected {spec.bytes} bytes: {_REMEDY}")
    stamp = _stamp_of(status, spec)
    if stamp == known:
        return stamp
    if status.st_size != spec.bytes:
        raise CorruptDataError(f"{path}: expected {spec.bytes} bytes, got {status.st_size}: {_REMEDY}")
    checksum = sha256_of(Path(path))
    if checksum != spec.sha256:
        raise CorruptDataError(
            f"{path} is damaged: expected SHA-256 {spec.sha256[:16]}…, got {checksum[:16]}…: {_REMEDY}"
        )
    return stamp


_REMEDY = "restore it from a copy, or build the collection again"


def _stamp_of(status: os.stat_result, spec: FileSpec) -> Stamp:
    checksum, when = int(spec.sha256[:15], 16), (status.st_mtime_ns, status.st_ctime_ns)
    return [_CHECKS, checksum, status.st_dev, status.st_ino, status.st_size, *when]


def _stamp_file(name: str) -> Path:
    return Path(platformdirs.user_cache_dir("hashlight")) / "verified" / f"{name}.json"


def _read_stamps(name: str) -> dict[str, Stamp]:
    try:
        stamps = json.loads(_stamp_file(name).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _write_stamps(name: str, stamps: dict[str, Stamp]) -> None:
    path = _stamp_file(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(stamps).encode())
    except OSError as error:
        logger.warning("cannot record that %s was verified (%s): it will be hashed at every opening", name, error)
