"""What every kind of corpus shares: the files found, the entries made of them, and the stream of both.

A listing opens no image. Folders are walked in the order of their names, the names of one folder in memory at a time,
and entries are made 20,000 at a time, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pyarrow as pa

from hashlight.engine.errors import PlaceError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.place import Entry
from hashlight.engine.places.uris import is_local, normalise, split_options, without_credentials
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.jobs.errors import PipelineError

SOURCE, ROW, STAMP, GROUP = "__source", "__row", "__stamp", "__group"
IMAGES, SHARDS, EMBEDDINGS = "images", "shards", "embeddings"
CHUNK_ENTRIES = 20_000
# Units grow with the corpus, so that a small one has work for many actors, and a large one few units: the least images
# of a unit, and how many units there would be if all were as large as the next.
_LEAST_IMAGES, _SHARES = 100, 32
# What is counted beyond so many kinds is counted as one: suffixes may be anything.
_MAX_KINDS = 50
OTHER = "others"
BASE_SCHEMA = pa.schema(
    {"id": pa.int64(), "uri": pa.string(), SOURCE: pa.string(), ROW: pa.int64(), STAMP: pa.string()}
)
# Columns that say how an entry is read, and are not stored with its code.
HOW_TO_READ = frozenset({SOURCE, ROW, STAMP, GROUP})


@dataclass(frozen=True, slots=True)
class File:
    """A file of a corpus: its URI, its name within the corpus, and a text that changes when the file does."""

    uri: str
    name: str
    stamp: str


@dataclass(frozen=True, slots=True)
class FileStream:
    """The files of a corpus; every call walks them anew.

    Attributes
    ----------
    walk : callable
        Starts a walk, which counts in the given counter what it leaves out.
    skipped : Counter
        What the last walk that was started has left out so far, by kind.
    """

    walk: Callable[[Counter[str]], Iterator[File]]
    skipped: Counter[str] = field(default_factory=Counter)

    def __call__(self) -> Iterator[File]:
        """Start a walk."""
        self.skipped.clear()
        return self.walk(self.skipped)


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
        Starts the stream of entries, anew at every call.
    skipped : Counter
        The files that are left out, by kind; complete when a stream of entries has ended.
    has_ids : bool
        Whether ids are taken from the corpus.
    ids : IdRule
    """

    corpus: str
    kind: str
    schema: pa.Schema
    chunks: Callable[[], Iterator[pa.Table]]
    skipped: Counter[str] = field(default_factory=Counter)
    has_ids: bool = False
    ids: IdRule = field(default_factory=IdRule)


def images_of_next_unit(listed: int, max_images: int) -> int:
    """Return how many images the next unit has, at most: a share of the `listed` ones, which are in units already."""
    return min(max_images, max(_LEAST_IMAGES, listed // _SHARES))


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


def skip(skipped: Counter[str], kind: str) -> None:
    """Count a file that is left out."""
    skipped[kind if kind in skipped or len(skipped) < _MAX_KINDS else OTHER] += 1


def suffix_kind(name: str) -> str:
    """Return the kind of a file that is left out for its suffix: `*.txt`."""
    return f"*{suffix}" if (suffix := PurePosixPath(name).suffix.lower()) else "without a suffix"


def told(skipped: Mapping[str, int]) -> str:
    """Say how many files were left out, and of which kinds: "3 files: 2 *.txt, 1 hidden"."""
    number = sum(skipped.values())
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items(), key=lambda item: -item[1]))
    return f"{number:,} file{'s' if number != 1 else ''}{': ' if kinds else ''}{kinds}"


def mentioned_in(uri: str, names: list[str]) -> tuple[list[str], list[str]]:
    """Resolve the names that a file mentions: return the URIs to show, and those to open.

    A relative name is relative to the file's folder. The options of the file's own URI are used for URIs of the same
    scheme that it mentions, too.

    Raises
    ------
    MissingDependencyError
        If reading one of them needs a package that is not installed.
    """
    base, options = split_options(uri)
    folder, scheme = base.rpartition("/")[0], _scheme(base)
    opened = [_within(folder, name) for name in names]
    for example in {_scheme(place): place for place in opened}.values():
        _refuse_missing_package(example)
    called = [_within(without_credentials(folder), name) for name in names]
    return called, [f"{place}{options}" if options and _scheme(place) == scheme else place for place in opened]


def _scheme(place: str) -> str:
    return "" if is_local(place) else place.partition("://")[0].lower()


def _refuse_missing_package(place: str) -> None:
    # What is wrong with one URI concerns its image alone.
    with contextlib.suppress(PlaceError, OSError):
        open_place(place)


def _within(folder: str, name: str) -> str:
    if not is_local(name) or name.startswith("/"):
        return normalise(name) if name.startswith("file://") else name
    return os.path.normpath(f"{folder}/{name}") if is_local(folder) else f"{folder}/{name}"


def walk(root: str, skipped: Counter[str]) -> Iterator[File]:
    """Walk the visible files under a folder, in the order of their names; count the others."""
    base, options = split_options(root)
    for entry in open_place(root).walk(skipped=skipped):
        yield File(f"{base}/{entry.name}{options}", entry.name, entry.stamp)
