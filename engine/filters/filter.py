r"""Filters: a condition on attributes and ids, in SQL's syntax, that selects rows.

::

    label == 3 and price < 5.5 and kind in ("shoe", "bag") and not (uri like "%/2024/%") and id not in :seen

    condition := conjunction {"or" conjunction}
    conjunction := negation {"and" negation}
    negation := "not" negation | "(" condition ")" | predicate
    predicate := column ("==" | "=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") value
               | column ["not"] "in" "(" value {"," value} ")"
               | column ["not"] "in" parameter       for whole numbers
               | column ["not"] "like" string        % stands for any text, _ for one character; \ makes them plain
               | column "is" ["not"] "null"
               | value ["not"] "in" column           for columns that hold lists
    column := name | `name with any characters`
    value := number | "text" | 'text' | true | false
    parameter := :name

Keywords are case-insensitive. A quote inside a string, or a backtick inside a name, is doubled. As in SQL, a comparison
with null is neither true nor false, and a row matches only if the whole condition is true. The text is parsed here and
never evaluated as code.

`id` is the id of the row. A parameter is a list of whole numbers that is given beside the text: 100,000 ids of images
that were seen already, for example.

Values are compared exactly, whatever the attribute's type; see `engine.filters.kinds`. A number may have a fraction
or be beyond the type: `label < 3.5`, `label < 1e300`. It is rounded to the precision of a floating-point attribute.
Dates and times are written in ISO 8601: "2024-01-31", "2024-01-31T08:30:00.25", "08:30", durations as "P1DT12H"; a date
is its midnight. If the attribute has a time zone, one that is written without an offset is local time there.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.filters.arrays import matching_bits
from hashlight.engine.filters.evaluation import Columns, Ids, Rows
from hashlight.engine.filters.membership import Test
from hashlight.engine.filters.outcomes import TRUE, Blocks
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.filters.parsing import Parser
from hashlight.engine.filters.tokens import FilterError, check_unicode

__all__ = ["Filter", "FilterError"]

MAX_LENGTH = 10_000  # characters

_NO_ATTRIBUTES = pa.record_batch({})


class Filter:
    """A parsed filter over rows of one schema. Thread-safe.

    Parameters
    ----------
    text : str
    schema : pyarrow.Schema
        Names and types of the attributes, as they are stored.
    parameters : Parameters, optional
        The lists that the text names.

    Attributes
    ----------
    columns : tuple of str
        The attributes it reads.

    Raises
    ------
    FilterError
        If the text is not a condition, names an unknown attribute or parameter, or compares an attribute with a value
        of another type.
    ValueError
        If there are parameters that the text does not name.

    Examples
    --------
    >>> batch = pa.record_batch({"label": [3, 4, None], "kind": ["shoe", "bag", "bag"]})
    >>> Filter('label == 3 or kind = "bag" and label is null', batch.schema).outcome(batch).to_pylist()
    [True, False, True]
    """

    def __init__(self, text: str, schema: pa.Schema, parameters: Parameters | None = None) -> None:
        if not isinstance(text, str):
            raise TypeError(f"`filter` must be a string, got {type(text).__name__}")
        if len(text) > MAX_LENGTH:
            raise FilterError(f"expected at most {MAX_LENGTH} characters, got {len(text)}", MAX_LENGTH)
        check_unicode(text)
        self.text = text
        parser = Parser(text, schema, parameters)
        self._condition = parser.parse()
        self._on_ids = parser.on_ids
        self.columns = tuple(sorted(parser.columns))
        if unused := sorted(set(parameters or ()) - parser.used):
            raise ValueError(
                f"`parameters` has {', '.join(unused)}, which `filter` does not name: write `in :{unused[0]}`"
            )

    def mask(self, columns: Columns, ids: Ids | None = None) -> NDArray[np.uint8]:
        """Return whether each of N rows matches the condition.

        Blocks of rows of which the condition is known to be true, or never true, are not read.

        Parameters
        ----------
        columns : Columns
            The attributes of all rows.
        ids : Ids, optional
            The ids of the rows, if the text names `id`.

        Returns
        -------
        ndarray of uint8, shape (ceil(N / 8),)
            Row n is bit `n % 8` of byte `n // 8`; bits beyond the last row are 0.
        """
        blocks = columns.blocks(self.columns)
        outcomes_B = self._condition.outcomes(blocks)
        on_ids = [test(ids) for test in self._on_ids] if ids is not None else []
        words: dict[Test, NDArray[np.bool_]] = {}
        bits = np.zeros((int(blocks.rows.sum()) + 7) // 8, np.uint8)
        start = 0
        for number, (rows, outcomes) in enumerate(zip(blocks.rows.tolist(), outcomes_B.tolist(), strict=True)):
            stop = start + rows
            if outcomes == TRUE:
                bits[start // 8 : (stop + 7) // 8] = np.packbits(np.ones(rows, np.bool_), bitorder="little")
            elif outcomes & TRUE and self.columns:
                for read in columns.read(number, self.columns):
                    self._write(bits, start, len(read), Rows(read, on_ids, words))
                    start += len(read)
            elif outcomes & TRUE:
                self._write(bits, start, rows, Rows(_NO_ATTRIBUTES, on_ids, words))
            start = stop
        return bits

    def outcomes(self, blocks: Blocks) -> NDArray[np.uint8]:
        """Return what the condition can come to in each block; see `engine.filters.outcomes`."""
        return self._condition.outcomes(blocks)

    def _write(self, bits: NDArray[np.uint8], start: int, num_rows: int, rows: Rows) -> None:
        """Write the bits of some rows, from `start` on."""
        on_ids = [outcome.slice(start, num_rows) for outcome in rows.on_ids]
        found = matching_bits(self._condition.test(rows._replace(on_ids=on_ids)))
        bits[start // 8 : start // 8 + len(found)] = found

    def outcome(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        """Return for each row of a batch whether it matches: true, false or null. The text must not name `id`."""
        return self._condition.test(Rows(batch, [], {}))
