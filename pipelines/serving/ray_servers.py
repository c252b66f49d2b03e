"""Shard servers as Ray actors: Ray places and restarts them; queries reach them over Arrow Flight, not through Ray."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from pathlib import Path
from typing import Any, Self

from hashlight.engine.errors import NotReadyError
from hashlight.engine.indexes.choice import IndexChoice
from hashlight.engine.indexes.warmup import warm
from hashlight.engine.service.asking.following import Backoff
from hashlight.engine.service.control.registry import Registry
from hashlight.engine.service.protocol.cluster_map import Assignment, ClusterMap, ServerName
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.shards.server import DRAIN_S, ShardServer
from hashlight.pipelines.jobs.errors import PipelineError

logger = logging.getLogger(__name__)

REGISTER_S = 1.0
PLACED_S = 60.0
READY_S = 600.0  # a node hashes a large collection when it first opens it
ASKED_S = 5.0


class Directory:
    """The actor that knows which server has which shards.

    After a restart by Ray it is empty until the servers have registered again, a second later. Until each group has a
    server it gives out no map, and routers keep using the one they have.
    """

    def __init__(self, collection: str, groups: int, security: Security) -> None:
        self._registry = Registry(collection, groups=groups, security=security)
        self._whole = False

    def assignment(self, group: int) -> Assignment:
        """See `Registry.assignment`."""
        return self._registry.assignment(group)

    def register(self, group: int, number: int, name: ServerName, identities: list[str]) -> Assignment:
        """See `Registry.register`."""
        return self._registry.register(group, number, name, identities)

    def remove(self, group: int, number: int) -> None:
        """See `Registry.remove`."""
        self._registry.remove(group, number)

    def map(self) -> ClusterMap:
        """Return the map for routers.

        Raises
        ------
        NotReadyError
            If a group has no server yet.
        """
        found = self._registry.map()
        missing = [number for number, group in enumerate(found.groups) if not group.replicas]
        if missing and not self._whole:
            raise NotReadyError(f"groups {missing} have no registered server yet: try again")
        self._whole = True
        return found

    def roll(self) -> bool:
        """See `Registry.roll`."""
        return self._registry.roll()


class ShardActor:
    """The actor that serves one replica of one group and registers with the directory every second."""

    def __init__(
        self, collection: str, directory: Any, group: int, number: int, security: Security, index: IndexChoice
    ) -> None:
        import ray

        warm()
        self._directory, self._place = directory, (group, number)
        self._server = ShardServer(collection, host=ray.util.get_node_ip_address(), security=security, index=index)
        self._server.load(*ray.get(directory.assignment.remote(group)))
        self._leaving = threading.Event()
        self._backoff = Backoff()
        self._asks_in_vain = False
        self._register()
        self._thread = threading.Thread(target=self._keep_registered, daemon=True)
        self._thread.start()

    def health(self) -> dict[str, Any]:
        """See `ShardServer.health`."""
        return self._server.health()

    def drain(self) -> bool:
        """Accept no more requests; return whether all accepted ones are answered."""
        import ray

        self._leaving.set()
        self._thread.join()
        ray.get(self._directory.remove.remote(*self._place))
        return self._server.drain()

    def _register(self) -> None:
        import ray

        served = self._server.health()["served"]
        wanted: Assignment = ray.get(
            self._directory.register.remote(*self._place, self._server.name, served), timeout=ASKED_S
        )
        if wanted.identity not in served and self._backoff.allows(wanted):
            try:
                self._server.load(*wanted)
                self._backoff.succeeded()
            except Exception as error:  # what is served already stays in service
                self._backoff.failed(wanted)
                logger.warning(
                    "version %d cannot be served; next attempt in %.0f s: %s",
                    wanted.version,
                    self._backoff.left_s,
                    error,
                )

    def _keep_registered(self) -> None:
        while not self._leaving.wait(REGISTER_S):
            try:
                self._register()
            except Exception as error:  # the directory is restarting; keep serving
                if not self._asks_in_vain:
                    logger.warning("cannot reach the directory: %s", error)
                self._asks_in_vain = True
            else:
                self._asks_in_vain = False


class RayCluster:
    """Groups of replicated shard servers on the Ray cluster that this process uses. A context manager.

    Parameters
    ----------
    collection : str or Path
        A path that every node can reach: a shared folder or a bucket's URI.
    groups, replicas : int
    security : Security, optional
        By default a generated token.
    cpus : float
        CPUs of each actor.
    index : str
        The index that answers in each of them, as in `Collection.open`.

    Raises
    ------
    PipelineError
        If the cluster has too few free CPUs.
    """

    def __init__(
        self,
        collection: str | Path,
        *,
        groups: int,
        replicas: int,
        security: Security | None = None,
        cpus: float = 1.0,
        index: IndexChoice = "auto",
    ) -> None:
        import ray

        self.security = security or Security(token=secrets.token_urlsafe())
        self.location = str(collection)
        self._cpus = cpus
        self._index = index
        self._actors: dict[tuple[int, int], Any] = {}
        self._placements: list[Any] = []
        directory = ray.remote(Directory).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=32)
        self._directory: Any = directory.remote(self.location, groups, self.security)
        try:
            for _ in range(groups):
                self._placements.append(_place(replicas, cpus))
            self._start([(group, number) for group in range(groups) for number in range(replicas)])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return itself; the servers are ready."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all actors."""
        self.close()

    def map(self) -> ClusterMap:
        """Return the map for routers.

        Raises
        ------
        NotReadyError
            If a group has no server yet, or this process is no longer connected to Ray.
        """
        import ray

        if not ray.is_initialized():  # otherwise Ray would start a new session
            raise NotReadyError("this process is no longer connected to Ray")
        found: ClusterMap = ray.get(self._directory.map.remote(), timeout=ASKED_S)
        return found

    def roll(self) -> bool:
        """Serve the live version of the collection; see `Registry.roll`."""
        import ray

        return bool(ray.get(self._directory.roll.remote()))

    def scale(self, replicas: int) -> None:
        """Set the number of replicas of every group; removed ones first answer their accepted requests.

        Raises
        ------
        ValueError
            If the number is 0, or the cluster has too few free CPUs.
        NotReadyError
            If one does not start; then the number stays as it was.
        """
        if replicas < 1:
            raise ValueError(f"`replicas` must be at least 1, got {replicas}")
        wanted = {(group, number) for group in range(len(self._placements)) for number in range(replicas)}
        self._check_room([place for place in wanted - set(self._actors) if not self._is_reserved(*place)], replicas)
        self._start(sorted(wanted - set(self._actors)))
        self._stop(sorted(set(self._actors) - wanted))

    def close(self) -> None:
        """Stop all actors."""
        import ray
        from ray.util.placement_group import remove_placement_group

        for actor in [*self._actors.values(), self._directory]:
            ray.kill(actor)
        self._actors.clear()
        for placement in self._placements:
            remove_placement_group(placement)
        self._placements = []

    def health(self) -> dict[tuple[int, int], dict[str, Any]]:
        """Return the health of each server, by group and number."""
        import ray

        return dict(zip(self._actors, ray.get([actor.health.remote() for actor in self._actors.values()]), strict=True))

    def _start(self, places: list[tuple[int, int]]) -> None:
        import ray

        for place in places:
            self._actors[place] = self._actor(*place)
        try:
            ray.get([self._actors[place].health.remote() for place in places], timeout=READY_S)
        except ray.exceptions.RayError as error:
            self._kill({place: self._actors.pop(place) for place in places})
            reason = " ".join(str(getattr(error, "cause", None) or error).split())[:300]
            raise NotReadyError(f"the shard servers {places} (group, number) do not start: {reason}") from error

    def _check_room(self, places: list[tuple[int, int]], replicas: int) -> None:
        import ray

        free, needed = ray.available_resources().get("CPU", 0.0), len(places) * self._cpus
        if needed > free:
            raise ValueError(
                f"`replicas` must be fewer than {replicas}: they need {needed:g} CPUs more, and the Ray cluster has "
                f"{free:g} free; add nodes to it"
            )

    def _is_reserved(self, group: int, number: int) -> bool:
        return bool(number < self._placements[group].bundle_count)

    def _actor(self, group: int, number: int) -> Any:
        """Start a server in its bundle, or, for a replica added later, wherever there is room."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        placement = self._placements[group]
        strategy: Any = "SPREAD"
        if self._is_reserved(group, number):
            strategy = PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=number)
        actor = ray.remote(num_cpus=self._cpus, max_restarts=-1, scheduling_strategy=strategy)(ShardActor)
        return actor.remote(self.location, self._directory, group, number, self.security, self._index)

    def _stop(self, places: list[tuple[int, int]]) -> None:
        import ray

        if not places:
            return
        going = {place: self._actors.pop(place) for place in places}
        # A lost server has nothing to answer, and must not keep the others from doing so.
        ray.wait([actor.drain.remote() for actor in going.values()], num_returns=len(going), timeout=DRAIN_S + 5)
        self._kill(going)

    def _kill(self, actors: dict[tuple[int, int], Any]) -> None:
        """Kill servers and remove them from the directory."""
        import ray

        for actor in actors.values():
            ray.kill(actor)
        time.sleep(REGISTER_S)  # Ray kills asynchronously; a server may still register until then
        forgotten = [self._directory.remove.remote(*place) for place in actors]
        ray.wait(forgotten, num_returns=len(forgotten), timeout=ASKED_S)


def _place(replicas: int, cpus: float) -> Any:
    """Reserve room for the replicas of one group, on different nodes if possible."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    placement = placement_group([{"CPU": cpus}] * replicas, strategy="SPREAD")
    try:
        ray.get(placement.ready(), timeout=PLACED_S)
    except ray.exceptions.GetTimeoutError as error:
        remove_placement_group(placement)
        free = ray.available_resources().get("CPU", 0.0)
        raise PipelineError(
            f"the Ray cluster has {free:g} CPUs free, and {replicas} replicas of a group need {replicas * cpus:g}: "
            "add nodes, or serve fewer groups or replicas"
        ) from error
    return placement
