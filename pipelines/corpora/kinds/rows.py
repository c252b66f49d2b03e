"""What corpora of rows share, whatever the format of their files: rows become entries.

A row has an image, or the URI of one. See `pipelines.corpora.kinds.columns` for what its columns become.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hashlight.engine.places.reading import map_ahead
from hashlight.engine.places.uris import without_credentials
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.kinds.columns import (
    LABEL,
    Roles,
    attributes_of,
    find_roles,
    ids_of,
    image_column_of,
    promoted,
    unified,
)
from hashlight.pipelines.corpora.listing import (
    BASE_SCHEMA,
    COLUMN,
    COLUMN_OF_LABELS,
    GROUP,
    IMAGES,
    ROW,
    SOURCE,
    STAMP,
    File,
    FileStream,
    Listing,
    Piece,
    mentioned_in,
    skip,
)
from hashlight.pipelines.corpora.options import CorpusOptions

WITHOUT_URI = "rows without a URI"


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a file of rows before they are read.

    Attributes
    ----------
    schema : pyarrow.Schema
        In stored types, with its metadata.
    parts : list of (int, int)
        Parts that can be listed by themselves, in the format's own terms.
    ends : ndarray of int64 or None
        The row after the last of each group of rows that can only be read from its start.
    """

    schema: pa.Schema
    parts: list[tuple[int, int]]
    ends: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Adjacent rows of a file: the first of them, their number, and some of their columns, of which there may be none.

    `columns` are in the types in which they are stored.
    """

    first: int
    count: int
    columns: pa.Table


class RowFormat(Protocol):
    """How files of one format are read."""

    @property
    def what(self) -> str:
        """What such files are called in messages: "Parquet files"."""

    def look(self, file: File) -> Look:
        """Find out what a file has; PipelineError if it cannot be read."""

    def read(self, file: File, part: tuple[int, int], columns: list[str]) -> Iterator[Rows]:
        """Read columns of a part of a file; PipelineError if it cannot be read."""


def list_rows(
    root: str,
    found: FileStream,
    ids: IdRule,
    options: CorpusOptions,
    files: RowFormat,
    *,
    keep_row: Callable[[pa.Table, Counter[str]], pa.Array] | None = None,
    needed: tuple[str, ...] = (),
) -> Listing:
    """List the rows of files.

    Parameters
    ----------
    root : str
    found : FileStream
    ids : IdRule
    options : CorpusOptions
    files : RowFormat
    keep_row : callable, optional
        Says of rows which are entries, and counts the others.
    needed : tuple of str
        The columns that `keep_row` reads.

    Raises
    ------
    PipelineError
        If a file is not a corpus, or the files disagree on their columns.
    """
    there = list(found())
    looks = list(map_ahead(files.look, there))
    roles = [
        find_roles(look.schema, options, ids, without_credentials(file.uri))
        for file, look in zip(there, looks, strict=True)
    ]
    schemas = [_entry_schema(role, look.schema) for role, look in zip(roles, looks, strict=True)]
    schema = unified(schemas, without_credentials(root), files.what)
    left_out = Counter(found.skipped)

    def pieces(_split: bool) -> Iterator[Piece]:
        found.skipped.clear()
        found.skipped.update(left_out)
        for file, look, role in zip(there, looks, roles, strict=True):
            how = _How(file, role, look.ends if role.image else None, schema, ids, keep_row, needed)
            for part in look.parts:
                yield functools.partial(_list_part, files, how, part)

    return Listing(
        root,
        IMAGES,
        schema,
        pieces,
        found.skipped,
        has_ids=any(role.id is not None and role.id_text is None for role in roles),
        id_text=next((role.id_text for role in roles if role.id_text is not None), None),
        labels_from=COLUMN_OF_LABELS if LABEL in schema.names else None,
        # Lists of many millions of URIs have some twice.
        may_repeat=all(role.image is None for role in roles),
        columns=frozenset(name for look in looks for name in look.schema.names),
    )


@dataclass(frozen=True, slots=True)
class _How:
    """How the rows of a file become entries."""

    file: File
    roles: Roles
    ends: NDArray[np.int64] | None
    schema: pa.Schema
    ids: IdRule
    keep_row: Callable[[pa.Table, Counter[str]], pa.Array] | None
    needed: tuple[str, ...]


def _entry_schema(roles: Roles, schema: pa.Schema) -> pa.Schema:
    fields = [*BASE_SCHEMA, pa.field(GROUP, pa.int64())]
    if roles.image is not None and roles.image != image_column_of(schema):
        fields.append(pa.field(COLUMN, pa.string()))
    return pa.schema([*fields, *roles.schema])


def _list_part(files: RowFormat, how: _How, part: tuple[int, int], skipped: Counter[str]) -> Iterator[pa.Table]:
    columns = list(dict.fromkeys([*how.roles.read, *how.needed]))
    for rows in files.read(how.file, part, columns):
        entries = _entries_of(rows, how, skipped)
        yield promoted(entries, how.schema, without_credentials(how.file.uri))


def _entries_of(rows: Rows, how: _How, skipped: Counter[str]) -> pa.Table:
    number_N = np.arange(rows.first, rows.first + rows.count)
    table = rows.columns
    if how.keep_row is not None:
        is_kept = how.keep_row(table, skipped)
        number_N, table = number_N[is_kept.to_numpy(zero_copy_only=False)], table.filter(is_kept)
    if how.roles.image is None:
        assert how.roles.uri is not None, "rows have images or URIs"
        has_uri = table[how.roles.uri].is_valid()
        if missing := len(table) - pc.sum(has_uri).as_py() if len(table) else 0:
            skip(skipped, WITHOUT_URI, missing)
            number_N, table = number_N[has_uri.to_numpy()], table.filter(has_uri)
    base = without_credentials(how.file.uri)
    read = _images(number_N, table, how, base)
    named = {"id": ids_of(table, how.roles, how.ids, read.pop("names"), read["uri"], base), **read}
    if COLUMN in how.schema.names:
        named[COLUMN] = pa.array([how.roles.image] * len(number_N), pa.string())
    return pa.table({**named, **attributes_of(table, how.roles)})


def _images(number_N: NDArray[np.int64], table: pa.Table, how: _How, base: str) -> dict[str, Any]:
    """Return the columns that say where images are, and their names within the corpus."""
    file, roles, count = how.file, how.roles, len(number_N)
    if roles.image is None:
        names = table[roles.uri].cast(pa.string()).to_pylist()
        uris, sources = mentioned_in(file.uri, names)
        # What is in the file is compared by itself; it says nothing of the images if the file is written again.
        return {
            "names": names,
            "uri": pa.array(uris, pa.string()),
            SOURCE: pa.array(sources, pa.string()),
            ROW: np.full(count, -1, np.int64),
            STAMP: pa.array([""] * count, pa.string()),
            GROUP: np.full(count, -1, np.int64),
        }
    given = [None] * count if roles.uri is None else table[roles.uri].cast(pa.string()).to_pylist()
    ends = how.ends
    return {
        "names": [f"{file.name}#{number}" for number in number_N],
        "uri": [uri or f"{base}#{number}" for uri, number in zip(given, number_N, strict=True)],
        SOURCE: pa.array([file.uri] * count, pa.string()),
        ROW: number_N,
        STAMP: pa.array([file.stamp] * count, pa.string()),
        GROUP: np.full(count, -1, np.int64) if ends is None else np.searchsorted(ends, number_N, side="right"),
    }
