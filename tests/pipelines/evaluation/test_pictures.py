"""Grids of answers: each image at its place, in its shape, and the query framed."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from hashlight.pipelines.evaluation.pictures import Tile, save_grid

SIDE = 121  # of a tile: 1.1 inches of 110 pixels
WHITE, RED, LIME, BLUE = (255, 255, 255), (255, 0, 0), (0, 255, 0), (31, 119, 180)


def solid(colour, size):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_image_of_a_grid_is_at_its_place_in_its_shape(tmp_path):
    wide, high = solid("red", (90, 30)), solid("lime", (30, 90))
    save_grid([[Tile(wide, "query"), Tile(high, "3: lime")], [Tile(high, "")]], tmp_path / "grid.png")
    pixel_HWC = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)
    assert pixel_HWC.shape[:2] == (int(2 * 1.35 * SIDE), 2 * SIDE)

    def is_at(colour, x, y):
        return np.abs(pixel_HWC[round(y * SIDE), round(x * SIDE)] - colour).max() < 16

    assert is_at(RED, 0.5, 0.5)
    assert is_at(RED, 0.15, 0.5)
    assert is_at(WHITE, 0.5, 0.25)
    assert is_at(LIME, 1.5, 0.5)
    assert is_at(LIME, 1.5, 0.15)
    assert is_at(WHITE, 1.25, 0.5)
    assert is_at(LIME, 0.5, 1.35 + 0.5)
    assert is_at(WHITE, 1.5, 1.35 + 0.5)
    blue = (np.abs(pixel_HWC - BLUE).max(axis=2) < 16).nonzero()
    assert blue[1].max() < SIDE
    assert abs(blue[0].min() - 0.35 * SIDE) < 4, "the frame is that of the first image"
    caption = pixel_HWC[round(0.97 * SIDE) : round(1.3 * SIDE)].min(axis=(0, 2))
    assert caption[:SIDE].min() < 64
    assert caption[SIDE:].min() < 64
