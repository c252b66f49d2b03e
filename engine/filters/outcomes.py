"""What a condition can come to in a block of rows, told from the smallest and the largest value, without reading it.

An outcome set is a sum of `FALSE`, `TRUE` and `NULL`: what the condition may be for a row of the block. It may name
more outcomes than there are, never fewer. B blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

FALSE, TRUE, NULL = 1, 2, 4
ANY = FALSE | TRUE | NULL
UNKNOWN = -1

# For the smallest and the largest value of each block: whether some value between them may pass, and whether all must.
Range = Callable[[pa.Array, pa.Array], tuple[NDArray[np.bool_], NDArray[np.bool_]]]


class Statistics(NamedTuple):
    """What is known of one column in each block.

    Attributes
    ----------
    least, most : pyarrow.Array, shape (B,)
        Bounds of the values; null where they are not known.
    nulls : ndarray of int64, shape (B,)
        Rows without a value; `UNKNOWN` if their number is not known.
    """

    least: pa.Array
    most: pa.Array
    nulls: NDArray[np.int64]


class Blocks(NamedTuple):
    """The blocks that rows are cut into.

    Attributes
    ----------
    rows : ndarray of int64, shape (B,)
        Rows of each; a multiple of 8, but in the last one.
    columns : mapping of str to Statistics
        Columns that are left out may hold anything.
    """

    rows: NDArray[np.int64]
    columns: Mapping[str, Statistics]


Outcomes = Callable[[Blocks], NDArray[np.uint8]]


def anything(blocks: Blocks) -> NDArray[np.uint8]:
    """Return that nothing is known."""
    return np.full(len(blocks.rows), ANY, np.uint8)


def of_range(name: str, between: Range) -> Outcomes:
    """Return the outcomes of a comparison with the values of a column."""

    def outcomes(blocks: Blocks) -> NDArray[np.uint8]:
        if (known := blocks.columns.get(name)) is None:
            return anything(blocks)
        may_B, must_B = between(known.least, known.most)
        valued_B = blocks.rows > known.nulls
        found_B = TRUE * (may_B & valued_B) + FALSE * (~must_B & valued_B) + NULL * (known.nulls != 0)
        return np.asarray(found_B, np.uint8)

    return outcomes


def of_nulls(name: str, *, null: bool) -> Outcomes:
    """Return the outcomes of `is null`, or of `is not null`."""

    def outcomes(blocks: Blocks) -> NDArray[np.uint8]:
        if (known := blocks.columns.get(name)) is None:
            return np.full(len(blocks.rows), FALSE | TRUE, np.uint8)
        missing_B, there_B = known.nulls != 0, known.nulls < blocks.rows
        true_B, false_B = (missing_B, there_B) if null else (there_B, missing_B)
        return (TRUE * true_B + FALSE * false_B).astype(np.uint8)

    return outcomes


def either(all_outcomes: list[Outcomes]) -> Outcomes:
    """Return the outcomes of conditions joined by `or`."""
    return _folded(_OR, all_outcomes)


def both(all_outcomes: list[Outcomes]) -> Outcomes:
    """Return the outcomes of conditions joined by `and`."""
    return _folded(_AND, all_outcomes)


def opposite(outcomes: Outcomes) -> Outcomes:
    """Return the outcomes of `not`."""
    return lambda blocks: _NOT[outcomes(blocks)]


def possibly(passed: pa.Array) -> NDArray[np.bool_]:
    """Return whether bounds pass a test, true where they are not known."""
    return np.asarray(pc.fill_null(passed, True).to_numpy(zero_copy_only=False), np.bool_)


def surely(passed: pa.Array) -> NDArray[np.bool_]:
    """Return whether bounds pass a test, false where they are not known."""
    return np.asarray(pc.fill_null(passed, False).to_numpy(zero_copy_only=False), np.bool_)


def _folded(table: NDArray[np.uint8], all_outcomes: list[Outcomes]) -> Outcomes:
    def outcomes(blocks: Blocks) -> NDArray[np.uint8]:
        found_B = all_outcomes[0](blocks)
        for more in all_outcomes[1:]:
            found_B = table[found_B, more(blocks)]
        return found_B

    return outcomes


def _table(combine: Callable[..., int], operands: int) -> NDArray[np.uint8]:
    """Return the outcomes of an operator for all outcome sets of its operands."""
    table = np.zeros((ANY + 1,) * operands, np.uint8)
    for sets in itertools.product(range(ANY + 1), repeat=operands):
        members = [[value for value in (FALSE, NULL, TRUE) if value & one] for one in sets]
        for values in itertools.product(*members):
            table[sets] |= combine(*values)
    return table


# As Kleene has it, `and` is the least of its operands and `or` the greatest, in this order.
_ORDER = (FALSE, NULL, TRUE)


def _least(*values: int) -> int:
    return _ORDER[min(map(_ORDER.index, values))]


def _greatest(*values: int) -> int:
    return _ORDER[max(map(_ORDER.index, values))]


def _negated(value: int) -> int:
    return _ORDER[2 - _ORDER.index(value)]


_AND: NDArray[Any] = _table(_least, 2)
_OR: NDArray[Any] = _table(_greatest, 2)
_NOT: NDArray[Any] = _table(_negated, 1)
