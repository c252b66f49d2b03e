"""What every kind of corpus shares: the files found, the entries made of them, and the stream of both.

A listing opens no image. Folders are walked in the order of their names, the names of one folder in memory at a time,
and entries are made 20,000 at a time, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from hashlight.engine.places.opening import open_place
from hashlight.engine.places.place import Entry
from hashlight.engine.places.uris import is_local, normalise, split_options, without_credentials
from hashlight.pipelines.jobs.errors import PipelineError

SOURCE, ROW = "__source", "__row"
IMAGES, SHARDS = "images", "shards"
CHUNK_ENTRIES = 20_000
BASE_SCHEMA = pa.schema({"id": pa.int64(), "uri": pa.string(), SOURCE: pa.string(), ROW: pa.int64()})


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
        Its path or URI, without credentials.
    kind : str
        `IMAGES`: an entry is an image. `SHARDS`: an entry is a tar file, whose images are known only once it is read.
    schema : pyarrow.Schema
        Of the entries; for shards, of the entries that reading one gives.
    chunks : callable
        Starts the stream of `Chunk`, anew at every call.
    """

    corpus: str
    kind: str
    schema: pa.Schema
    chunks: Callable[[], Iterator[Chunk]]


def entry_of(uri: str) -> Entry | None:
    """Return what is at a path or URI, None if there is nothing.

    Raises
    ------
    PipelineError
        If it cannot be listed.
    """
    try:
        return open_place(uri).entry()
    except OSError as error:
        raise PipelineError(f"{without_credentials(uri)} cannot be listed: {error}") from error


def stamps_of(files: list[File]) -> bytes:
    """Join the stamps of some files, for a chunk with one entry per file."""
    return "\0".join(file.stamp for file in files).encode()


def mentioned_in(uri: str, names: list[str]) -> tuple[list[str], list[str]]:
    """Resolve the names that a file mentions: return the URIs to show, and those to open.

    A relative name is relative to the file's folder. The options and credentials of the file's own URI are used for
    the URIs that it mentions, too.
    """
    base, options = split_options(uri)
    folder = base.rpartition("/")[0]
    opened = [_within(folder, name) for name in names]
    called = [_within(without_credentials(folder), name) for name in names]
    return called, [f"{place}{options}" if options and not is_local(place) else place for place in opened]


def _within(folder: str, name: str) -> str:
    if not is_local(name) or name.startswith("/"):
        return normalise(name) if name.startswith("file://") else name
    return os.path.normpath(f"{folder}/{name}") if is_local(folder) else f"{folder}/{name}"


def walk(root: str) -> Iterator[File]:
    """Walk the visible files under a folder, in the order of their names."""
    base, options = split_options(root)
    for entry in open_place(root).walk():
        yield File(f"{base}/{entry.name}{options}", entry.name, entry.stamp)
