"""Corpora: where images, and what is known about them, come from.

A corpus is a folder of images (its sub-folders the classes), Parquet files with images (a column `image`) or with URIs
of images (a column `uri`), WebDataset tar shards, IDX files, a folder of any one of these, or a text file with one URI
per line; on this machine or in a store (`s3://...`). Listed, it is a table with one entry per image:

===========  ======  =================================================================================================
id           int64   the corpus's own `id` column, or 63 bits of a hash of the corpus's name and the image's name in it
uri          string  where the image is: `/path/to/image.png`, `/path/to/file.parquet#row`, `s3://b/shard.tar#name`
__source     string  the file to read
__row        int64   the row of that file, -1 if the file is the image
__stamp      string  changes when the file changes; empty if that is not known
__group      int64   where there is such a column: the part of the file that the row is in, which can only be read from
                     its start, such as a row group of Parquet; -1 or null if there is none
(others)             other columns of a Parquet corpus; `label`: the sub-folder's name, the `.cls` of a shard's sample,
                     the row of an IDX file of labels; `txt` and `json` of a shard's sample
===========  ======  =================================================================================================

The name of a corpus is that of its folder, also if the corpus is a file in it, unless another is given; the name of an
image is its path within that folder (`0001.png`, `shard.tar#0001.png`, `file.parquet#7`). So the ids of a copy in a
folder of the same name are the same, and two folders of different names may have images of the same name. See
`pipelines.corpora.ids` for ids that are made from something else.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from hashlight.engine.ids import find_repeated
from hashlight.engine.places.uris import normalise, without_credentials
from hashlight.pipelines.corpora.ids import IdRule, refuse_repeated_images, settle_ids, with_ids
from hashlight.pipelines.corpora.kinds import idx, images, parquet, uris, webdataset
from hashlight.pipelines.corpora.listing import (
    ROW,
    SHARDS,
    SOURCE,
    File,
    FileStream,
    Listing,
    entry_of,
    skip,
    suffix_kind,
    told,
    walk,
)
from hashlight.pipelines.jobs.errors import PipelineError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of corpus: which files belong to it (by their names in lower case), and how they are listed."""

    name: str
    holds: Callable[[str], bool]
    list_files: Callable[[str, FileStream, IdRule], Listing]


_IMAGE = _Kind("image", images.is_image, images.list_files)
_PARQUET = _Kind("Parquet", lambda name: name.endswith(parquet.SUFFIX), parquet.list_files)
_TAR = _Kind("tar", lambda name: name.endswith(webdataset.SUFFIXES), webdataset.list_files)
_IDX = _Kind("IDX", idx.is_idx, idx.list_files)
_KINDS = (_IMAGE, _PARQUET, _TAR, _IDX)


def open_listing(corpus: str | Path, ids: str = "auto") -> Listing:
    """Find out what kind of corpus is at a path or URI.

    Parameters
    ----------
    corpus : str or Path
    ids : str
        What ids are made from; see `pipelines.corpora.ids.IdRule`.

    Raises
    ------
    PipelineError
        If nothing is there, it has no images, or it cannot be read.
    """
    root = normalise(corpus)
    found = entry_of(root)
    if found is None:
        raise PipelineError(
            f"no corpus at {without_credentials(root)}: expected a folder of images, Parquet files, tar shards or IDX "
            "files, one of those files, or a list of URIs (.txt)"
        )
    base = without_credentials(root)
    folder = base if found.is_folder else base.rpartition("/")[0]
    rule = IdRule.parse(ids, folder.rpartition("/")[2])
    listing = _open_folder(root, rule) if found.is_folder else _open_file(root, found.stamp, rule)
    return replace(listing, corpus=base, ids=rule)


def _open_folder(root: str, ids: IdRule) -> Listing:
    kind, first = _first_of_a_kind(root)
    return kind.list_files(root, FileStream(lambda skipped: _files_of(kind, root, first, skipped)), ids)


def _open_file(root: str, stamp: str, ids: IdRule) -> Listing:
    base = without_credentials(root)
    name = base.rpartition("/")[2]
    if kind := _kind_of(name):
        file = File(root, name, stamp)
        return kind.list_files(root, FileStream(lambda _skipped: iter([file])), ids)
    if name.lower().endswith(uris.SUFFIXES):
        return uris.list_lines(root, ids)
    raise PipelineError(
        f"{base} is not a corpus: expected an image, a .parquet, .tar or -ubyte file, or a list of URIs (.txt)"
    )


def _first_of_a_kind(root: str) -> tuple[_Kind, File]:
    skipped: Counter[str] = Counter()
    for file in walk(root, skipped):
        if kind := _kind_of(file.name):
            return kind, file
        skip(skipped, suffix_kind(file.name))
    raise PipelineError(
        f"{without_credentials(root)} has no images: expected files ending in {' '.join(sorted(images.SUFFIXES))}, "
        f".parquet, .tar or -ubyte, got {told(skipped)}"
    )


