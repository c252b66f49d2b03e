"""Serve a collection over HTTP from shard servers: local processes, or actors on Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from hashlight.engine.collection.collection import Collection
from hashlight.engine.indexes.choice import IndexChoice
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.api.schemas import MAX_REPLICAS
from hashlight.engine.service.asking.following import Follower
from hashlight.engine.service.control.processes import LocalCluster
from hashlight.engine.service.door.http_server import Address, HttpServer, check_exposure
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.routing.router import ClusterRouter, Observer
from hashlight.engine.service.telemetry.metrics import Metrics
from hashlight.engine.storage.versions import holding_live
from hashlight.engine.writing.committing import Committer
from hashlight.engine.writing.direct import Direct
from hashlight.engine.writing.opened import Opened
from hashlight.pipelines.jobs.nodes import look_at_collection, refuse_unshared
from hashlight.pipelines.jobs.session import ray_session
from hashlight.pipelines.serving.ray_servers import RayCluster
from hashlight.pipelines.serving.serve import bind, encoder_of, gateway_app, name_of

# Each commit is a version that all servers open: some tens of milliseconds of writes are one.
GATHER_S = 0.05


@contextlib.contextmanager
def serve_cluster(
    path: str | Path,
    address: Address,
    keys: Keys,
    servers: AbstractContextManager[RayCluster | LocalCluster],
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
    servers: AbstractContextManager[RayCluster | LocalCluster],
    *,
    encoder: str | Path | None = None,
    limits: Limits | None = None,
    image_hosts: Sequence[str] = (),
    writable: bool = False,
    write_log: Path | None = None,
    metrics: Metrics | None = None,
) -> Iterator[FastAPI]:
    """Start shard servers; yield the application that answers through a router over them.

    `servers` is what `shard_servers` returns for the same collection, not yet entered; the errors are those of
    `shard_servers`, too. The other arguments are those of `pipelines.serving.serve.embedded_app`.
    """
    image_encoder = encoder_of(Collection.open(path), encoder)
    metrics = metrics or Metrics()
    with (
        servers as cluster,
        routing(cluster, observe=metrics.observe) as (router, follower),
        _writing(path, write_log, follower) if writable else contextlib.nullcontext() as committer,
    ):
        router.ready()
        yield gateway_app(
            router,
            image_encoder,
            address,
            keys,
            limits=limits,
            image_hosts=image_hosts,
            metrics=metrics,
            scale=cluster.scale,
            pending=lambda: follower.pending,
            committer=committer,
        )


@contextlib.contextmanager
def _writing(path: str | Path, write_log: Path | None, follower: Follower) -> Iterator[Committer]:
    """Yield what commits writes before they are answered."""
    store = Direct(path, Opened(path, write_log), committed=lambda version: follower.hurry())
    with contextlib.closing(Committer(store, gather_s=GATHER_S)) as committer:
        yield committer


@contextlib.contextmanager
def shard_servers(
    path: str | Path,
    *,
    groups: int,
    replicas: int,
    ray: bool = False,
    ray_address: str | None = None,
    security: Security | None = None,
    index: IndexChoice = "auto",
) -> Iterator[RayCluster | LocalCluster]:
    """Start shard servers; they stop when the context exits.

    Parameters
    ----------
    path : str or Path
    groups, replicas : int
    ray : bool
        Use actors on Ray instead of local processes.
    ray_address : str, optional
        Of a Ray cluster; without one, and without `RAY_ADDRESS`, Ray is started on this machine.
    security : Security, optional
        For the shard servers; by default a generated token.
    index : str
        The index that answers in each of them, as in `Collection.open`.

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
                RayCluster(path, groups=groups, replicas=replicas, security=security, cpus=cpus, index=index)
            )
        else:
            more = ("--index", index)
            yield stack.enter_context(
                LocalCluster(path, groups=groups, replicas=replicas, security=security, more=more)
            )


@contextlib.contextmanager
def routing(
    cluster: RayCluster | LocalCluster, *, observe: Observer | None = None
) -> Iterator[tuple[ClusterRouter, Follower]]:
    """Yield a router over shard servers, and what makes them serve new versions as they are published.

    Parameters
    ----------
    cluster : RayCluster or LocalCluster
    observe : callable, optional
        As in `ClusterRouter`.
    """
    with contextlib.closing(ClusterRouter(cluster.map, security=cluster.security, observe=observe)) as router:
        follower = Follower(cluster.location, cluster.roll)
        with follower.following():
            yield router, follower
