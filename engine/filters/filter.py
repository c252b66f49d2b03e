"""Filters: a condition on attributes, in SQL's syntax, that selects rows.

::

    label == 3 and price < 5.5 and kind in ("shoe", "bag") and not (uri like "%/2024/%") and note is not null

    condition := conjunction {"or" conjunction}
    conjunction := negation {"and" negation}
    negation := "not" negation | "(" condition ")" | predicate
    predicate := column ("==" | "=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") value
               | column ["not"] "in" "(" value {"," value} ")"
               | column ["not"] "like" string        % stands for any text, _ for one character
               | column "is" ["not"] "null"
               | value ["not"] "in" column           for columns that hold lists
    column := name | `name with any characters`
    value := number | "text" | 'text' | true | false

Keywords are case-insensitive. A quote inside a string is doubled, as in SQL. Dates and times are compared with ISO 8601
strings. As in SQL, a comparison with null is neither true nor false, and a row matches only if the whole condition is
true. The text is parsed here and never evaluated as code.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hashlight.engine.filters.parsing import Parser
from hashlight.engine.filters.tokens import FilterError

__all__ = ["Filter", "FilterError", "MaskCache"]

MAX_LENGTH = 10_000  # characters


class Filter:
    """A parsed filter over rows of one schema. Thread-safe.

    Parameters
    ----------
    text : str
    schema : pyarrow.Schema
        Names and types of the attributes.

    Attributes
    ----------
    columns : tuple of str
        The attributes it reads.

    Raises
    ------
    FilterError
        If the text is not a condition, names an unknown attribute, or compares one with a value of another type.

    Examples
    --------
    >>> batch = pa.record_batch({"label": [3, 4, None], "kind": ["shoe", "bag", "bag"]})
    >>> Filter('label == 3 or kind = "bag" and label is null', batch.schema).mask([batch]).tolist()
    [True, False, True]
    """

    def __init__(self, text: str, schema: pa.Schema) -> None:
        if not isinstance(text, str):
            raise TypeError(f"`filter` must be a string, got {type(text).__name__}")
        if len(text) > MAX_LENGTH:
            raise FilterError(f"expected at most {MAX_LENGTH} characters, got {len(text)}", MAX_LENGTH)
        self.text = text
        parser = Parser(text, schema)
        self._condition = parser.parse()
        self.columns = tuple(sorted(parser.columns))

    def mask(self, batches: Iterable[pa.RecordBatch]) -> NDArray[np.bool_]:
        """Return whether each row of the concatenated batches matches the condition."""
        parts = [
            pc.fill_null(self._condition(batch), False).to_numpy(zero_copy_only=False).astype(np.bool_)
            for batch in batches
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.bool_)


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
