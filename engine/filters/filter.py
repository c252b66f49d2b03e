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

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.filters.evaluation import Ids, Rows, matches
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.filters.parsing import Parser
from hashlight.engine.filters.tokens import FilterError

__all__ = ["Filter", "FilterError", "MaskCache"]

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
    >>> Filter('label == 3 or kind = "bag" and label is null', batch.schema).mask([batch]).tolist()
    [True, False, True]
    """

    def __init__(self, text: str, schema: pa.Schema, parameters: Parameters | None = None) -> None:
        if not isinstance(text, str):
            raise TypeError(f"`filter` must be a string, got {type(text).__name__}")
        if len(text) > MAX_LENGTH:
            raise FilterError(f"expected at most {MAX_LENGTH} characters, got {len(text)}", MAX_LENGTH)
        self.text = text
        parser = Parser(text, schema, parameters)
        self._condition = parser.parse()
        self._on_ids = parser.on_ids
        self.columns = tuple(sorted(parser.columns))
        if unused := sorted(set(parameters or ()) - parser.used):
            raise ValueError(
                f"`parameters` has {', '.join(unused)}, which `filter` does not name: write `in :{unused[0]}`"
            )

    def mask(self, batches: Iterable[pa.RecordBatch], ids: Ids | None = None) -> NDArray[np.bool_]:
        """Return whether each row matches the condition.

        Parameters
        ----------
        batches : iterable of pyarrow.RecordBatch
            All rows, with the attributes of `columns`; not read if there are none.
        ids : Ids, optional
            The ids of the rows, if the text names `id`.
        """
        on_ids = [test(ids) for test in self._on_ids] if ids is not None else []
        if not self.columns:
            return matches(self._condition(Rows(_NO_ATTRIBUTES, on_ids)))
        parts, start = [np.zeros(0, np.bool_)], 0
        for batch in batches:
            rows = Rows(batch, [outcome.slice(start, len(batch)) for outcome in on_ids])
            parts.append(matches(self._condition(rows)))
            start += len(batch)
        return np.concatenate(parts)


class MaskCache:
    """A cache of row masks by (owner, filter); beyond `max_bytes` the least recently used are dropped."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._masks: OrderedDict[tuple[str, str], NDArray[np.bool_]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, owner: str, text: str, make: Callable[[], NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Return the mask of `text` over `owner`, computed if it is not cached."""
        key = (owner, text)
        with self._lock:
            if key in self._masks:
                self._masks.move_to_end(key)
                return self._masks[key]
        mask = make()
        mask.setflags(write=False)
        with self._lock:
            if key not in self._masks and mask.nbytes <= self._max_bytes:
                self._masks[key] = mask
                self._bytes += mask.nbytes
                while self._bytes > self._max_bytes:
                    self._bytes -= self._masks.popitem(last=False)[1].nbytes
        return mask
