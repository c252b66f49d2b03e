"""Corpora: where images, and what is known about them, come from.

A corpus is a folder of images (its sub-folders the classes, its `metadata.csv` or `metadata.jsonl` what is known of
them), Parquet files with images or with URIs of images, CSV files or JSON lines with URIs, what img2dataset wrote,
WebDataset tar shards, IDX files, a folder of any one of these, or a text file with one URI per line; on this machine or
in a store (`s3://...`). Listed, it is a table with one entry per image:

===========  ======  =================================================================================================
id           int64   the corpus's own `id` column, or 63 bits of a hash of the corpus's name and the image's name in it
uri          string  where the image is: `/path/to/image.png`, `/path/to/file.parquet#row`, `s3://b/shard.tar#name`
__source     string  the file to read
__row        int64   the row of that file, -1 if the file is the image
__stamp      string  changes when the file changes; empty if that is not known
__group      int64   where there is such a column: the part of the file that the row is in, which can only be read from
                     its start, such as a row group of Parquet; -1 or null if there is none
__column     string  where it does not have a known name: the column of the images in a file of rows
(others)             other columns of a corpus of rows; `label`: the sub-folder's name, the `.cls` of a shard's sample,
                     the row of an IDX file of labels; `txt` and `json` of a shard's sample; see
                     `pipelines.corpora.kinds.columns` for their names
===========  ======  =================================================================================================

The name of a corpus is that of its folder, also if the corpus is a file in it, unless another is given; the name of an
image is its path within that folder (`0001.png`, `shard.tar#0001.png`, `file.parquet#7`). So the ids of a copy in a
folder of the same name are the same, and two folders of different names may have images of the same name. See
`pipelines.corpora.ids` for ids that are made from something else.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from hashlight.engine.ids import find_repeated
from hashlight.engine.places.uris import is_local, normalise, without_credentials
from hashlight.pipelines.corpora.ids import IdRule, first_of_each, refuse_repeated_images, settle_ids, with_ids
from hashlight.pipelines.corpora.joins import ShardMetadata, find_metadata, joined, read_metadata
from hashlight.pipelines.corpora.kinds import idx, images, img2dataset, labelled, parquet, tables, uris, webdataset
from hashlight.pipelines.corpora.listing import (
    COLUMN,
    ROW,
    SHARDS,
    SOURCE,
    File,
    FileStream,
    Listing,
    Walk,
    entry_of,
    skip,
    split_walk,
    suffix_kind,
    told,
    walk,
)
from hashlight.pipelines.corpora.options import NO_OPTIONS, CorpusOptions
from hashlight.pipelines.jobs.errors import PipelineError

logger = logging.getLogger(__name__)

_SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing")


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of corpus.

    Attributes
    ----------
    name : str
        For messages.
    holds : callable
        Which files belong to it, by their names in lower case.
    list_files : callable
    may_describe : bool
        Whether such files may lie among those of another kind, and say something of them.
    any_name : bool
        Whether a file of any name may be of this kind, if the user says so.
    """

    name: str
    holds: Callable[[str], bool]
    list_files: Callable[[str, FileStream, IdRule, CorpusOptions], Listing]
    may_describe: bool = False
    any_name: bool = False


_IMAGE = _Kind("image", images.is_image, images.list_files)
_IDX = _Kind("IDX", idx.is_idx, idx.list_files, may_describe=True)
_KINDS = {
    "images": _IMAGE,
    "parquet": _Kind("Parquet", lambda name: name.endswith(parquet.SUFFIX), parquet.list_files, any_name=True),
    "tar": _Kind("tar", lambda name: name.endswith(webdataset.SUFFIXES), webdataset.list_files),
    "idx": _IDX,
    "csv": _Kind("CSV", lambda name: name.endswith(tables.CSV_SUFFIXES), tables.list_csv, True, any_name=True),
    "jsonl": _Kind(
        "JSON lines", lambda name: name.endswith(tables.JSONL_SUFFIXES), tables.list_json_lines, True, any_name=True
    ),
}
_EXPECTED = (
    "a folder of images, Parquet files, CSV files, JSON lines, tar shards or IDX files, one of those files, what "
    "img2dataset wrote, a list of URIs (.txt), with or without labels, or COCO annotations (.json)"
)


def open_listing(corpus: str | Path, ids: str = "auto", options: CorpusOptions = NO_OPTIONS) -> Listing:
    """Find out what kind of corpus is at a path or URI.

    Parameters
    ----------
    corpus : str or Path
    ids : str
        What ids are made from; see `pipelines.corpora.ids.IdRule`.
    options : CorpusOptions
        What is known of it.

    Raises
    ------
    PipelineError
        If nothing is there, it has no images, it cannot be read, or it has no column that `options` names.
    """
    root = normalise(corpus)
    found = entry_of(root)
    if found is None:
        raise PipelineError(f"no corpus at {without_credentials(root)}: expected {_EXPECTED}")
    base = without_credentials(root)
    folder = base if found.is_folder else base.rpartition("/")[0]
    rule = IdRule.parse(options.ids(ids), folder.rpartition("/")[2])
    listing = _open_folder(root, rule, options) if found.is_folder else _open_file(root, found.stamp, rule, options)
    listing = replace(listing, corpus=base, ids=rule)
    if options.join is not None:
        listing = joined(listing, read_metadata(*options.join), options)
    _refuse_unknown_columns(listing, options)
    return listing


