"""The attributes of each row (URI, labels, anything), as an Arrow IPC file read by row number.

Batches of 1,024 rows, each buffer compressed: measured on 2 million URIs with a label (`benchmarks/attributes.py`), 5.2
bytes a row, 0.16 ms to open and 2.1 ms for 10 scattered rows. Parquet with row groups of the same size took 4.2 bytes,
2.6 ms, and 2.8 ms to open, growing with the rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from hashlight.engine.errors import CorruptDataError
from hashlight.engine.filters.filter import Filter
from hashlight.engine.places.arrays import map_file

# Names that no attribute may have, because answers have columns of these names.
RESERVED = frozenset({"id", "code", "query", "distance"})

_BATCH_ROWS = 1024
_COPIED_ROWS = 64 * _BATCH_ROWS
_COMPRESSED = pyarrow.ipc.IpcWriteOptions(compression="zstd")
_PLAIN = pyarrow.ipc.IpcWriteOptions()

_REMEDY = "restore it from a copy, or build the collection again"


def write_attributes(
    path: Path, table: pa.Table, order_N: NDArray[np.integer[Any]], *, compressed: bool = True
) -> None:
    """Write the rows of `table` in the order of the shard's rows: row n of the file is row `order_N[n]`.

    Pictures are already compressed; `compressed=False` stores them as they are, so that reading one does not
    decompress a whole batch.
    """
    table = table.combine_chunks()
    options = _COMPRESSED if compressed else _PLAIN
    with pa.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema, options=options) as writer:
        for start in range(0, len(order_N), _COPIED_ROWS):
            part = table.take(pa.array(order_N[start : start + _COPIED_ROWS]))
            writer.write_table(part.combine_chunks(), max_chunksize=_BATCH_ROWS)


def check_attributes(path: Path, rows: int) -> pa.Schema:
    """Check every value of an attribute file, which Arrow trusts when it reads one; return the schema.

    Parameters
    ----------
    path : Path
    rows : int
        The shard's; row n must be row `n % 1024` of batch `n // 1024`.

    Raises
    ------
    CorruptDataError
        If the file cannot be read, or its rows are not the shard's.
    """
    expected = [min(_BATCH_ROWS, rows - start) for start in range(0, rows, _BATCH_ROWS)]
    try:
        reader = pyarrow.ipc.open_file(map_file(path))
        names = reader.schema.names  # fails if one is not UTF-8
        got = [0] * reader.num_record_batches
        for number in range(len(got)):
            batch = reader.get_batch(number)
            batch.validate(full=True)
            got[number] = batch.num_rows
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
        raise CorruptDataError(f"{path} is not readable as attributes ({error}): {_REMEDY}") from error
    if got != expected:
        wrong = next((n for n, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), len(expected))
        raise CorruptDataError(
            f"{path}: expected {rows} rows in {len(expected)} batches of {_BATCH_ROWS}, got {sum(got)} rows in "
            f"{len(got)} batches ({', '.join(names)}), of which batch {wrong} is the first of another length: {_REMEDY}"
        )
    return reader.schema


class AttributeFile:
    """Mapped attributes of one shard. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = pyarrow.ipc.open_file(pa.memory_map(str(path)))

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the attributes."""
        return self._reader.schema

    def take(self, rows_N: NDArray[np.int64]) -> pa.Table:
        """Return the attributes of `rows_N`, in that order, as a table of N rows."""
        batches = {number: self._reader.get_batch(number) for number in set((rows_N // _BATCH_ROWS).tolist())}
        picked = [batches[row // _BATCH_ROWS].slice(row % _BATCH_ROWS, 1) for row in rows_N.tolist()]
        return pa.Table.from_batches(picked, schema=self.schema)

    def mask(self, text: str) -> NDArray[np.bool_]:
        """Return which rows match a filter (see `engine.filters.filter`), reading only the attributes that it names.

        Raises
        ------
        FilterError
            If the filter is not a condition on these attributes.
        """
        parsed = Filter(text, self.schema)
        fields = [self.schema.get_field_index(name) for name in parsed.columns]
        options = pyarrow.ipc.IpcReadOptions(included_fields=fields)
        reader = pyarrow.ipc.open_file(pa.memory_map(str(self._path)), options=options)
        return parsed.mask(reader.get_batch(number) for number in range(reader.num_record_batches))
