"""What a server shows: a version of its collection, and the pending writes on top, in memory."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa

from hashlight.engine.codes import IdArray
from hashlight.engine.collection.collection import Collection
from hashlight.engine.features import Features, joined
from hashlight.engine.storage.shard import Shard
from hashlight.engine.writing.pending import Pending, Rows

_numbers = itertools.count()


class Views:
    """Makes views of one version, each of more pending writes than the one before. Not thread-safe.

    Parameters
    ----------
    base : Collection
        Of format 2.
    """

    def __init__(self, base: Collection) -> None:
        self.base = base
        self._last: Collection | None = None
        # Rows whose attributes change, as the version has them: where each is among `_parts`, -1 if there is none.
        self._place_of: dict[int, int] = {}
        self._parts: list[Rows] = []
        self._num_rows = 0

    def has(self, ids_M: IdArray, pending: Pending) -> np.ndarray:
        """Return which ids (M,) are there once the writes are made."""
        put_M, gone_M = pending.has(ids_M)
        there_M = put_M.copy()
        if len(ask := np.flatnonzero(~put_M & ~gone_M)):
            there_M[ask] = self.base.has(ids_M[ask])
        return there_M

    def make(self, pending: Pending) -> Collection:
        """Return the version as it is with these writes.

        Raises
        ------
        CorruptDataError
            If a file of the version is missing or damaged.
        """
        moved = self._elsewhere(pending.changed)
        rows = pending.rows(moved)
        hidden = pending.hidden if moved is None else np.concatenate([pending.hidden, moved.ids])
        if not len(pending):
            return self.base
        added = None if rows is None else _shard_of(rows, self.base)
        self._last = self.base.overlaid(added, hidden, sequence=pending.last, reuse=self._last)
        return self._last

    def _elsewhere(self, ids: list[int]) -> Rows | None:
        """Return rows of the version, those of some ids that are there."""
        if new := [id_ for id_ in ids if id_ not in self._place_of]:
            self._read(np.array(new, np.int64))
        there = [id_ for id_ in ids if self._place_of[id_] >= 0]
        if not there:
            return None
        place_M = np.array([self._place_of[id_] for id_ in there])
        tables = [part.attributes for part in self._parts if part.attributes is not None]
        features = [part.features for part in self._parts if part.features is not None]
        chunks = [chunk for part in self._parts for chunk in part.thumbnails.chunks]
        return Rows(
            np.array(there, np.int64),
            np.concatenate([part.codes for part in self._parts])[place_M],
            pa.concat_tables(tables).take(pa.array(place_M)) if tables else None,
            joined(features).take(place_M) if features else None,
            pa.chunked_array(chunks, pa.binary()).take(pa.array(place_M)),
        )

    def _read(self, ids_M: IdArray) -> None:
        there_M = self.base.has(ids_M)
        self._place_of.update(dict.fromkeys(ids_M[~there_M].tolist(), -1))
        found_M = ids_M[there_M]
        if not len(found_M):
            return
        table = self.base.get(found_M)
        codes = b"".join(table["code"].to_pylist())
        names = self.base.schema.names
        self._parts.append(
            Rows(
                found_M,
                np.frombuffer(codes, "<u8").reshape(len(found_M), -1).astype(np.uint64),
                table.select(names) if names else None,
                self._features_of(found_M),
                pa.chunked_array([pa.array(self.base.thumbnails_of(found_M), pa.binary())]),
            )
        )
        self._place_of.update(zip(found_M.tolist(), range(self._num_rows, self._num_rows + len(found_M)), strict=True))
        self._num_rows += len(found_M)

    def _features_of(self, ids_M: IdArray) -> Features | None:
        base = self.base
        return None if base.num_features is None else Features.of(base.features_of(ids_M), base.features_as)


def _shard_of(rows: Rows, base: Collection) -> Shard:
    thumbnails = rows.thumbnails
    return Shard.in_memory(
        f"pending-{next(_numbers)}",
        rows.codes,
        rows.ids,
        rows.attributes,
        bits=base.bits,
        schema=base.schema,
        features=rows.features,
        thumbnails=None if thumbnails.null_count == len(thumbnails) else thumbnails.combine_chunks(),
    )
