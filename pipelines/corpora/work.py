"""Work lists: a corpus, listed once, as an Arrow file whose record batches are the units of work.

A unit is up to `unit_images` images, at first fewer, or one range of a tar shard
(`pipelines.corpora.kinds.webdataset.divided`). What can only be read from its start, such as a row group of a Parquet
file, is in one unit with others, or has units of its own.
A last batch, without rows, carries the summary of what was listed and a digest of each unit, by which a resumed job
knows what has changed. Listing is a stream: memory holds a unit, and the file's own index, `INDEX_BYTES` a unit, which
is all that a reader holds of it, too.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
from numpy.typing import NDArray

from hashlight.engine.errors import ReadFailedError
from hashlight.engine.ids import RepeatedIds
from hashlight.engine.places.files import remove_leftovers
from hashlight.engine.places.opening import open_place, open_target
from hashlight.engine.places.uris import is_local, normalise, split_name, without_credentials
from hashlight.pipelines.corpora.corpus import open_listing, refuse_empty
from hashlight.pipelines.corpora.ids import (
    IdRule,
    each_moved,
    first_of_each,
    hashed_ids,
    refuse_repeated_images,
    settle_ids,
    with_ids,
)
from hashlight.pipelines.corpora.kinds.webdataset import JSON_TYPES, START, STOP, divided, find_few, is_compressed
from hashlight.pipelines.corpora.listing import (
    BASE_SCHEMA,
    COLUMN,
    EMBEDDINGS,
    GROUP,
    IMAGES,
    ROW,
    SHARDS,
    SOURCE,
    Listing,
    ShardJoin,
    images_of_next_unit,
)
from hashlight.pipelines.corpora.options import NO_OPTIONS, CorpusOptions
from hashlight.pipelines.corpora.parallel import divided_by_workers, listed_by_workers
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import parse_object

UNIT_IMAGES = 2000
SUFFIX = ".arrow"
# Where a unit lies in the file: its offset and its lengths. (A Parquet footer, once read, has 4.5 kB a row group.)
INDEX_BYTES = 24
_METADATA, _NUMBER, _UNITS = b"hashlight", b"unit", (b"numbers", b"digests", b"firsts", b"groups")
_MAX_NUMBER = 2**63 - 1
# Of the entries of a list of embeddings: ranges of rows.
RANGE_SCHEMA = pa.schema([*BASE_SCHEMA, *(pa.field(name, pa.int64()) for name in (GROUP, START, STOP))])
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")

Progress = Callable[[int], None]
# The file that a group is in, and its number there.
_Group = tuple[str, int]


@dataclass(frozen=True, slots=True)
class WorkSummary:
    """The summary of a work list, which is stored in the list.

    Attributes
    ----------
    corpus : str
    kind : str
        "images", or "shards": then an entry is a range of a tar file; or "embeddings": of the rows of a file.
    units : int
    images : int or None
        None for shards, whose images are known only once they are read. Of embeddings, their number.
    columns : list of str
        Of the entries, once they are read.
    digest : str
        SHA-256 of all that the list says of what was listed, names, sizes and times among it.
    ids, name : str
        What ids are made from, and the corpus's name; see `pipelines.corpora.ids.IdRule`.
    skipped : dict of str to int
        Files that were left out, by kind; those in shards are known only once they are read.
    embedding_column : str
        Where files of embeddings have columns, the one with the embeddings.
    json_columns : dict of str to list of str
        Of shards: columns that are values of the samples' JSON, with the key and the type.
    dropped : list of str
        Of shards: attributes that are not to be kept.
    join : dict or None
        Of shards: the fields of `pipelines.corpora.listing.ShardJoin`.
    """

    corpus: str
    kind: str
    units: int
    images: int | None
    columns: list[str]
    digest: str
    ids: str
    name: str
    skipped: dict[str, int] = field(default_factory=dict)
    embedding_column: str = ""
    json_columns: dict[str, list[str]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    join: dict[str, Any] | None = None

    @property
    def shard_join(self) -> ShardJoin | None:
        """`join`, as `pipelines.corpora.joins` takes it."""
        return None if self.join is None else ShardJoin(**self.join)

    @property
    def id_rule(self) -> IdRule:
        """How the images get their ids."""
        return IdRule(self.ids, self.name)

    @property
    def lists_ranges(self) -> bool:
        """Whether an entry is a range of a file, whose ids are known only once it is read."""
        return self.kind != IMAGES

    @property
    def shard_columns(self) -> dict[str, tuple[str, str]]:
        """`json_columns`, as `pipelines.corpora.kinds.webdataset` takes them."""
        return {name: (key, kind) for name, (key, kind) in self.json_columns.items()}


def list_work(
    corpus: str | Path,
    output: str | Path,
    *,
    unit_images: int = UNIT_IMAGES,
    ids: str = "auto",
    options: CorpusOptions = NO_OPTIONS,
    workers: int | None = None,
    progress: Progress | None = None,
) -> WorkSummary:
    """List a corpus into a work list.

    Parameters
    ----------
    corpus : str or Path
        A corpus, as in `pipelines.corpora.corpus`.
    output : str or Path
        The file to write (`.arrow`), local or in a bucket; it appears only when it is complete.
    unit_images : int
        Images per unit, at most; the first units have 100, and later ones grow with what is listed, so that a small
        corpus has work for several actors. Of a tar, a unit may have as many more as its last sample has. A killed job
        loses at most one unit per actor.
    ids : str
        What ids are made from: "auto", "name", "name:NAME" (which names the corpus), "uri", "content" or "column:NAME";
        see `pipelines.corpora.ids.IdRule`.
    options : CorpusOptions
        What is known of the corpus.
    workers : int, optional
        List on Ray, in this many tasks at a time, with the same result; in this process if left out.
    progress : callable, optional
        Called with the number of entries listed so far.

    Raises
    ------
    PipelineError
        If the corpus has no images, an image is listed twice, or an id that it was given occurs twice.

    Notes
    -----
    What killed calls with the same `output` left beside it is removed, so two at once are in each other's way.
    """
    if unit_images < 1:
        raise ValueError(f"`unit_images` must be at least 1, got {unit_images}")
    folder, file = split_name(normalise(output))
    target = open_target(folder)
    if target.local:
        remove_leftovers(target.local, file)
    if workers is not None and workers < 1:
        raise ValueError(f"`workers` must be at least 1, got {workers}")
    listing = open_listing(corpus, ids, options)
    with target.scratch(file) as aside, target.scratch(file) as draft:
        summary = _write(listing, aside, draft, unit_images, workers, progress or (lambda _entries: None))
        target.put_file(file, aside)
    return summary


def read_work(work: str | Path) -> WorkSummary | None:
    """Return the summary of a work list; None if `work` is something else, such as a corpus.

    Raises
    ------
    PipelineError
        If it is a file with the name of a work list, and not a readable one.
    """
    uri = normalise(work)
    if not without_credentials(uri).endswith(SUFFIX) or (is_local(uri) and not Path(uri).is_file()):
        return None
    try:
        raw = open_place(uri).open()
    except FileNotFoundError:
        return None
    except ReadFailedError:
        raise
    except OSError as error:
        raise PipelineError(f"{without_credentials(uri)} cannot be read: {error}") from error
    with raw:
        return WorkList(raw, without_credentials(uri)).summary


class Units(NamedTuple):
    """The units of a work list by their places in it.

    Attributes
    ----------
    numbers : ndarray of int64, shape (U,)
        The places, unless the list follows an earlier one; see `pipelines.encoding.plan`.
    digests : ndarray of uint64, shape (U,)
        A hash of the entries of each.
    firsts : ndarray of int64, shape (U,)
        The id of the first entry of each.
    groups : ndarray of int64, shape (U,)
        A hash that is the same for units of one row group, or of another thing that can only be read from its start; 0
        where there is none.
    """

    numbers: NDArray[np.int64]
    digests: NDArray[np.uint64]
    firsts: NDArray[np.int64]
    groups: NDArray[np.int64]


class WorkList:
    """An open work list, whose units are read by their places. Not to be shared between threads.

    No value of the file is trusted: Arrow would, and may end the process if one is wrong.

    Parameters
    ----------
    raw : file
    where : str
        Its path or URI, for messages.

    Raises
    ------
    PipelineError
        If the file is not a work list, or is damaged: here, or when a damaged unit is read.
    """

    def __init__(self, raw: pa.NativeFile, where: str) -> None:
        self._where = where
        with self._checked():
            self._file = pa.ipc.open_file(raw)
            self.summary = _summary_of(self._file)
        self._required = BASE_SCHEMA.names + [START, STOP] * self.summary.lists_ranges

    def read(self, place: int) -> pa.Table:
        """Return the entries of a unit."""
        with self._checked():
            return self._entries(self._file.get_batch(place))

    def read_all(self) -> Iterator[pa.Table]:
        """Read the entries of all units."""
        return map(self.read, range(self.summary.units))

    def read_numbered(self, place: int) -> tuple[int, pa.Table]:
        """Return the number of a unit and its entries."""
        with self._checked():
            found = self._file.get_batch_with_custom_metadata(place)
            number = int(found.custom_metadata[_NUMBER])
            if not 0 <= number <= _MAX_NUMBER:
                raise ValueError(f"expected 0 to {_MAX_NUMBER} for the number of a unit, got {number}")
            return number, self._entries(found.batch)

    def units(self) -> Units:
        """Return what the list says of all units."""
        with self._checked():
            last = self._file.get_batch_with_custom_metadata(self.summary.units)
            columns = (base64.b64decode(last.custom_metadata[name], validate=True) for name in _UNITS)
            kinds = ("<i8", "<u8", "<i8", "<i8")
            units = Units(*(np.frombuffer(column, kind) for column, kind in zip(columns, kinds, strict=True)))
            if {len(column) for column in units} != {self.summary.units}:
                raise ValueError(f"expected {self.summary.units} numbers, hashes, ids and groups of units")
            if units.numbers.min() < 0 or len(np.unique(units.numbers)) < len(units.numbers):
                raise ValueError("the numbers of its units are not distinct, or below 0")
            return units

    def _entries(self, batch: pa.RecordBatch) -> pa.Table:
        batch.validate(full=True)
        if not batch.num_rows or (self.summary.lists_ranges and batch.num_rows > 1):
            raise ValueError(f"a unit has {batch.num_rows} entries")
        if any(batch.column(name).null_count for name in self._required):
            raise ValueError("an entry lacks a value")
        ids_N, rows_N = batch.column("id").to_numpy(), batch.column(ROW).to_numpy()
        if ids_N.min() < 0 or rows_N.min() < -1:
            raise ValueError(f"expected ids of 0 or more and rows of -1 or more, got {ids_N.min()} and {rows_N.min()}")
        if self.summary.lists_ranges:
            start, stop = (batch.column(name)[0].as_py() for name in (START, STOP))
            to_end = stop == -1 and self.summary.kind == SHARDS
            if start < 0 or not (to_end or start < stop):
                raise ValueError(f"expected a range of a file, got one from {start} to {stop}")
        return pa.Table.from_batches([batch])

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except ReadFailedError:
            raise
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
            raise PipelineError(
                f"{self._where} is not a readable work list ({error}): list the corpus again with `hashlight list`; if "
                "it is the plan of an encode job, delete it and encode again as before, which keeps what is finished"
            ) from error


class WorkWriter:
    """Writes a work list, a unit at a time.

    Attributes
    ----------
    entries : int
        So far.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        self._file: Any = None
        self._units = (array("q"), array("Q"), array("q"), array("q"))
        self._digest = Digest()
        self.entries = 0

    def __enter__(self) -> WorkWriter:
        """Start empty."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._stack.close()

    def add(self, entries: pa.Table, number: int | None = None) -> None:
        """Add a unit; its number is its place if left out."""
        [batch] = entries.combine_chunks().to_batches()
        if self._file is None:
            self._file = self._stack.enter_context(pa.ipc.new_file(str(self._path), batch.schema, options=_OPTIONS))
        self._digest.update(entries)
        number = len(self._units[0]) if number is None else number
        values = (number, digest_of(entries), entries["id"][0].as_py(), _group_of(entries))
        for column, value in zip(self._units, values, strict=True):
            column.append(value)
        self._file.write_batch(batch, custom_metadata={_NUMBER: str(number)})
        self._last = batch
        self.entries += len(entries)

    def finish(self, summary: WorkSummary) -> WorkSummary:
        """Write the summary, which gets the number of units and, unless it has one, the digest; return it."""
        summary = replace(summary, units=len(self._units[0]), digest=summary.digest or self._digest.hexdigest())
        columns = (base64.b64encode(column.tobytes()) for column in self._units)
        said = {_METADATA: json.dumps(asdict(summary)), **dict(zip(_UNITS, columns, strict=True))}
        self._file.write_batch(self._last.slice(0, 0), custom_metadata=said)
        return summary


def _summary_of(file: pa.ipc.RecordBatchFileReader) -> WorkSummary:
    count = file.num_record_batches
    said = file.get_batch_with_custom_metadata(count - 1).custom_metadata if count else None
    if said is None or _METADATA not in said:
        raise ValueError("it has no summary")
    summary = WorkSummary(**parse_object(said[_METADATA]))
    _check_summary(summary)
    names = file.schema.names
    if summary.units != count - 1:
        raise ValueError(f"it has {count - 1} units, its summary says {summary.units}")
    if pa.schema(list(file.schema)[: len(BASE_SCHEMA)]) != BASE_SCHEMA or len(set(names)) < len(names):
        raise ValueError(f"expected the columns {', '.join(BASE_SCHEMA.names)} and others, got {file.schema}")
    ranges = {SHARDS: [*BASE_SCHEMA.names, START, STOP], EMBEDDINGS: RANGE_SCHEMA.names}
    if names != ranges.get(summary.kind, summary.columns):
        raise ValueError(f"it has the columns {names}, its summary says {summary.columns}")
    if not all(pa.types.is_int64(field.type) for field in file.schema if field.name in (GROUP, START, STOP)):
        raise ValueError(f"expected whole numbers for the parts of files, got {file.schema}")
    if COLUMN in names and not pa.types.is_string(file.schema.field(COLUMN).type):
        raise ValueError(f"expected the names of columns as texts, got {file.schema}")
    return summary


def _check_summary(summary: WorkSummary) -> None:
    """Raise ValueError or TypeError unless a summary has the values that it must have."""
    texts = (summary.corpus, summary.kind, summary.digest, summary.ids, summary.name, *summary.skipped)
    texts += (summary.embedding_column,)
    texts += (*summary.json_columns, *(text for column in summary.json_columns.values() for text in column))
    counts = (summary.units, 0 if summary.images is None else summary.images, *summary.skipped.values())
    if not all(isinstance(text, str) for text in (*texts, *summary.columns, *summary.dropped)):
        raise TypeError(f"expected names in its summary, got {summary}")
    if not all(type(count) is int and count >= 0 for count in counts) or not summary.units:
        raise ValueError(f"expected numbers of images, units and files in its summary, got {summary}")
    if summary.kind not in (IMAGES, SHARDS, EMBEDDINGS) or (summary.images is None) != (summary.kind == SHARDS):
        raise ValueError(
            f"expected images, embeddings, or shards whose images are not known, in its summary, got {summary}"
        )
    columns = summary.json_columns.values()
    if not all(len(column) == 2 and column[1] in JSON_TYPES for column in columns) or summary.json_columns.keys() - set(
        summary.columns
    ):
        raise ValueError(f"expected columns of JSON with a key and a type, got {summary.json_columns}")
    if summary.join is not None:
        join, columns = summary.shard_join, summary.join["columns"]
        texts = (*summary.join.values(), *columns, *columns.values())
        if not all(isinstance(text, str) for text in texts if text is not columns) or columns.keys() - set(
            summary.columns
        ):
            raise ValueError(f"expected a file of metadata and its columns, got {join}")
    if IdRule.parse(summary.ids, summary.name) != summary.id_rule:
        raise ValueError(f"expected what ids are made from in its summary, got {summary.ids!r}")
    if len(set(summary.columns)) < len(summary.columns) or summary.columns[: len(BASE_SCHEMA)] != BASE_SCHEMA.names:
        raise ValueError(f"expected the columns {', '.join(BASE_SCHEMA.names)} and others, got {summary.columns}")


def _write(
    listing: Listing, path: Path, draft: Path, unit_images: int, workers: int | None, progress: Progress
) -> WorkSummary:
    """Write a work list to `path`; `draft` keeps it meanwhile if ids have to be settled."""
    units = _units_of(listing, unit_images, workers)
    with RepeatedIds() as ids:
        summary = _write_units(listing, _counted(units, ids, progress), path)
        repeated = ids.find()
    if listing.may_repeat and len(repeated):
        path.rename(draft)
        with RepeatedIds() as ids:
            entries = first_of_each(_read_units(draft), repeated, listing.skipped)
            summary = _write_units(listing, _counted(cut(entries, unit_images), ids, progress), path)
            repeated = ids.find()
    refuse_repeated_images(
        repeated,
        lambda: _read_units(path),
        corpus=listing.corpus,
        are_hashes=not listing.has_ids,
        id_text=listing.id_text,
    )
    if moved := settle_ids(repeated, lambda: _read_units(path)):
        path.rename(draft)
        settled = (with_ids(unit, inside) for unit, inside in each_moved(_read_units(draft), moved))
        summary = _write_units(listing, settled, path)
    return summary


def _units_of(listing: Listing, unit_images: int, workers: int | None) -> Iterator[pa.Table]:
    if listing.kind == SHARDS:
        are_few, shards = find_few(listing.chunks())
        if workers is None:
            return divided(shards, unit_images, listing.ids, are_few=are_few)
        return divided_by_workers(shards, unit_images, listing.ids, workers, are_few=are_few)
    return cut(listing.chunks() if workers is None else listed_by_workers(listing, workers), unit_images)


def _write_units(listing: Listing, units: Iterator[pa.Table], path: Path) -> WorkSummary:
    with WorkWriter(path) as work:
        for unit in units:
            work.add(unit)
        refuse_empty(listing, work.entries)
        return work.finish(
            WorkSummary(
                corpus=listing.corpus,
                kind=listing.kind,
                units=0,
                images=None if listing.kind == SHARDS else work.entries,
                columns=listing.schema.names,
                digest="",
                ids=listing.ids.source,
                name=listing.ids.corpus,
                skipped=dict(listing.skipped),
                json_columns={name: list(column) for name, column in listing.json_columns.items()},
                dropped=sorted(listing.dropped),
                join=None if listing.join is None else asdict(listing.join),
            )
        )


def _counted(units: Iterator[pa.Table], ids: RepeatedIds, progress: Progress) -> Iterator[pa.Table]:
    entries = 0
    for unit in units:
        ids.add(unit["id"].to_numpy())
        yield unit
        entries += len(unit)
        progress(entries)


def _read_units(path: Path) -> Iterator[pa.Table]:
    with pa.memory_map(str(path)) as raw:
        yield from WorkList(raw, str(path)).read_all()


class Digest:
    """A hash of entries, column by column, so that it does not depend on how they are cut into tables."""

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}

    def update(self, entries: pa.Table) -> None:
        """Add entries."""
        for name in entries.column_names:
            values = "\0".join(map(repr, entries[name].to_pylist()))
            self._columns.setdefault(name, hashlib.sha256()).update(f"{values}\0".encode())

    def hexdigest(self) -> str:
        """Return the hash of all columns."""
        columns = {name: column.hexdigest() for name, column in self._columns.items()}
        return hashlib.sha256(json.dumps(columns).encode()).hexdigest()


def digest_of(entries: pa.Table) -> int:
    """Return a hash of 64 bits of the entries of a unit."""
    digest = Digest()
    digest.update(entries)
    return int(digest.hexdigest()[:16], 16)


def _group_of(entries: pa.Table) -> int:
    """Return a hash of the group that the first entry is in, 0 if it is in none.

    A range of a compressed shard, which can only be read from its start, is in a group with the others.
    """
    source = entries[SOURCE][0].as_py()
    if STOP in entries.column_names and GROUP not in entries.column_names:
        return int(hashed_ids([source])[0]) if is_compressed(source) else 0
    group = entries[GROUP][0].as_py() if GROUP in entries.column_names else None
    return 0 if group is None or group < 0 else int(hashed_ids([f"{group} {source}"])[0])


def cut(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Cut a stream of entries into units of up to `size`, and at first of fewer (`images_of_next_unit`).

    All but the last have as many as they may unless there are groups. A group that fits into a unit is not divided; a
    larger one gives units that begin with it.
    """
    limit = _Limit(size)
    unit: list[pa.Table] = []
    count = 0

    def closed() -> pa.Table:
        nonlocal unit, count
        whole, unit, count = pa.concat_tables(unit), [], 0
        limit.listed += len(whole)
        return whole

    for table, divisible in _pieces(tables, limit):
        while len(table):
            if count and not divisible and count + len(table) > limit.images:
                yield closed()
            unit.append(table.slice(0, limit.images - count))
            table = table.slice(limit.images - count)
            count += len(unit[-1])
            if count == limit.images:
                yield closed()
    if count:
        yield closed()