def _refuse_unknown_columns(listing: Listing, options: CorpusOptions) -> None:
    named = [*(options.keep or ()), *([] if options.label_column is None else [options.label_column])]
    known = listing.columns | set(listing.schema.names)
    if unknown := [name for name in named if name not in known]:
        there = sorted(listing.columns)
        raise PipelineError(
            f"{listing.corpus} has no column {unknown}: {f'it has {there}' if there else 'it has none'}"
        )


def _open_folder(root: str, ids: IdRule, options: CorpusOptions) -> Listing:
    if options.kind == "img2dataset":
        return img2dataset.list_output(root, ids, options)
    if options.kind == "list":
        raise PipelineError(f"{without_credentials(root)} is a folder: expected a text file with one URI per line")
    if options.kind == "coco":
        raise PipelineError(f"{without_credentials(root)} is a folder: expected a file of COCO annotations (.json)")
    kind, first = _first_of_a_kind(root, options.kind)
    if options.kind is None and img2dataset.is_output(root, first.name):
        return img2dataset.list_output(root, ids, options)
    metadata, described_by = None, set[str]()
    if kind is _IMAGE:
        metadata, described_by = find_metadata(root, _folders_of(root))

    def of_kind(walk_part: Walk) -> Walk:
        return lambda skipped: _files_of(kind, root, first, described_by, walk_part(skipped), skipped, options.kind)

    stream = FileStream(
        of_kind(lambda skipped: walk(root, skipped)), lambda: [of_kind(part) for part in split_walk(root)]
    )
    listing = kind.list_files(root, stream, ids, options)
    if metadata is None:
        return listing
    return joined(replace(listing, corpus=without_credentials(root)), metadata, options, by_path=True)


def _folders_of(root: str) -> list[str]:
    """Return the folders in which metadata may lie; in a store, which may have too many to list, those of splits."""
    if not is_local(root):
        return list(_SPLITS)
    with os.scandir(root) as entries:
        # A link that leads back to itself is none, and no error.
        return sorted(entry.name for entry in entries if os.path.isdir(entry) and not entry.name.startswith("."))


def _open_file(root: str, stamp: str, ids: IdRule, options: CorpusOptions) -> Listing:
    base = without_credentials(root)
    name = base.rpartition("/")[2]
    file = File(root, name, stamp)
    kind = _kind_of(name)
    if options.kind in _KINDS:
        asked = _KINDS[options.kind]
        kind = asked if asked.any_name or asked.holds(name.lower()) else None
    elif options.kind is not None:
        kind = None
    if kind is not None:
        return kind.list_files(root, FileStream(lambda _skipped: iter([file])), ids, options)
    stream = FileStream(lambda _skipped: iter([file]))
    if options.kind == "list" or (options.kind is None and name.lower().endswith(uris.SUFFIXES)):
        has_labels = labelled.is_labelled(root)
        return labelled.list_labelled(root, stream, ids, options) if has_labels else uris.list_lines(root, ids)
    if options.kind == "coco" or (options.kind is None and name.lower().endswith(labelled.COCO_SUFFIX)):
        return labelled.list_coco(root, stream, ids, options)
    what = "a corpus" if options.kind is None else f"a corpus of the kind {options.kind}"
    raise PipelineError(
        f"{base} is not {what}: expected an image, a .parquet, .csv, .jsonl, .tar or -ubyte file, a list of URIs "
        "(.txt), or COCO annotations (.json)"
    )


def _first_of_a_kind(root: str, asked: str | None) -> tuple[_Kind, File]:
    """Return the kind of a folder and its first file: what only describes others counts if there are no others."""
    skipped: Counter[str] = Counter()
    describing: tuple[_Kind, File] | None = None
    for file in walk(root, skipped):
        kind = _kind_of(file.name)
        if kind is not None and (kind is _KINDS[asked] if asked else kind is _IDX or not kind.may_describe):
            return kind, file
        if kind is not None and not asked:
            describing = describing or (kind, file)
        skip(skipped, suffix_kind(file.name))
    if describing:
        return describing
    suffixes = f"{' '.join(sorted(images.SUFFIXES))}, .parquet, .csv, .jsonl, .tar or -ubyte"
    raise PipelineError(
        f"{without_credentials(root)} has no images: expected files ending in {suffixes}, got {told(skipped)}"
        if asked is None
        else f"{without_credentials(root)} has no files of the kind {asked}: got {told(skipped)}"
    )


