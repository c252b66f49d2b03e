"""Finding shard servers: every server is asked what it has, and the newest version that all groups have is served.

There is no registry and no leader: any number of gateways ask the same servers, and agree within a poll.
"""

from __future__ import annotations

import collections
import logging
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from hashlight.engine.errors import HashlightError, NotReadyError
from hashlight.engine.service.asking.following import Clock, Pending
from hashlight.engine.service.control.sources import Source
from hashlight.engine.service.protocol.actions import Caller
from hashlight.engine.service.protocol.cluster_map import ClusterMap
from hashlight.engine.service.protocol.offers import Layout, Offer, Offered
from hashlight.engine.service.protocol.security import Security

logger = logging.getLogger(__name__)

ASK_S = 2.0  # for a server to say what it has
LINGER_S = 4.0  # that a version is served after the next one is, to queries that began on it
LOAD_S = 60.0  # to take up a version
PROMPT_S = 0.5  # that a look waits for servers that answered the last time
_THREADS = 32
_FIRST_PAUSE_S = 0.2


class _Server:
    """A server at an address, and what it said when it was last asked."""

    def __init__(self, address: str, place: tuple[int, int], security: Security) -> None:
        self.address = address
        self.group, self._groups = place
        self.offer: Offer | None = None  # the last one, if it was of a server of this group
        self.fault: str | None = "has not been asked yet"
        self.asked: Future[None] | None = None
        self.is_awaited = True
        self._security = security
        self._caller: Caller | None = None

    def ask(self, action: str, timeout_s: float, **arguments: Any) -> None:
        """Have it say what it has; whatever goes wrong is a fault that is told once."""
        try:
            offer = Offer.parse(self._call(action, timeout_s, **arguments))
        except (HashlightError, TypeError, ValueError) as error:
            self._note(f"does not say what it has: {' '.join(str(error).split())[:300]}")
            return
        if (offer.group, offer.groups) != (self.group, self._groups):
            self.offer = None
            self._note(f"is of group {offer.group}/{offer.groups}, expected {self.group}/{self._groups}")
            return
        self.offer = offer
        self._note(None)

    def layout(self, manifest: str) -> Layout:
        """Return how it says that a version is divided; errors as of `Caller.call`."""
        return Layout.parse(self._call("layout", ASK_S, manifest=manifest))

    def _call(self, action: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        if self._caller is None:
            self._caller = Caller(self.address, self._security)  # ValueError if nothing can have such an address
        return self._caller.call(action, timeout_s=timeout_s, **arguments)

    def _note(self, fault: str | None) -> None:
        """Record why it cannot be used, if so; a change is logged."""
        if fault != self.fault and fault is not None:
            logger.warning("shard server %s of group %d %s", self.address, self.group, fault)
        elif fault is None and self.fault is not None:
            logger.info("shard server %s of group %d is there", self.address, self.group)
        self.fault = fault

    def close(self) -> None:
        """Close the connection."""
        if self._caller is not None:
            self._caller.close()


class Finder:
    """Finds the shard servers of a collection and the version to serve. Thread-safe.

    The newest version that every group has is served. Servers that do not answer count for what they had when they
    last did, and are asked again. It stays with a collection: a version of another one is served only where it took
    that one's place, as one that was built again does, so that an address that another deployment has taken over
    changes nothing.

    Parameters
    ----------
    source : callable
        Returns the addresses of the servers of each group; if it raises, the known ones are still good.
    security : Security, optional
        As the servers'.
    collection : str, optional
        The id of the collection; by default that of most servers.
    location : str, optional
        Where it is; by default what the servers say.
    clock : callable
        Returns seconds.
    """

    def __init__(
        self,
        source: Source,
        *,
        security: Security | None = None,
        collection: str | None = None,
        location: str | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._source = source
        self.security = security or Security()
        self._collection, self._location = collection or None, location
        self._clock = clock
        self._name = secrets.token_hex(8)
        self._num_groups = 0
        self._servers: dict[tuple[tuple[int, int], str], _Server] = {}
        self._layouts: dict[str, Layout] = {}  # by manifest
        self._served: dict[tuple[int, str], float] = {}  # versions that were returned -> until when they are served
        self._listed_s = self._looked_s = clock()
        self._source_fault: str | None = None
        self._looking = threading.Lock()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="hashlight-find")

    def __repr__(self) -> str:
        """Show where servers are looked for, and how many there are."""
        return f"Finder({self._source!r}, {len(self._servers)} servers)"

    @property
    def num_groups(self) -> int:
        """How many groups there are; 0 before the first look."""
        return self._num_groups

    @property
    def age_s(self) -> float:
        """Seconds since the list of servers was last read, and those on it were asked."""
        return self._clock() - min(self._listed_s, self._looked_s)

    @property
    def pending(self) -> Pending | None:
        """The live version, if a server cannot take it up: of several the one with most attempts."""
        failing = [one.offer.pending for one in list(self._servers.values()) if one.offer and one.offer.pending]
        worst = max(failing, key=lambda one: one.attempts, default=None)
        return None if worst is None else Pending(*worst)

    def servers(self) -> list[dict[str, Any]]:
        """Return for each server its `address`, `group` (the first is 1), `fault` (or None) and `versions`."""
        return [
            {
                "address": one.address,
                "group": one.group,
                "fault": one.fault,
                "versions": [] if one.offer is None else [had.version for had in one.offer.versions],
            }
            for one in list(self._servers.values())
        ]

    def wait(self, timeout_s: float) -> ClusterMap:
        """Return the map as soon as every group has a server, or what there is when time is up.

        Raises
        ------
        NotReadyError
            If no server has been found by then.
        """
        until_s = self._clock() + timeout_s
        while True:
            try:
                found = self.map()
                if all(group.replicas for group in found.groups) or self._clock() >= until_s:
                    return found
            except NotReadyError:
                if self._clock() >= until_s:
                    raise
            time.sleep(_FIRST_PAUSE_S)

    def map(self) -> ClusterMap:
        """Ask all servers, and return who serves the newest version that every group has.

        If no version is complete, it is the one that was served, or the one that most groups have.

        Raises
        ------
        NotReadyError
            If no server has any version.
        """
        with self._looking:
            self._look()
            chosen = self._choose()
            found = self._map_of(chosen)
            version = chosen.version, chosen.manifest
            now_s = self._clock()
            served = {one: min(until_s, now_s + LINGER_S) for one, until_s in self._served.items()}
            self._served = {one: until_s for one, until_s in served.items() if until_s > now_s}
            self._served[version] = float("inf")
            return found

    def urge(self) -> None:
        """Have all servers look for a new version now, and wait for them: something has been published."""
        with self._looking:
            servers = list(self._servers.values())
        wait([self._pool.submit(one.ask, "look", LOAD_S) for one in servers if one.fault is None])

    def close(self) -> None:
        """Close all connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for one in self._servers.values():
            one.close()

    def _look(self) -> None:
        """Ask every server; wait for those that have answered before."""
        self._update_servers()
        serves = [list(version) for version in self._served]
        for one in self._servers.values():
            if one.asked is None or one.asked.done():
                one.is_awaited = one.asked is None or one.fault is None
                one.asked = self._pool.submit(one.ask, "offers", ASK_S, router=self._name, serves=serves)
        wait([one.asked for one in self._servers.values() if one.asked is not None and one.is_awaited], PROMPT_S)
        self._looked_s = self._clock()

    def _update_servers(self) -> None:
        """Take up a new list of servers, if there is one."""
        try:
            groups = self._source()
            self._source_fault = None
            self._listed_s = self._clock()
        except (OSError, ValueError) as error:
            if str(error) != self._source_fault:
                logger.warning("there is no newer list of shard servers, the known one is used: %s", error)
            self._source_fault = str(error)
            return
        self._num_groups = len(groups)
        wanted = {
            ((number, len(groups)), self.security.url(address))
            for number, group in enumerate(groups, 1)
            for address in group
        }
        for gone in set(self._servers) - wanted:
            self._servers.pop(gone).close()
        for place, address in sorted(wanted - set(self._servers)):
            self._servers[place, address] = _Server(address, place, self.security)

    def _choose(self) -> Layout:
        """Return the version to serve; NotReadyError if there is none."""
        well = [one for one in self._servers.values() if one.offer is not None and one.fault is None]
        known = [one for one in self._servers.values() if one.offer is not None]
        layouts = self._layouts_of(self._allowed(known), known)
        if not layouts:
            told = "; ".join(f"{one.address} {one.fault}" for one in self._servers.values() if one.fault)
            raise NotReadyError(
                f"no shard server of {self._source!r} has a version of the collection: {told or 'none is known'}"
            )
        for servers in (well, known):
            complete = [one for one in layouts if len(_having(one, servers)) == len(one.asked)]
            if complete:
                return self._newest(complete, servers)
        for one in layouts:
            if self._served.get((one.version, one.manifest)) == float("inf"):
                return one
        most = max(len(_having(one, known)) for one in layouts)
        return self._newest([one for one in layouts if len(_having(one, known)) == most], known)

    def _newest(self, layouts: list[Layout], servers: list[_Server]) -> Layout:
        """Return the version that servers have taken up last; remember its collection.

        Those that have several of these versions know which is the newest. If none has, it is what most have.
        """
        by_manifest = {one.manifest: one for one in layouts}
        informed: collections.Counter[str] = collections.Counter()
        votes: collections.Counter[str] = collections.Counter()
        owners: dict[str, tuple[str, str]] = {}
        for server in sorted(servers, key=lambda one: one.offer is not None and one.offer.location == self._location):
            assert server.offer is not None, "it was left out"
            had = [version for version in server.offer.versions if version.manifest in by_manifest]
            owners |= {version.manifest: (version.collection, server.offer.location) for version in had}
            newest = [version.manifest for version in had[-1:]]
            votes.update(newest)
            informed.update(newest if len(had) > 1 else [])
        best = max(by_manifest, key=lambda one: (informed[one], votes[one], by_manifest[one].version, one))
        self._collection, self._location = owners[best]
        return by_manifest[best]

    def _allowed(self, servers: list[_Server]) -> dict[str, Offered]:
        """Return the versions that may be served, by their manifests: of the collection, or of what replaced it."""
        offers = [one.offer for one in servers if one.offer is not None]
        allowed = {self._collection}
        for offer in offers:
            owners = [version.collection for version in offer.versions]
            if offer.location == self._location:
                allowed |= set(owners)
            elif self._collection in owners:
                allowed |= set(owners[owners.index(self._collection) :])
        return {
            version.manifest: version
            for offer in offers
            for version in offer.versions
            if self._collection is None or version.collection in allowed
        }

    def _layouts_of(self, versions: Mapping[str, Offered], servers: list[_Server]) -> list[Layout]:
        """Return how versions are divided, as far as a server says so."""
        found = {}
        for manifest in versions:
            layout = self._layouts.get(manifest) or self._ask_layout(manifest, servers)
            if layout is not None:
                found[manifest] = layout
        self._layouts = found
        return list(found.values())

    def _ask_layout(self, manifest: str, servers: list[_Server]) -> Layout | None:
        # First those with the most shards: what one without any says of the attributes may be less.
        having = [(had.shards, one) for one in servers if one.offer and (had := one.offer.of(manifest))]
        for _, one in sorted(having, key=lambda pair: (pair[1].fault is not None, -pair[0])):
            try:
                layout = one.layout(manifest)
            except (HashlightError, TypeError, ValueError) as error:
                logger.info("%s does not say how a version is divided: %s", one.address, error)
                continue
            if len(layout.groups) == self._num_groups and layout.manifest == manifest:
                return layout
        return None

    def _map_of(self, layout: Layout) -> ClusterMap:
        """Return who has a version: of each group those that are not about to end, if there are any."""
        having = _having(layout, self._servers.values())
        groups = []
        for group in layout.asked:
            there = having.get(group, [])
            staying = [one for one in there if one.offer is not None and not one.offer.draining] or there
            groups.append(layout.group(group, tuple(sorted(one.address for one in staying))))
        return ClusterMap(layout.about, tuple(groups))


def _having(layout: Layout, servers: Iterable[_Server]) -> dict[int, list[_Server]]:
    """Return the servers of each group that is asked, counted from 0, that have its shards of a version."""
    identities = {group: layout.identity(group) for group in layout.asked}
    having: dict[int, list[_Server]] = {}
    for one in servers:
        had = None if one.offer is None else one.offer.of(layout.manifest)
        if had is not None and identities.get(one.group - 1) == had.identity:
            having.setdefault(one.group - 1, []).append(one)
    return having
