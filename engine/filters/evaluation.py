"""Evaluating a filter on some rows of a shard: logic, lists and patterns, with SQL's nulls."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hashlight.engine.filters.kinds import Test


class Ids(Protocol):
    """The ids of a shard's rows."""

    @property
    def ids_N(self) -> NDArray[np.int64]:  # noqa: N802 - the shape is part of the name
        """Id of each row."""
        ...

    def rows_of(self, ids_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each id, -1 for those that are not in this shard."""
        ...


class Rows(NamedTuple):
    """Some rows of a shard.

    Attributes
    ----------
    attributes : pyarrow.RecordBatch
        The attributes that the filter names; without rows if it names none.
    on_ids : list of pyarrow.BooleanArray
        For each condition on ids, whether these rows meet it.
    """

    attributes: pa.RecordBatch
    on_ids: list[pa.Array]


Condition = Callable[[Rows], pa.Array]

_INT64 = np.iinfo(np.int64)


def join(combine: Callable[[Any, Any], pa.Array], conditions: list[Condition]) -> Condition:
    """Join conditions row by row, with nulls as in SQL."""
    if len(conditions) == 1:
        return conditions[0]
    return lambda rows: functools.reduce(combine, (condition(rows) for condition in conditions))


def negate(condition: Condition) -> Condition:
    """Negate a condition; null stays null."""
    return lambda rows: pc.invert(condition(rows))


def holds(equal: Test) -> Test:
    """Return whether a list holds a value that is `equal`; null where there is no list."""

    def test(lists: pa.Array) -> pa.Array:
        # Without the nulls, because a list that is null may have values.
        valid_N = lists.is_valid().to_numpy(zero_copy_only=False)
        stored = lists.drop_null()
        equal_V = matches(equal(pc.list_flatten(stored)))
        there_M = np.zeros(len(stored), np.bool_)
        there_M[pc.list_parent_indices(stored).to_numpy()[equal_V]] = True
        found_N = np.zeros(len(lists), np.bool_)
        found_N[valid_N] = there_M
        return pa.array(found_N, mask=~valid_N)

    return test


def is_among(values_M: NDArray[np.int64], kind: pa.DataType) -> Test:
    """Return whether a stored whole number of type `kind` is one of `values_M`, which ascend."""
    dtype = np.dtype(kind.to_pandas_dtype())
    least, most = max(np.iinfo(dtype).min, _INT64.min), min(np.iinfo(dtype).max, _INT64.max)
    accepted_M = values_M[(values_M >= least) & (values_M <= most)].astype(dtype)

    def test(stored: pa.Array) -> pa.Array:
        stored_N = pc.fill_null(stored, 0).to_numpy()
        found_N = np.zeros(len(stored_N), np.bool_)
        if len(accepted_M):
            place_N = np.minimum(np.searchsorted(accepted_M, stored_N), len(accepted_M) - 1)
            found_N = accepted_M[place_N] == stored_N
        return pa.array(found_N, mask=stored.is_null().to_numpy(zero_copy_only=False))

    return test


def has_id_among(values_M: NDArray[np.int64]) -> Callable[[Ids], pa.Array]:
    """Return whether the id of a row is one of `values_M`, at the cost of finding those in the shard."""

    def test(ids: Ids) -> pa.Array:
        rows_M = ids.rows_of(values_M)
        found_N = np.zeros(len(ids.ids_N), np.bool_)
        found_N[rows_M[rows_M >= 0]] = True
        return pa.array(found_N)

    return test


def is_like(pattern: str) -> Test:
    r"""Return whether text matches a pattern: % stands for any text, _ for one character, \ makes the next one plain.

    Raises
    ------
    ValueError
        If \ is not followed by %, _ or \.
    """
    # Arrow's own `match_like` takes \ for itself or for an escape, depending on the rest of the pattern.
    parts = re.findall(r"\\[%_\\]|[^\\]", pattern, re.DOTALL)
    if "".join(parts) != pattern:
        raise ValueError(r"in a pattern, \ must be followed by %, _ or \: write \\ for itself")
    wild = {"%": ".*", "_": "."}
    expression = "".join(wild.get(part) or re.escape(part[-1]) for part in parts)
    # An expression that is searched for, not matched, needs no `.*` at its ends, and is faster without.
    start, end = parts[:1] == ["%"], parts[-1:] == ["%"]
    expression = f"(?s){'' if start else '^'}{expression[2 * start : len(expression) - 2 * end]}{'' if end else '$'}"
    return lambda stored: pc.match_substring_regex(stored, pattern=expression)


def matches(outcome: pa.Array) -> NDArray[np.bool_]:
    """Return which rows are true, and not false or null."""
    return np.asarray(pc.fill_null(outcome, False).to_numpy(zero_copy_only=False), np.bool_)
