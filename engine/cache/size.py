"""How much the cache may hold, and what goes when it is full."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from hashlight.engine.cache.locks import removing
from hashlight.engine.places.files import aside_of, writer_lock

logger = logging.getLogger(__name__)

VARIABLE = "HASHLIGHT_CACHE_SIZE"
FOLDERS = ("shards", "columns", "deletions", "encoder")
LOCKS, USED = ".locks", "used"

# Every shard that is fetched may be one too many.
_WARNING_PAUSE_S = 60.0
_warned_s = -_WARNING_PAUSE_S

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)B?\s*", re.IGNORECASE)
_ASIDE = re.compile(r"\.(.+)\.[0-9a-f]{32}\.tmp")


@dataclass(frozen=True, slots=True)
class Kept:
    """An item of the cache, or the beginning of one.

    Attributes
    ----------
    folder : Path
        Of its collection.
    name : str
        `shards/NAME`, for instance: of a beginning, what it was to become.
    path : Path
    bytes : int
    used_s : float
        When it was last used, in seconds since 1970.
    """

    folder: Path
    name: str
    path: Path
    bytes: int
    used_s: float

    @property
    def is_whole(self) -> bool:
        """Whether it is an item, and not the beginning of one that is, or was, being fetched."""
        return self.path.name == Path(self.name).name


def cache_folder() -> Path:
    """Return the folder of all collections."""
    return Path(platformdirs.user_cache_dir("hashlight")) / "collections"


def parse_size(text: str) -> int:
    """Return a number of bytes, such as "200GB", "1.5 TB" or "1000000".

    Raises
    ------
    ValueError
        If it is none.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"a size is a number of bytes, such as 500MB, 200GB or 1.5TB, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def count_held() -> int:
    """Return how many bytes the cache holds."""
    return sum(item.bytes for item in _items())


def max_bytes(held_bytes: int) -> int:
    """Return how many bytes the cache may hold: what the environment says, or half of what it holds and is free.

    Raises
    ------
    ValueError
        If the environment variable `HASHLIGHT_CACHE_SIZE` is not a size.
    """
    if text := os.environ.get(VARIABLE):
        try:
            return parse_size(text)
        except ValueError as error:
            raise ValueError(f"{VARIABLE}: {error}") from None
    return (shutil.disk_usage(cache_folder()).free + held_bytes) // 2


@contextlib.contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """Make room for so many bytes; within the context, which should be short, nobody else does.

    What was used least recently goes, and whatever killed processes have begun. What is in use stays, even if that is
    more than the cache may hold.

    Raises
    ------
    ValueError
        See `max_bytes`.
    """
    with writer_lock(cache_folder(), wait=True):
        items = list(_items())
        held = sum(item.bytes for item in items)
        limit = max_bytes(held)
        if held + num_bytes > limit:
            for item in sorted(items, key=lambda item: (item.is_whole, item.used_s)):
                if held + num_bytes <= limit:
                    break
                held -= item.bytes if _removed(item) else 0
        if held + num_bytes > limit:
            _warn(held, num_bytes, limit)
        yield


def _warn(held: int, num_bytes: int, limit: int) -> None:
    global _warned_s
    now_s = time.monotonic()
    if now_s - _warned_s > _WARNING_PAUSE_S:
        _warned_s = now_s
        logger.warning(
            "%s holds %s bytes that are in use and gets %s more, which is above its limit of %s: raise it (%s)",
            cache_folder(), f"{held:,}", f"{num_bytes:,}", f"{limit:,}", VARIABLE,
        )  # fmt: skip


def _items() -> Iterator[Kept]:
    for folder in _subfolders(cache_folder()):
        for kind in FOLDERS:
            for entry in _entries(folder / kind):
                aside = _ASIDE.fullmatch(entry.name)
                name = f"{kind}/{aside[1] if aside else entry.name}"
                path = Path(entry.path)
                # What is being fetched grows.
                num_bytes = _measure(path) if aside else _size_of(path)
                yield Kept(folder, name, path, num_bytes, last_used_s(folder, name))


def _subfolders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if entry.is_dir()]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


_sizes: dict[Path, int] = {}
_guard = threading.Lock()


def _size_of(path: Path) -> int:
    """Return the size of an item, which never changes, so it is measured once."""
    with _guard:
        known = _sizes.get(path)
    if known is None:
        known = _measure(path)
        with _guard:
            _sizes[path] = known
    return known


def _measure(path: Path) -> int:
    if not path.is_dir():
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_size
        return 0
    return sum(_measure(Path(entry.path)) for entry in _entries(path))


def _removed(item: Kept) -> bool:
    """Remove an item unless somebody uses it; return whether it is gone."""
    with removing(item.folder / LOCKS, item.name) as is_free:
        if not is_free:
            return False
        logger.info("removing %s from the cache", item.path)
        remove(item.path)
        if item.is_whole:
            used_file(item.folder, item.name).unlink(missing_ok=True)
    with _guard:
        _sizes.pop(item.path, None)
    return True


def remove(path: Path) -> None:
    """Remove a file, or a folder in one step."""
    if path.is_dir():
        if _ASIDE.fullmatch(path.name) is None:
            path = path.rename(aside_of(path))
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_beginnings(folder: Path, name: str) -> None:
    """Remove what killed processes have begun to fetch of an item. The caller is the one who fetches it."""
    kind, _, own = name.partition("/")
    for entry in _entries(folder / kind):
        aside = _ASIDE.fullmatch(entry.name)
        if aside and aside[1] == own:
            remove(Path(entry.path))


def used_file(folder: Path, name: str) -> Path:
    """Return the file whose time of modification says when an item was last used."""
    return folder / USED / name.replace("/", "-")


def last_used_s(folder: Path, name: str) -> float:
    """Return when an item was last used, in seconds since 1970; 0 if that is not known."""
    try:
        return used_file(folder, name).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def mark_used(folder: Path, name: str) -> None:
    """Record that an item is used now; if the disk is full, it goes earlier than it should."""
    path = used_file(folder, name)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
