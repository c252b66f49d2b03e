"""`hashlight warmup`."""

from __future__ import annotations

import time

from hashlight.pipelines.cli.console import out, spinner


def warmup() -> None:
    """Compile the search kernels and measure this machine once, so that the first query is as fast as the next."""
    from hashlight.engine.indexes.warmup import warm

    start = time.perf_counter()
    with spinner("compiling kernels and measuring this machine"):
        warm()
    out.print(f"ready in {time.perf_counter() - start:.1f} s")
