# mypy: disable-error-code="no-untyped-def"
"""Checking the tables of a multi-index that were read from a file: no other kernel checks the bounds of what it reads.

The named tuples in `arguments` give the shape of each array.
"""

from __future__ import annotations

import numpy as np

from hashlight.engine.kernels.arguments import Rows, TableArrays
from hashlight.engine.kernels.compiling import kernel
from hashlight.engine.kernels.multi_index import code_sketch, code_substring, entry_place_row, same_code
from hashlight.engine.kernels.popcount import load_word


@kernel
def largest_bucket(rows_, tables_, table):
    """Return the size of a table's largest bucket, or -1 if the table is not what is built over these rows.

    Each entry must be in the bucket of its code and name the first row of that code, and the rows of a bucket ascend.
    So no code is listed twice; as there is one entry for each distinct code, none is missing.
    """
    rows, tables = Rows(*rows_), TableArrays(*tables_)
    begin = tables.begin_T[table]
    largest = np.int64(0)
    end = np.int64(0)
    if tables.offset_O[begin] != 0:
        return np.int64(-1)
    for value in range(1 << tables.width_T[table]):
        first = end
        end = np.int64(tables.offset_O[begin + value + 1])
        if end < first or end > tables.num_distinct:
            return np.int64(-1)
        before = np.int64(-1)
        for place in range(first, end):
            row = entry_place_row(tables, table, place)
            if row <= before or not belongs(rows, tables, table, place, row, value):
                return np.int64(-1)
            before = row
        largest = max(largest, end - first)
    return largest if end == tables.num_distinct else np.int64(-1)


@kernel
def belongs(rows, tables, table, place, row, value):
    """Tell whether the entry at `place`, which names `row`, belongs into bucket `value`."""
    if row >= rows.num_rows or (row > 0 and same_code(rows.code_bytes, rows.num_words, row - 1, row)):
        return False
    low, width = tables.low_T[table], tables.width_T[table]
    if code_substring(rows.code_bytes, rows.num_words, row, low, width) != value:
        return False
    if table == 0:  # which has no sketches
        return True
    word = load_word(tables.entry_bytes, (table - 1) * tables.num_distinct + place)
    sketch = code_sketch(rows.code_bytes, rows.num_words, row, tables.sketch_T4[table])
    return word >> np.uint64(tables.row_bits) == sketch
