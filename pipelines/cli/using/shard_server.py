"""`hashlight shard-server`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hashlight.pipelines.cli.console import out, spinner
from hashlight.pipelines.cli.options import (
    CacheSizeOption,
    DrainDelayOption,
    ExistingCollectionArgument,
    IndexOption,
    Observing,
    PollOption,
    ShardTls,
    parse_listen,
)

if TYPE_CHECKING:
    from hashlight.engine.service.door.listener import Watched
    from hashlight.engine.service.shards.server import ShardServer


def _group_of(text: str) -> tuple[int, int]:
    """Return the number of a group and how many there are, from `2/8`."""
    group, slash, groups = text.partition("/")
    if not slash or not (group + groups).isascii() or not (group.isdigit() and groups.isdigit()):
        raise typer.BadParameter(f"expected a group and the number of groups, such as 2/8, got {text!r}")
    if not 1 <= int(group) <= int(groups):
        raise typer.BadParameter(f"groups count from 1 to their number, got {text}")
    return int(group), int(groups)


def shard_server(
    collection: ExistingCollectionArgument,
    group: Annotated[str, typer.Option(help="Which of how many groups of shards it serves: 2/8 is the second of 8.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 is any that is free.")] = "127.0.0.1:8815",
    advertise: Annotated[
        str | None, typer.Option(help="HOST:PORT under which gateways reach it, if not where it listens.")
    ] = None,
    *,
    index: IndexOption = "auto",
    poll: PollOption = 2.0,
    drain_delay: DrainDelayOption = 5.0,
    shard_tls: ShardTls,
    cache_size: CacheSizeOption = None,
    observing: Observing,
    faults: Annotated[bool, typer.Option("--faults", hidden=True)] = False,
) -> None:
    """Serve one group of a collection's shards to gateways, which find it by its address.

    It follows the collection, keeps the last two versions open, and says what it has. The token that gateways must
    have is HASHLIGHT_SHARD_TOKEN. SIGTERM ends it once its requests are answered.
    """
    from hashlight.engine.places.opening import open_place
    from hashlight.engine.service.shards.running import serve_until_told
    from hashlight.engine.service.shards.running import shard_server as running

    number, groups = _group_of(group)
    host, port = parse_listen(listen)
    if advertise is not None:
        parse_listen(advertise)
    shard_tls.check()
    with contextlib.ExitStack() as stack:
        watched = stack.enter_context(contextlib.ExitStack())  # what is closed at the end of the process, too
        watched.enter_context(observing.watching("hashlight-shard-server"))
        with spinner("opening"):
            server = stack.enter_context(
                running(
                    collection, group=number, groups=groups, host=host, port=port, advertise=advertise,
                    security=shard_tls.security(), index=index, poll_s=poll, faults=faults,
                )
            )  # fmt: skip
        if observing.metrics_listen is not None:
            from hashlight.engine.service.door.listener import watching

            watched.enter_context(watching(observing.metrics_listen, _watched(server)))
        where = open_place(collection)
        serve_until_told(
            server,
            delay_s=drain_delay,
            ready=lambda: out.print(f"serving group {group} of {where} at {server.address}", soft_wrap=True),
            ended=watched.close,
        )


def _watched(server: ShardServer) -> Watched:
    """Return what a shard server says about itself at a port of its own, and count what it answers for that."""
    from hashlight.engine.errors import NotReadyError
    from hashlight.engine.service.door.listener import Watched
    from hashlight.engine.service.telemetry.cluster import ShardMetrics
    from hashlight.engine.service.telemetry.metrics import render

    metrics = ShardMetrics(server.stats)
    server.observe_by(metrics.observe)

    def ready() -> dict[str, Any]:
        """Say which version is served; microseconds."""
        stats = server.stats()
        if server.draining or not stats["served_versions"]:
            raise NotReadyError("this server is about to end" if server.draining else "this server serves no shards")
        return {"status": "ready", "version": stats["served_version"], "shards": stats["open_shards"]}

    def complete() -> dict[str, Any]:
        """Search in every shard."""
        told = ready()
        server.ready()
        return {**told, "status": "complete"}

    return Watched(lambda: render(metrics), ready, complete)
