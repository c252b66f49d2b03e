"""Rows of a source in a collection, a new one or one that is there.

They become shards of a bounded number of rows, written one after another.

Of a shard that is being gathered, codes and ids are in memory; attributes, features and thumbnails wait in temporary
files, because they may be many times as long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from hashlight.engine.codes import CodeArray, IdArray, as_integer
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.transaction import Commit, Transaction
from hashlight.engine.exchange.rows import Incoming, Rows
from hashlight.engine.features import FeatureKind, Features, from_bytes
from hashlight.engine.ids import RepeatedIds, next_ids, refuse_repeated
from hashlight.engine.indexes.base import MAX_ROWS
from hashlight.engine.places.arrays import map_file
from hashlight.engine.storage.manifest import Manifest, ShardSpec
from hashlight.engine.storage.shard import write_shard
from hashlight.engine.wording import counted

SHARD_ROWS = 5_000_000


def import_rows(path: str | Path, source: Incoming, *, shard_rows: int | None, tables: bool, overwrite: bool) -> None:
    """Write all rows of a source as a new collection.

    Parameters
    ----------
    path : str or Path
    source : Incoming
    shard_rows : int, optional
        Maximum rows of a shard; 5 million by default.
    tables : bool
        Build the multi-index of each shard.
    overwrite : bool
        Replace an existing collection.

    Raises
    ------
    ValueError
        If there are no rows, or an id occurs more than once.
    """
    shard_rows = _check_shard_rows(shard_rows)
    with Transaction(path, fresh=Fresh(source.bits, source.fingerprint, overwrite), tables=tables) as writer:
        writer.adopt(_write_shards(writer, source, shard_rows=shard_rows, tables=tables))
        writer.commit()


def add_rows(
    path: str | Path,
    read: Callable[[Manifest], Incoming],
    *,
    upsert: bool = False,
    number: bool = False,
    shard_rows: int | None = None,
    tables: bool = True,
) -> Commit:
    """Add all rows of a source to a collection.

    Parameters
    ----------
    path : str or Path
    read : callable
        Returns the source, given the live version, whose bits its codes have, and what features are kept as.
    upsert : bool
        Replace the rows that have their ids.
    number : bool
        Give them the next ids, in their order, and not those of the source, which are the row numbers.
    shard_rows, tables
        As in `import_rows`.

    Raises
    ------
    ValueError
        If there are no rows, an id occurs more than once or is there already, or the collection does not have an
        attribute.
    EncoderMismatchError
        If they are codes of another length, or, as far as the source says, of another encoder.
    """
    shard_rows = _check_shard_rows(shard_rows)
    if upsert and number:
        raise ValueError("give `upsert` or `number`: rows with new ids replace none")
    with Transaction(path, tables=tables) as writer:
        live = writer.live
        assert live is not None, "there is a live version, or beginning would have failed"
        source = read(live)
        writer.require(bits=source.bits, encoder=source.fingerprint or live.encoder)
        if number:
            source = dataclasses.replace(source, rows=_numbered(source.rows, live.next_id))
        shards = _write_shards(writer, source, shard_rows=shard_rows, tables=tables)
        writer.adopt(shards, checked=False, upsert=upsert, numbered_from=live.next_id if number else None)
        return writer.commit()


def _numbered(rows: Iterator[Rows], first: int) -> Iterator[Rows]:
    for part in rows:
        next_ids(first + int(part.ids[0]) - 1, len(part))
        yield dataclasses.replace(part, ids=part.ids + first)


def _check_shard_rows(shard_rows: int | None) -> int:
    shard_rows = SHARD_ROWS if shard_rows is None else as_integer(shard_rows, "shard_rows")
    if not 1 <= shard_rows <= MAX_ROWS:
        raise ValueError(f"`shard_rows` must be 1 to {MAX_ROWS}, got {shard_rows}")
    return shard_rows


def _write_shards(writer: Transaction, source: Incoming, *, shard_rows: int, tables: bool) -> list[ShardSpec]:
    """Write the rows of a source, whose ids are distinct, as shards."""
    rows, shards = 0, list[ShardSpec]()
    with RepeatedIds() as ids:
        for shard in _cut(source.rows, shard_rows):
            with contextlib.closing(_Gathered()) as gathered:
                for part in shard:
                    ids.add(part.ids)
                    gathered.add(part)
                rows += gathered.rows
                shards.append(gathered.write(writer, bits=source.bits, tables=tables))
        if not rows:
            raise ValueError("the source has no rows, expected at least 1")
        refuse_repeated(ids.find(), where=counted(rows, "row"))
    return shards


def _cut(rows: Iterator[Rows], shard_rows: int) -> Iterator[Iterator[Rows]]:
    """Yield the rows of each shard, which must be used up before the next."""
    waiting = [part for part in [next(rows, None)] if part is not None]

    def one_shard() -> Iterator[Rows]:
        left = shard_rows
        while waiting and left:
            part = waiting.pop()
            if len(part) > left:
                waiting.append(part.part(left, len(part)))
                part = part.part(0, left)
            elif (following := next(rows, None)) is not None:
                waiting.append(following)
            left -= len(part)
            yield part

    while waiting:
        yield one_shard()


class _Gathered:
    """The rows of one shard, as far as they have come."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hashlight-import-")
        self._codes: list[CodeArray] = []
        self._ids: list[IdArray] = []
        self._attributes: _Aside | None = None
        self._thumbnails: _Aside | None = None
        self._kind: FeatureKind | None = None
        self._dimensions = 0
        self.rows = 0

    def close(self) -> None:
        """Remove the temporary files."""
        self._folder.cleanup()

    def _path(self, name: str) -> Path:
        return Path(self._folder.name, name)

    def add(self, rows: Rows) -> None:
        """Add rows of the same kind as those before."""
        self.rows += len(rows)
        self._codes.append(rows.codes)
        self._ids.append(rows.ids)
        if rows.attributes is not None:
            self._attributes = self._attributes or _Aside(self._path("attributes"), rows.attributes.schema)
            self._attributes.add(rows.attributes)
        if rows.thumbnails is not None:
            batch = pa.RecordBatch.from_arrays([rows.thumbnails], ["thumbnail"])
            self._thumbnails = self._thumbnails or _Aside(self._path("thumbnails"), batch.schema)
            self._thumbnails.add(batch)
        if rows.features is not None:
            self._kind, self._dimensions = rows.features.kind, rows.features.shape[1]
            with self._path("features").open("ab") as file:
                file.write(np.ascontiguousarray(rows.features.packed).data)

    def write(self, writer: Transaction, *, bits: int, tables: bool) -> ShardSpec:
        """Write the shard."""
        with writer.new_shard() as folder:
            spec = write_shard(
                folder,
                np.concatenate(self._codes),
                np.concatenate(self._ids),
                None if self._attributes is None else self._attributes.tables(),
                bits=bits,
                tables=tables,
                features=self._features(),
                thumbnails=None if self._thumbnails is None else self._thumbnails.tables(),
            )
        writer.check_shard(spec)
        return spec

    def _features(self) -> Features | None:
        if self._kind is None:
            return None
        return from_bytes(map_file(self._path("features"), at_random=True), self._kind, self._dimensions)


class _Aside:
    """Record batches in a temporary file: written, then read once."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pyarrow.ipc.new_stream(self._sink, schema)

    def add(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def tables(self) -> Iterator[pa.Table]:
        self._writer.close()
        self._sink.close()
        with pa.OSFile(str(self._path)) as source, pyarrow.ipc.open_stream(source) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
