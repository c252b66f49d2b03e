"""A little SVG: shapes on a white card with rounded corners, and charts of lines and bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

INK, SOFT, FAINT, LINE = "#1f2328", "#57606a", "#eef1f4", "#d0d7de"
TEAL, ORANGE, BLUE, PLUM = "#00796b", "#d9480f", "#1864ab", "#862e9c"
PALE_TEAL, PALE_ORANGE, PALE_BLUE = "#d8efec", "#fde3d3", "#dbe9f6"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

Point = tuple[float, float]


class Card:
    """A drawing of `width` x `height` pixels; `title` and `description` are read to those who cannot see it."""

    def __init__(self, width: int, height: int, *, title: str, description: str) -> None:
        self.width, self.height = width, height
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-labelledby="title description" font-family="{FONT}" font-size="14" fill="{INK}">\n'
            f'<title id="title">{escape(title)}</title>\n<desc id="description">{escape(description)}</desc>\n'
            f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            f'orient="auto"><path d="M0 0 8 4 0 8Z" fill="{SOFT}"/></marker></defs>\n'
        )
        self._parts: list[str] = []
        self.box(0.5, 0.5, width - 1, height - 1, fill="#ffffff", edge=LINE, radius=10)

    def render(self) -> str:
        """Return the file."""
        return self._head + "\n".join(self._parts) + "\n</svg>\n"

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = FAINT,
        edge: str = "none",
        radius: float = 6,
    ) -> None:
        """Draw a rectangle with round corners."""
        self._parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" rx="{_n(radius)}" fill="{fill}" '
            f'stroke="{edge}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 14,
        fill: str = INK,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """Write one line; `y` is its base line."""
        weight = ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{_n(x)}" y="{_n(y)}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}>'
            f"{escape(words)}</text>"
        )

    def lines(self, x: float, y: float, text: str, *, size: int = 13, fill: str = SOFT, anchor: str = "start") -> None:
        """Write several lines, the first at `y`."""
        for number, line in enumerate(text.splitlines()):
            self.text(x, y + number * (size + 5), line, size=size, fill=fill, anchor=anchor)

    def path(
        self,
        points: Sequence[Point],
        *,
        stroke: str = SOFT,
        width: float = 1.5,
        tip: bool = False,
        dashed: bool = False,
    ) -> None:
        """Draw straight lines from point to point."""
        way = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        marker = ' marker-end="url(#tip)"' if tip else ""
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<polyline points="{way}" fill="none" stroke="{stroke}" stroke-width="{_n(width)}"{marker}{dashes}/>'
        )

    def dot(self, x: float, y: float, *, fill: str, radius: float = 4) -> None:
        """Draw a filled circle."""
        self._parts.append(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" fill="{fill}"/>')

    def titled(
        self, x: float, y: float, width: float, height: float, title: str, body: str = "", **colours: str
    ) -> None:
        """Draw a box with a bold title and lines below it."""
        self.box(x, y, width, height, **colours)
        self.text(x + 12, y + 22, title, bold=True)
        self.lines(x + 12, y + 42, body)


class Axis:
    """Values to pixels, linear or logarithmic, with the values at which it is marked."""

    def __init__(self, low: float, high: float, marks: Mapping[float, str], *, log: bool = False) -> None:
        self.low, self.high, self.marks, self.log = low, high, marks, log

    def at(self, value: float) -> float:
        """Return where a value lies, from 0 to 1."""
        scale: Callable[[float], float] = math.log if self.log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))


class Chart:
    """Lines over two axes, drawn on a card; each line is named at its end."""

    def __init__(self, card: Card, x: Axis, y: Axis, *, x_title: str, y_title: str, right: int = 190) -> None:
        self.card, self._x, self._y = card, x, y
        self._left, self._top, self._right, self._bottom = 72, 96, card.width - right, card.height - 58
        self._names: list[tuple[float, float, str, str]] = []
        for value, name in y.marks.items():
            height = self._at(x.low, value)[1]
            card.path([(self._left, height), (self._right, height)], stroke=FAINT, width=1)
            card.text(self._left - 8, height + 5, name, size=12, fill=SOFT, anchor="end")
        for value, name in x.marks.items():
            card.text(self._at(value, y.low)[0], self._bottom + 20, name, size=12, fill=SOFT, anchor="middle")
        card.path([(self._left, self._bottom), (self._right, self._bottom)], stroke=LINE, width=1)
        card.text((self._left + self._right) / 2, card.height - 16, x_title, size=13, fill=SOFT, anchor="middle")
        card.text(18, 78, y_title, size=13, fill=SOFT)

    def line(self, points: Sequence[Point], name: str, colour: str, *, dashed: bool = False) -> None:
        """Draw a line through the points; `name_lines` writes its name beside the last one."""
        places = [self._at(*point) for point in points]
        self.card.path(places, stroke=colour, width=2.5, dashed=dashed)
        for place in places:
            self.card.dot(*place, fill=colour)
        self._names.append((places[-1][1], places[-1][0], name, colour))

    def name_lines(self) -> Card:
        """Write the names of all lines, moved apart where they would touch, and return the card."""
        lowest: dict[float, float] = {}
        for y, x, name, colour in sorted(self._names):
            y = max(y + 5, lowest.get(x, 0) + 17)
            self.card.text(x + 12, y, name, size=13, fill=colour, bold=True)
            lowest[x] = y
        return self.card

    def _at(self, x: float, y: float) -> Point:
        return (
            self._left + self._x.at(x) * (self._right - self._left),
            self._bottom - self._y.at(y) * (self._bottom - self._top),
        )


def headed(width: int, height: int, title: str, conditions: str, description: str) -> Card:
    """Return a card with its title and, smaller, what holds for it."""
    card = Card(width, height, title=title, description=description)
    card.text(18, 28, title, size=16, bold=True)
    card.text(18, 46, conditions, size=12, fill=SOFT)
    return card


def _n(number: float) -> str:
    return f"{number:.1f}".rstrip("0").rstrip(".")
