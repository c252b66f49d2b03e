"""`hashlight scale`."""

from __future__ import annotations

from typing import Annotated

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import out, spinner


def scale(
    url: Annotated[str, typer.Argument(help="URL of a server that was started with --groups.")],
    replicas: Annotated[int, typer.Option(min=1, help="Shard servers per group.")],
    key: Annotated[
        str | None, typer.Option(envvar="HASHLIGHT_API_KEY", help="A key with the scope admin, if keys are required.")
    ] = None,
) -> None:
    """Start or stop shard servers of a running server, without failing a query."""
    from hashlight.pipelines.serving.scale import scale_replicas

    with spinner("scaling"):
        scale_replicas(url, replicas, key=key)
    out.print(f"{counted(replicas, 'shard server')} in every group of {url}", soft_wrap=True)
