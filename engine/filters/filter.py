"""Filters: a condition on attributes, in the words of SQL, that says which rows may answer.

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

Words may be in either case. A quote inside a text is doubled, as in SQL. Dates and times are compared with their ISO
8601 text. As in SQL, a comparison with a null is neither true nor false, and a row answers only where the whole
condition is true. The text is parsed here and never evaluated as a program.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MAX_LENGTH = 10_000  # characters
MAX_DEPTH = 50  # of brackets and negations: far above what people write, far below what Python's stack takes
MAX_PREDICATES = 100  # each is a pass over all rows

Condition = Callable[[pa.RecordBatch], pa.Array]
Value = str | int | float | bool

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
  | (?P<text>"(?:[^"]|"")*"|'(?:[^']|'')*')
  | (?P<quoted>`[^`]+`)
  | (?P<word>[^\W\d]\w*)
  | (?P<sign><=|>=|==|!=|<>|[=<>(),])
  )""",
    re.VERBOSE,
)
_COMPARE: dict[str, Callable[[Any, Any], pa.Array]] = {
    "==": pc.equal, "=": pc.equal, "!=": pc.not_equal, "<>": pc.not_equal,
    "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip
_KEYWORDS = {"and", "or", "not", "in", "like", "is", "null", "true", "false"}


class FilterError(ValueError):
    """A filter cannot be understood, or does not fit the attributes.

    Attributes
    ----------
    position : int
        Of the character at fault, from 0.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"`filter`, at character {position}: {message}")
        self.position = position


class Filter:
    """A parsed filter over rows of one schema. Several threads may use one filter at once.

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
        If the text is no condition, names no attribute, or compares one with a value of another kind.

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
        parser = _Parser(text, schema)
        self._condition = parser.parse()
        self.columns = tuple(sorted(parser.columns))

    def mask(self, batches: Iterable[pa.RecordBatch]) -> NDArray[np.bool_]:
        """Return whether each row of the batches, laid end to end, satisfies the condition."""
        parts = [
            pc.fill_null(self._condition(batch), False).to_numpy(zero_copy_only=False).astype(np.bool_)
            for batch in batches
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.bool_)


class MaskCache:
    """Row masks by (what they are of, filter), the least recently used ones dropped beyond `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._masks: OrderedDict[tuple[str, str], NDArray[np.bool_]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, owner: str, text: str, make: Callable[[], NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Return the mask of `text` over `owner`, made if it is not here."""
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int

    @property
    def word(self) -> str:
        """The keyword or sign that stands here, in lower case; empty for names, texts and numbers."""
        lower = self.text.lower()
        return lower if self.kind == "sign" or (self.kind == "word" and lower in _KEYWORDS) else ""

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else f"`{self.text[:40]}`"


def _tokens(text: str) -> Iterator[_Token]:
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            place = position + len(text[position:]) - len(text[position:].lstrip())
            unclosed = "a closing quote" if text[place] in "\"'`" else "a name, a value or an operator"
            raise FilterError(f"expected {unclosed}, got `{text[place : place + 20]}`", place)
        kind = str(match.lastgroup)
        yield _Token(kind, match[kind], match.start(kind))
        position = match.end()
    yield _Token("end", "", len(text))


class _Parser:
    """Recursive descent, one method a rule of the grammar."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0
        self._depth = 0
        self._predicates = 0
        self._schema = schema
        self.columns: set[str] = set()

    def parse(self) -> Condition:
        condition = self._any()
        if self._here.kind != "end":
            self._fail("`and`, `or` or the end")
        return condition

    @property
    def _here(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._here
        self._next += 1
        return token

    def _accept(self, *words: str) -> bool:
        """Step over these words if they stand here."""
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
        return _join(pc.or_kleene, conditions)

    def _all(self) -> Condition:
        conditions = [self._negation()]
        while self._accept("and"):
            conditions.append(self._negation())
        return _join(pc.and_kleene, conditions)

    def _negation(self) -> Condition:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"at most {MAX_DEPTH} brackets and `not` inside each other")
        if self._accept("not"):
            condition = _negate(self._negation())
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
        if sign in _COMPARE:
            self._take()
            return self._comparison(column, _COMPARE[sign])
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
        return _negate(condition) if negated else condition

    def _column(self) -> pa.Field:
        token = self._here
        if token.kind not in ("word", "quoted") or token.word:
            self._fail("an attribute, `not` or `(`")
        self._take()
        name = token.text.strip("`")
        if name not in self._schema.names:
            known = ", ".join(self._schema.names) or "none"
            raise FilterError(f"`{name}` is no attribute; there are: {known}", token.position)
        self.columns.add(name)
        return self._schema.field(name)

    def _comparison(self, column: pa.Field, compare: Callable[[Any, Any], pa.Array]) -> Condition:
        operand = self._value_for(_plain(column.type), column.name)
        return lambda batch: _compare(compare, _values(batch, column), operand)

    def _one_of(self, column: pa.Field) -> Condition:
        self._expect("(")
        operands = [self._value_for(_plain(column.type), column.name)]
        while self._accept(","):
            operands.append(self._value_for(_plain(column.type), column.name))
        self._expect(")")

        by_type: dict[pa.DataType, list[pa.Scalar]] = {}
        for operand in operands:
            by_type.setdefault(operand.type, []).append(operand)
        sets = [pa.array([operand.as_py() for operand in same], kind) for kind, same in by_type.items()]
        return lambda batch: _is_in(_values(batch, column), sets)

    def _like(self, column: pa.Field) -> Condition:
        token = self._here
        if token.kind != "text":
            self._fail("a text in quotes")
        if not _is_text(_plain(column.type)):
            raise FilterError(f"`like` goes with text, `{column.name}` is {column.type}", token.position)
        pattern = _unquote(self._take().text)
        return lambda batch: pc.match_like(_values(batch, column), pattern)

    def _membership(self) -> Condition:
        start = self._next
        self._take()
        negated = self._accept("not")
        self._expect("in")
        position = self._here.position
        column = self._column()
        if not _is_list(column.type):
            raise FilterError(
                f"`{column.name}` is {column.type}, no list: write `{column.name} == value`, the attribute first",
                position,
            )
        after, self._next = self._next, start
        operand = self._value_for(_plain(column.type.value_type), column.name)
        self._next = after
        contains: Condition = lambda batch: _contains(batch.column(column.name), operand)  # noqa: E731
        return _negate(contains) if negated else contains

    def _value_for(self, kind: pa.DataType, name: str) -> pa.Scalar:
        """Take a value that can be compared with `kind`, the type of attribute `name`."""
        token = self._here
        if _is_list(kind):
            raise FilterError(f"`{name}` holds lists: write `value in {name}`", token.position)
        if token.kind not in ("number", "text") and token.word not in ("true", "false"):
            self._fail("a value: a number, a text in quotes, true or false")
        self._take()
        try:
            return _scalar(token, kind)
        except (ValueError, OverflowError, pa.ArrowException) as error:
            wanted = next((words for fits, words in _KINDS if fits(kind)), "nothing: it can only be null or not")
            raise FilterError(f"`{name}` is {kind} and compares with {wanted}, got {token}", token.position) from error


def _join(join: Callable[[Any, Any], pa.Array], conditions: list[Condition]) -> Condition:
    if len(conditions) == 1:
        return conditions[0]
    return lambda batch: functools.reduce(join, (condition(batch) for condition in conditions))


def _negate(condition: Condition) -> Condition:
    return lambda batch: pc.invert(condition(batch))


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _comparable(kind: pa.DataType) -> pa.DataType:
    """Return the type that stands for `kind` in Arrow's comparisons, which lack some."""
    if pa.types.is_float16(kind):
        return pa.float32()
    return pa.string() if pa.types.is_string_view(kind) else kind


def _values(batch: pa.RecordBatch, column: pa.Field) -> pa.Array:
    values = batch.column(column.name)
    values = values.dictionary_decode() if pa.types.is_dictionary(column.type) else values
    return values.cast(_comparable(values.type))


def _compare(compare: Callable[[Any, Any], pa.Array], values: pa.Array, operand: pa.Scalar) -> pa.Array:
    if pa.types.is_floating(operand.type) and pa.types.is_integer(values.type):
        # Exact, though the cast rounds beyond 2**53: so large, a number with a fraction does not exist.
        values = values.cast(pa.float64(), safe=False)
    return compare(values, operand)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


_KINDS: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (_is_text, "a text in quotes"),
    (_is_number, "a number within 64 bits"),
    (pa.types.is_boolean, "true or false"),
    (pa.types.is_temporal, "an ISO 8601 text in quotes"),
)