def _files_of(
    kind: _Kind,
    root: str,
    first: File,
    described_by: set[str],
    files: Iterator[File],
    skipped: Counter[str],
    asked: str | None,
) -> Iterator[File]:
    """Pass on the files of one kind; PipelineError if there is one of another that may not lie beside them."""
    for file in files:
        found = _kind_of(file.name)
        if file.name in described_by:
            continue
        # By name: a worker has a copy of the kind.
        is_own = found is not None and found.name == kind.name
        if is_own or (kind.name == _IMAGE.name and images.is_unsupported(file.name.lower())):
            yield file
        elif found and asked is None and not (found.may_describe or kind.may_describe):
            raise PipelineError(
                f"{without_credentials(root)} has {kind.name} files ({first.name}) and {found.name} files "
                f"({file.name}): expected one kind, move the others elsewhere or say which with --kind"
            )
        else:
            skip(skipped, suffix_kind(file.name))


def _kind_of(name: str) -> _Kind | None:
    lower = name.lower()
    return next((kind for kind in _KINDS.values() if kind.holds(lower)), None)


def list_corpus(path: str | Path, options: CorpusOptions = NO_OPTIONS) -> pa.Table:
    """List the images of a corpus that fits in memory; see `list_all`."""
    return list_all(open_listing(path, options=options))


def list_all(listing: Listing) -> pa.Table:
    """List the images of a corpus that fits in memory; `pipelines.corpora.work` is for those that do not.

    Returns
    -------
    pyarrow.Table
        One entry per image, as in the module's docstring, in the order of the names (of the rows, in a file of rows).
        Other files are left out; a warning says how many, by kind.

    Raises
    ------
    PipelineError
        If it has no images, or an id occurs twice.
    """
    tables = list(listing.chunks())
    if listing.kind == SHARDS:
        shards = zip(*(_columns(tables, name) for name in ("uri", SOURCE)), strict=True)
        tables = list(_entries_of_shards(shards, listing))
    entries = pa.concat_tables(tables) if tables else listing.schema.empty_table()
    refuse_empty(listing, len(entries))
    repeated = find_repeated(entries["id"].to_numpy())
    if listing.may_repeat and len(repeated):
        entries = pa.concat_tables(first_of_each([entries], repeated, listing.skipped))
        repeated = find_repeated(entries["id"].to_numpy())
    if listing.skipped:
        logger.warning("%s: left out %s", listing.corpus, told(listing.skipped))
    refuse_repeated_images(
        repeated,
        lambda: [entries],
        corpus=listing.corpus,
        are_hashes=not listing.has_ids,
        id_text=listing.id_text,
    )
    return with_ids(entries, settle_ids(repeated, lambda: [entries]))


def _entries_of_shards(shards: Iterable[tuple[str, str]], listing: Listing) -> Iterator[pa.Table]:
    """Yield the images of shards, given by name and source."""
    added = None if listing.join is None else ShardMetadata.open(listing.join, listing.corpus, listing.ids)
    own = [field for field in listing.schema if added is None or field.name not in added.schema.names]
    for name, source in shards:
        samples = _samples(source, listing)
        for sample in samples:
            try:
                webdataset.own_id(sample, listing.ids)
            except ValueError as error:
                raise PipelineError(f"{without_credentials(source)}#{sample.name}: {error}") from error
        entries = webdataset.shard_entries(name, source, samples, pa.schema(own), listing.ids)
        yield entries if added is None else added.add_to(entries)


def _samples(source: str, listing: Listing) -> list[webdataset.Sample]:
    samples = list(webdataset.read_shard(source, skipped=listing.skipped))
    webdataset.take_json(samples, listing.json_columns)
    return samples


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

    Attributes
    ----------
    shard : OpenShard
        For `webdataset.read_shard`.
    """

    def __init__(self) -> None:
        self._parquet = parquet.RowReader()
        self._idx = idx.RowReader()
        self.shard = webdataset.OpenShard()

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
        self.shard.close()

    def read_rows(self, source: str, rows: np.ndarray, column: str | None = None) -> Iterator[bytes | OSError]:
        """Read ascending rows of a file, whose column of images may be named."""
        name = without_credentials(source).lower()
        if name.endswith(webdataset.SUFFIXES):
            return webdataset.read_rows(source, rows)
        return self._idx.read(source, rows) if idx.is_idx(name) else self._parquet.read(source, rows, column)


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
    column = entries[COLUMN].to_pylist() if COLUMN in entries.column_names else [None] * len(entries)
    rows = zip(entries[SOURCE].to_pylist(), column, entries[ROW].to_pylist(), strict=True)
    for is_row, run in itertools.groupby(rows, key=lambda place: place[2] >= 0):
        if is_row:
            for (source, name), places in itertools.groupby(run, key=lambda place: place[:2]):
                yield from readers.read_rows(source, np.array([place[2] for place in places]), name)
        else:
            yield from images.read_files(place[0] for place in run)


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
