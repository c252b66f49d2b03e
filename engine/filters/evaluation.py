"""Evaluating a filter on some rows of a shard: logic, lists and patterns, with SQL's nulls."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hashlight.engine.filters.arrays import as_outcome, matches, numbers_of
from hashlight.engine.filters.membership import Test
from hashlight.engine.filters.outcomes import Blocks, Outcomes, anything, both, either, of_nulls, opposite


class Ids(Protocol):
    """The ids of a shard's rows."""

    @property
    def ids_N(self) -> NDArray[np.int64]:  # noqa: N802 - the shape is part of the name
        """Id of each row."""
        ...

    def rows_of(self, ids_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each id, -1 for those that are not in this shard."""
        ...


class Columns(Protocol):
    """The attributes of a shard's rows, read block by block."""

    def blocks(self, names: tuple[str, ...]) -> Blocks:
        """Return how rows are cut into blocks, and what is known of the named columns in each."""
        ...

    def read(self, number: int, names: tuple[str, ...]) -> Iterable[pa.RecordBatch]:
        """Return the named columns of one block, a multiple of 8 rows at a time.

        Text may be a dictionary, the same one in all blocks, and a decimal an int64 of its units.
        """
        ...


class Rows(NamedTuple):
    """Some rows of a shard.

    Attributes
    ----------
    attributes : pyarrow.RecordBatch
        The attributes that the filter names; without rows if it names none.
    on_ids : list of pyarrow.BooleanArray
        For each condition on ids, whether these rows meet it.
    words : dict
        For each test of text, which values of the column's dictionary pass it: rows of one shard share it.
    """

    attributes: pa.RecordBatch
    on_ids: list[pa.Array]
    words: dict[Test, NDArray[np.bool_]]


class Condition(NamedTuple):
    """A condition on rows.

    Attributes
    ----------
    test : callable
        Tells of each row whether it holds: true, false or null.
    outcomes : callable
        Tells of each block what the test can come to.
    """

    test: Callable[[Rows], pa.Array]
    outcomes: Outcomes


def on_values(name: str, test: Test, outcomes: Outcomes = anything) -> Condition:
    """Return the condition that the values of a column pass a test."""

    def tested(rows: Rows) -> pa.Array:
        stored = rows.attributes.column(name)
        if not pa.types.is_dictionary(stored.type):
            return test(stored)
        if test not in rows.words:
            rows.words[test] = matches(test(stored.dictionary))
        return _spread(rows.words[test], stored)

    return Condition(tested, outcomes)


def on_nulls(name: str, *, null: bool) -> Condition:
    """Return the condition `is null`, or `is not null`."""
    test = pc.is_null if null else pc.is_valid
    return Condition(lambda rows: test(rows.attributes.column(name)), of_nulls(name, null=null))


def any_of(conditions: list[Condition]) -> Condition:
    """Join conditions by `or`, row by row, with nulls as in SQL."""
    return _joined(pc.or_kleene, either, conditions)


def all_of(conditions: list[Condition]) -> Condition:
    """Join conditions by `and`, row by row, with nulls as in SQL."""
    return _joined(pc.and_kleene, both, conditions)


def negate(condition: Condition) -> Condition:
    """Negate a condition; null stays null."""
    return Condition(lambda rows: pc.invert(condition.test(rows)), opposite(condition.outcomes))


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


def has_id_among(values_M: NDArray[np.int64]) -> Callable[[Ids], pa.Array]:
    """Return whether the id of a row is one of `values_M`, at the cost of finding those in the shard."""

    def test(ids: Ids) -> pa.Array:
        rows_M = ids.rows_of(values_M)
        found_N = np.zeros(len(ids.ids_N), np.bool_)
        found_N[rows_M[rows_M >= 0]] = True
        return as_outcome(found_N)

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


def _joined(
    combine: Callable[[Any, Any], pa.Array], fold: Callable[[list[Outcomes]], Outcomes], conditions: list[Condition]
) -> Condition:
    if len(conditions) == 1:
        return conditions[0]
    tests = [condition.test for condition in conditions]
    return Condition(
        lambda rows: functools.reduce(combine, (test(rows) for test in tests)),
        fold([condition.outcomes for condition in conditions]),
    )


def _spread(passed_D: NDArray[np.bool_], stored: pa.DictionaryArray) -> pa.Array:
    """Return for each row what its word in the dictionary came to."""
    if not len(passed_D):
        return as_outcome(np.zeros(len(stored), np.bool_), stored.indices)
    # Clipped, because the place of a null may be anything.
    return as_outcome(np.take(passed_D, numbers_of(stored.indices), mode="clip"), stored.indices)