def _scalar(token: _Token, kind: pa.DataType) -> pa.Scalar:
    """Return the token's value in a type that compares exactly with `kind`; ValueError if there is none."""
    if token.kind == "number" and _is_number(kind):
        return _number(token.text, kind)
    if token.kind == "text" and _is_text(kind):
        return pa.scalar(_unquote(token.text), _comparable(kind))
    if token.kind == "text" and pa.types.is_temporal(kind) and not pa.types.is_duration(kind):
        return pa.scalar(_unquote(token.text)).cast(kind)
    if token.kind == "word" and pa.types.is_boolean(kind):
        return pa.scalar(token.word == "true")
    raise ValueError(f"{token} is no {kind}")


def _number(text: str, kind: pa.DataType) -> pa.Scalar:
    if pa.types.is_floating(kind):
        # In the attribute's own precision: a stored float32 of 0.1 equals 0.1.
        return pa.scalar(float(text), kind).cast(_comparable(kind))
    value = int(text) if re.fullmatch(r"-?\d+", text) else float(text)
    if isinstance(value, float) and (not value.is_integer() or abs(value) > 2**53):
        return pa.scalar(value)
    if not pa.types.is_integer(kind):
        return pa.scalar(value)
    # Beyond the type's range the comparison is still meant; Arrow widens all but uint64 with signed numbers.
    return pa.scalar(int(value), pa.uint64() if pa.types.is_uint64(kind) else pa.int64())


def _is_in(values: pa.Array, sets: list[pa.Array]) -> pa.Array:
    """Return whether each value is in one of `sets`; null where there is no value."""
    parts = (pc.is_in(values.cast(accepted.type, safe=False), value_set=accepted) for accepted in sets)
    return pc.if_else(pc.is_valid(values), functools.reduce(pc.or_, parts), pa.scalar(None, pa.bool_()))


def _unquote(text: str) -> str:
    return text[1:-1].replace(text[0] * 2, text[0])


def _contains(lists: pa.Array, operand: pa.Scalar) -> pa.Array:
    """Return whether each list holds `operand`; null where there is no list."""
    values = pc.list_flatten(lists)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    equal = pc.fill_null(pc.equal(values, operand), False).to_numpy(zero_copy_only=False).astype(np.bool_)
    found_N = np.zeros(len(lists), np.bool_)
    found_N[pc.list_parent_indices(lists).to_numpy()[equal]] = True
    return pa.array(found_N, mask=lists.is_null().to_numpy(zero_copy_only=False))
