"""A disk that loses power: the states of a folder that a program may find after each step of a write.

A file's bytes are safe since its last `fsync`, a folder's entries since the last `fsync` of that folder. Later writes
may survive or not, entry by entry: a rename can survive without the bytes of the file it renamed.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

Tree = dict[str, bytes | None]  # path -> contents, None for a folder

# Functions that change a folder's entries, or fsync.
_STEPS = ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "link"), (os, "unlink"), (os, "remove"), (os, "rmdir"),
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
        for module, name in _STEPS:
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

    def after_power_loss(self) -> Iterator[Tree]:
        """Yield the possible states: each folder as it is now or at its last `fsync`, or with one entry changed."""
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
        for rest in (safe, safe | now):
            for inode in changed:
                for name in dict(now[inode].items() ^ safe[inode].items()):
                    one = {name: now[inode][name]} if name in now[inode] else {}
                    others = {other: place for other, place in safe[inode].items() if other != name}
                    yield self._tree(rest | {inode: others | one})

    def _tree(self, entries: dict[int, dict[str, int]]) -> Tree:
        return dict(self._walk(self._root.stat().st_ino, "", entries))

    def _walk(self, folder: int, path: str, entries: dict[int, dict[str, int]]) -> Iterator[tuple[str, bytes | None]]:
        for name, inode in sorted(entries[folder].items()):
            inner = f"{path}/{name}" if path else name
            if inode in entries:
                yield inner, None
                yield from self._walk(inode, inner, entries)
            else:
                yield inner, self._bytes.get(inode, b"")


def restore(tree: Tree, target: Path) -> None:
    """Write the files that survived into a new folder."""
    target.mkdir()
    for name, data in tree.items():
        if data is None:
            (target / name).mkdir()
        else:
            (target / name).write_bytes(data)
