"""`hashlight gateway`."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hashlight.pipelines.cli.console import out, spinner
from hashlight.pipelines.cli.options import (
    CacheSizeOption,
    Observing,
    OtherEncoderOption,
    PollOption,
    ShardTls,
    local_file,
    refuse_missing,
)
from hashlight.pipelines.cli.using.serve import Access, Listening, Requests, Shown, Upkeep

if TYPE_CHECKING:
    from hashlight.engine.service.control.finding import Finder
    from hashlight.engine.service.control.sources import Source
    from hashlight.engine.service.door.http_server import HttpServer


_RAY = "ray://"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Where the shard servers are."""

    shards: Annotated[
        str | None,
        typer.Option(
            help="Names of the groups' servers, resolved at each poll: dns:///shard-{group}.NAME:PORT; or ray://NAME, "
            "those that `hashlight serve --ray --name NAME` has started."
        ),
    ] = None
    groups: Annotated[int | None, typer.Option(min=1, help="With dns:/// names: how many groups there are.")] = None
    map: Annotated[
        Path | None,
        local_file('A file that lists them, read again when it changes: {"groups": [["HOST:PORT", ...], ...]}.'),
    ] = None
    poll: PollOption = 2.0

    def check(self) -> None:
        """Refuse what names no servers, or names them twice."""
        if (self.shards is None) == (self.map is None):
            raise typer.BadParameter("give either --shards or --map, which say where the shard servers are")
        if self.shards is not None and not self.shards.startswith(_RAY) and self.groups is None:
            raise typer.BadParameter("--shards dns:///... goes with --groups: how many groups there are")

    def source(self) -> Source:
        """Return what gives the addresses."""
        from hashlight.engine.service.control.sources import MapFile, NamedServers
        from hashlight.pipelines.serving.ray_lookup import RayAddresses

        if self.map is not None:
            return MapFile(self.map, self.groups)
        assert self.shards is not None, "it was checked"
        try:
            if self.shards.startswith(_RAY):
                return RayAddresses(self.shards.removeprefix(_RAY))
            assert self.groups is not None, "it was checked"
            return NamedServers(self.shards, self.groups)
        except ValueError as error:
            raise typer.BadParameter(f"--shards: {error}") from error


def gateway(
    collection: Annotated[
        str | None,
        typer.Argument(
            help="The collection, for its encoder and for writes: a folder, or the URI of one in a bucket.",
            callback=refuse_missing,
        ),
    ] = None,
    *,
    finding: Finding,
    listening: Listening,
    encoder: OtherEncoderOption = None,
    access: Access,
    requests: Requests,
    upkeep: Upkeep,
    shown: Shown,
    shard_tls: ShardTls,
    cache_size: CacheSizeOption = None,
    observing: Observing,
) -> None:
    """Answer over HTTP from shard servers that run already; any number of gateways may stand before the same ones.

    Each asks the servers what they have, and serves the newest version that every group has. Until any is found it is
    not ready, and goes on looking. The token of the shard servers is HASHLIGHT_SHARD_TOKEN.
    """
    finding.check()
    access.check()
    upkeep.check(writable=access.writable)
    shard_tls.check()
    for name, given in (("--writable", access.writable), ("--encoder", encoder is not None)):
        if given and collection is None:
            raise typer.BadParameter(f"{name} goes with a COLLECTION: name it, or leave {name} out")
    # The web server shuts down cleanly and then raises the signal again: what it uses must still be closed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        stack.enter_context(observing.watching("hashlight-gateway"))
        with spinner("opening"):
            server = stack.enter_context(
                _open_gateway(
                    collection, finding, listening, encoder, access, requests, upkeep, shown, shard_tls, observing
                )
            )
        out.print(f"serving {collection or 'a collection'} at {server.url}", soft_wrap=True)
        server.run()


@contextlib.contextmanager
def _finder(collection: str | None, source: Source, shard_tls: ShardTls) -> Iterator[Finder]:
    """Yield what finds the shard servers, of this collection if it is named."""
    from hashlight.engine.places.opening import open_place
    from hashlight.engine.service.control.finding import Finder
    from hashlight.engine.storage.versions import read_current
    from hashlight.pipelines.serving.ray_lookup import RayAddresses

    served = where = None
    if collection is not None:
        place = open_place(collection)
        served, where = read_current(place).collection, str(place)
    with contextlib.ExitStack() as stack:
        if isinstance(source, RayAddresses):
            stack.callback(source.close)
        finder = Finder(source, security=shard_tls.security(), collection=served, location=where)
        yield stack.enter_context(contextlib.closing(finder))


@contextlib.contextmanager
def _open_gateway(
    collection: str | None,
    finding: Finding,
    listening: Listening,
    encoder: str | None,
    access: Access,
    requests: Requests,
    upkeep: Upkeep,
    shown: Shown,
    shard_tls: ShardTls,
    observing: Observing,
) -> Iterator[HttpServer]:
    """Yield a gateway that is bound to its address."""
    from hashlight.engine.places.opening import open_place
    from hashlight.engine.service.control.compacting import compacting
    from hashlight.engine.service.door.http_server import Address, check_exposure
    from hashlight.engine.service.door.keys import Keys
    from hashlight.engine.service.door.listener import watching
    from hashlight.engine.service.telemetry.metrics import Metrics
    from hashlight.pipelines.serving.cluster import found_app, routing
    from hashlight.pipelines.serving.serve import bind, name_of, watched

    address = Address(
        host=listening.host, port=listening.port, certificate=access.tls_cert, private_key=access.tls_key,
        client_authority=access.tls_client_authority,
    )  # fmt: skip
    keys, metrics = Keys.load(access.keys), Metrics()
    name = "collection" if collection is None else name_of(collection)
    beside = shown.of([name])[name]
    check_exposure(address, keys, insecure=access.insecure)
    with contextlib.ExitStack() as stack:
        finder = stack.enter_context(_finder(collection, finding.source(), shard_tls))
        router = stack.enter_context(routing(finder, poll_s=finding.poll, patient=True, observe=metrics.observe))
        app = stack.enter_context(
            found_app(
                dataclasses.replace(beside, collection=None if collection is None else open_place(collection).location),
                address,
                keys,
                finder,
                router,
                encoder=encoder,
                limits=requests.limits(),
                image_hosts=requests.image_host or (),
                writable=access.writable,
                write_log=upkeep.write_log,
                metrics=metrics,
            )
        )
        if collection is not None and access.writable and upkeep.compact:
            stack.enter_context(compacting(collection, least=lambda: finder.num_groups, metrics=metrics))
        server = bind(
            {name: app}, address, keys, insecure=access.insecure, slow_query_s=requests.slow_query,
            delay_s=listening.drain_delay,
        )  # fmt: skip
        if observing.metrics_listen is not None:
            stack.enter_context(watching(observing.metrics_listen, watched({name: app}, server)))
        yield server
