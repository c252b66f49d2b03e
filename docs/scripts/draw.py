"""Draw all SVG pictures of the pages: `python docs/scripts/draw.py`. Curves show the results in `benchmarks/`."""

from __future__ import annotations

from pathlib import Path

from curves import CURVES
from drawings import DRAWINGS

IMAGES = Path(__file__).parents[1] / "images"


def pictures() -> dict[str, str]:
    """Return the text of each file by its name."""
    return {name: draw().render() for name, draw in {**CURVES, **DRAWINGS}.items()}


def main() -> None:
    """Write the files into `docs/images`."""
    for name, text in pictures().items():
        (IMAGES / name).write_text(text)


if __name__ == "__main__":
    main()
