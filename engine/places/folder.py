"""A local or mounted folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from hashlight.engine.places.failures import retried
from hashlight.engine.places.files import (
    aside_of,
    make_folder,
    publish,
    remove_leftovers,
    report_step,
    sync_folder,
    write_atomically,
    writer_lock,
)
from hashlight.engine.places.place import HIDDEN, LISTED_ALREADY, Entry, Found, Place
from hashlight.engine.places.reading import RetryingFile, groups, open_local, read_local

_LISTED_AT_ONCE = 20_000


class Folder(Place):
    """See `Place`."""

    def __init__(self, path: str | Path) -> None:
        text = os.fspath(path)
        super().__init__((text if os.path.isabs(text) else os.path.join(os.getcwd(), text)).rstrip("/") or "/")

    @property
    def local(self) -> Path:
        """See `Place.local`."""
        return Path(self.location)

    def __str__(self) -> str:
        """Return the path."""
        return self.location

    def location_of(self, name: str = "") -> str:
        """See `Place.location_of`."""
        return f"{self.location.rstrip('/')}/{name}" if name else self.location

    def read(self, name: str = "", *, max_bytes: int | None = None) -> bytes:
        """See `Place.read`."""
        path = self.location_of(name)
        return retried(lambda: read_local(path, max_bytes), path)

    def find(self, name: str) -> Found | None:
        """See `Place.find`."""
        try:
            return Found(self.read(name))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, name: str = "") -> RetryingFile:
        """See `Place.open`."""
        path = self.location_of(name)
        return RetryingFile(lambda: open_local(path), path)

    def entry(self, name: str = "") -> Entry | None:
        """See `Place.entry`."""
        path = self.location_of(name)
        if not os.path.exists(path):
            return None
        return Entry(name, 0, "", is_folder=True) if os.path.isdir(path) else _file_entry(path, name)

    def children(self, folder: str = "", *, hidden: bool = False) -> list[Entry]:
        """See `Place.children`."""
        path = self.location_of(folder)
        if not os.path.isdir(path):
            return []
        with os.scandir(path) as entries:
            found = [
                Entry(entry.name, 0, "", is_folder=True) if entry.is_dir() else _file_entry(entry.path, entry.name)
                for entry in entries
                if hidden or not entry.name.startswith(".")
            ]
        return sorted(found, key=lambda entry: entry.name)

    def walk(self, folder: str = "", *, skipped: Counter[str] | None = None) -> Iterator[Entry]:
        """See `Place.walk`: folder by folder, with the names of one folder in memory at a time."""
        root = self.location_of(folder)
        counts = Counter() if skipped is None else skipped
        return _Walk(root, counts).below("", os.path.realpath(root)) if os.path.isdir(root) else iter(())

    def download(self, name: str, target: Path) -> None:
        """See `Place.download`."""
        path = self.location_of(name)
        if os.path.isdir(path):
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target)

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """See `Place.put`."""
        path = Path(self.location_of(name))
        make_folder(path.parent)
        write_atomically(path, data, durable=durable)

    def put_new(self, name: str, data: bytes) -> bool:
        """See `Place.put_new`."""
        path = Path(self.location_of(name))
        make_folder(path.parent)
        return write_atomically(path, data, only_new=True)

    def replace(self, name: str, data: bytes, found: Found | None) -> bool:
        """See `Place.replace`."""
        if found is None:
            return self.put_new(name, data)
        there = self.find(name)
        if there is None or there.data != found.data:
            return False
        self.put(name, data)
        return True

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """See `Place.scratch`: in the target folder, so that `put_file` only needs to rename it."""
        path = Path(self.location_of(name))
        make_folder(path.parent)
        aside = aside_of(path)
        try:
            yield aside
        finally:
            aside.unlink(missing_ok=True)

    def put_file(self, name: str, path: Path) -> None:
        """See `Place.put_file`."""
        target = Path(self.location_of(name))
        make_folder(target.parent)
        report_step("aside", target.name)
        if path.parent == target.parent:
            publish(path, target)
            return
        aside = aside_of(target)
        try:
            shutil.copyfile(path, aside)
            publish(aside, target)
        finally:
            aside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def new_folder(self, name: str) -> Iterator[Path]:
        """See `Place.new_folder`; it is written in place."""
        path = Path(self.location_of(name))
        make_folder(path.parent)
        try:
            yield path
            sync_folder(path.parent)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise

    def remove(self, name: str) -> None:
        """See `Place.remove`: a folder in the place goes in one step, so that who still writes to it fails."""
        path = Path(self.location_of(name))
        if path.is_dir():
            aside = path.rename(aside_of(path)) if name else path
            shutil.rmtree(aside)
        else:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """See `Place.lock`; the kernel releases it when the process ends, however it ends."""
        with writer_lock(self.local, wait=wait):
            yield

    def remove_leftovers(self, folder: str = "") -> None:
        """See `Place.remove_leftovers`."""
        remove_leftovers(Path(self.location_of(folder)))


def _file_entry(path: str, name: str) -> Entry:
    try:
        about = os.stat(path)
    except OSError:  # a broken link, or removed in the meantime: reading it will tell
        return Entry(name, 0, "unreadable")
    return Entry(name, about.st_size, f"{about.st_size}:{about.st_mtime_ns}", modified_s=about.st_mtime)


class _Walk:
    """A walk that comes to each folder once, whatever links lead to it; it remembers where the links lead.

    Parameters
    ----------
    root : str
    skipped : Counter
        Counts what is left out, by kind.
    """

    def __init__(self, root: str, skipped: Counter[str]) -> None:
        self._root = root
        self._skipped = skipped
        # The real paths of folders that are walked with all that is visible below them.
        self._walked = {os.path.realpath(root)}

    def below(self, inner: str, real: str) -> Iterator[Entry]:
        """Walk the folder `inner`, whose real path is `real`."""
        for name, is_folder, is_link in _sorted_names(f"{self._root}/{inner}" if inner else self._root, self._skipped):
            below = f"{inner}/{name}" if inner else name
            if not is_folder:
                yield _file_entry(f"{self._root}/{below}", below)
                continue
            target = os.path.realpath(f"{real}/{name}") if is_link else f"{real.rstrip('/')}/{name}"
            if self._is_walked(target) if is_link else target in self._walked:
                self._skipped[LISTED_ALREADY] += 1
                continue
            if is_link:
                self._walked.add(target)
            yield from self.below(below, target)

    def _is_walked(self, target: str) -> bool:
        """Whether a folder is walked, or lies below one that is, and no part of its name there is hidden."""
        while target not in self._walked:
            above, _, name = target.rpartition("/")
            if target == "/" or name.startswith("."):
                return False
            target = above or "/"
        return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that leads nowhere is a file that cannot be read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _sorted_names(folder: str, skipped: Counter[str]) -> Iterator[tuple[str, bool, bool]]:
    """Yield the visible names of a folder in order, and whether each is a folder, and a link.

    Names are kept in Arrow arrays: with millions of names, a sixth of the memory of Python strings.
    """
    names, folders, links = [], [], []
    with os.scandir(folder) as entries:
        for part in groups(entries, _LISTED_AT_ONCE):
            visible = [entry for entry in part if not entry.name.startswith(".")]
            if len(visible) < len(part):
                skipped[HIDDEN] += len(part) - len(visible)
            names.append(pa.array([os.fsencode(entry.name) for entry in visible], pa.large_binary()))
            folders.append(pa.array([_is_folder(entry) for entry in visible], pa.bool_()))
            links.append(pa.array([entry.is_symlink() for entry in visible], pa.bool_()))
    if not names:
        return
    columns = {"name": names, "folder": folders, "link": links}
    table = pa.table({name: pa.chunked_array(chunks) for name, chunks in columns.items()})
    order = pc.sort_indices(table, [("name", "ascending")])
    for start in range(0, len(order), _LISTED_AT_ONCE):
        part = table.take(order[start : start + _LISTED_AT_ONCE])
        flags = (part[name].to_pylist() for name in ("folder", "link"))
        yield from zip(map(os.fsdecode, part["name"].to_pylist()), *flags, strict=True)
