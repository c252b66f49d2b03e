"""Which server has which shards, and moving all of them to another version."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from hashlight.engine.errors import HashlightError, NotReadyError
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.asking.searcher import describe_collection
from hashlight.engine.service.protocol.cluster_map import ClusterMap, Group, assign_groups, open_group
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.protocol.wire import decode_error
from hashlight.engine.service.routing.router import REFRESH_S
from hashlight.engine.storage.manifest import read_current, read_version

logger = logging.getLogger(__name__)

ACTION_S = 600.0  # a machine hashes a large version when it first opens it
LINGER_S = 4 * REFRESH_S  # the old version stays for routers that have not read the new map yet


class UnreachableError(NotReadyError):
    """A server does not answer, so it may or may not be alive."""


class Registry:
    """The assignment of shards to groups, and the addresses of the servers. Thread-safe.

    Parameters
    ----------
    collection : str or Path
    groups : int
    security : Security, optional
        As the servers'.

    Raises
    ------
    ValueError
        If the live version has fewer shards than groups.
    """

    def __init__(self, collection: str | Path, *, groups: int, security: Security | None = None) -> None:
        self.location = str(collection)
        self._store = open_place(collection)
        self.security = security or Security()
        self._num_groups = groups
        self._servers: dict[tuple[int, int], tuple[str, frozenset[int]]] = {}
        self._lock = threading.Lock()
        self._rolling = threading.Lock()
        self._map, self._shards = self._plan(read_current(self._store).version)

    @property
    def version(self) -> int:
        """The version being served."""
        return self._map.version

    def assignment(self, group: int) -> tuple[int, list[str]]:
        """Return the version and the shards that a server of a group must have."""
        with self._lock:
            return self._map.version, self._shards[group]

    def register(self, group: int, number: int, address: str, versions: Iterable[int]) -> tuple[int, list[str]]:
        """Record a server's address and versions; return what it must have."""
        with self._lock:
            # A version that it loaded on order after compiling its list is recorded already, and is kept.
            before, noted = self._servers.get((group, number), ("", frozenset()))
            self._servers[group, number] = address, frozenset(versions) | (noted if before == address else frozenset())
            return self._map.version, self._shards[group]

    def remove(self, group: int, number: int) -> None:
        """Remove a server from the map."""
        with self._lock:
            self._servers.pop((group, number), None)

    def map(self) -> ClusterMap:
        """Return the map for routers: the servers that have the current version."""
        with self._lock:
            replicas: list[list[str]] = [[] for _ in range(self._num_groups)]
            for (group, _), (address, versions) in sorted(self._servers.items()):
                if self._map.version in versions:
                    replicas[group].append(address)
            return self._map.with_replicas(replicas)

    def roll(self, *, linger_s: float = LINGER_S) -> bool:
        """Serve the live version: every server loads it beside the old one, the map flips, and the old one is dropped.

        Returns
        -------
        bool
            False if the live version is already being served.

        Raises
        ------
        HashlightError, TypeError, ValueError
            If a server cannot load it, or no server of a group can be reached; the old version stays in service.
        """
        with self._rolling:
            old = self.version
            new = read_current(self._store).version
            if new == old:
                return False
            fresh, shards = self._plan(new)
            try:
                self._tell_all(lambda group: ("load", {"version": new, "shards": shards[group]}))
                with self._lock:
                    self._check_served(new)
                    self._map, self._shards = fresh, shards
            except (HashlightError, TypeError, ValueError):
                self._tell_all(lambda group: ("drop", {"version": new}), strict=False)
                raise
            # Once more, for a server that started before the flip and loaded the old version.
            self._tell_all(lambda group: ("load", {"version": new, "shards": shards[group]}), strict=False)
            time.sleep(linger_s)
            self._tell_all(lambda group: ("drop", {"version": old}), strict=False)
            return True

    def _plan(self, version: int) -> tuple[ClusterMap, list[list[str]]]:
        manifest = read_version(self._store, version)
        shards = assign_groups(manifest, self._num_groups)
        rows = {spec.name: spec.rows for spec in manifest.shards}
        part = describe_collection(open_group(self.location, version, [manifest.shards[0].name]))
        about = {**part, "rows": manifest.rows, "shards": len(manifest.shards)}
        groups = tuple(Group({name: rows[name] for name in names}, ()) for names in shards)
        return ClusterMap(about, groups), shards

    def _check_served(self, version: int) -> None:
        """Raise if no server of some group has the version; the caller holds the lock."""
        having = {group for (group, _), (_, versions) in self._servers.items() if version in versions}
        missing = sorted(set(range(self._num_groups)) - having)
        if missing:
            raise NotReadyError(f"no server of groups {missing} has version {version}, expected one of each group")

    def _tell_all(self, order: Callable[[int], tuple[str, dict[str, Any]]], *, strict: bool = True) -> None:
        """Send all servers their orders in parallel; `strict` raises the first refusal; other errors are logged."""
        with self._lock:
            places = dict(self._servers)

        def tell(place: tuple[tuple[int, int], tuple[str, frozenset[int]]]) -> None:
            (group, number), (address, _) = place
            action, arguments = order(group)
            try:
                told = control(address, action, self.security, **arguments)
                self._note(group, number, address, told)
            except (HashlightError, TypeError, ValueError) as error:
                if strict and not isinstance(error, UnreachableError):
                    raise
                logger.warning("%s did not %s: %s", address, action, error)

        with ThreadPoolExecutor(max(1, len(places))) as pool:
            list(pool.map(tell, places.items()))

    def _note(self, group: int, number: int, address: str, told: dict[str, Any]) -> None:
        """Record the versions that a server reports, unless another has replaced it meanwhile."""
        with self._lock:
            if self._servers.get((group, number), ("",))[0] == address:
                self._servers[group, number] = address, frozenset(int(version) for version in told["versions"])


def control(
    address: str, action: str, security: Security | None = None, *, timeout_s: float = ACTION_S, **arguments: Any
) -> dict[str, Any]:
    """Send a shard server an action (see `engine.service.shards.server`) and return its reply.

    Raises
    ------
    UnreachableError
        If it does not answer.
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
