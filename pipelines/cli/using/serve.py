"""`hashlight serve`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hashlight.pipelines.cli.console import fetching_text, out, spinner
from hashlight.pipelines.cli.options import (
    CacheSizeOption,
    DrainDelayOption,
    IndexOption,
    MaxMegapixelsOption,
    Observing,
    OtherEncoderOption,
    ShardTls,
    local_file,
    local_path,
    refuse_missing,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fastapi import FastAPI

    from hashlight.engine.cache.cache import Progress
    from hashlight.engine.indexes.choice import IndexChoice
    from hashlight.engine.service.asking.beside import Beside
    from hashlight.engine.service.door.http_server import Address, HttpServer
    from hashlight.engine.service.door.keys import Keys
    from hashlight.engine.service.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where the server listens, and how it stops."""

    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is every address of the machine.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000
    drain_delay: DrainDelayOption = 5.0


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may send requests, and whether over TLS."""

    keys: Annotated[
        Path | None,
        local_file("API keys, lines `NAME SCOPES KEY [rate=N/s] [in-flight=N]`; HASHLIGHT_API_KEYS without it."),
    ] = None
    writable: Annotated[
        bool, typer.Option("--writable", help="Accept writes; with keys, from those with the scope `write`.")
    ] = False
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve other machines without a key.")] = False
    tls_cert: Annotated[Path | None, local_file("Certificate (PEM): serve https.")] = None
    tls_key: Annotated[Path | None, local_file("Its private key (PEM).")] = None
    tls_client_authority: Annotated[
        Path | None, local_file("Accept only clients with a certificate that an authority in it (PEM) has signed.")
    ] = None

    def check(self) -> None:
        """Refuse half of a certificate."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise typer.BadParameter("--tls-cert and --tls-key go together: give both or neither")
        if self.tls_client_authority is not None and self.tls_cert is None:
            raise typer.BadParameter("--tls-client-authority goes with --tls-cert and --tls-key: give those, too")


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What a request may ask for, and how many may run at once."""

    image_host: Annotated[
        list[str] | None, typer.Option(help="Fetch query images from this host, or from all below .example.com.")
    ] = None
    in_flight: Annotated[int | None, typer.Option(min=1, help="Requests at once; others are told to retry.")] = None
    max_megapixels: MaxMegapixelsOption = 64
    slow_query: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Log queries that take longer, each with how it was answered."),
    ] = None

    def limits(self) -> Limits:
        """Return them as the server takes them."""
        from hashlight.engine.service.limits import Limits

        most = {} if self.in_flight is None else {"in_flight": self.in_flight}
        return Limits(pixels=self.max_megapixels * 1_000_000, **most)


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """What a server does about a collection that it may write."""

    compact: Annotated[
        bool, typer.Option(help="With --writable: merge small and much-deleted shards in the background, after writes.")
    ] = True
    write_log: Annotated[
        Path | None,
        typer.Option(
            help="With --writable: folder of the write logs, which a restarted server needs to be given again; with "
            "the user's state without it.",
            parser=local_path,
            metavar="FOLDER",
        ),
    ] = None

    def check(self, *, writable: bool) -> None:
        """Refuse a log of a server that does not write."""
        if self.write_log is not None and not writable:
            raise typer.BadParameter("--write-log goes with --writable: give that, too, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What jobs have left that the server shows."""

    duplicates: Annotated[
        list[str] | None,
        typer.Option(
            help="Show the groups of near-duplicates in this folder, the --output of `hashlight dedup`; that of one of "
            "several collections as NAME=FOLDER.",
            metavar="FOLDER",
        ),
    ] = None
    rejects: Annotated[
        list[str] | None,
        typer.Option(
            help="Show operators the rejected images of this folder of codes, the --output of `hashlight encode`; that "
            "of one of several collections as NAME=FOLDER.",
            metavar="FOLDER",
        ),
    ] = None

    def of(self, names: Sequence[str]) -> dict[str, Beside]:
        """Return what is shown of each of the collections that have these names."""
        from hashlight.engine.service.asking.beside import Beside

        duplicates = self._by_name("--duplicates", self.duplicates, names)
        codes = self._by_name("--rejects", self.rejects, names)
        return {name: Beside(duplicates=duplicates.get(name), codes=codes.get(name)) for name in names}

    @staticmethod
    def _by_name(option: str, given: list[str] | None, names: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, folder in map(_split, given or []):
            if name is None and len(names) > 1:
                raise typer.BadParameter(f"{option} {folder}: name the collection, as in {names[0]}={folder}")
            name = names[0] if name is None else name
            if name not in names:
                raise typer.BadParameter(f"{option}: there is no collection {name}; there are: {', '.join(names)}")
            if name in found:
                raise typer.BadParameter(f"{option} is given twice for {name}: give one folder")
            found[name] = folder
        return found


@dataclass(frozen=True, kw_only=True)
class ShardServers:
    """Which shard servers there are, if any."""

    groups: Annotated[
        int | None, typer.Option(min=1, help="Shard servers in this many groups, each with a part of the shards.")
    ] = None
    replicas: Annotated[int | None, typer.Option(min=1, help="Shard servers per group; 1 if left out.")] = None
    ray: Annotated[bool, typer.Option("--ray", help="Shard servers on Ray, not as processes here.")] = False
    address: Annotated[str | None, typer.Option(help="Address of the Ray cluster; `auto` is this machine's.")] = None
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="With --ray: a name for the shard servers, which then outlive this command; gateways find "
            "them as --shards ray://NAME, and `hashlight scale ray://NAME --replicas 0` stops them.",
        ),
    ] = None

    @property
    def wanted(self) -> bool:
        """Whether there are shard servers at all."""
        return self.groups is not None or self.ray

    def check(self, tls: ShardTls) -> None:
        """Refuse options that would be ignored."""
        if self.address is not None and not self.ray:
            raise typer.BadParameter("--address is that of a Ray cluster: give --ray, too, or leave it out")
        if self.name is not None:
            self._check_name(self.name)
        given = [*tls.given, *(["--replicas"] if self.replicas is not None else [])]
        if given and not self.wanted:
            raise typer.BadParameter(
                f"{', '.join(given)}: there are no shard servers without --groups or --ray; give one of those, or "
                "leave it out"
            )
        tls.check()

    def _check_name(self, name: str) -> None:
        from hashlight.engine.service.protocol.security import TOKEN_VARIABLE

        if not self.ray:
            raise typer.BadParameter("--name is that of shard servers on Ray: give --ray, too, or leave it out")
        if "/" in name or not name:
            raise typer.BadParameter(f"--name must be without a slash, got {name!r}")
        if not os.environ.get(TOKEN_VARIABLE):
            raise typer.BadParameter(f"--name: other gateways need the servers' token, set it in {TOKEN_VARIABLE}")


