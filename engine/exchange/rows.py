"""Rows on their way into a collection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.features import FeatureKind, Features


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a source.

    Attributes
    ----------
    codes : ndarray of uint64, shape (N, W)
    ids : ndarray of int64, shape (N,)
        0 or more; whether they are distinct is not known yet.
    attributes : pyarrow.RecordBatch or None
        N rows.
    features : Features of N rows, or None
    thumbnails : pyarrow.Array or None
        N pictures, binary, null where there is none.
    """

    codes: CodeArray
    ids: IdArray
    attributes: pa.RecordBatch | None = None
    features: Features | None = None
    thumbnails: pa.Array | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    def part(self, start: int, stop: int) -> Rows:
        """Return rows `start` to `stop`, without a copy."""
        rows = stop - start
        return Rows(
            self.codes[start:stop],
            self.ids[start:stop],
            None if self.attributes is None else self.attributes.slice(start, rows),
            None if self.features is None else self.features.take(slice(start, stop)),
            None if self.thumbnails is None else self.thumbnails.slice(start, rows),
        )


@dataclass(frozen=True, slots=True)
class Incoming:
    """What a source holds.

    Attributes
    ----------
    bits : int
        True number of bits of a code.
    fingerprint : str or None
        Of the encoder that made the codes, if the source says.
    rows : iterator of Rows
        All of the same kind; read once.
    features_as : {"float16", "bfloat16", "int8"} or None
        What their features are rounded to; None without features.
    """

    bits: int
    fingerprint: str | None
    rows: Iterator[Rows]
    features_as: FeatureKind | None = None


def cut_rows(rows: Rows, batch_rows: int) -> Iterator[Rows]:
    """Yield rows in runs of at most `batch_rows`."""
    for start in range(0, len(rows), batch_rows):
        yield rows.part(start, min(start + batch_rows, len(rows)))
