"""What every kind of corpus shares: the files found, the entries made of them, and the stream of both.

A listing opens no image. Folders are walked in the order of their names, the names of one folder in memory at a time,
and entries are made 20,000 at a time, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pyarrow as pa

from hashlight.engine.errors import PlaceError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.place import HIDDEN, Entry
from hashlight.engine.places.uris import is_local, normalise, split_options, without_credentials
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.jobs.errors import PipelineError

SOURCE, ROW, STAMP, GROUP, COLUMN = "__source", "__row", "__stamp", "__group", "__column"
IMAGES, SHARDS, EMBEDDINGS = "images", "shards", "embeddings"
FOLDERS, COLUMN_OF_LABELS = "folders", "column"
CHUNK_ENTRIES = 20_000
# Units grow with the corpus, so that a small one has work for many actors, and a large one few units: the least images
# of a unit, and how many units there would be if all were as large as the next.
_LEAST_IMAGES, _SHARES = 100, 32
# What is counted beyond so many kinds is counted as one: suffixes may be anything.
_MAX_KINDS = 50
OTHER = "others"
# What begins so is counted in rows of files, not in files.
_ROWS = "rows "
BASE_SCHEMA = pa.schema(
    {"id": pa.int64(), "uri": pa.string(), SOURCE: pa.string(), ROW: pa.int64(), STAMP: pa.string()}
)
# Columns that say how an entry is read, and are not stored with its code.
HOW_TO_READ = frozenset({SOURCE, ROW, STAMP, GROUP, COLUMN})
# A part of a corpus that can be listed by itself: its entries, with what is left out counted in the given counter.
Piece = Callable[[Counter[str]], Iterator[pa.Table]]
# Starts the stream of the pieces of a corpus; given True, of as many as can be listed at the same time.
Pieces = Callable[[bool], Iterator[Piece]]


@dataclass(frozen=True, slots=True)
class File:
    """A file of a corpus: its URI, its name within the corpus, and a text that changes when the file does."""

    uri: str
    name: str
    stamp: str


# A walk, which counts in the given counter what it leaves out.
Walk = Callable[[Counter[str]], Iterator[File]]


@dataclass(frozen=True, slots=True)
class FileStream:
    """The files of a corpus; every call walks them anew.

    Attributes
    ----------
    walk : callable
        Starts a walk, which counts in the given counter what it leaves out.
    parts : callable, optional
        Returns walks that, one after the other, find what `walk` does, and may run at the same time.
    skipped : Counter
        What the last walk that was started has left out so far, by kind.
    """

    walk: Walk
    parts: Callable[[], list[Walk]] | None = None
    skipped: Counter[str] = field(default_factory=Counter)

    def __call__(self) -> Iterator[File]:
        """Start a walk."""
        self.skipped.clear()
        return self.walk(self.skipped)

    def pieces(self, entries_of: Callable[[Iterator[File]], Iterator[pa.Table]]) -> Pieces:
        """Return the pieces of a corpus whose files become entries one by one."""

        def pieces(split: bool) -> Iterator[Piece]:
            self.skipped.clear()
            for part in self.parts() if split and self.parts is not None else [self.walk]:
                yield functools.partial(_list_walk, part, entries_of)

        return pieces


def _list_walk(
    part: Walk, entries_of: Callable[[Iterator[File]], Iterator[pa.Table]], skipped: Counter[str]
) -> Iterator[pa.Table]:
    return entries_of(part(skipped))


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJoin:
    """A file of metadata that is joined to the images of shards when they are read.

    Attributes
    ----------
    uri, key, stamp : str
        The file, its column that says about which images the rows are, and a text that changes when the file does.
    columns : dict of str to str
        The columns that images get, with their names in the file.
    """

    uri: str
    key: str
    stamp: str
    columns: dict[str, str]


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
    pieces : callable
        Starts the stream of the corpus's pieces, whose entries, one piece after the other, are those of the corpus; see
        `Pieces`.
    skipped : Counter
        The files that are left out, by kind; complete when a stream of entries has ended.
    has_ids : bool
        Whether ids are whole numbers of the corpus.
    ids : IdRule
    id_text : str or None
        The column of the texts whose hashes are the ids, if they are those of a column.
    labels_from : str or None
        Where the column `label` comes from: `FOLDERS`, `COLUMN_OF_LABELS`, or None if there is none.
    columns : frozenset of str
        All columns of the corpus's files of rows, by their own names.
    may_repeat : bool
        Whether images that are listed more than once are listed once, and counted, instead of refused.
    json_columns : dict of str to (str, str)
        Of shards: columns that are keys of the samples' JSON, with the key and the type.
    dropped : frozenset of str
        Of shards: attributes of samples that are not to be kept.
    join : ShardJoin or None
        Of shards.
    add_columns : callable
        What is done to the stream of all entries in the end: it may add columns.
    """

    corpus: str
    kind: str
    schema: pa.Schema
    pieces: Pieces
    skipped: Counter[str] = field(default_factory=Counter)
    has_ids: bool = False
    ids: IdRule = field(default_factory=IdRule)
    id_text: str | None = None
    labels_from: str | None = None
    columns: frozenset[str] = frozenset()
    may_repeat: bool = False
    json_columns: dict[str, tuple[str, str]] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    join: ShardJoin | None = None
    add_columns: Callable[[Iterator[pa.Table]], Iterator[pa.Table]] = lambda tables: tables

    def chunks(self) -> Iterator[pa.Table]:
        """Start the stream of entries, anew at every call."""
        return self.add_columns(table for piece in self.pieces(False) for table in piece(self.skipped))