def _split(text: str) -> tuple[str | None, str]:
    """Return the name and the place of a collection given as NAME=PLACE, or its place alone."""
    name, equals, place = text.partition("=")
    return (name, place) if equals and "/" not in name and not Path(text).exists() else (None, text)


def _refuse_missing_ones(given: list[str]) -> list[str]:
    for text in given:
        refuse_missing(_split(text)[1])
    return given


def serve(
    collection: Annotated[
        list[str],
        typer.Argument(
            help="A collection: a folder, or the URI of one in a bucket; several as NAME=PLACE.",
            callback=_refuse_missing_ones,
        ),
    ],
    listening: Listening,
    encoder: OtherEncoderOption = None,
    *,
    index: IndexOption = "auto",
    access: Access,
    requests: Requests,
    upkeep: Upkeep,
    shown: Shown,
    shard_servers: ShardServers,
    shard_tls: ShardTls,
    cache_size: CacheSizeOption = None,
    observing: Observing,
) -> None:
    """Serve collections over HTTP: from this process, or with --groups from shard servers, here or on Ray.

    Shard servers require a token: that of HASHLIGHT_SHARD_TOKEN, or a generated one.
    """
    from hashlight.engine.places.opening import open_place

    shard_servers.check(shard_tls)
    access.check()
    upkeep.check(writable=access.writable)
    if encoder is not None and len(collection) > 1:
        raise typer.BadParameter("--encoder is that of one collection: give several that keep theirs, or one")
    # The web server shuts down cleanly and then raises the signal again: shard servers must still be stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.ExitStack() as stack:
        stack.enter_context(observing.watching("hashlight-gateway"))
        with spinner("opening") as say:
            progress = fetching_text(say, "opening")
            server = stack.enter_context(
                _open_server(
                    collection,
                    listening,
                    encoder,
                    index,
                    access,
                    requests,
                    upkeep,
                    shown,
                    shard_servers,
                    shard_tls,
                    observing,
                    progress,
                )
            )
        places = ", ".join(str(open_place(_split(text)[1])) for text in collection)
        out.print(f"serving {places} at {server.url}", soft_wrap=True)
        server.run()


