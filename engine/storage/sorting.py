"""Rows of any size put in order, a bounded part of them in memory: an external merge sort, whose order is known.

Rows come in runs of a bounded size. Each run is sorted by where its rows belong and, unless it is the only one, put
aside in a temporary file, which is mapped. Then every stretch of the result is gathered from all runs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from hashlight.engine.storage.columns import as_stored

# Bytes of a run: sorting holds it three times. A 2 GiB column becomes 32 runs.
_RUN_BYTES = 64 * 2**20
_MAX_ROWS = 65_536


def sort_rows_aside(
    tables: Iterable[pa.Table], order_N: NDArray[np.integer[Any]], schema: pa.Schema, *, batch_rows: int, folder: Path
) -> Iterator[pa.RecordBatch]:
    """Yield rows in another order, in the types that they are stored in, `batch_rows` at a time.

    Parameters
    ----------
    tables : iterable of pyarrow.Table
        N rows in all; read once.
    order_N : ndarray of integers, shape (N,)
        Row n of the result is row `order_N[n]`.
    schema : pyarrow.Schema
        Of the result: what `stored_schema` gives.
    folder : Path
        For the temporary file.

    Raises
    ------
    ValueError
        If a batch has more text or bytes in a column than Arrow can address.
    """
    place_N = np.empty(len(order_N), np.uint32)
    place_N[order_N] = np.arange(len(order_N), dtype=np.uint32)
    descriptor, aside = tempfile.mkstemp(dir=folder, prefix=".sorting-")
    os.close(descriptor)
    try:
        runs = _sorted_runs(tables, place_N, schema, batch_rows, Path(aside))
        for start in range(0, len(order_N), _MAX_ROWS // batch_rows * batch_rows):
            stop = min(start + _MAX_ROWS // batch_rows * batch_rows, len(order_N))
            yield from _gathered(runs, start, stop, batch_rows)
    finally:
        # Who failed to write the rows may have removed the folder before.
        Path(aside).unlink(missing_ok=True)


class _Run:
    """Some rows, sorted by their place in the result."""

    def __init__(self, rows: pa.RecordBatch, place_M: NDArray[np.uint32]) -> None:
        self.rows, self.place_M = rows, place_M

    def between(self, start: int, stop: int) -> tuple[pa.RecordBatch, NDArray[np.uint32]]:
        """Return the rows whose place is within `start` to `stop`, and their places."""
        first, last = np.searchsorted(self.place_M, [start, stop])
        return self.rows.slice(first, last - first), self.place_M[first:last]


def _sorted_runs(
    tables: Iterable[pa.Table], place_N: NDArray[np.uint32], schema: pa.Schema, batch_rows: int, aside: Path
) -> list[_Run]:
    places: list[NDArray[np.uint32]] = []
    first, done = None, 0
    with pa.OSFile(str(aside), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
        for waiting in _cut_into_runs(tables, schema, batch_rows):
            rows = _joined(waiting)
            place_M = place_N[done : done + len(rows)]
            order_M = np.argsort(place_M)
            done += len(rows)
            places.append(place_M[order_M])
            rows = rows.take(pa.array(order_M))
            if first is None:
                first = rows
                continue
            if len(places) == 2:
                writer.write_batch(first)
            writer.write_batch(rows)
    if len(places) == 1:
        return [_Run(first, places[0])]
    reader = pyarrow.ipc.open_file(pa.memory_map(str(aside)))
    return [_Run(reader.get_batch(number), place_M) for number, place_M in enumerate(places)]


def _cut_into_runs(tables: Iterable[pa.Table], schema: pa.Schema, batch_rows: int) -> Iterator[list[pa.RecordBatch]]:
    waiting: list[pa.RecordBatch] = []
    waiting_bytes = 0
    for table in tables:
        for part in table.to_batches(max_chunksize=batch_rows):
            batch = as_stored(part, schema)
            if waiting and waiting_bytes + batch.nbytes > _RUN_BYTES:
                yield waiting
                waiting, waiting_bytes = [], 0
            waiting.append(batch)
            waiting_bytes += batch.nbytes
    if waiting:
        yield waiting


def _gathered(runs: list[_Run], start: int, stop: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows from `start` to `stop` of the result."""
    found = [run.between(start, stop) for run in runs]
    batches = [rows for rows, _ in found if len(rows)]
    if stop - start > batch_rows and sum(rows.nbytes for rows in batches) > _RUN_BYTES:
        middle = start + max(1, (stop - start) // batch_rows // 2) * batch_rows
        yield from _gathered(runs, start, middle, batch_rows)
        yield from _gathered(runs, middle, stop, batch_rows)
        return
    rows = _joined(batches).take(pa.array(np.argsort(np.concatenate([place_M for _, place_M in found]))))
    for first in range(0, len(rows), batch_rows):
        yield rows.slice(first, batch_rows)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    try:
        return pa.concat_batches(batches)
    except pa.ArrowInvalid as error:
        rows = sum(map(len, batches))
        raise ValueError(
            f"`attributes` have more text or bytes in {rows} rows than the 2 GiB that Arrow can address ({error}): "
            "store long values elsewhere, and where they are as an attribute"
        ) from error
