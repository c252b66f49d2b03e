"""What every kind of corpus shares: the files found, the entries made of them, and the stream of both.

A listing opens no image. Folders are walked in the order of their names, the names of one folder in memory at a time,
and entries are made 20,000 at a time, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from hashlight.engine.places.buckets import split_options
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.filesystems import is_local, list_s3, normalise, open_filesystem

SOURCE, ROW = "__source", "__row"
IMAGES, SHARDS = "images", "shards"
CHUNK_ENTRIES = 20_000
BASE_SCHEMA = pa.schema({"id": pa.int64(), "uri": pa.string(), SOURCE: pa.string(), ROW: pa.int64()})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class File:
    """A file of a corpus: its URI, its name within the corpus, and a text that changes when the file does."""

    uri: str
    name: str
    stamp: str


FileStream = Callable[[], Iterator[File]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some entries of a corpus, and bytes that change when what they name changes."""

    entries: pa.Table
    stamp: bytes


@dataclass(frozen=True, slots=True)
class Listing:
    """A corpus, ready to be listed.

    Attributes
    ----------
    corpus : str
        Its path or URI.
    kind : str
        `IMAGES`: an entry is an image. `SHARDS`: an entry is a tar file, whose images are known when it is read.
    schema : pyarrow.Schema
        Of the entries; for shards, of the entries that reading one gives.
    chunks : callable
        Starts the stream of `Chunk`, anew at every call.
    """

    corpus: str
    kind: str
    schema: pa.Schema
    chunks: Callable[[], Iterator[Chunk]]


def type_of(uri: str) -> pafs.FileType:
    """Return whether a file, a folder or nothing is at a path or URI.

    Raises
    ------
    PipelineError
        If the store does not say.
    """
    filesystem, path = open_filesystem(uri)
    try:
        return filesystem.get_file_info(path).type
    except OSError as error:
        raise PipelineError(f"{split_options(uri)[0]} cannot be listed: {error}") from error


def stamp_of(uri: str) -> str:
    """Return a text that changes when a file's size or time does."""
    if is_local(uri):
        try:
            stat = os.stat(uri)
        except OSError:
            return "unreadable"
        return f"{stat.st_size}:{stat.st_mtime_ns}"
    filesystem, path = open_filesystem(uri)
    info = filesystem.get_file_info(path)
    return f"{info.size}:{info.mtime_ns}"


def stamps_of(files: list[File]) -> bytes:
    """Join the stamps of some files, for a chunk of one entry a file."""
    return "\0".join(file.stamp for file in files).encode()


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut a stream into lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part


def within(folder: str, name: str) -> str:
    """Return the place of a name that a file of a folder mentions: a relative one is relative to the folder."""
    if not is_local(name) or name.startswith("/"):
        return normalise(name) if name.startswith("file://") else name
    return os.path.normpath(f"{folder}/{name}") if is_local(folder) else f"{folder}/{name}"


def walk(root: str) -> Iterator[File]:
    """Walk the visible files under a folder, in the order of their names."""
    if is_local(root):
        yield from _walk_local(root, "")
    elif root.startswith("s3://"):
        base, options = split_options(root)
        for uri, size, time in list_s3(root):
            name = uri[len(base) + 1 :]
            if not name.endswith("/") and not any(part.startswith(".") for part in name.split("/")):
                yield File(uri + options, name, f"{size}:{time}")
    else:
        filesystem, path = open_filesystem(root)
        yield from _walk_store(filesystem, path, root, "")


def _walk_local(root: str, inner: str) -> Iterator[File]:
    folder = f"{root}/{inner}" if inner else root
    for name, is_folder in _sorted_names(folder):
        below = f"{inner}/{name}" if inner else name
        if is_folder:
            yield from _walk_local(root, below)
        else:
            uri = f"{root}/{below}"
            yield File(uri, below, stamp_of(uri))


def _sorted_names(folder: str) -> Iterator[tuple[str, bool]]:
    """Yield the visible names of a folder in order, and whether each is a folder.

    Millions of names are kept as Arrow's bytes, a sixth of what as many Python strings take.
    """
    names, folders = [], []
    with os.scandir(folder) as entries:
        visible = (entry for entry in entries if not entry.name.startswith("."))
        for part in groups(visible, CHUNK_ENTRIES):
            names.append(pa.array([os.fsencode(entry.name) for entry in part], pa.large_binary()))
            folders.append(pa.array([entry.is_dir(follow_symlinks=False) for entry in part], pa.bool_()))
    if not names:
        return
    table = pa.table({"name": pa.chunked_array(names), "folder": pa.chunked_array(folders)})
    order = pc.sort_indices(table, [("name", "ascending")])
    for start in range(0, len(order), CHUNK_ENTRIES):
        part = table.take(order[start : start + CHUNK_ENTRIES])
        yield from zip(map(os.fsdecode, part["name"].to_pylist()), part["folder"].to_pylist(), strict=True)


def _walk_store(filesystem: pafs.FileSystem, path: str, root: str, inner: str) -> Iterator[File]:
    infos = filesystem.get_file_info(pafs.FileSelector(f"{path}/{inner}" if inner else path))
    for info in sorted(infos, key=lambda info: info.base_name):
        if info.base_name.startswith("."):
            continue
        below = f"{inner}/{info.base_name}" if inner else info.base_name
        if info.type == pafs.FileType.Directory:
            yield from _walk_store(filesystem, path, root, below)
        else:
            base, options = split_options(root)
            yield File(f"{base}/{below}{options}", below, f"{info.size}:{info.mtime_ns}")