def _named(collections: list[str]) -> dict[str, str]:
    """Return the places of collections by their names."""
    from hashlight.pipelines.serving.serve import name_of

    places: dict[str, str] = {}
    for name, place in map(_split, collections):
        name = name or name_of(place)
        if name in places:
            raise typer.BadParameter(f"two collections are named {name}: name them, as in {name}-2={place}")
        places[name] = place
    return places


@contextlib.contextmanager
def _open_server(
    collections: list[str],
    listening: Listening,
    encoder: str | None,
    index: IndexChoice,
    access: Access,
    requests: Requests,
    upkeep: Upkeep,
    shown: Shown,
    shard_servers: ShardServers,
    shard_tls: ShardTls,
    observing: Observing,
    progress: Progress,
) -> Iterator[HttpServer]:
    """Yield a server that is bound to its address; its shard servers, if there are any, end with the context."""
    from hashlight.engine.service.door.http_server import Address, check_exposure
    from hashlight.engine.service.door.keys import Keys
    from hashlight.engine.service.telemetry.metrics import Metrics
    from hashlight.pipelines.serving.serve import bind, embedded_app, watched

    address = Address(
        host=listening.host, port=listening.port, certificate=access.tls_cert, private_key=access.tls_key,
        client_authority=access.tls_client_authority,
    )  # fmt: skip
    keys = Keys.load(access.keys)
    check_exposure(address, keys, insecure=access.insecure)
    more: dict[str, Any] = {
        "encoder": encoder,
        "limits": requests.limits(),
        "image_hosts": requests.image_host or (),
        "writable": access.writable,
        "write_log": upkeep.write_log,
    }
    places = _named(collections)
    beside = shown.of(list(places))
    with contextlib.ExitStack() as stack:
        apps = {}
        for name, place in places.items():
            more["beside"] = beside[name]
            more["metrics"] = metrics = Metrics()
            if shard_servers.wanted:
                app = _cluster_app(place, address, keys, index, shard_servers, shard_tls, observing, more)
            else:
                app = embedded_app(place, address, keys, index=index, progress=progress, **more)
            apps[name] = stack.enter_context(app)
            if access.writable and upkeep.compact:
                from hashlight.engine.service.control.compacting import compacting

                stack.enter_context(compacting(place, least=lambda: shard_servers.groups or 1, metrics=metrics))
        server = bind(
            apps, address, keys, insecure=access.insecure, slow_query_s=requests.slow_query,
            delay_s=listening.drain_delay,
        )  # fmt: skip
        if observing.metrics_listen is not None:
            from hashlight.engine.service.door.listener import watching

            stack.enter_context(watching(observing.metrics_listen, watched(apps, server)))
        yield server


def _cluster_app(
    place: str,
    address: Address,
    keys: Keys,
    index: IndexChoice,
    shard_servers: ShardServers,
    shard_tls: ShardTls,
    observing: Observing,
    more: dict[str, Any],
) -> AbstractContextManager[FastAPI]:
    from hashlight.pipelines.serving.cluster import cluster_app
    from hashlight.pipelines.serving.cluster import shard_servers as start_servers

    servers = start_servers(
        place, groups=shard_servers.groups or 1, replicas=shard_servers.replicas or 1, ray=shard_servers.ray,
        ray_address=shard_servers.address, name=shard_servers.name, index=index,
        security=shard_tls.security(fresh_token=True), options=observing.as_log_options(),
    )  # fmt: skip
    return cluster_app(place, address, keys, servers, **more)
