"""350 drawings in colour, without labels, of the Open Clip Art Library (public domain), packaged for a first run."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

SAMPLE = Path(__file__).parent / "data" / "drawings.parquet"


def write_drawings(folder: Path) -> None:
    """Write the drawings as PNG files, into a folder that is made if necessary."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(SAMPLE, columns=["name", "image"])
    for name, image in zip(table["name"].to_pylist(), table["image"].to_pylist(), strict=True):
        (folder / name).write_bytes(image)
