"""The tokens of a filter: names, values, parameters and operators, and the error that gives the position of one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
  | (?P<text>"(?:[^"]|"")*"|'(?:[^']|'')*')
  | (?P<quoted>`(?:[^`]|``)+`)
  | (?P<parameter>:[A-Za-z_]\w*)
  | (?P<word>[^\W\d]\w*)
  | (?P<sign><=|>=|==|!=|<>|[=<>(),])
  )""",
    re.VERBOSE,
)
KEYWORDS = {"and", "or", "not", "in", "like", "is", "null", "true", "false"}


class FilterError(ValueError):
    """A filter cannot be parsed, or does not fit the attributes.

    Attributes
    ----------
    position : int
        Index of the offending character, from 0.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"`filter`, at character {position}: {message}")
        self.position = position


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """One word, operator, number, string or parameter of a filter, and its position."""

    kind: str
    text: str
    position: int

    @property
    def word(self) -> str:
        """The keyword or operator in lower case; empty for names, strings and numbers."""
        lower = self.text.lower()
        return lower if self.kind == "sign" or (self.kind == "word" and lower in KEYWORDS) else ""

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else f"`{self.text[:40]}`"


def check_unicode(text: str) -> None:
    """Raise FilterError if a text has half of a surrogate pair, which can be neither sent nor stored."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(text[error.start])
        raise FilterError(f"expected text, got U+{half:04X}, half of a surrogate pair", error.start) from error


def tokens_of(text: str) -> Iterator[Token]:
    """Split the text of a filter into tokens, the last of which marks its end."""
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            place = position + len(text[position:]) - len(text[position:].lstrip())
            unclosed = "a closing quote" if text[place] in "\"'`" else "a name, a value or an operator"
            raise FilterError(f"expected {unclosed}, got `{text[place : place + 20]}`", place)
        kind = str(match.lastgroup)
        yield Token(kind, match[kind], match.start(kind))
        position = match.end()
    yield Token("end", "", len(text))


def unquote(text: str) -> str:
    """Return the text between quotes."""
    return text[1:-1].replace(text[0] * 2, text[0])
