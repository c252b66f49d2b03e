"""Pictures for people: grids of answers, and plots of a report."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from hashlight.encoders.data.images import MAX_PIXELS
from hashlight.pipelines.corpora.corpus import read_uri
from hashlight.pipelines.decoding.images import thumbnails

_TILE_INCHES = 1.1
# In sides of a tile: a row with its captions, the longest side of an image, and from the top of a row to its captions.
_ROW, _IMAGE, _CAPTION = 1.35, 0.9, 1.0
# Twice the pixels that a tile has.
_TILE_SIDE = 256


@dataclass(frozen=True, slots=True)
class Tile:
    """One image of a grid: its encoded bytes (None if unavailable) and its caption."""

    data: bytes | None
    caption: str


def answer_tile(uri: str | None, caption: str) -> Tile:
    """Make the tile of an answer; it is blank if the image is no longer at its URI."""
    try:
        return Tile(read_uri(uri) if uri else None, caption)
    except OSError:
        return Tile(None, caption)


def save_grid(rows: Sequence[Sequence[Tile]], path: Path, *, max_pixels: int = MAX_PIXELS) -> None:
    """Draw one row for each query: the framed query, then its answers; images of more than `max_pixels` are blank."""
    given = [tile.data for row in rows for tile in row if tile.data is not None]
    small = iter(thumbnails(given, side=_TILE_SIDE, max_pixels=max_pixels))
    rows = [[Tile(None if tile.data is None else next(small), tile.caption) for tile in row] for row in rows]
    width = max(len(row) for row in rows)
    figure = Figure(figsize=(_TILE_INCHES * width, _ROW * _TILE_INCHES * len(rows)))
    # Axes for each tile would take many times as long to lay out and draw.
    axis = figure.add_axes((0, 0, 1, 1))
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            _draw_tile(axis, tile, column, _ROW * number, is_query=column == 0)
    axis.set(xlim=(0, width), ylim=(_ROW * len(rows), 0))
    axis.axis("off")
    _save(figure, path)


def save_lines(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: Path,
    *,
    title: str,
    x: str,
    y: str,
    log: bool = False,
    mark: float | None = None,
) -> None:
    """Draw one line of (x, y) for each method, optionally on a logarithmic axis, with a dotted mark at one x."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, (across, up) in lines.items():
        axis.plot(across, up, label=name)
    axis.set(xlabel=x, ylabel=y, ylim=(0, 1.02), title=title, xscale="log" if log else "linear")
    if mark is not None:
        axis.axvline(mark, color="grey", linestyle=":")
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, path)


def save_sharpness(relaxed: np.ndarray, path: Path, *, title: str) -> None:
    """Draw how close to -1 and 1 the relaxed codes are: a histogram of their absolute values."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    magnitude = np.abs(relaxed).ravel()
    axis.hist(magnitude, bins=50, range=(0, 1), weights=np.full(len(magnitude), 1 / len(magnitude)))
    share = float((magnitude > 0.99).mean())
    axis.set(xlabel="|h|", ylabel="share of units", title=f"{title}: {share:.1%} of |h| above 0.99")
    _save(figure, path)


def save_map(points: np.ndarray, groups: np.ndarray, names: Sequence[str], path: Path, *, title: str) -> None:
    """Draw points (N, 2), one colour for each group."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    axis = figure.subplots()
    colours = colormaps["tab20"]
    for group in np.unique(groups):
        x, y = points[groups == group].T
        axis.scatter(x, y, s=6, color=colours(group % colours.N), label=names[group])
    axis.set(xticks=[], yticks=[], title=title)
    if len(names) <= colours.N:
        axis.legend(markerscale=2, fontsize=7)
    _save(figure, path)


def _draw_tile(axis: Axes, tile: Tile, left: float, top: float, *, is_query: bool) -> None:
    """Draw an image in the middle of its place, with the caption below."""
    width = height = _IMAGE
    if tile.data is not None:
        image = Image.open(io.BytesIO(tile.data)).convert("RGB")
        width, height = (_IMAGE * side / max(image.size) for side in image.size)
    x, y = left + (1 - width) / 2, top + (1 - height) / 2
    if tile.data is None:
        axis.text(left + 0.5, top + 0.5, "no image", ha="center", va="center", fontsize=7)
    else:
        axis.imshow(np.asarray(image), extent=(x, x + width, y + height, y), aspect="auto")
    if is_query:
        axis.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor="tab:blue", linewidth=2.5))
    axis.text(left + 0.5, top + _CAPTION, tile.caption, ha="center", va="top", fontsize=7)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=110)
