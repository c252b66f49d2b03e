"""The packaged drawings are what their README says."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hashlight.pipelines.corpora.drawings import SAMPLE, write_drawings


def test_the_drawings_are_small_in_colour_and_distinct(tmp_path):
    write_drawings(tmp_path / "drawings")
    files = sorted((tmp_path / "drawings").iterdir())
    assert len(files) == 350
    seen = set()
    for file in files:
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert max(image.size) <= 160
            pixels = np.asarray(image.convert("RGB"), int)
        assert (pixels.max(axis=2) - pixels.min(axis=2) > 24).mean() > 0.05
        seen.add(pixels.tobytes())
    assert len(seen) == 350
    assert SAMPLE.stat().st_size < 8e6
