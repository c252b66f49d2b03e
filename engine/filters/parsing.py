"""Parses the text of a filter into a condition; `engine.filters.filter` has the grammar."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from hashlight.engine.filters.evaluation import (
    COMPARISONS,
    Condition,
    comparable_type,
    compare,
    contains,
    is_in,
    is_list,
    is_number,
    is_text,
    join,
    negate,
    plain_type,
    values_of,
)
from hashlight.engine.filters.tokens import FilterError, Token, tokens_of, unquote

MAX_DEPTH = 50  # of parentheses and negations: far more than people write, far less than Python's stack allows
MAX_PREDICATES = 100  # each is a pass over all rows


class Parser:
    """A recursive-descent parser with one method for each rule of the grammar.

    Attributes
    ----------
    columns : set of str
        The attributes that the text names.
    """

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._tokens = list(tokens_of(text))
        self._next = 0
        self._depth = 0
        self._predicates = 0
        self._schema = schema
        self.columns: set[str] = set()

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
        return join(pc.or_kleene, conditions)

    def _all(self) -> Condition:
        conditions = [self._negation()]
        while self._accept("and"):
            conditions.append(self._negation())
        return join(pc.and_kleene, conditions)

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
        sign = self._here.word
        if sign in COMPARISONS:
            self._take()
            return self._comparison(column, COMPARISONS[sign])
        if self._accept("is", "not", "null"):
            return lambda batch: pc.is_valid(batch.column(column.name))
        if self._accept("is", "null"):
            return lambda batch: pc.is_null(batch.column(column.name))
        negated = self._accept("not")
        if self._accept("in"):
            condition = self._one_of(column)
        elif self._accept("like"):
            condition = self._like(column)
        else:
            self._fail("`in` or `like`" if negated else "a comparison, `in`, `like` or `is [not] null`")
        return negate(condition) if negated else condition

    def _column(self) -> pa.Field:
        token = self._here
        if token.kind not in ("word", "quoted") or token.word:
            self._fail("an attribute, `not` or `(`")
        self._take()
        name = token.text.strip("`")
        if name not in self._schema.names:
            known = ", ".join(self._schema.names) or "none"
            raise FilterError(f"`{name}` is not an attribute; there are: {known}", token.position)
        self.columns.add(name)
        return self._schema.field(name)

    def _comparison(self, column: pa.Field, comparison: Callable[[Any, Any], pa.Array]) -> Condition:
        operand = self._value_for(plain_type(column.type), column.name)
        return lambda batch: compare(comparison, values_of(batch, column), operand)

    def _one_of(self, column: pa.Field) -> Condition:
        self._expect("(")
        operands = [self._value_for(plain_type(column.type), column.name)]
        while self._accept(","):
            operands.append(self._value_for(plain_type(column.type), column.name))
        self._expect(")")

        by_type: dict[pa.DataType, list[pa.Scalar]] = {}
        for operand in operands:
            by_type.setdefault(operand.type, []).append(operand)
        sets = [pa.array([operand.as_py() for operand in same], kind) for kind, same in by_type.items()]
        return lambda batch: is_in(values_of(batch, column), sets)

    def _like(self, column: pa.Field) -> Condition:
        token = self._here
        if token.kind != "text":
            self._fail("a string in quotes")
        if not is_text(plain_type(column.type)):
            raise FilterError(f"`like` needs a text attribute, `{column.name}` is {column.type}", token.position)
        pattern = unquote(self._take().text)
        return lambda batch: pc.match_like(values_of(batch, column), pattern)

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
        operand = self._value_for(plain_type(column.type.value_type), column.name)
        self._next = after
        condition: Condition = lambda batch: contains(batch.column(column.name), operand)  # noqa: E731
        return negate(condition) if negated else condition

    def _value_for(self, kind: pa.DataType, name: str) -> pa.Scalar:
        """Take a value that can be compared with `kind`, the type of attribute `name`."""
        token = self._here
        if is_list(kind):
            raise FilterError(f"`{name}` holds lists: write `value in {name}`", token.position)
        if token.kind not in ("number", "text") and token.word not in ("true", "false"):
            self._fail("a value: a number, a string in quotes, true or false")
        self._take()
        try:
            return _scalar(token, kind)
        except (ValueError, OverflowError, pa.ArrowException) as error:
            wanted = next((words for fits, words in _KINDS if fits(kind)), "only `is [not] null`")
            raise FilterError(f"`{name}` is {kind}: expected {wanted}, got {token}", token.position) from error


_KINDS: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (is_text, "a string in quotes"),
    (is_number, "a number within 64 bits"),
    (pa.types.is_boolean, "true or false"),
    (pa.types.is_duration, "only `is [not] null`"),
    (pa.types.is_temporal, "an ISO 8601 string in quotes"),
)


def _scalar(token: Token, kind: pa.DataType) -> pa.Scalar:
    """Return the token's value in a type that compares exactly with `kind`; ValueError if there is none."""
    if token.kind == "number" and is_number(kind):
        return _number(token.text, kind)
    if token.kind == "text" and is_text(kind):
        return pa.scalar(unquote(token.text), comparable_type(kind))
    if token.kind == "text" and pa.types.is_temporal(kind) and not pa.types.is_duration(kind):
        return pa.scalar(unquote(token.text)).cast(kind)
    if token.kind == "word" and pa.types.is_boolean(kind):
        return pa.scalar(token.word == "true")
    raise ValueError(f"{token} is not a valid {kind}")


def _number(text: str, kind: pa.DataType) -> pa.Scalar:
    if pa.types.is_floating(kind):
        # In the attribute's own precision, so that a stored float32 of 0.1 equals 0.1.
        return pa.scalar(float(text), kind).cast(comparable_type(kind))
    value = int(text) if re.fullmatch(r"-?\d+", text) else float(text)
    if isinstance(value, float) and (not value.is_integer() or abs(value) > 2**53):
        return pa.scalar(value)
    if not pa.types.is_integer(kind):
        return pa.scalar(value)
    # Values beyond the type's range still compare; Arrow widens all types except uint64 with signed numbers.
    return pa.scalar(int(value), pa.uint64() if pa.types.is_uint64(kind) else pa.int64())
