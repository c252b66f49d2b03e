"""Parses the text of a filter into a condition; `engine.filters.filter` has the grammar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.filters.arrays import as_outcome
from hashlight.engine.filters.evaluation import (
    Condition,
    Ids,
    all_of,
    any_of,
    has_id_among,
    holds,
    is_like,
    negate,
    on_nulls,
    on_values,
)
from hashlight.engine.filters.kinds import SIGNS, Kind, is_list, is_text, kind_of
from hashlight.engine.filters.membership import Test, is_whole_in
from hashlight.engine.filters.outcomes import Outcomes, anything, of_range
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.filters.tokens import FilterError, Token, tokens_of, unquote

MAX_DEPTH = 50  # of parentheses and negations: far more than people write, far less than Python's stack allows
MAX_PREDICATES = 100  # each is a pass over all rows

ID = pa.field("id", pa.int64())  # which every collection has


class Parser:
    """A recursive-descent parser with one method for each rule of the grammar.

    Attributes
    ----------
    columns : set of str
        The attributes that the text names.
    on_ids : list of callable
        The conditions on ids that it names.
    used : set of str
        The parameters that it names.
    """

    def __init__(self, text: str, schema: pa.Schema, parameters: Parameters | None) -> None:
        self._tokens = list(tokens_of(text))
        self._next = 0
        self._depth = 0
        self._predicates = 0
        self._schema = schema
        self._parameters: Mapping[str, NDArray[np.int64]] = {} if parameters is None else parameters
        self.columns: set[str] = set()
        self.on_ids: list[Callable[[Ids], pa.Array]] = []
        self.used: set[str] = set()

    def parse(self) -> Condition:
        """Parse the whole text."""
        condition = self._any()
        if self._here.kind != "end":
            self._fail("`and`, `or` or the end")
        return condition

    @property
    def _here(self) -> Token:
        return self._tokens[self._next]

    def _take(self) -> Token:
        token = self._here
        self._next += 1
        return token

    def _accept(self, *words: str) -> bool:
        """Skip these words if they are next."""
        if [token.word for token in self._tokens[self._next : self._next + len(words)]] != list(words):
            return False
        self._next += len(words)
        return True

    def _expect(self, word: str) -> None:
        if not self._accept(word):
            self._fail(f"`{word}`")

    def _fail(self, expected: str) -> NoReturn:
        raise FilterError(f"expected {expected}, got {self._here}", self._here.position)

    def _any(self) -> Condition:
        conditions = [self._all()]
        while self._accept("or"):
            conditions.append(self._all())
        return any_of(conditions)

    def _all(self) -> Condition:
        conditions = [self._negation()]
        while self._accept("and"):
            conditions.append(self._negation())
        return all_of(conditions)

    def _negation(self) -> Condition:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"at most {MAX_DEPTH} nested parentheses and `not`")
        if self._accept("not"):
            condition = negate(self._negation())
        elif self._accept("("):
            condition = self._any()
            self._expect(")")
        else:
            condition = self._predicate()
        self._depth -= 1
        return condition

    def _predicate(self) -> Condition:
        self._predicates += 1
        if self._predicates > MAX_PREDICATES:
            self._fail(f"at most {MAX_PREDICATES} comparisons (`in (...)` is one)")
        if self._here.kind in ("number", "text") or self._here.word in ("true", "false"):
            return self._membership()
        column = self._column()
        if (sign := SIGNS.get(self._here.word)) is not None:
            self._take()
            kind = self._kind(column)
            value = self._value(kind, column)
            if column is ID and sign in ("==", "!="):
                condition = self._where_id_among([value])
                return condition if sign == "==" else negate(condition)
            outcomes = of_range(column.name, kind.between(sign, value))
            return self._where(column, kind.compare(sign, value), outcomes)
        if self._accept("is", "not", "null"):
            return self._where_null(column, null=False)
        if self._accept("is", "null"):
            return self._where_null(column, null=True)
        negated = self._accept("not")
        if self._accept("in"):
            condition = self._one_of(column)
        elif self._accept("like"):
            condition = self._like(column)
        else:
            self._fail("`in` or `like`" if negated else "a comparison, `in`, `like` or `is [not] null`")
        return negate(condition) if negated else condition

    def _where(self, column: pa.Field, test: Test, outcomes: Outcomes = anything) -> Condition:
        """Return the condition that the values of a column pass a test."""
        if column.name in self.columns:
            return on_values(column.name, test, outcomes)
        return self._where_id(lambda ids: test(pa.array(ids.ids_N)))

    def _where_null(self, column: pa.Field, *, null: bool) -> Condition:
        if column.name in self.columns:
            return on_nulls(column.name, null=null)
        return self._where_id(lambda ids: as_outcome(np.full(len(ids.ids_N), not null)))

    def _where_id(self, test: Callable[[Ids], pa.Array]) -> Condition:
        self.on_ids.append(test)
        number = len(self.on_ids) - 1
        return Condition(lambda rows: rows.on_ids[number], anything)

    def _where_id_among(self, values: Iterable[Fraction]) -> Condition:
        """Return the condition that the id is one of some exact numbers, of which not all need be ids."""
        least, most = np.iinfo(np.int64).min, np.iinfo(np.int64).max
        ids = [value.numerator for value in values if value.denominator == 1 and least <= value <= most]
        return self._where_id(has_id_among(np.array(ids, np.int64)))

    def _column(self) -> pa.Field:
        token = self._here
        if token.kind not in ("word", "quoted") or token.word:
            self._fail("an attribute, `id`, `not` or `(`")
        self._take()
        name = unquote(token.text) if token.kind == "quoted" else token.text
        places = self._schema.get_all_field_indices(name)
        if len(places) > 1:
            raise FilterError(f"there are {len(places)} attributes `{name}`: rename all but one", token.position)
        if places:
            self.columns.add(name)
            return self._schema.field(places[0])
        if name != ID.name:
            known = ", ".join([ID.name, *self._schema.names])
            raise FilterError(f"`{name}` is not an attribute; there are: {known}", token.position)
        return ID

    def _one_of(self, column: pa.Field) -> Condition:
        if self._here.kind == "parameter":
            return self._one_of_parameter(column)
        self._expect("(")
        kind = self._kind(column)
        values = [self._value(kind, column)]
        while self._accept(","):
            values.append(self._value(kind, column))
        self._expect(")")
        if column is ID:
            return self._where_id_among(values)
        return self._where(column, kind.is_one_of(values), of_range(column.name, kind.around(values)))

    def _one_of_parameter(self, column: pa.Field) -> Condition:
        token = self._take()
        name = token.text[1:]
        if name not in self._parameters:
            raise FilterError(f'`{token.text}` has no values: give `parameters={{"{name}": [...]}}`', token.position)
        if not pa.types.is_integer(column.type):
            raise FilterError(
                f"`{token.text}` is a list of whole numbers, `{column.name}` is {column.type}: write its values out",
                token.position,
            )
        self.used.add(name)
        values_M = self._parameters[name]
        if column is ID:
            return self._where_id(has_id_among(values_M))
        return self._where(column, is_whole_in(values_M, column.type))

    def _like(self, column: pa.Field) -> Condition:
        token = self._here
        if token.kind != "text":
            self._fail("a string in quotes")
        if not is_text(column.type):
            raise FilterError(f"`like` needs a text attribute, `{column.name}` is {column.type}", token.position)
        self._take()
        try:
            return self._where(column, is_like(unquote(token.text)))
        except ValueError as error:
            raise FilterError(str(error), token.position) from error

    def _membership(self) -> Condition:
        start = self._next
        self._take()
        negated = self._accept("not")
        self._expect("in")
        position = self._here.position
        column = self._column()
        if not is_list(column.type):
            raise FilterError(
                f"`{column.name}` is {column.type}, not a list: write `{column.name} == value`, the attribute first",
                position,
            )
        after, self._next = self._next, start
        element = pa.field(column.name, column.type.value_type)
        kind = self._kind(element)
        value = self._value(kind, element)
        self._next = after
        condition = self._where(column, holds(kind.compare("==", value)))
        return negate(condition) if negated else condition

    def _kind(self, column: pa.Field) -> Kind:
        """Return how the values of a column compare with the value that comes next."""
        kind = kind_of(column.type)
        if kind is None:
            wanted = f"`value in {column.name}`" if is_list(column.type) else f"`{column.name} is [not] null`"
            raise FilterError(
                f"`{column.name}` is {column.type}: write {wanted}, got {self._here}", self._here.position
            )
        return kind

    def _value(self, kind: Kind, column: pa.Field) -> Any:
        """Take a value that can be compared with a column."""
        token = self._here
        if token.kind not in ("number", "text") and token.word not in ("true", "false"):
            self._fail("a value: a number, a string in quotes, true or false")
        self._take()
        try:
            return kind.read(token)
        except ValueError as error:
            told = f"`{column.name}` is {column.type}: expected {kind.expected}, got {token}"
            raise FilterError(f"{told}: {error}" if str(error) else told, token.position) from error
