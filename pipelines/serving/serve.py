"""Serve a collection over HTTP."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from hashlight.engine.cache.cache import Progress
from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import IncompleteError, NotReadyError
from hashlight.engine.indexes.choice import IndexChoice
from hashlight.engine.indexes.warmup import warm
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.api.collections import Collections
from hashlight.engine.service.api.gateway import Gateway
from hashlight.engine.service.asking.beside import Beside
from hashlight.engine.service.asking.encoding import Encoder
from hashlight.engine.service.asking.following import Follower, Pending
from hashlight.engine.service.asking.searcher import CollectionSearcher, Searcher
from hashlight.engine.service.door.draining import DELAY_S
from hashlight.engine.service.door.fetch import ImageFetcher
from hashlight.engine.service.door.hosts import KnownHosts
from hashlight.engine.service.door.http_server import LOOPBACK_NAMES, Address, HttpServer, check_exposure
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.door.listener import Watched
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.telemetry.metrics import Metrics, render
from hashlight.engine.service.telemetry.process import LabelledCollector
from hashlight.engine.writing.buffering import Buffer
from hashlight.engine.writing.committing import Committer
from hashlight.engine.writing.opened import Opened


@contextlib.contextmanager
def embedded_app(
    path: str | Path,
    address: Address,
    keys: Keys,
    *,
    encoder: str | Path | None = None,
    limits: Limits | None = None,
    image_hosts: Sequence[str] = (),
    index: IndexChoice = "auto",
    writable: bool = False,
    write_log: Path | None = None,
    metrics: Metrics | None = None,
    progress: Progress | None = None,
    beside: Beside | None = None,
) -> Iterator[FastAPI]:
    """Open a collection in this process; yield the application that answers for it.

    Kernels are compiled and a test search is made first. A new version of the collection is picked up when it is
    published, without failing a query. `index` is the index that answers, and `progress` is told what is fetched from a
    bucket, as in `Collection.open`. With `writable` it accepts writes, each of which is searched before it is answered;
    `write_log` is where their log is, as in `engine.writing.opened.Opened`. `metrics` is where requests are counted,
    `beside` has the folders of jobs that are shown.

    Raises
    ------
    EncoderMismatchError
        If `encoder` is not the one that made the codes.
    """
    with contextlib.ExitStack() as stack:
        # First, because a collection of format 1 gets another version.
        opened = Opened(path, write_log) if writable else None
        if opened is not None:
            stack.callback(opened.close)
        collection = Collection.open(path, index=index, progress=progress)
        searcher = CollectionSearcher(collection)
        model = encoder_of(collection, encoder)
        committer, renew = None, searcher.renew
        if opened is not None:
            buffer = Buffer(collection, opened, searcher.show)
            searcher.recall_by(buffer.recall)
            committer, renew = stack.enter_context(contextlib.closing(Committer(buffer))), buffer.renew
        follower = Follower(path, renew)
        app = gateway_app(
            searcher,
            model,
            address,
            keys,
            limits=limits,
            image_hosts=image_hosts,
            metrics=metrics,
            pending=lambda: follower.pending,
            committer=committer,
            beside=dataclasses.replace(beside or Beside(), collection=searcher.location),
        )
        warm()
        searcher.ready()
        with follower.following():
            yield app


def gateway_app(
    searcher: Searcher,
    encoder: Encoder | None,
    address: Address,
    keys: Keys,
    *,
    limits: Limits | None = None,
    image_hosts: Sequence[str] = (),
    metrics: Metrics | None = None,
    scale: Callable[[int], None] | None = None,
    pending: Callable[[], Pending | None] | None = None,
    committer: Committer | None = None,
    beside: Beside | None = None,
) -> FastAPI:
    """Return the application of one collection, for a server at `address`."""
    limits = limits or Limits()
    return create_app(
        searcher,
        encoder=encoder,
        keys=keys,
        limits=limits,
        fetcher=ImageFetcher(image_hosts, max_bytes=limits.body_bytes) if image_hosts else None,
        metrics=metrics,
        scale=scale,
        pending=pending,
        committer=committer,
        beside=beside,
        allowed_hosts=_hosts_allowed(address, keys),
    )


def bind(
    apps: Mapping[str, FastAPI],
    address: Address,
    keys: Keys,
    *,
    insecure: bool = False,
    slow_query_s: float | None = None,
    delay_s: float = DELAY_S,
) -> HttpServer:
    """Bind the applications of collections, by their names, to an address; call `run()` on the result to serve.

    A query that takes longer than `slow_query_s` is logged with how it was answered. After SIGTERM the server answers
    for `delay_s` more, without being ready.

    Raises
    ------
    ValueError
        If other machines could ask without a key and `insecure` is not set, or a name is not one.
    """
    check_exposure(address, keys, insecure=insecure)
    hosts = _hosts_allowed(address, keys)
    several = Collections(apps, keys)
    app: ASGIApp = several if hosts is None else KnownHosts(several, hosts)
    return HttpServer(app, address, slow_query_s=slow_query_s, delay_s=delay_s)


def watched(apps: Mapping[str, FastAPI], server: HttpServer) -> Watched:
    """Return what a server says about itself and its collections at a port of its own."""
    gateways: dict[str, Gateway] = {name: app.state.gateway for name, app in apps.items()}
    together = LabelledCollector("collection", {name: gateway.metrics for name, gateway in gateways.items()})

    def check(*, complete: bool) -> dict[str, Any]:
        if server.draining:
            raise NotReadyError("this server is about to end: ask another")
        told = {name: _searched(gateway.searcher, complete=complete) for name, gateway in gateways.items()}
        return {"status": "complete" if complete else "ready", "collections": told}

    return Watched(
        lambda: render(together), functools.partial(check, complete=False), functools.partial(check, complete=True)
    )


def _searched(searcher: Searcher, *, complete: bool) -> dict[str, Any]:
    """Describe what can be asked, or what a test search finds; without the reasons, which have addresses."""
    found = searcher.ready() if complete else searcher.reachable()
    missing = sorted(found.degraded)
    if complete and missing:
        message = f"{len(missing)} of {found.shards} shards cannot be searched"
        raise IncompleteError(message, missing=dict.fromkeys(missing, "not searched"))
    return {"version": found.version, "shards": found.shards, "missing": missing}


def _hosts_allowed(address: Address, keys: Keys) -> list[str] | None:
    return list(LOOPBACK_NAMES) if not keys and address.is_loopback else None


def name_of(location: str | Path) -> str:
    """Return the name of a collection that is given none: that of its folder."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(location).rstrip("/").rpartition("/")[2]).lstrip("._-")[:64]
    return name or "collection"


def encoder_of(collection: Collection, encoder: str | Path | None) -> Encoder | None:
    """Load the encoder of a collection; None if neither the collection nor the caller has one.

    Raises
    ------
    EncoderMismatchError
        If `encoder` is not the one that made the codes.
    """
    if encoder is None and collection.encoder_path is None:
        return None
    # Imported here, so that a collection without an encoder is served without what encoders need.
    from hashlight.pipelines.searching.encoder import load_encoder
    from hashlight.pipelines.serving.image_encoder import encoder_for_server

    return encoder_for_server(load_encoder(collection, encoder))
