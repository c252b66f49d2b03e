"""Compaction: shards that are small, or have many deleted rows, become one that has the rows that are left.

Ids stay. Attributes and thumbnails are streamed, and columns that were set later become the shard's own: what must fit
into memory, about three times, are the codes and ids of one new shard.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.collection.writing.policy import groups_of_all, groups_to_merge
from hashlight.engine.collection.writing.rows import Reader, column_of, live_rows
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import CollectionBusyError
from hashlight.engine.features import write_packed
from hashlight.engine.places.opening import open_target
from hashlight.engine.storage.attributes import BATCH_ROWS, AttributeFile, write_attributes
from hashlight.engine.storage.manifest import Manifest, ShardSpec
from hashlight.engine.storage.shard import (
    FEATURES_FILE,
    finish_shard,
    order_rows,
    write_codes,
    write_ids,
    write_thumbnails,
)
from hashlight.engine.storage.versions import read_current

logger = logging.getLogger(__name__)

_GATHERED_ROWS = 64 * BATCH_ROWS

T = TypeVar("T")

_Live = list[tuple[ShardSpec, NDArray[np.int64]]]


def _go_on() -> None:
    """Check nothing."""


class Compaction(NamedTuple):
    """What a compaction has done.

    Attributes
    ----------
    version : int
        The first that shows it; the live one if there was nothing to merge.
    before, after : int
        Shards that were merged, and what they have become.
    rows : int
        Written anew.
    """

    version: int
    before: int
    after: int
    rows: int


def compact(path: str | Path, *, full: bool = False) -> Compaction:
    """Merge the shards of a collection that are worth it, one group and one version after another.

    A group of which another process has replaced a shard meanwhile is left to the next compaction.

    Parameters
    ----------
    path : str or Path
    full : bool
        Merge all of them, up to the size that builds give them, so that nothing of deleted rows is left in the live
        version.
    """
    return joined([merge_group(path, names) for names in find_groups(path, full=full)], path)


def joined(done: Sequence[Compaction | None], path: str | Path) -> Compaction:
    """Return what the mergers of several groups have done together."""
    merged = [each for each in done if each is not None]
    if not merged:
        return Compaction(read_current(open_target(path)).version, 0, 0, 0)
    latest = max(each.version for each in merged)
    before, after, rows = (sum(counts) for counts in zip(*(each[1:] for each in merged), strict=True))
    return Compaction(latest, before, after, rows)


def find_groups(path: str | Path, *, full: bool = False) -> list[list[str]]:
    """Return the names of the shards of each group that `compact` would merge."""
    shards = read_current(open_target(path)).shards
    groups = groups_of_all(shards) if full else groups_to_merge(shards)
    return [[spec.name for spec in group] for group in groups]


def merge_group(
    path: str | Path,
    names: Sequence[str],
    *,
    check: Callable[[], None] = _go_on,
) -> Compaction | None:
    """Merge some shards into one, as a version of its own; None if another process has replaced one of them.

    Parameters
    ----------
    path : str or Path
    names : sequence of str
    check : callable
        Called again and again meanwhile. Whatever it raises ends the compaction, which leaves nothing.
    """
    with Transaction(path, leases=True) as change:
        live = change.live
        assert live is not None, "there is a live version, or beginning would have failed"
        old = [spec for spec in live.shards if spec.name in names]
        if len(old) < len(names):
            return None
        new = merge_shards(change, live, old, check=check)
        change.replace(old, [] if new is None else [new])
        try:
            done = change.commit()
        except CollectionBusyError as error:
            logger.info("%s", error)
            return None
    return Compaction(done.version, len(old), *((0, 0) if new is None else (1, new.rows)))


def merge_shards(
    change: Transaction, live: Manifest, specs: list[ShardSpec], *, check: Callable[[], None] = _go_on
) -> ShardSpec | None:
    """Write a shard with the live rows of others; None if there are none.

    Parameters
    ----------
    change : Transaction
    live : Manifest
        The version whose shards they are.
    specs : list of ShardSpec
    check : callable
        As in `merge_group`.
    """
    reader = change.reader
    rows = [(spec, live_rows(spec.rows, reader.dead(spec))) for spec in specs]
    rows = [(spec, rows_L) for spec, rows_L in rows if len(rows_L)]
    if not rows:
        return None
    ids_N = np.concatenate([reader.ids(spec)[rows_L] for spec, rows_L in rows])
    codes_NW = np.concatenate([reader.codes(spec)[rows_L] for spec, rows_L in rows])
    check()
    order_N = order_rows(codes_NW, ids_N)
    with change.new_shard() as folder:
        check()
        folder.mkdir(parents=True)
        write_ids(folder, ids_N[order_N])
        write_codes(folder, codes_NW[order_N], bits=live.bits, tables=any(spec.has_tables for spec in specs))
        check()
        del ids_N, codes_NW
        order_N = order_N.astype(np.uint32)
        if live.schema is not None:
            write_attributes(
                folder / "attributes.arrow", _checked(_attributes(reader, rows, live.schema), check), order_N
            )
        if live.features is not None:
            parts = _checked(_features(reader, rows, order_N), check)
            write_packed(folder / FEATURES_FILE, parts, live.features_as, len(order_N), live.features)
        if any(reader.thumbnails(spec) is not None for spec, _ in rows):
            write_thumbnails(folder, _checked(_thumbnails(reader, rows), check), order_N)
        check()
        return finish_shard(folder, len(order_N))


def _checked(parts: Iterable[T], check: Callable[[], None]) -> Iterator[T]:
    for part in parts:
        check()
        yield part


def _attributes(reader: Reader, rows: _Live, schema: pa.Schema) -> Iterator[pa.Table]:
    for spec, rows_L in rows:
        yield from _kept(reader.batches(spec, schema), rows_L, schema)


def _thumbnails(reader: Reader, rows: _Live) -> Iterator[pa.Table]:
    schema = pa.schema([("thumbnail", pa.binary())])
    for spec, rows_L in rows:
        yield from _kept(_pictures(reader.thumbnails(spec), spec.rows, schema), rows_L, schema)


def _pictures(file: AttributeFile | None, rows: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for start in range(0, rows, BATCH_ROWS):
        stop = min(start + BATCH_ROWS, rows)
        column = pa.nulls(stop - start) if file is None else column_of(file, "thumbnail", start, stop)
        yield pa.RecordBatch.from_arrays([column.cast(pa.binary())], schema=schema)


def _kept(batches: Iterator[pa.RecordBatch], rows_L: NDArray[np.int64], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of a shard that are left."""
    start = 0
    for batch in batches:
        first, last = np.searchsorted(rows_L, [start, start + len(batch)])
        if first < last:
            kept = batch if last - first == len(batch) else batch.take(pa.array(rows_L[first:last] - start))
            yield pa.Table.from_batches([kept], schema=schema)
        start += len(batch)


def _features(reader: Reader, rows: _Live, order_N: NDArray[np.integer[Any]]) -> Iterator[NDArray[Any]]:
    """Yield the features of the rows that are left, as they are kept, in their new order."""
    stored = [(reader.features(spec), rows_L) for spec, rows_L in rows]
    ends = np.cumsum([len(rows_L) for _, rows_L in rows])
    for start in range(0, len(order_N), _GATHERED_ROWS):
        part_P = order_N[start : start + _GATHERED_ROWS].astype(np.int64)
        shard_P = np.searchsorted(ends, part_P, side="right")
        found: NDArray[Any] | None = None
        for number, (features, rows_L) in enumerate(stored):
            here_P = shard_P == number
            assert features is not None, "a collection is written with features in all shards or none"
            if found is None:
                found = np.empty((len(part_P), features.packed.shape[1]), features.packed.dtype)
            found[here_P] = features.packed[rows_L[part_P[here_P] - (ends[number] - len(rows_L))]]
        assert found is not None, "there is a shard"
        yield found
