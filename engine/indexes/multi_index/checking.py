"""Checks that tables belong to the codes beside them: all of them, or a few rows in every table."""

from __future__ import annotations

import numpy as np

from hashlight.engine.codes import WORD_BITS, CodeArray
from hashlight.engine.indexes.arrays import bytes_of, read_only
from hashlight.engine.indexes.multi_index.tables import Tables
from hashlight.engine.kernels.arguments import Rows
from hashlight.engine.kernels.checking import largest_bucket
from hashlight.engine.kernels.multi_index import mark_distinct

ROWS_CHECKED = 8
NO_IDS = read_only(np.empty(0, np.int64))


def find_wrong(tables: Tables, codes_NW: CodeArray) -> str | None:
    """Compare every entry of the tables with the codes; takes about as long as hashing the files.

    Parameters
    ----------
    tables : Tables
        Of consistent shapes, as `Tables.open` maps them; their contents are not trusted.
    codes_NW : ndarray of uint64, shape (N, W)
        Sorted, as for `Tables.build`.

    Returns
    -------
    str or None
        What is wrong; None if the tables are what `Tables.build` makes.
    """
    code_bytes, (num_rows, num_words) = bytes_of(codes_NW), codes_NW.shape
    distinct = mark_distinct(code_bytes, num_words, num_rows, np.empty(0, np.uint32))
    if distinct != tables.distinct:
        return f"they list {tables.distinct} distinct codes, the shard has {distinct}"
    rows, arrays = tuple(Rows(code_bytes, NO_IDS, num_words, num_rows)), tuple(tables.kernel_arrays())
    for table, largest in enumerate(tables.largest):
        if largest_bucket(rows, arrays, table) != largest:
            return f"table {table} does not list the codes of the shard"
    return None


def find_missing(tables: Tables, codes_NW: CodeArray) -> str | None:
    """Look for a few codes, evenly spread, in the bucket of each table that should list them.

    It reads the arrays directly, because a search would not notice a wrong table as long as another one lists the code.

    Parameters
    ----------
    tables : Tables
    codes_NW : ndarray of uint64, shape (N, W)
        Sorted, as for `Tables.build`.

    Returns
    -------
    str or None
        Which code is missing where; None if all are found.
    """
    arrays = tables.kernel_arrays()
    for row in np.unique(np.linspace(0, max(len(codes_NW) - 1, 0), ROWS_CHECKED).astype(int))[: len(codes_NW)].tolist():
        first = _first_of_run(codes_NW, row)
        code = _as_integer(codes_NW[row])
        for table, (low, width) in enumerate(zip(arrays.low_T.tolist(), tables.widths, strict=True)):
            bucket = int(arrays.begin_T[table]) + ((code >> low) & ((1 << width) - 1))
            begin, end = arrays.offset_O[bucket : bucket + 2].tolist()
            if table == 0:
                rows = tables.starts[begin:end] if len(tables.starts) else np.arange(begin, end)
                found = bool((rows == first).any())
            else:
                skipped = (table - 1) * tables.distinct
                sketch = _sketch(code, arrays.sketch_T4[table].tolist())
                found = first | sketch << tables.row_bits in tables.entries[skipped + begin : skipped + end].tolist()
            if not found:
                return f"the code of row {row} is missing in table {table}"
    return None


def _sketch(code: int, runs: list[int]) -> int:
    """Return the bits of a code that a sketch holds; `runs` is a row of `TableArrays.sketch_T4`."""
    above_low, above_width, below_low, below_width = runs
    above = (code >> above_low) & ((1 << above_width) - 1)
    return above | ((code >> below_low) & ((1 << below_width) - 1)) << above_width


def _first_of_run(codes_NW: CodeArray, row: int) -> int:
    """Return the first row with the code of `row`; equal codes are adjacent."""
    low, high = 0, row
    while low < high:
        middle = (low + high) // 2
        if np.array_equal(codes_NW[middle], codes_NW[row]):
            high = middle
        else:
            low = middle + 1
    return low


def _as_integer(code_W: CodeArray) -> int:
    return sum(int(word) << (WORD_BITS * number) for number, word in enumerate(code_W))
