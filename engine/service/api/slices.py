"""JSON bodies in slices: long lists are cut out of the text, so that nothing is parsed in one go that is large.

A parser holds the interpreter's lock until it ends, and so stops the event loop, in whatever thread it runs. Here the
text is looked through in chunks for the commas of its lists, and each slice of a list is parsed by itself; what is left
of the text is small, or refused. A text is accepted as it is as a whole: slices and rest are valid JSON just if it is.

S structural characters outside of strings: brackets, commas, colons. C bytes of a chunk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.service.problems import RequestError

# Parsed in one go: about a millisecond's work.
BYTES_AT_ONCE = 65_536
VALUES_AT_ONCE = 4_000
# Of what is not cut: a filter of 10,000 characters, each escaped as two halves, takes 120,000.
REST_BYTES = 262_144

_CHUNK = 262_144
_MAX_LISTS = 100  # queries or images, and a few parameters
_MAX_KEY_BYTES = 1_000

_OPENING, _CLOSING, _COMMA, _COLON, _QUOTE, _SLASH = b"[{", b"]}", b",", b":", ord('"'), ord("\\")
_STRUCTURAL = np.isin(np.arange(256), list(_OPENING + _CLOSING + _COMMA + _COLON))


class LongList(NamedTuple):
    """A list that was cut out.

    Attributes
    ----------
    path : tuple of str
        Where it stood: the keys.
    num_items : int
    slices : list of (int, bytes)
        Number of the first item of each slice, and the slice as a JSON list.
    """

    path: tuple[str, ...]
    num_items: int
    slices: list[tuple[int, bytes]]


class _Structure(NamedTuple):
    """The structural characters of a text (S,): where they are, which they are, and how deep within brackets."""

    places: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    levels: NDArray[np.int64]

    def at(self, level: int, bytes_: bytes) -> NDArray[np.int64]:
        """Return the numbers of those of the characters that are at a level."""
        return np.flatnonzero((self.levels == level) & np.isin(self.kinds, list(bytes_)))


def cut_lists(text: bytes, stand_ins: Mapping[str, bytes]) -> tuple[bytes, list[LongList]]:
    """Return the text of a JSON object with stand-ins for its long lists; and those.

    Parameters
    ----------
    text : bytes
    stand_ins : mapping of str to bytes
        Key of each list that may be cut out -> what stands in its place, as a list may not be empty everywhere. Of
        `parameters` the lists in it are cut out.

    Raises
    ------
    RequestError
        400 if brackets or quotes do not match, 413 if an item of a list or the rest has too many values or bytes.
    """
    found = _structure(text)
    cut: list[LongList] = []
    kept, begin, values = [], 0, len(found.places)
    lists = sorted(_lists(text, found, stand_ins), key=lambda one: one[1])
    if len(lists) > _MAX_LISTS:
        raise too_large(f"at most {_MAX_LISTS} lists, got {len(lists)}")
    for path, first, last in lists:
        start, stop = int(found.places[first]) + 1, int(found.places[last])
        if text[start:stop].strip():
            cut.append(_slices(text, found, path, first, last))
            kept += [text[begin:start], stand_ins[path[0]]]
            begin, values = stop, values - (last - first)
    rest = b"".join([*kept, text[begin:]])
    if values > VALUES_AT_ONCE or len(rest) > REST_BYTES:
        raise too_large(
            f"at most {VALUES_AT_ONCE} values and {REST_BYTES} bytes besides {_named(stand_ins)}, got "
            f"about {values} and {len(rest)}"
        )
    return rest, cut


def too_large(expected: str) -> RequestError:
    """Return the refusal of a JSON body."""
    return RequestError(413, "too_large", f"a JSON body must have {expected}: split it into several requests")


def _named(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in names) or "lists that may be long"


def _structure(text: bytes) -> _Structure:
    inside, slashes = 0, 0  # whether a string is open, and how many backslashes end what was looked through
    found = []
    for begin in range(0, len(text), _CHUNK):
        part_C = np.frombuffer(text, np.uint8, min(_CHUNK, len(text) - begin), begin)
        quote_C, slash_C = part_C == _QUOTE, part_C == _SLASH
        if slashes or slash_C.any():
            number_C = np.arange(len(part_C))
            last_C = np.maximum.accumulate(np.where(slash_C, -1 - slashes, number_C))  # the last that is no backslash
            before_C = np.concatenate([[-1 - slashes], last_C[:-1]])
            quote_C &= (number_C - 1 - before_C) % 2 == 0
            slashes = int(number_C[-1] - last_C[-1])
        inside_C = (np.cumsum(quote_C, dtype=np.uint8) + np.uint8(inside)) & 1
        inside = int(inside_C[-1])
        found.append(begin + np.flatnonzero(_STRUCTURAL[part_C] & (inside_C == 0)))
    places = np.concatenate(found)
    kinds = np.frombuffer(text, np.uint8)[places]
    closes_S = np.isin(kinds, list(_CLOSING))
    levels = np.cumsum(np.isin(kinds, list(_OPENING)).astype(np.int64) - closes_S)
    if inside or not len(levels) or levels.min() < 0 or levels[-1] != 0:
        raise RequestError(400, "malformed", "the body is not valid JSON: its brackets or quotes do not match")
    return _Structure(places, kinds, levels + closes_S)


def _lists(
    text: bytes, found: _Structure, stand_ins: Mapping[str, bytes]
) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Yield the lists that may be cut: their paths, and the numbers of their brackets."""
    objects = found.at(2, b"{")
    for level in (2, 3):
        closing = found.at(level, _CLOSING)
        for first in found.at(level, b"[").tolist():
            path = [_key(text, found, first)]
            if level == 3:
                inner = int(np.searchsorted(objects, first)) - 1
                path.insert(0, _key(text, found, int(objects[inner])) if inner >= 0 else None)
            if path[0] not in stand_ins or None in path or len(path) != 1 + (path[0] == "parameters"):
                continue
            yield tuple(map(str, path)), first, int(closing[np.searchsorted(closing, first)])


