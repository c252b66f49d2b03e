"""Metadata of images that lies in a file of its own: rows found by the images' file names, or by their ids.

A text is compared with the path of an image within its corpus, with its file name, and with that without its suffix,
in this order; a whole number with the id, if the corpus has ids of its own. The file is held in memory.

The images of tars are known only once they are read. So whoever reads them joins them, with a copy of the file in
memory, and compares a text with an image's name in its tar, and with the name of its sample.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.places.reading import map_ahead
from hashlight.engine.places.uris import join, normalise, without_credentials
from hashlight.pipelines.corpora.ids import IdRule, hashed_ids
from hashlight.pipelines.corpora.kinds import labelled, parquet, tables, uris
from hashlight.pipelines.corpora.kinds.columns import LABEL, TAKEN, prefixed, promoted, unified
from hashlight.pipelines.corpora.kinds.rows import RowFormat
from hashlight.pipelines.corpora.kinds.webdataset import read_shard, shard_entries
from hashlight.pipelines.corpora.listing import (
    BASE_SCHEMA,
    COLUMN_OF_LABELS,
    SHARDS,
    SOURCE,
    STAMP,
    File,
    Listing,
    ShardJoin,
    entry_of,
    skip,
)
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.jobs.errors import PipelineError

FILE_NAME = "file_name"
# Of tars, images that are looked at to find out whether any has a key; of larger ones the name is enough.
_LOOKED_AT, _LOOKED_AT_BYTES = 1000, 1_000_000
# What Hugging Face's `imagefolder` calls the metadata of a folder of images.
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(slots=True)
class Metadata:
    """Rows about images, with the column that says about which.

    Attributes
    ----------
    table : pyarrow.Table
        Without the column of keys.
    keys : list
        Texts, or whole numbers.
    where : str
        The file, for messages.
    """

    table: pa.Table
    keys: list[Any]
    where: str

    @property
    def by_number(self) -> bool:
        """Whether the keys are whole numbers."""
        return bool(self.keys) and isinstance(self.keys[0], int)


def read_metadata(uri: str, key: str) -> Metadata:
    """Read a file of metadata.

    Raises
    ------
    PipelineError
        If it is not there, cannot be read, or lacks the column.
    """
    where = without_credentials(uri)
    found = entry_of(normalise(uri))
    if found is None or found.is_folder:
        raise PipelineError(f"there is no file of metadata at {where}: expected CSV, JSON lines, Parquet or labels")
    file = File(normalise(uri), where.rpartition("/")[2], found.stamp)
    reader = _format_of(file)
    look = reader.look(file)
    names = look.schema.names
    if key not in names:
        raise PipelineError(f"{where} has no column `{key}` to join by: it has {names}")
    schema = look.schema.remove_metadata()
    parts = [rows.columns for part in look.parts for rows in reader.read(file, part, names)]
    table = pa.concat_tables(parts) if parts else schema.empty_table()
    kind = table.schema.field(key).type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise PipelineError(f"{where}: `{key}` must have file names or ids, got {kind}")
    if nulls := table[key].null_count:
        raise PipelineError(f"{where}: `{key}` must be there in every row, got {nulls} nulls")
    return Metadata(table.drop_columns([key]), table[key].to_pylist(), where)


def find_metadata(root: str, folders: Iterable[str]) -> tuple[Metadata | None, set[str]]:
    """Find and read the metadata of a folder of images, in it and in its folders.

    Parameters
    ----------
    root : str
    folders : iterable of str
        The names of its folders.

    Returns
    -------
    metadata : Metadata or None
        With the paths of images within the corpus as keys.
    names : set of str
        The files that were read, by their names within the corpus.
    """
    found: list[Metadata] = []
    read: set[str] = set()

    def names_in(folder: str) -> list[str]:
        names = [f"{folder}{name}" for name in METADATA_NAMES]
        entries = ((name, entry_of(join(root, name))) for name in names)
        return [name for name, entry in entries if entry is not None and not entry.is_folder]

    for names in map_ahead(names_in, ["", *(f"{folder}/" for folder in folders)]):
        for name in names:
            file = File(join(root, name), name, "")
            if FILE_NAME not in _format_of(file).look(file).schema.names:
                continue
            one = read_metadata(file.uri, FILE_NAME)
            if one.by_number:
                raise PipelineError(f"{one.where}: `{FILE_NAME}` must have file names, got whole numbers")
            folder = name.rpartition("/")[0]
            one.keys = [f"{folder}/{key}" if folder else key for key in one.keys]
            found.append(one)
            read.add(name)
    if not found:
        return None, read
    where = ", ".join(one.where for one in found)
    schema = unified([one.table.schema for one in found], without_credentials(root), "files of metadata")
    table = pa.concat_tables([promoted(one.table, schema, one.where) for one in found])
    return Metadata(table, [key for one in found for key in one.keys], where), read


def joined(listing: Listing, metadata: Metadata, options: CorpusOptions, *, by_path: bool = False) -> Listing:
    """Return a listing whose entries have the columns of some metadata.

    A label of the metadata replaces that of the listing.

    Parameters
    ----------
    listing : Listing
    metadata : Metadata
    options : CorpusOptions
    by_path : bool
        Whether keys are paths within the corpus, and nothing else.

    Raises
    ------
    PipelineError
        If a key occurs twice; later, if no image has one of the keys.
    """
    label = next((name for name in (options.label_column, LABEL) if name in metadata.table.column_names), None)
    own = [name for name in listing.schema.names if not (name == LABEL and label is not None)]
    renamed: dict[str, str] = {}
    for column in metadata.table.column_names:
        if column == label:
            renamed[LABEL] = column
        elif options.keep is None or column in options.keep:
            renamed[prefixed(column, TAKEN | set(own) | renamed.keys())] = column
    columns = pa.table({name: metadata.table[column] for name, column in renamed.items()})
    if listing.kind == SHARDS:
        return _joined_shards(listing, metadata, columns.schema, renamed, own, options)
    rows = _Rows(
        metadata,
        listing.corpus,
        by_path=by_path,
        by_id=listing.has_ids,
        id_text=None if by_path else listing.id_text,
    )

    def add_columns(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in listing.add_columns(tables):
            found = columns.take(rows.of(table))
            kept = table.select(own)
            for name in found.column_names:
                kept = kept.append_column(name, found[name])
            yield kept
        rows.account(listing.skipped)

    schema = pa.schema([*(listing.schema.field(name) for name in own), *columns.schema])
    return dataclasses.replace(
        listing,
        schema=schema,
        add_columns=add_columns,
        labels_from=listing.labels_from if label is None else COLUMN_OF_LABELS,
        columns=listing.columns | set(metadata.table.column_names),
    )


def _joined_shards(
    listing: Listing,
    metadata: Metadata,
    columns: pa.Schema,
    renamed: dict[str, str],
    own: list[str],
    options: CorpusOptions,
) -> Listing:
    """Return a listing whose images get the columns when they are read; the stamps of its shards depend on the file."""
    assert options.join is not None, "it was read"
    uri, key = normalise(options.join[0]), options.join[1]
    found = entry_of(uri)
    join_ = ShardJoin(uri=uri, key=key, stamp="" if found is None else found.stamp, columns=renamed)
    _refuse_unrelated(listing, ShardMetadata(join_, metadata, listing.corpus, listing.ids))

    def add_stamps(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in listing.add_columns(tables):
            stamps = [f"{stamp} {join_.stamp}" for stamp in table[STAMP].to_pylist()]
            yield table.set_column(table.column_names.index(STAMP), STAMP, pa.array(stamps, pa.string()))

    return dataclasses.replace(
        listing,
        schema=pa.schema([*(listing.schema.field(name) for name in own), *columns]),
        add_columns=add_stamps,
        labels_from=COLUMN_OF_LABELS if LABEL in renamed else listing.labels_from,
        columns=listing.columns | set(metadata.table.column_names),
        join=join_,
    )


class ShardMetadata:
    """Adds metadata to the images of shards.

    Parameters
    ----------
    join_ : ShardJoin
    metadata : Metadata
    corpus : str
    ids : IdRule
        Of the corpus.

    Attributes
    ----------
    schema : pyarrow.Schema
        Of the columns that are added.
    """

    def __init__(self, join_: ShardJoin, metadata: Metadata, corpus: str, ids: IdRule) -> None:
        self._columns = pa.table({name: metadata.table[column] for name, column in join_.columns.items()})
        self.schema: pa.Schema = self._columns.schema
        self.rows = _Rows(metadata, corpus, by_id=ids.column is not None, in_shards=True)

    @classmethod
    def open(cls, join_: ShardJoin, corpus: str, ids: IdRule) -> Self:
        """Read the file.

        Raises
        ------
        PipelineError
            If it cannot be read, or has changed since the shards were listed.
        """
        found = entry_of(join_.uri)
        if found is not None and found.stamp != join_.stamp:
            raise PipelineError(
                f"{without_credentials(join_.uri)} was changed since the corpus was listed with it: list it again"
            )
        return cls(join_, read_metadata(join_.uri, join_.key), corpus, ids)

    def add_to(self, entries: pa.Table) -> pa.Table:
        """Return the entries of images, of one shard, with the columns."""
        found = self._columns.take(self.rows.of(entries))
        for name in found.column_names:
            entries = entries.append_column(name, found[name])
        return entries


def _refuse_unrelated(listing: Listing, added: ShardMetadata) -> None:
    """Raise PipelineError if no image at the beginning of the corpus has one of the keys."""
    shards = (source for table in listing.chunks() for source in table[SOURCE].to_pylist())
    samples = ((shard, sample) for shard in shards for sample in read_shard(shard, max_image_bytes=_LOOKED_AT_BYTES))
    some = itertools.islice(samples, _LOOKED_AT)
    for shard, run in itertools.groupby(some, key=lambda found: found[0]):
        found = [sample for _, sample in run]
        added.rows.of(shard_entries("", shard, found, BASE_SCHEMA, listing.ids))
    added.rows.account(Counter())


class _Rows:
    """Finds the rows of metadata that entries have."""

    def __init__(
        self,
        metadata: Metadata,
        corpus: str,
        *,
        by_path: bool = False,
        by_id: bool = False,
        id_text: str | None = None,
        in_shards: bool = False,
    ) -> None:
        self._metadata = metadata
        self._id_text = id_text
        self._by_path = by_path
        self._by_id = metadata.by_number and by_id
        self._corpus = corpus
        self._in_shards = in_shards
        keys = metadata.keys
        hash_N = np.array(keys, np.int64) if self._by_id else hashed_ids(map(str, keys))
        self._order = np.argsort(hash_N, kind="stable")
        self._sorted = hash_N[self._order]
        if len(keys) and (repeated := np.flatnonzero(self._sorted[1:] == self._sorted[:-1])).size:
            key = keys[int(self._order[repeated[0]])]
            raise PipelineError(f"{metadata.where} has more than one row for {key!r}: keep one of them")
        self._used = np.zeros(len(keys), np.bool_)
        self._example = ""

    def of(self, entries: pa.Table) -> pa.Array:
        """Return the row of each entry, null if it has none."""
        row_N = np.full(len(entries), -1, np.int64)
        for hash_N in self._hashes_of(entries):
            row_N = np.where(row_N < 0, self._find(hash_N), row_N)
        self._used[row_N[row_N >= 0]] = True
        return pa.array(row_N, mask=row_N < 0)

    def account(self, skipped: Counter[str]) -> None:
        """Count the rows that no entry has; PipelineError if no entry has any."""
        if unused := int((~self._used).sum()):
            if unused == len(self._used):
                raise PipelineError(
                    f"no image of {self._corpus} has one of the {unused} keys of {self._metadata.where}: the first key "
                    f"is {self._metadata.keys[0]!r}, an image is {self._example!r}"
                )
            skip(skipped, f"rows of {self._metadata.where.rpartition('/')[2]} without an image", unused)

    def _hashes_of(self, entries: pa.Table) -> Iterator[NDArray[np.int64]]:
        if self._by_id:
            yield entries["id"].to_numpy()
            return
        if self._id_text is not None:
            yield hashed_ids(text or "" for text in entries[self._id_text].cast(pa.string()).to_pylist())
        paths = [self._path_of(uri) for uri in entries["uri"].to_pylist()]
        if self._in_shards and len(entries):
            before = f"{without_credentials(entries[SOURCE][0].as_py())}#"
            paths = [uri.removeprefix(before) for uri in entries["uri"].to_pylist()]
        self._example = paths[0] if paths else self._example
        yield hashed_ids(paths)
        if not self._by_path:
            names = [path.rpartition("/")[2] for path in paths]
            yield hashed_ids(names)
            yield hashed_ids(name.rpartition(".")[0] or name for name in names)
        if self._in_shards:
            yield hashed_ids(name.partition(".")[0] or name for name in names)

    def _path_of(self, uri: str) -> str:
        inside = uri.removeprefix(f"{self._corpus}/")
        return inside if inside != uri else uri.removeprefix(f"{self._corpus.rpartition('/')[0]}/")

    def _find(self, hash_N: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(self._sorted):
            return np.full(len(hash_N), -1, np.int64)
        place_N = np.minimum(np.searchsorted(self._sorted, hash_N), len(self._sorted) - 1)
        return np.where(self._sorted[place_N] == hash_N, self._order[place_N], -1)


def _format_of(file: File) -> RowFormat:
    name = file.name.lower()
    if name.endswith(tables.CSV_SUFFIXES):
        return tables.CSV
    if name.endswith(tables.JSONL_SUFFIXES):
        return tables.JSON_LINES
    if name.endswith(parquet.SUFFIX):
        return parquet.PARQUET
    if name.endswith(labelled.COCO_SUFFIX):
        return labelled.COCO
    if name.endswith(uris.SUFFIXES) and labelled.is_labelled(file.uri):
        return labelled.LABELLED_LIST
    raise PipelineError(
        f"{without_credentials(file.uri)} is not a file of metadata: expected a name ending in .csv, .tsv, .jsonl, "
        ".ndjson or .parquet, COCO annotations (.json), or a list of labelled images (.txt)"
    )
