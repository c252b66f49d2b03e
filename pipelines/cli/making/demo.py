"""`hashlight demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hashlight.pipelines.cli.options import local_path


def demo(
    output: Annotated[
        Path,
        typer.Option("--output", help="Folder of this machine for everything the demo makes.", parser=local_path),
    ] = Path("demo"),
) -> None:
    """Run the main job on the packaged images: train, encode, build, evaluate, search."""
    from hashlight.pipelines.cli.demo import run_demo

    run_demo(output)
