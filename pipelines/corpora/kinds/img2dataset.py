"""What img2dataset writes, in its three layouts: files, WebDataset tars, Parquet.

::

    OUTPUT/
      00000.parquet       a row for each image of the shard: url, caption, ..., key, status, error_message, width, ...
      00000_stats.json    written last
      00000/              files: KEY.jpg, KEY.txt, KEY.json
      00000.tar           or WebDataset: the same files
                          or Parquet: in 00000.parquet itself, the images are a column `jpg`

Failed rows have a status other than `success` and no image: they are left out and counted. Entries have the columns of
`00000.parquet` as attributes, whatever the layout; `.txt` and `.json` say the same again. A shard without its
`_stats.json` was not finished, and img2dataset would write it again: it is left out.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hashlight.engine.places.opening import open_place
from hashlight.engine.places.place import Entry
from hashlight.engine.places.uris import join, without_credentials
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.kinds import images, webdataset
from hashlight.pipelines.corpora.kinds.columns import (
    LABEL,
    Roles,
    attributes_of,
    find_roles,
    ids_of,
    promoted,
    unified,
)
from hashlight.pipelines.corpora.kinds.parquet import PARQUET
from hashlight.pipelines.corpora.kinds.rows import list_rows
from hashlight.pipelines.corpora.listing import (
    BASE_SCHEMA,
    COLUMN_OF_LABELS,
    IMAGES,
    ROW,
    SOURCE,
    STAMP,
    File,
    FileStream,
    Listing,
    Piece,
    skip,
    suffix_kind,
)
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.jobs.errors import PipelineError

STATS = "_stats.json"
UNFINISHED = "unfinished shards"
WITHOUT_FILE = "rows without a file"
WITHOUT_ROW = "files without a row"
_SHARD = re.compile(r"(\d+)(?:\.parquet|\.tar|/.*)")
_STATUS, _KEY, _SUCCESS = "status", "key", "success"


def is_output(root: str, name: str) -> bool:
    """Whether a file of this name, within a folder, belongs to what img2dataset wrote there."""
    found = _SHARD.fullmatch(name)
    place = open_place(root)
    return bool(found and place.exists(f"{found[1]}{STATS}") and place.exists(f"{found[1]}.parquet"))


def list_output(root: str, ids: IdRule, options: CorpusOptions) -> Listing:
    """List what img2dataset wrote.

    Raises
    ------
    PipelineError
        If there is no finished shard, or the shards disagree on their columns.
    """
    skipped: Counter[str] = Counter()
    shards, names = _finished_shards(root, skipped)
    if not shards:
        raise PipelineError(
            f"{without_credentials(root)} has no finished shard of img2dataset: expected NUMBER{STATS} beside "
            "NUMBER.parquet"
        )
    if all(f"{number}.tar" in names for number in shards):
        return _list_tars(root, shards, skipped, ids, options)
    if all(number in names for number in shards):
        return _list_folders(root, shards, skipped, ids, options)

    def walk(counts: Counter[str]) -> Iterator[File]:
        counts.update(skipped)
        return iter(shards.values())

    return list_rows(root, FileStream(walk), ids, options, PARQUET, keep_row=_succeeded, needed=(_STATUS,))


def _finished_shards(root: str, skipped: Counter[str]) -> tuple[dict[str, File], set[str]]:
    """Return the Parquet files of finished shards by their numbers, and all names; count what belongs to none."""
    entries = {entry.name: entry for entry in open_place(root).children()}
    numbers = {name.removesuffix(STATS) for name in entries if re.fullmatch(rf"\d+{STATS}", name)}
    finished = [number for number in sorted(numbers) if f"{number}.parquet" in entries]
    belonging = {f"{number}{suffix}" for number in finished for suffix in (STATS, ".parquet", ".tar", "")}
    unfinished = set()
    for name, entry in entries.items():
        if name in belonging:
            continue
        if found := _SHARD.fullmatch(f"{name}/" if entry.is_folder else name):
            unfinished.add(found[1])
        else:
            skip(skipped, "folders" if entry.is_folder else suffix_kind(name))
    if unfinished:
        skip(skipped, UNFINISHED, len(unfinished))
    parquets = {number: f"{number}.parquet" for number in finished}
    files = {number: File(join(root, name), name, entries[name].stamp) for number, name in parquets.items()}
    return files, set(entries)


def _succeeded(table: pa.Table, skipped: Counter[str]) -> pa.Array:
    """Say which rows have an image, and count the others by their status."""
    status = pc.fill_null(table[_STATUS], "without a status")
    for counted in pc.value_counts(status).to_pylist():
        if counted["values"] != _SUCCESS:
            skip(skipped, f"rows {counted['values']}", counted["counts"])
    is_success = pc.equal(status, _SUCCESS)
    return is_success.combine_chunks() if isinstance(is_success, pa.ChunkedArray) else is_success


def _roles_of(shards: dict[str, File], ids: IdRule, options: CorpusOptions) -> tuple[dict[str, Roles], pa.Schema]:
    """Return what the columns of each shard's Parquet file are, and the columns of them all."""
    roles = {
        number: find_roles(PARQUET.look(file).schema, options, ids, without_credentials(file.uri), needs_images=False)
        for number, file in shards.items()
    }
    return roles, unified([role.schema for role in roles.values()], "img2dataset", "shards")


