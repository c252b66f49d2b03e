"""Which server has which shards, and moving all of them to another version."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.flight as flight

from hashlight.engine.errors import HashlightError, NotReadyError
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.asking.searcher import describe_collection
from hashlight.engine.service.protocol.cluster_map import (
    Assignment,
    ClusterMap,
    Group,
    ServerName,
    assign_groups,
    open_group,
)
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.protocol.wire import OtherServerError, decode_error
from hashlight.engine.service.routing.router import REFRESH_S
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.versions import read_current

logger = logging.getLogger(__name__)

ACTION_S = 600.0  # a machine hashes a large version when it first opens it
LINGER_S = 4 * REFRESH_S  # the old version stays for routers that have not read the new map yet


class UnreachableError(NotReadyError):
    """A server does not answer, so it may or may not be alive."""


class _Seat(NamedTuple):
    """A registered server, and the identities of the shards that it has said it serves."""

    name: ServerName
    identities: frozenset[str]


class _Plan(NamedTuple):
    """What is served of one version.

    Attributes
    ----------
    manifest : Manifest
    map : ClusterMap
        Without addresses.
    asked : list of int
        Which groups are in the map: those with shards, or the first one if there are no shards.
    assignments : list of Assignment
        Of every group.
    """

    manifest: Manifest
    map: ClusterMap
    asked: list[int]
    assignments: list[Assignment]


class Registry:
    """The assignment of shards to groups, and the addresses of the servers. Thread-safe.

    Parameters
    ----------
    collection : str or Path
    groups : int
        Those that have no shard of a version wait for the next one.
    security : Security, optional
        As the servers'.

    Raises
    ------
    ValueError
        If `groups` is less than 1.
    """

    def __init__(self, collection: str | Path, *, groups: int, security: Security | None = None) -> None:
        self.location = str(collection)
        self._store = open_place(collection)
        self.security = security or Security()
        self._num_groups = groups
        self._servers: dict[tuple[int, int], _Seat] = {}
        self._lock = threading.Lock()
        self._rolling = threading.Lock()
        self._live = self._plan(read_current(self._store))

    @property
    def version(self) -> int:
        """The version being served."""
        return self._live.map.version

    def assignment(self, group: int) -> Assignment:
        """Return what a server of a group must serve."""
        return self._live.assignments[group]

    def register(self, group: int, number: int, name: ServerName, identities: Iterable[str]) -> Assignment:
        """Record a server and the identities of the shards that it serves; return what it must serve."""
        with self._lock:
            seat = self._servers.get((group, number))
            # Shards that it loaded on order after compiling its list are recorded already, and are kept.
            noted = seat.identities if seat is not None and seat.name == name else frozenset()
            self._servers[group, number] = _Seat(name, frozenset(identities) | noted)
            return self._live.assignments[group]

    def remove(self, group: int, number: int) -> None:
        """Remove a server from the map."""
        with self._lock:
            self._servers.pop((group, number), None)

    def map(self) -> ClusterMap:
        """Return the map for routers: the servers that have their group's shards of the current version."""
        with self._lock:
            replicas: list[list[str]] = [[] for _ in range(self._num_groups)]
            for (group, _), seat in sorted(self._servers.items()):
                if self._live.assignments[group].identity in seat.identities:
                    replicas[group].append(seat.name.address)
            return self._live.map.with_replicas([replicas[group] for group in self._live.asked])

    def roll(self, *, linger_s: float = LINGER_S) -> bool:
        """Serve the live version: every server loads it beside the old one, the map flips, and the old one is dropped.

        Returns
        -------
        bool
            False if the live version is already being served. A collection that was built again is another version,
            whatever its number.

        Raises
        ------
        HashlightError, TypeError, ValueError
            If a server cannot load it, or no server of a group can be reached; the old version stays in service.
        """
        with self._rolling:
            old, manifest = self._live, read_current(self._store)
            if manifest == old.manifest:
                return False
            new = self._plan(manifest)
            try:
                self._tell_all(lambda group: ("load", new.assignments[group]._asdict()))
                with self._lock:
                    self._check_served(new)
                    self._live = new
            except (HashlightError, TypeError, ValueError):
                self._tell_all(lambda group: ("drop", {"manifest": new.map.manifest}), strict=False)
                raise
            # Once more, for a server that started before the flip and loaded the old version.
            self._tell_all(lambda group: ("load", new.assignments[group]._asdict()), strict=False)
            time.sleep(linger_s)
            self._tell_all(lambda group: ("drop", {"manifest": old.map.manifest}), strict=False)
            return True

    def _plan(self, manifest: Manifest) -> _Plan:
        digest, version = manifest.digest, manifest.version
        assignments = [Assignment(version, digest, tuple(names)) for names in assign_groups(manifest, self._num_groups)]
        rows = {spec.name: spec.alive for spec in manifest.shards}
        first = Assignment(version, digest, tuple(spec.name for spec in manifest.shards[:1]))
        part = describe_collection(open_group(self.location, first))
        about = {**part, "rows": manifest.rows, "shards": len(manifest.shards)}
        asked = [group for group, one in enumerate(assignments) if one.shards] or [0]
        groups = tuple(Group(digest, {name: rows[name] for name in assignments[group].shards}, ()) for group in asked)
        return _Plan(manifest, ClusterMap(about, groups), asked, assignments)

    def _check_served(self, plan: _Plan) -> None:
        """Raise if no server of some group has its shards; the caller holds the lock."""
        having = {
            group for (group, _), seat in self._servers.items() if plan.assignments[group].identity in seat.identities
        }
        missing = sorted(set(plan.asked) - having)
        if missing:
            raise NotReadyError(
                f"no server of groups {missing} has version {plan.map.version}, expected one of each group"
            )

    def _tell_all(self, order: Callable[[int], tuple[str, dict[str, Any]]], *, strict: bool = True) -> None:
        """Send all servers their orders in parallel; `strict` raises the first refusal; other errors are logged."""
        with self._lock:
            places = dict(self._servers)

        def tell(place: tuple[tuple[int, int], _Seat]) -> None:
            (group, number), (name, _) = place
            action, arguments = order(group)
            try:
                told = control(name.address, action, self.security, instance=name.instance, **arguments)
                self._note(group, number, name, frozenset(told["served"]))
            except OtherServerError as error:
                logger.warning("%s did not %s: %s", name.address, action, error)
                self._note(group, number, name, frozenset())
            except (HashlightError, TypeError, ValueError) as error:
                if strict and not isinstance(error, UnreachableError):
                    raise
                logger.warning("%s did not %s: %s", name.address, action, error)

        with ThreadPoolExecutor(max(1, len(places))) as pool:
            list(pool.map(tell, places.items()))

    def _note(self, group: int, number: int, name: ServerName, identities: frozenset[str]) -> None:
        """Record what a server serves, unless another has replaced it meanwhile."""
        with self._lock:
            seat = self._servers.get((group, number))
            if seat is not None and seat.name == name:
                self._servers[group, number] = _Seat(name, identities)


def control(
    address: str, action: str, security: Security | None = None, *, timeout_s: float = ACTION_S, **arguments: Any
) -> dict[str, Any]:
    """Send a shard server an action (see `engine.service.shards.server`) and return its reply.

    With the argument `instance`, only the server of that name obeys.

    Raises
    ------
    UnreachableError
        If it does not answer.
    OtherServerError
        If another server has the address by now.
    HashlightError, TypeError, ValueError
        If it fails.
    """
    security = security or Security()
    try:
        with flight.FlightClient(address, **security.client_options()) as client:
            order = flight.Action(action, json.dumps(arguments).encode())
            outcome, body = client.do_action(order, security.call_options(timeout_s=timeout_s))
    except (flight.FlightError, pa.ArrowException, OSError) as error:
        raise UnreachableError(f"{address} cannot be reached: {error}") from error
    if outcome.body.to_pybytes() == b"error":
        raise decode_error(memoryview(body.body))
    told: dict[str, Any] = json.loads(body.body.to_pybytes())
    return told
