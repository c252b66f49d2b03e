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
from PIL import Image

from hashlight.encoders.data.images import MAX_PIXELS
from hashlight.pipelines.corpora.corpus import read_uri
from hashlight.pipelines.decoding.images import thumbnails

_TILE_INCHES = 1.1
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
    figure = Figure(figsize=(_TILE_INCHES * width, 1.35 * _TILE_INCHES * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), width, squeeze=False)
    for row, row_axes in zip(rows, axes, strict=True):
        for column, axis in enumerate(row_axes):
            axis.set(xticks=[], yticks=[])
            tile = row[column] if column < len(row) else None
            if tile is None:
                axis.axis("off")
                continue
            _draw_tile(axis, tile, is_query=column == 0)
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


def _draw_tile(axis: Axes, tile: Tile, *, is_query: bool) -> None:
    if tile.data is None:
        axis.text(0.5, 0.5, "no image", ha="center", va="center", fontsize=7)
    else:
        axis.imshow(np.asarray(Image.open(io.BytesIO(tile.data)).convert("RGB")))
    axis.set_xlabel(tile.caption, fontsize=7)
    for spine in axis.spines.values():
        spine.set(visible=is_query, color="tab:blue", linewidth=2.5)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=110)