def whole(chunks: Callable[[], Iterator[pa.Table]]) -> Pieces:
    """Return the pieces of a corpus that can only be listed as a whole."""
    return lambda _split: iter([lambda _skipped: chunks()])


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


def skip(skipped: Counter[str], kind: str, number: int = 1) -> None:
    """Count files, or rows, that are left out."""
    if number:
        skipped[kind if kind in skipped or len(skipped) < _MAX_KINDS else OTHER] += number


def suffix_kind(name: str) -> str:
    """Return the kind of a file that is left out for its suffix: `*.txt`."""
    return f"*{suffix}" if (suffix := PurePosixPath(name).suffix.lower()) else "without a suffix"


def told(skipped: Mapping[str, int]) -> str:
    """Say what was left out, and of which kinds: "3 files: 2 *.txt, 1 hidden; 2 rows: 2 without a URI"."""
    rows = {kind.removeprefix(_ROWS): count for kind, count in skipped.items() if kind.startswith(_ROWS)}
    files = {kind: count for kind, count in skipped.items() if not kind.startswith(_ROWS)}
    parts = [_told(some, what) for some, what in ((files, "file"), (rows, "row")) if some]
    return "; ".join(parts) or _told({}, "file")


def _told(skipped: Mapping[str, int], what: str) -> str:
    number = sum(skipped.values())
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(skipped.items(), key=lambda item: -item[1]))
    return f"{number:,} {what}{'s' if number != 1 else ''}{': ' if kinds else ''}{kinds}"


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
    return _files(root, "", open_place(root).walk(skipped=skipped))


def split_walk(root: str) -> list[Walk]:
    """Return walks that, one after the other, find what `walk` does, and may run at the same time."""
    tops = open_place(root).tops()
    if tops is None:
        return [functools.partial(walk, root)]
    parts: list[Walk] = []
    for is_folder, run in itertools.groupby(tops, key=lambda entry: entry.is_folder):
        if is_folder:
            parts += [functools.partial(_walk_below, root, entry.name) for entry in run]
        else:
            parts.append(functools.partial(_visible, root, list(run)))
    return parts


def _walk_below(root: str, folder: str, skipped: Counter[str]) -> Iterator[File]:
    if folder.startswith("."):
        skip(skipped, HIDDEN)
        return iter(())
    return _files(root, f"{folder}/", open_place(root).walk(folder, skipped=skipped))


def _visible(root: str, entries: list[Entry], skipped: Counter[str]) -> Iterator[File]:
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    skip(skipped, HIDDEN, len(entries) - len(visible))
    return _files(root, "", visible)


def _files(root: str, folder: str, entries: Iterable[Entry]) -> Iterator[File]:
    base, options = split_options(root)
    for entry in entries:
        name = f"{folder}{entry.name}"
        yield File(f"{base}/{name}{options}", name, entry.stamp)
