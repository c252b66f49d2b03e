"""`hashlight shard-server`."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from hashlight.pipelines.cli.console import out, spinner
from hashlight.pipelines.cli.options import (
    CacheSizeOption,
    DrainDelayOption,
    ExistingCollectionArgument,
    IndexOption,
    PollOption,
    ShardTls,
    parse_listen,
)


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
        with spinner("opening"):
            server = stack.enter_context(
                running(
                    collection, group=number, groups=groups, host=host, port=port, advertise=advertise,
                    security=shard_tls.security(), index=index, poll_s=poll, faults=faults,
                )
            )  # fmt: skip
        where = open_place(collection)
        serve_until_told(
            server,
            delay_s=drain_delay,
            ready=lambda: out.print(f"serving group {group} of {where} at {server.address}", soft_wrap=True),
        )
