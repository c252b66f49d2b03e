"""A disk that loses power: the states of a folder that a program may find after each step of a write.

A file's bytes are safe since its last `fsync`, a folder's entries since the last `fsync` of that folder. Later writes
may survive or not, entry by entry: a rename can survive without the bytes of the file it renamed.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

Tree = dict[str, bytes | None]  # path -> contents, None for a folder

# Functions that change a folder's entries, or fsync.
STEPS = ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "link"), (os, "unlink"), (os, "remove"), (os, "rmdir"),
          (os, "mkdir"), (shutil, "rmtree"))  # fmt: skip


class Disk:
    """The folder `root` on a disk; its initial contents are safe."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bytes: dict[int, bytes] = {}  # by inode
        self._entries: dict[int, dict[str, int]] = {}
        for folder, _, files in os.walk(root):
            self._sync(Path(folder))
            for name in files:
                self._sync(Path(folder, name))

    def watch(self, monkeypatch, at_each_step: Callable[[str], None]) -> None:
        """Record the calls of this process, and call `at_each_step` with the name of each step after it."""
        for module, name in STEPS:
            monkeypatch.setattr(module, name, self._watched(name, getattr(module, name), at_each_step))

    def _watched(self, name, function, at_each_step):
        def run(*arguments, **options):
            result = function(*arguments, **options)
            if name == "fsync":
                self._sync(Path(os.readlink(f"/proc/self/fd/{arguments[0]}")))
            at_each_step(name)
            return result

        return run

    def _sync(self, path: Path) -> None:
        if not path.is_relative_to(self._root):
            return
        if path.is_dir():
            self._entries[path.stat().st_ino] = self._entries_now(path)
        else:
            self._bytes[path.stat().st_ino] = path.read_bytes()

    @staticmethod
    def _entries_now(path: Path) -> dict[str, int]:
        with os.scandir(path) as entries:
            return {entry.name: entry.inode() for entry in entries}

    def after_power_loss(self, *, samples: int = 0) -> Iterator[Tree]:
        """Yield the possible states: each folder as it is now or at its last `fsync`, or with one entry changed.

        With `samples`, yield as many with any of the changed entries besides, or all if there are not more; half of
        them with what was written to files and not fsynced, as far as it fits into half of each.
        """
        now = {
            path.stat().st_ino: self._entries_now(path)
            for path in (self._root, *self._root.rglob("*"))
            if path.is_dir()
        }
        safe = {inode: self._entries.get(inode, {}) for inode in now.keys() | self._entries.keys()}
        changed = [inode for inode, entries in now.items() if entries != safe[inode]]
        for kept in itertools.product((False, True), repeat=len(changed)):
            yield self._tree(
                safe | {inode: now[inode] for inode, is_kept in zip(changed, kept, strict=True) if is_kept}
            )
        entries = [(inode, name) for inode in changed for name in dict(now[inode].items() ^ safe[inode].items())]
        for rest in (safe, safe | now):
            for inode, name in entries:
                yield self._tree(rest | {inode: _exchanged(safe[inode], now[inode], [name])})
        if samples:
            yield from self._samples(safe, now, entries, samples)

    def _samples(self, safe, now, entries, samples: int) -> Iterator[Tree]:
        rng, unsynced = random.Random(len(entries)), self._unsynced()
        subsets = ([pair for pair in entries if rng.random() < 0.5] for _ in range(samples))
        if 2 ** len(entries) <= samples:
            sizes = range(len(entries) + 1)
            subsets = itertools.chain.from_iterable(itertools.combinations(entries, size) for size in sizes)
        for number, subset in enumerate(subsets):
            folders = {
                inode: _exchanged(safe[inode], now[inode], [name for each, name in subset if each == inode])
                for inode in {inode for inode, _ in subset}
            }
            yield self._tree(safe | folders, unsynced if number % 2 else None)

    def _unsynced(self) -> dict[int, bytes]:
        """Return half of each file that has grown since its last `fsync`."""
        found = {}
        for path in self._root.rglob("*"):
            about = path.stat()
            if path.is_file() and about.st_size != len(self._bytes.get(about.st_ino, b"")):
                found[about.st_ino] = path.read_bytes()[: about.st_size // 2]
        return found

    def _tree(self, entries: dict[int, dict[str, int]], unsynced: dict[int, bytes] | None = None) -> Tree:
        return dict(self._walk(self._root.stat().st_ino, "", entries, self._bytes | (unsynced or {})))

    def _walk(
        self, folder: int, path: str, entries: dict[int, dict[str, int]], files: dict[int, bytes]
    ) -> Iterator[tuple[str, bytes | None]]:
        for name, inode in sorted(entries[folder].items()):
            inner = f"{path}/{name}" if path else name
            if inode in entries:
                yield inner, None
                yield from self._walk(inode, inner, entries, files)
            else:
                yield inner, files.get(inode, b"")


def _exchanged(safe: dict[str, int], now: dict[str, int], names: list[str]) -> dict[str, int]:
    """Return the entries of a folder at its last `fsync`, but some names as they are now."""
    others = {name: inode for name, inode in safe.items() if name not in names}
    return others | {name: now[name] for name in names if name in now}


def restore(tree: Tree, target: Path) -> None:
    """Write the files that survived into a new folder."""
    target.mkdir()
    for name, data in tree.items():
        if data is None:
            (target / name).mkdir()
        else:
            (target / name).write_bytes(data)