# Tars.


def _list_tars(
    root: str, shards: dict[str, File], skipped: Counter[str], ids: IdRule, options: CorpusOptions
) -> Listing:
    if ids.column is not None:
        raise PipelineError(
            f"ids of the tars that img2dataset wrote to {without_credentials(root)} cannot be taken from "
            f"`{ids.column}`: give the kind tar, which takes them from the JSON of the images, or have them made from "
            "names"
        )
    first = next(iter(shards.values()))
    named = IdRule("name", ids.corpus)
    roles = find_roles(PARQUET.look(first).schema, options, named, without_credentials(first.uri), needs_images=False)
    types = {name: _json_type(roles.schema.field(name).type) for name in roles.attributes}
    json_columns = {name: (column, types[name]) for name, column in roles.attributes.items()}
    place = open_place(root)
    found = FileStream(lambda _skipped: iter(()))

    def list_tar(number: str, counts: Counter[str]) -> Iterator[pa.Table]:
        _count_failures(shards[number], counts)
        entry = place.entry(f"{number}.tar")
        stamp = "" if entry is None else entry.stamp
        tar = File(join(root, f"{number}.tar"), f"{number}.tar", stamp)
        yield webdataset.entries_of_shards([tar], ids)

    def pieces(_split: bool) -> Iterator[Piece]:
        found.skipped.clear()
        found.skipped.update(skipped)
        for number in shards:
            yield functools.partial(list_tar, number)

    return webdataset.list_shards(root, pieces, found, ids, [], json_columns, frozenset(webdataset.ATTRIBUTES))


def _count_failures(file: File, counts: Counter[str]) -> None:
    look = PARQUET.look(file)
    if _STATUS in look.schema.names:
        for part in look.parts:
            for rows in PARQUET.read(file, part, [_STATUS]):
                _succeeded(rows.columns, counts)


def _json_type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int64"
    return "double" if pa.types.is_floating(kind) else "string"


# Files.


def _list_folders(
    root: str, shards: dict[str, File], skipped: Counter[str], ids: IdRule, options: CorpusOptions
) -> Listing:
    roles, attributes = _roles_of(shards, ids, options)
    schema = pa.schema([*BASE_SCHEMA, *attributes])
    left_out: Counter[str] = Counter()

    def list_folder(number: str, counts: Counter[str]) -> Iterator[pa.Table]:
        role, file = roles[number], shards[number]
        there = _images_by_key(root, number, counts)
        columns = list(dict.fromkeys([*role.read, _KEY, _STATUS]))
        for part in PARQUET.look(file).parts:
            for rows in PARQUET.read(file, part, columns):
                table = rows.columns.filter(_succeeded(rows.columns, counts))
                yield promoted(_entries_of(root, number, table, there, role, ids, counts), schema, file.uri)
        skip(counts, WITHOUT_ROW, len(there))

    def pieces(_split: bool) -> Iterator[Piece]:
        left_out.clear()
        left_out.update(skipped)
        for number in shards:
            yield functools.partial(list_folder, number)

    return Listing(
        root,
        IMAGES,
        schema,
        pieces,
        left_out,
        has_ids=any(role.id is not None and role.id_text is None for role in roles.values()),
        id_text=next((role.id_text for role in roles.values() if role.id_text is not None), None),
        labels_from=COLUMN_OF_LABELS if LABEL in schema.names else None,
        columns=frozenset(name for role in roles.values() for name in role.attributes.values()),
    )


def _images_by_key(root: str, number: str, counts: Counter[str]) -> dict[str, Entry]:
    """Return the images in the folder of a shard by their keys; what describes none of them is counted."""
    entries = [entry for entry in open_place(root).children(number) if not entry.is_folder]
    there = {entry.name.partition(".")[0]: entry for entry in entries if images.is_image(entry.name.lower())}
    for entry in entries:
        is_text = entry.name.endswith((".txt", ".json"))
        if entry not in there.values() and not (is_text and entry.name.partition(".")[0] in there):
            skip(counts, suffix_kind(entry.name))
    return there


def _entries_of(
    root: str,
    number: str,
    table: pa.Table,
    there: dict[str, Entry],
    roles: Roles,
    ids: IdRule,
    counts: Counter[str],
) -> pa.Table:
    """Make entries of rows, whose files are taken from those that are there."""
    found = [there.pop(key, None) for key in table[_KEY].to_pylist()]
    is_there = np.array([entry is not None for entry in found], np.bool_)
    skip(counts, WITHOUT_FILE, int((~is_there).sum()))
    table = table.filter(pa.array(is_there))
    names = [f"{number}/{entry.name}" for entry in found if entry is not None]
    sources = [join(root, name) for name in names]
    uris = [without_credentials(source) for source in sources]
    entries = {
        "id": ids_of(table, roles, ids, names, uris, without_credentials(root)),
        "uri": pa.array(uris, pa.string()),
        SOURCE: pa.array(sources, pa.string()),
        ROW: np.full(len(names), -1, np.int64),
        STAMP: pa.array([entry.stamp for entry in found if entry is not None], pa.string()),
    }
    return pa.table({**entries, **attributes_of(table, roles)})