def _files_of(kind: _Kind, root: str, first: File, skipped: Counter[str]) -> Iterator[File]:
    """Walk the files of one kind; PipelineError if there is one of another, except what may lie beside IDX files."""
    for file in walk(root, skipped):
        found = _kind_of(file.name)
        if found is kind or (kind is _IMAGE and images.is_unsupported(file.name.lower())):
            yield file
        elif found and _IDX not in (kind, found):
            raise PipelineError(
                f"{without_credentials(root)} has {kind.name} files ({first.name}) and {found.name} files "
                f"({file.name}): expected one kind, move the others elsewhere"
            )
        else:
            skip(skipped, suffix_kind(file.name))


def _kind_of(name: str) -> _Kind | None:
    lower = name.lower()
    return next((kind for kind in _KINDS if kind.holds(lower)), None)


def list_corpus(path: str | Path) -> pa.Table:
    """List the images of a corpus that fits in memory; `pipelines.corpora.work` is for those that do not.

    Returns
    -------
    pyarrow.Table
        One entry per image, as in the module's docstring, in the order of the names (of the rows, in a file of rows).
        Other files are left out; a warning says how many, by kind.

    Raises
    ------
    PipelineError
        If nothing is at `path`, it has no images, or an id occurs twice.
    """
    listing = open_listing(path)
    tables = list(listing.chunks())
    if listing.kind == SHARDS:
        shards = zip(*(_columns(tables, name) for name in ("uri", SOURCE)), strict=True)
        tables = [
            webdataset.shard_entries(
                name, source, list(webdataset.read_shard(source, skipped=listing.skipped)), listing.schema, listing.ids
            )
            for name, source in shards
        ]
    entries = pa.concat_tables(tables) if tables else listing.schema.empty_table()
    refuse_empty(listing, len(entries))
    if listing.skipped:
        logger.warning("%s: left out %s", listing.corpus, told(listing.skipped))
    repeated = find_repeated(entries["id"].to_numpy())
    refuse_repeated_images(repeated, lambda: [entries], corpus=listing.corpus, are_hashes=not listing.has_ids)
    return with_ids(entries, settle_ids(repeated, lambda: [entries]))


def refuse_empty(listing: Listing, num_entries: int) -> None:
    """Raise PipelineError if a listing has come to its end and has no entries."""
    if not num_entries:
        beside = f"; left out {told(listing.skipped)}" if listing.skipped else ""
        raise PipelineError(f"{listing.corpus} has no images: its files have no rows{beside}")


def _columns(tables: list[pa.Table], name: str) -> list[str]:
    return [value for table in tables for value in table[name].to_pylist()]


class Readers:
    """Files of rows that are kept open where the last reading ended, so that the next goes on from there.

    Not to be used by two threads at once.
    """

    def __init__(self) -> None:
        self._parquet = parquet.RowReader()
        self._idx = idx.RowReader()

    def __enter__(self) -> Readers:
        """Start without open files."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close them."""
        self.close()

    def close(self) -> None:
        """Close what is open."""
        self._parquet.close()
        self._idx.close()

    def read_rows(self, source: str, rows: np.ndarray) -> Iterator[bytes | OSError]:
        """Read ascending rows of a file."""
        name = without_credentials(source).lower()
        if name.endswith(webdataset.SUFFIXES):
            return webdataset.read_rows(source, rows)
        return self._idx.read(source, rows) if idx.is_idx(name) else self._parquet.read(source, rows)


def read_images(entries: pa.Table, readers: Readers | None = None) -> Iterator[bytes | OSError]:
    """Read the encoded bytes of each entry, in order; one that is missing or damaged yields the error instead.

    Parameters
    ----------
    entries : pyarrow.Table
    readers : Readers, optional
        Given again for the entries that follow, what can only be read from its start is read once for all of them.

    Raises
    ------
    ReadFailedError
        If a read failed at every try for a reason that may pass; nothing is then known about the images.
    """
    if readers is None:
        with Readers() as own:
            yield from read_images(entries, own)
        return
    rows = zip(entries[SOURCE].to_pylist(), entries[ROW].to_pylist(), strict=True)
    for is_row, run in itertools.groupby(rows, key=lambda pair: pair[1] >= 0):
        if is_row:
            for source, pairs in itertools.groupby(run, key=lambda pair: pair[0]):
                yield from readers.read_rows(source, np.array([row for _, row in pairs]))
        else:
            yield from images.read_files(source for source, _ in run)


def read_uri(uri: str) -> bytes:
    """Read the encoded image at a URI of a listing: a file's, or `FILE#row` or `SHARD.tar#name`.

    Raises
    ------
    OSError
        If it is missing, or cannot be read.
    """
    source, _, inner = uri.rpartition("#")
    if source.endswith(webdataset.SUFFIXES):
        image = webdataset.read_image(source, inner)
    elif inner.isdigit() and (source.endswith(parquet.SUFFIX) or idx.is_idx(source)):
        with Readers() as readers:
            image = next(readers.read_rows(source, np.array([int(inner)])))
    else:
        image = images.read_file(uri)
    if isinstance(image, OSError):
        raise image
    return image
