"""Serve a collection over HTTP from shard servers that are found by asking them, or are started here."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from hashlight.engine.collection.collection import Collection
from hashlight.engine.indexes.choice import IndexChoice
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.api.schemas import MAX_REPLICAS
from hashlight.engine.service.asking.beside import Beside
from hashlight.engine.service.asking.following import LOOK_S
from hashlight.engine.service.control.finding import Finder
from hashlight.engine.service.door.http_server import Address, HttpServer, check_exposure
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.routing.router import REFRESH_S, ClusterRouter, Observer
from hashlight.engine.service.telemetry.metrics import Metrics
from hashlight.engine.storage.versions import holding_live
from hashlight.engine.writing.committing import Committer
from hashlight.engine.writing.direct import Direct
from hashlight.engine.writing.opened import Opened
from hashlight.pipelines.jobs.nodes import look_at_collection, refuse_unshared
from hashlight.pipelines.jobs.session import ray_session
from hashlight.pipelines.serving.local_servers import LocalServers
from hashlight.pipelines.serving.ray_servers import RayServers
from hashlight.pipelines.serving.serve import bind, encoder_of, gateway_app, name_of

logger = logging.getLogger(__name__)

# Each commit is a version that all servers open: some tens of milliseconds of writes are one.
GATHER_S = 0.05
FIND_S = 60.0  # for servers that were started here to be found; those of any group are enough then


@contextlib.contextmanager
def serve_cluster(
    path: str | Path,
    address: Address,
    keys: Keys,
    servers: AbstractContextManager[RayServers | LocalServers],
    *,
    insecure: bool = False,
    **more: Any,
) -> Iterator[HttpServer]:
    """Start shard servers and bind a gateway to a router over them; they stop when the context exits.

    `more` are the other arguments of `cluster_app`, which has the errors, too, besides those of
    `pipelines.serving.serve.bind`.
    """
    check_exposure(address, keys, insecure=insecure)
    with cluster_app(path, address, keys, servers, **more) as app:
        yield bind({name_of(path): app}, address, keys, insecure=insecure)


@contextlib.contextmanager
def cluster_app(
    path: str | Path,
    address: Address,
    keys: Keys,
    servers: AbstractContextManager[RayServers | LocalServers],
    *,
    poll_s: float = REFRESH_S,
    beside: Beside | None = None,
    **more: Any,
) -> Iterator[FastAPI]:
    """Start shard servers; yield the application of a gateway that finds them.

    `servers` is what `shard_servers` returns for the same collection, not yet entered; the errors are those of
    `shard_servers`, too. The other arguments are those of `found_app`.
    """
    encoder_of(Collection.open(path), more.get("encoder"))  # before anything is started
    metrics: Metrics = more.setdefault("metrics", Metrics())
    beside = dataclasses.replace(beside or Beside(), collection=open_place(path).location)
    with servers as cluster, contextlib.closing(Finder(cluster.source, security=cluster.security)) as finder:
        finder.wait(FIND_S)
        with (
            routing(finder, poll_s=poll_s, observe=metrics.observe) as router,
            found_app(beside, address, keys, finder, router, scale=cluster.scale, **more) as app,
        ):
            yield app


@contextlib.contextmanager
def found_app(
    beside: Beside,
    address: Address,
    keys: Keys,
    finder: Finder,
    router: ClusterRouter,
    *,
    encoder: str | Path | None = None,
    limits: Limits | None = None,
    image_hosts: Sequence[str] = (),
    writable: bool = False,
    write_log: Path | None = None,
    metrics: Metrics | None = None,
    scale: Callable[[int], None] | None = None,
) -> Iterator[FastAPI]:
    """Yield the application that answers through a router over the shard servers that are found; see `routing`.

    Parameters
    ----------
    beside : Beside
        With the place of the collection, if it is known, which is needed for its encoder, for writes, and for operators
        to see its versions.
    finder, router
        Not closed here.
    scale : callable, optional
        Sets the number of replicas of every group.
    address, keys, encoder, limits, image_hosts, writable, write_log, metrics
        As in `pipelines.serving.serve.embedded_app`.

    Raises
    ------
    EncoderMismatchError
        If `encoder` is not the one that made the codes.
    """
    path = beside.collection
    image_encoder = None if path is None else encoder_of(Collection.open(path), encoder)
    with contextlib.ExitStack() as stack:
        committer = None
        if writable:
            assert path is not None, "what is written is named"
            committer = stack.enter_context(_writing(path, write_log, finder, router))
        yield gateway_app(
            router,
            image_encoder,
            address,
            keys,
            limits=limits,
            image_hosts=image_hosts,
            metrics=metrics,
            scale=scale,
            pending=lambda: finder.pending,
            committer=committer,
            beside=dataclasses.replace(beside, servers=finder.servers),
        )


@contextlib.contextmanager
def routing(
    finder: Finder, *, poll_s: float = LOOK_S, patient: bool = False, observe: Observer | None = None
) -> Iterator[ClusterRouter]:
    """Yield a router over the shard servers that are found, which follows their versions and addresses.

    Parameters
    ----------
    finder : Finder
        Not closed here.
    poll_s : float
        Between looks.
    patient, observe
        As in `ClusterRouter`, which has the errors, too.
    """
    router = ClusterRouter(
        finder.map,
        security=finder.security,
        refresh_s=poll_s,
        patient=patient,
        observe=observe,
        age_s=lambda: finder.age_s,
    )
    with contextlib.closing(router):
        yield router


@contextlib.contextmanager
def _writing(path: str | Path, write_log: Path | None, finder: Finder, router: ClusterRouter) -> Iterator[Committer]:
    """Yield what commits writes before they are answered, and has the servers take each version up at once."""
    committed, ending = threading.Event(), threading.Event()

    def urge() -> None:
        while committed.wait() and not ending.is_set():
            committed.clear()
            try:
                finder.urge()
                router.hurry()
            except Exception:  # they look by themselves, a little later
                logger.exception("shard servers were not told of a new version")

    thread = threading.Thread(target=urge, name="hashlight-urge", daemon=True)
    thread.start()
    try:
        store = Direct(path, Opened(path, write_log), committed=lambda version: committed.set())
        with contextlib.closing(Committer(store, gather_s=GATHER_S)) as committer:
            yield committer
    finally:
        ending.set()
        committed.set()
        thread.join()


@contextlib.contextmanager
def shard_servers(
    path: str | Path,
    *,
    groups: int,
    replicas: int,
    ray: bool = False,
    ray_address: str | None = None,
    name: str | None = None,
    security: Security | None = None,
    index: IndexChoice = "auto",
    options: Sequence[str] = (),
) -> Iterator[RayServers | LocalServers]:
    """Start shard servers; they stop when the context exits.

    Parameters
    ----------
    path : str or Path
    groups, replicas : int
    ray : bool
        Use actors on Ray instead of local processes.
    ray_address : str, optional
        Of a Ray cluster; without one, and without `RAY_ADDRESS`, Ray is started on this machine.
    name : str, optional
        Of actors that outlive this process, as of `RayServers`.
    security : Security, optional
        For the shard servers; by default a generated token.
    index : str
        The index that answers in each of them, as in `Collection.open`.
    options : sequence of str
        Further ones of `hashlight shard-server`, for local processes.

    Raises
    ------
    ValueError
        If `groups` or `replicas` is less than 1.
    NotReadyError, PipelineError
        If the servers do not start, or Ray has too few CPUs for them.
    """
    with contextlib.ExitStack() as stack:
        if ray:
            is_own = stack.enter_context(ray_session(num_cpus=usable_cores(), address=ray_address))
            with holding_live(open_place(path)) as live:
                refuse_unshared([look_at_collection(open_place(path).location, live.shards)], {})
            # Our own Ray session places nothing else, so it has room for any number of replicas.
            cpus = usable_cores() / (groups * MAX_REPLICAS) if is_own else 1.0
            yield stack.enter_context(
                RayServers(path, groups=groups, replicas=replicas, name=name, security=security, cpus=cpus, index=index)
            )
        else:
            yield stack.enter_context(
                LocalServers(
                    path, groups=groups, replicas=replicas, security=security, more=("--index", index, *options)
                )
            )