@dataclass(slots=True)
class _Limit:
    """How many images the next unit may have, which grows with those that are in units already."""

    size: int
    listed: int = 0

    @property
    def images(self) -> int:
        return images_of_next_unit(self.listed, self.size)


def _pieces(tables: Iterable[pa.Table], limit: _Limit) -> Iterator[tuple[pa.Table, bool]]:
    """Yield groups of entries, in pieces of up to the limit, and entries that are in none, which may be divided."""
    current: _Group | None = None
    held: list[pa.Table] = []
    count = 0
    for group, table in itertools.chain(_by_group(tables), [(None, None)]):
        if held and group != current:
            yield pa.concat_tables(held), False
            held, count = [], 0
        current = group
        if group is None:
            if table is not None:
                yield table, True
            continue
        held.append(table)
        count += len(table)
        while count > limit.images:
            whole = pa.concat_tables(held)
            piece = whole.slice(0, limit.images)
            held, count = [whole.slice(len(piece))], count - len(piece)
            yield piece, False


def _by_group(tables: Iterable[pa.Table]) -> Iterator[tuple[_Group | None, pa.Table]]:
    """Cut tables where another group begins; return it with each part, None for entries that are in none."""
    for table in tables:
        if GROUP not in table.column_names or not len(table):
            yield None, table
            continue
        groups = pc.fill_null(table[GROUP], -1).to_numpy()
        changes = groups[1:] != groups[:-1]
        changes |= (groups[1:] >= 0) & pc.not_equal(table[SOURCE][1:], table[SOURCE][:-1]).to_numpy()
        for start, stop in itertools.pairwise([0, *(np.flatnonzero(changes) + 1).tolist(), len(table)]):
            group = None if groups[start] < 0 else (table[SOURCE][start].as_py(), int(groups[start]))
            yield group, table.slice(start, stop - start)
