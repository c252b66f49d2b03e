"""Any other file system that fsspec supports, for reading corpora."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hashlight.engine.errors import MissingDependencyError, PlaceError
from hashlight.engine.extras import missing
from hashlight.engine.places.failures import retried
from hashlight.engine.places.place import HIDDEN, Entry, Found, ReadOnly
from hashlight.engine.places.reading import RetryingFile, read_blocks, refuse_more
from hashlight.engine.places.uris import scheme_of, without_credentials

_COPIED_BYTES = 1 << 20


class Elsewhere(ReadOnly):
    """See `Place`; read-only.

    Raises
    ------
    PlaceError
        If fsspec does not know the scheme.
    MissingDependencyError
        If fsspec, or the package that it needs for the scheme, is not installed.
    """

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self._files, self._base = _open_filesystem(location)

    def _at(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}" if name else self._base

    def read(self, name: str = "", *, max_bytes: int | None = None) -> bytes:
        """See `Place.read`."""
        return retried(lambda: self._read(name, max_bytes), self.path(name))

    def _read(self, name: str, max_bytes: int | None) -> bytes:
        # A web server may not tell the size of a file before it is read.
        with self._files.open(self._at(name), "rb") as stream:
            size = getattr(stream, "size", None)
            refuse_more(size or 0, max_bytes)
            return read_blocks(stream, max_bytes)

    def find(self, name: str) -> Found | None:
        """See `Place.find`."""
        try:
            return Found(self.read(name))
        except FileNotFoundError:
            return None

    def open(self, name: str = "") -> RetryingFile:
        """See `Place.open`."""
        return RetryingFile(lambda: self._files.open(self._at(name), "rb"), self.path(name))

    def entry(self, name: str = "") -> Entry | None:
        """See `Place.entry`."""
        try:
            return _entry_of(self._files.info(self._at(name)), name)
        except FileNotFoundError:
            return None

    def children(self, folder: str = "", *, hidden: bool = False) -> list[Entry]:
        """See `Place.children`."""
        try:
            infos = self._files.ls(self._at(folder), detail=True)
        except FileNotFoundError:
            return []
        entries = (_entry_of(info, info["name"].rstrip("/").rpartition("/")[2]) for info in infos)
        return sorted((entry for entry in entries if hidden or entry.name[:1] != "."), key=lambda entry: entry.name)

    def walk(self, folder: str = "", *, skipped: Counter[str] | None = None) -> Iterator[Entry]:
        """See `Place.walk`: folder by folder."""
        return self._walk(folder, "", Counter() if skipped is None else skipped)

    def _walk(self, folder: str, inner: str, skipped: Counter[str]) -> Iterator[Entry]:
        for entry in self.children("/".join(part for part in (folder, inner) if part), hidden=True):
            below = f"{inner}/{entry.name}" if inner else entry.name
            if entry.name.startswith("."):
                skipped[HIDDEN] += 1
            elif entry.is_folder:
                yield from self._walk(folder, below, skipped)
            else:
                yield Entry(below, entry.size, entry.stamp)

    def download(self, name: str, target: Path) -> None:
        """See `Place.download`."""
        entry = self.entry(name)
        if entry is None or not entry.is_folder:
            self._download_file(name, target)
            return
        target.mkdir(parents=True, exist_ok=True)
        for file in self.walk(name):
            path = target / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._download_file(f"{name}/{file.name}" if name else file.name, path)

    def _download_file(self, name: str, target: Path) -> None:
        with self.open(name) as file, target.open("wb") as copy:
            while data := file.read(_COPIED_BYTES):
                copy.write(data)


def _open_filesystem(location: str) -> tuple[Any, str]:
    scheme, where = scheme_of(location), without_credentials(location)
    try:
        core = importlib.import_module("fsspec.core")
    except ModuleNotFoundError as error:
        raise missing(error, f"reading {scheme}://") or error from error
    try:
        filesystem, path = core.url_to_fs(location)
    except ImportError as error:
        raise MissingDependencyError(
            f"{where}: reading {scheme}:// needs a package that is not installed: {error}"
        ) from error
    except ValueError as error:
        raise PlaceError(f"{where}: no file system for {scheme}://: {error}") from error
    return filesystem, path


def _entry_of(info: dict[str, Any], name: str) -> Entry:
    if info["type"] == "directory":
        return Entry(name, 0, "", is_folder=True)
    size = info.get("size") or 0
    changed = info.get("mtime") or info.get("LastModified") or info.get("last_modified") or info.get("created") or ""
    return Entry(name, size, f"{size}:{changed}")
