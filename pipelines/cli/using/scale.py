"""`hashlight scale`."""

from __future__ import annotations

from typing import Annotated

import typer

from hashlight.pipelines.cli.console import out, spinner


def scale(
    url: Annotated[str, typer.Argument(help="Of a server that was started with --groups.")],
    replicas: Annotated[int, typer.Option(min=1, help="Shard servers of each group.")],
    key: Annotated[
        str | None, typer.Option(envvar="HASHLIGHT_API_KEY", help="A key with the scope admin, if it wants one.")
    ] = None,
) -> None:
    """Start or stop shard servers of a running server, without a query that fails."""
    from hashlight.pipelines.serving.scale import scale_replicas

    with spinner("scaling"):
        scale_replicas(url, replicas, key=key)
    out.print(f"{replicas} shard servers in every group of {url}", soft_wrap=True)
