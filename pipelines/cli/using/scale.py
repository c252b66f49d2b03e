"""`hashlight scale`."""

from __future__ import annotations

from typing import Annotated

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import out, spinner


def scale(
    url: Annotated[
        str,
        typer.Argument(
            help="URL of a server that was started with --groups; or ray://NAME, shard servers on Ray with a --name."
        ),
    ],
    replicas: Annotated[int, typer.Option(min=0, help="Shard servers per group; 0 stops those of ray://NAME.")],
    key: Annotated[
        str | None, typer.Option(envvar="HASHLIGHT_API_KEY", help="A key with the scope admin, if keys are required.")
    ] = None,
) -> None:
    """Start or stop shard servers that are running, without failing a query."""
    from hashlight.pipelines.serving.scale import scale_on_ray, scale_replicas

    name = url.removeprefix("ray://")
    if name == url and replicas == 0:
        raise typer.BadParameter("--replicas must be at least 1: stop the server to stop its shard servers")
    with spinner("scaling"):
        if name == url:
            scale_replicas(url, replicas, key=key)
        else:
            scale_on_ray(name, replicas)
    out.print(f"{counted(replicas, 'shard server')} in every group of {url}", soft_wrap=True)