def _key(text: bytes, found: _Structure, opening: int) -> str | None:
    """Return the key of the value that begins with a bracket; None if it has none."""
    if opening < 2 or found.kinds[opening - 1] != _COLON[0]:
        return None
    key = text[int(found.places[opening - 2]) + 1 : int(found.places[opening - 1])]
    try:
        name = json.loads(key) if len(key) <= _MAX_KEY_BYTES else None
    except ValueError:
        return None
    return name if isinstance(name, str) else None


def _slices(text: bytes, found: _Structure, path: tuple[str, ...], first: int, last: int) -> LongList:
    """Cut the list between two brackets; RequestError if one of its items has too many values."""
    commas = found.at(int(found.levels[first]), _COMMA)
    here = commas[np.searchsorted(commas, first) : np.searchsorted(commas, last)]
    ends = np.concatenate([[first], here, [last]])  # item i is between ends i and i + 1
    bounds = found.places[ends]
    slices, begin, count = [], 0, len(ends) - 1
    while begin < count:
        few = int(np.searchsorted(ends, ends[begin] + VALUES_AT_ONCE, "right")) - 1
        short = int(np.searchsorted(bounds, bounds[begin] + BYTES_AT_ONCE, "right")) - 1
        stop = max(begin + 1, min(few, short))
        if ends[stop] - ends[begin] > VALUES_AT_ONCE:
            raise too_large(f"at most {VALUES_AT_ONCE} values in `{'.'.join(path)}.{begin}`")
        items = text[int(bounds[begin]) + 1 : int(bounds[stop])]
        if not items.strip():
            raise RequestError(400, "malformed", f"the body is not valid JSON: `{'.'.join(path)}.{begin}` is empty")
        slices.append((begin, b"[" + items + b"]"))
        begin = stop
    return LongList(path, count, slices)
