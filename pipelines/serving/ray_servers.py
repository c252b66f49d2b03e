"""Shard servers as named Ray actors: Ray places and restarts them; queries go over Arrow Flight, not through Ray.

An actor is named `NAME/GROUP/GROUPS/NUMBER` in the namespace `hashlight`: that is all that anybody needs to know to
find the servers of NAME, or to change how many there are.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from hashlight.engine.errors import NotReadyError
from hashlight.engine.indexes.choice import IndexChoice
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.shards.running import shard_server
from hashlight.engine.service.shards.server import DRAIN_S
from hashlight.pipelines.jobs.errors import PipelineError

logger = logging.getLogger(__name__)

NAMESPACE = "hashlight"
PLACED_S = 60.0
READY_S = 600.0  # a node hashes a large collection when it first opens it
ASKED_S = 5.0
_AGAIN_S = 0.5  # for an actor to say where it is, while others may be starting again

Place = tuple[int, int]  # group and number, counted from 0


class ShardActor:
    """The actor that is one shard server.

    Parameters
    ----------
    collection : str
    group, groups : int
        Which of how many groups; the first is 1.
    security : Security
    index : str
    cpus : float
        That it was given.
    """

    def __init__(
        self, collection: str, group: int, groups: int, security: Security, index: IndexChoice, cpus: float
    ) -> None:
        import ray

        self._settings = {"collection": collection, "security": security, "index": index, "cpus": cpus}
        self._stack = contextlib.ExitStack()
        self._server = self._stack.enter_context(
            shard_server(
                collection,
                group=group,
                groups=groups,
                host=ray.util.get_node_ip_address(),
                security=security,
                index=index,
            )
        )

    def health(self) -> dict[str, Any]:
        """See `ShardServer.health`."""
        return self._server.health()

    def settings(self) -> dict[str, Any]:
        """Return what another server of the same deployment is started with."""
        return self._settings

    def drain(self, delay_s: float) -> bool:
        """Tell the routers, then accept no more requests; return whether all accepted ones are answered."""
        return self._server.drain(delay_s)


class Named(NamedTuple):
    """An actor by its name."""

    group: int  # counted from 0, as the number is
    groups: int
    number: int

    def text(self, deployment: str) -> str:
        """Return the name."""
        return f"{deployment}/{self.group + 1}/{self.groups}/{self.number}"

    @property
    def place(self) -> Place:
        """Group and number."""
        return self.group, self.number


def find_actors(deployment: str) -> dict[Named, Any]:
    """Return the actors of a deployment on the Ray cluster that this process uses."""
    import ray

    found = {}
    for one in ray.util.list_named_actors(all_namespaces=True):
        named = _parse(one["name"], deployment) if one["namespace"] == NAMESPACE else None
        if named is not None:
            with contextlib.suppress(ValueError):  # it has just ended
                found[named] = ray.get_actor(one["name"], namespace=NAMESPACE)
    return found


def _parse(name: str, deployment: str) -> Named | None:
    start, slash, rest = name.partition("/")
    parts = rest.split("/")
    if start != deployment or not slash or len(parts) != 3 or not all(part.isdigit() for part in parts):
        return None
    group, groups, number = map(int, parts)
    return Named(group - 1, groups, number) if 1 <= group <= groups else None


class ActorAddresses:
    """Where the actors of a deployment are; see `engine.service.control.sources.Source`.

    An actor that does not say where it is keeps the address that it had.

    Parameters
    ----------
    deployment : str
    """

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._known: dict[Named, str] = {}

    def __repr__(self) -> str:
        """Name the deployment."""
        return f"ray://{self._deployment}"

    def __call__(self) -> Sequence[Sequence[str]]:
        """Ask Ray for the actors, and them for their addresses; ValueError if there are none."""
        import ray

        if not ray.is_initialized():  # otherwise Ray would start a new session
            raise ValueError("this process is no longer connected to Ray")
        try:
            actors = find_actors(self._deployment)
            asked = {actor.health.remote(): named for named, actor in actors.items()}
            told, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_AGAIN_S) if asked else ([], [])
            for reference in told:
                with contextlib.suppress(ray.exceptions.RayError):  # it is being started again
                    self._known[asked[reference]] = ray.get(reference)["address"].rpartition("/")[2]
        except (ray.exceptions.RayError, RuntimeError, ConnectionError) as error:
            raise ValueError(f"Ray does not say where the shard servers are: {error!s:.300}") from error
        self._known = {named: address for named, address in self._known.items() if named in actors}
        if not actors:
            raise ValueError(f"there are no shard servers named {self._deployment!r} on this Ray cluster")
        groups: list[list[str]] = [[] for _ in range(max(named.groups for named in actors))]
        for named, address in sorted(self._known.items()):
            groups[named.group].append(address)
        return groups


class RayServers:
    """Groups of replicated shard servers on the Ray cluster that this process uses. A context manager.

    Parameters
    ----------
    collection : str or Path
        A path that every node can reach: a shared folder or a bucket's URI.
    groups, replicas : int
    name : str, optional
        Of servers that outlive this process, and that gateways find by it. Those that run under it already are kept.
    security : Security, optional
        By default a generated token.
    cpus : float
        CPUs of each actor.
    index : str
        The index that answers in each of them, as in `Collection.open`.

    Raises
    ------
    ValueError
        If `groups` or `replicas` is less than 1, or servers of another number of groups run under the name.
    PipelineError
        If the cluster has too few free CPUs.
    """

    def __init__(
        self,
        collection: str | Path,
        *,
        groups: int,
        replicas: int,
        name: str | None = None,
        security: Security | None = None,
        cpus: float = 1.0,
        index: IndexChoice = "auto",
    ) -> None:
        if groups < 1:
            raise ValueError(f"`groups` must be at least 1, got {groups}")
        self.security = security or Security(token=secrets.token_urlsafe())
        self.location = str(collection)
        self.name = name or secrets.token_hex(8)
        self.source = ActorAddresses(self.name)
        self._outlives = name is not None
        self._num_groups = groups
        self._cpus = cpus
        self._index = index
        self._placements: list[Any] = []
        self._actors: dict[Place, Any] = self._running()
        is_new = not self._actors
        try:
            for group in range(groups):
                self._placements.append(self._placement(group, replicas))
            self.scale(replicas)
        except BaseException:
            if is_new:
                self.stop()
            raise

    @classmethod
    def of(cls, name: str) -> RayServers:
        """Return the servers that run under a name; NotReadyError if there are none, or none answers."""
        import ray

        found = find_actors(name)
        for actor in found.values():
            with contextlib.suppress(ray.exceptions.RayError):
                settings = ray.get(actor.settings.remote(), timeout=ASKED_S)
                per_group = len({named.number for named in found})
                return cls(groups=next(iter(found)).groups, replicas=per_group, name=name, **settings)
        raise NotReadyError(
            f"no shard servers named {name!r} answer on this Ray cluster: start some with `hashlight serve COLLECTION "
            f"--ray --name {name}`"
        )

    def __enter__(self) -> Self:
        """Return itself; the servers are ready."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all actors, unless they have a name."""
        if not self._outlives:
            self.stop()

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
        wanted = {(group, number) for group in range(self._num_groups) for number in range(replicas)}
        self._check_room([place for place in wanted - set(self._actors) if not self._is_reserved(*place)], replicas)
        self._start(sorted(wanted - set(self._actors)))
        self._stop(sorted(set(self._actors) - wanted))

    def stop(self) -> None:
        """Stop all actors."""
        import ray
        from ray.util.placement_group import remove_placement_group

        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        for placement in self._placements:
            remove_placement_group(placement)
        self._placements = []

    def health(self) -> dict[Place, dict[str, Any]]:
        """Return the health of each server, by group and number."""
        import ray

        return dict(zip(self._actors, ray.get([actor.health.remote() for actor in self._actors.values()]), strict=True))

    def _running(self) -> dict[Place, Any]:
        """Return the servers that run under the name already."""
        found = find_actors(self.name) if self._outlives else {}
        for named in found:
            if named.groups != self._num_groups:
                raise ValueError(
                    f"servers of {named.groups} groups run as {self.name!r} on this Ray cluster, expected "
                    f"{self._num_groups} groups: stop them first (`hashlight scale ray://{self.name} --replicas 0`), "
                    "or choose another name"
                )
        return {named.place: actor for named, actor in found.items()}

    def _start(self, places: list[Place]) -> None:
        import ray

        for place in places:
            self._actors[place] = self._actor(*place)
        try:
            ray.get([self._actors[place].health.remote() for place in places], timeout=READY_S)
        except ray.exceptions.RayError as error:
            for place in places:
                ray.kill(self._actors.pop(place))
            reason = " ".join(str(getattr(error, "cause", None) or error).split())[:300]
            raise NotReadyError(f"the shard servers {places} (group, number) do not start: {reason}") from error

    def _check_room(self, places: list[Place], replicas: int) -> None:
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
        named = actor.options(
            name=Named(group, self._num_groups, number).text(self.name),
            namespace=NAMESPACE,
            lifetime="detached" if self._outlives else None,
        )
        return named.remote(self.location, group + 1, self._num_groups, self.security, self._index, self._cpus)

    def _placement(self, group: int, replicas: int) -> Any:
        """Reserve room for the replicas of a group, or find what is reserved."""
        name = f"{NAMESPACE}/{self.name}/{group + 1}"
        if self._outlives and (reserved := _find_placement(name)) is not None:
            return reserved
        return _place(replicas, self._cpus, name=name, lifetime="detached" if self._outlives else None)

    def _stop(self, places: list[Place]) -> None:
        import ray

        if not places:
            return
        going = {place: self._actors.pop(place) for place in places}
        # A lost server has nothing to answer, and must not keep the others from doing so.
        ray.wait([actor.drain.remote(0.0) for actor in going.values()], num_returns=len(going), timeout=DRAIN_S + 5)
        for actor in going.values():
            ray.kill(actor)


def _find_placement(name: str) -> Any | None:
    """Return what is reserved under a name; Ray itself finds only what the namespace of this process has."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table

    for id_, told in placement_group_table().items():
        if told["name"] == name and told["state"] != "REMOVED":
            return PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id_)))
    return None


def _place(replicas: int, cpus: float, *, name: str, lifetime: str | None) -> Any:
    """Reserve room for the replicas of one group, on different nodes if possible."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    placement = placement_group([{"CPU": cpus}] * replicas, strategy="SPREAD", name=name, lifetime=lifetime)
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
