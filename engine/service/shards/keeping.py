"""A shard server keeps itself at the live version of its collection, and says what it has to whoever asks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hashlight.engine.errors import CollectionNotFoundError, HashlightError
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.asking.following import LOOK_S, Backoff, Clock, Follower
from hashlight.engine.service.asking.searcher import describe_collection
from hashlight.engine.service.protocol.offers import Failing, Layout, Offer, Offered
from hashlight.engine.service.protocol.wire import PROTOCOLS, VersionNotServedError
from hashlight.engine.service.shards.server import ShardServer
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.versions import read_current, read_version

logger = logging.getLogger(__name__)

KEPT = 2  # versions, besides those that a router still serves
LEASE_S = 30.0  # for which a router's word counts: many of its polls
_RECALL_LOOKS = 3
IDLE_S = 2.0  # a version that is asked for more often than this is kept


class _Kept(NamedTuple):
    """A version that is open."""

    layout: Layout
    collection: str
    identity: str


class Keeper:
    """Has a shard server serve its group of a collection: the live version, and the one before.

    The shards of a group follow from the manifest, so that servers need not know of each other. A version that a router
    says it serves is kept, or opened again by a server that was started meanwhile, because routers move on only when
    every group has the next one.

    Parameters
    ----------
    server : ShardServer
        Answers `offers`, `layout` and `look`, too, from now on.
    location : str or Path
        Of the collection.
    group, groups : int
        Which of how many groups; the first is 1.
    look_s : float
        Between looks at the live version.
    clock : callable
        Returns seconds.

    Raises
    ------
    ValueError
        If there is no such group.
    """

    def __init__(
        self,
        server: ShardServer,
        location: str | Path,
        *,
        group: int,
        groups: int,
        look_s: float = LOOK_S,
        clock: Clock = time.monotonic,
    ) -> None:
        if not 1 <= group <= groups:
            raise ValueError(f"`group` must be 1 to {groups}, the number of groups, got {group}")
        self._server, self._place = server, open_place(location)
        self._group, self._groups = group, groups
        self._clock = clock
        self._kept: tuple[_Kept, ...] = ()  # the newest last
        self._wanted: dict[str, tuple[tuple[tuple[int, str], ...], float]] = {}  # by router: versions, until when
        self._taking, self._noting = threading.Lock(), threading.Lock()
        self._recalling = Backoff(clock=clock)
        self.follower = Follower(location, self.take_up, look_s=look_s, clock=clock)
        server.pending_by(lambda: self.follower.pending)
        server.offer({"offers": self.offers, "layout": self.layout, "look": self.look})

    @contextmanager
    def following(self) -> Iterator[None]:
        """Take up the live version, and follow it in a thread of its own as long as the context is open.

        Raises
        ------
        HashlightError, OSError, ValueError
            If the live version cannot be served, and no router serves another that can be.
        """
        try:
            self.take_up()
        except (HashlightError, OSError, ValueError) as error:
            self._recall_instead(error)
        with self.follower.following():
            yield

    def take_up(self) -> bool:
        """Serve the live version and what routers serve, and drop what is not needed; return whether it is a new one.

        Raises
        ------
        HashlightError, OSError, ValueError
            If it cannot be served; what was served before stays.
        """
        with self._taking:
            live = read_current(self._place)
            is_new = not self._kept or self._kept[-1].layout.manifest != live.digest
            try:
                if is_new:
                    taken = self._open(live)
                    self._kept = (*(one for one in self._kept if one.layout.manifest != live.digest), taken)
            finally:
                self._recall()
                self._drop()
            return is_new

    def offers(self, router: str = "", serves: Sequence[tuple[int, str]] = ()) -> dict[str, Any]:
        """Say what the server has.

        Parameters
        ----------
        router : str
            Who asks; empty for one that serves nothing.
        serves : sequence of (int, str)
            Which versions it serves, with the digests of their manifests.
        """
        if router:
            versions = tuple((int(version), str(manifest)) for version, manifest in serves)
            with self._noting:
                self._wanted[router] = versions, self._clock() + LEASE_S
        pending = self.follower.pending
        return Offer(
            instance=self._server.name.instance,
            address=self._server.address,
            location=str(self._place),
            group=self._group,
            groups=self._groups,
            draining=self._server.draining,
            protocols=PROTOCOLS,
            versions=tuple(
                Offered(layout.version, layout.manifest, identity, collection, len(layout.groups[self._group - 1]))
                for layout, collection, identity in self._kept
            ),
            pending=None
            if pending is None
            else Failing(pending.version, pending.attempts, pending.retry_s, pending.error),
        ).document()

    def layout(self, manifest: str) -> dict[str, Any]:
        """Say how the version with this manifest digest is divided.

        Raises
        ------
        VersionNotServedError
            If the server does not have it.
        """
        found = next((one.layout for one in self._kept if one.layout.manifest == manifest), None)
        if found is None:
            raise VersionNotServedError(f"{self._server.address} does not have the version of manifest {manifest}")
        return found._asdict()

    def look(self) -> dict[str, Any]:
        """Take up the live version now, and say what the server has."""
        self.follower.look()
        return self.offers()

    def _open(self, manifest: Manifest) -> _Kept:
        """Serve the group's shards of a version; errors as in `take_up`."""
        layout = Layout.of(manifest, self._groups)
        assignment = layout.assignment(self._group - 1)
        self._server.load(*assignment)
        part = describe_collection(self._server.group_of(assignment.identity))
        about = {**part, "rows": manifest.rows, "shards": len(manifest.shards)}
        return _Kept(layout._replace(about=about), manifest.collection, assignment.identity)

    def _recall_instead(self, error: Exception) -> None:
        """Wait a few looks for a router that serves an earlier version; raise the error if there is none."""
        until_s = self._clock() + _RECALL_LOOKS * self.follower.look_s
        while not self._kept:
            if isinstance(error, CollectionNotFoundError) or self._clock() > until_s:
                raise error
            time.sleep(min(0.2, self.follower.look_s))
            with self._taking:
                self._recall()
        logger.warning("the live version of %s cannot be served, an earlier one is: %s", self._place, error)

    def _recall(self) -> None:
        """Open what routers serve and this server does not have, as far as the collection still has it."""
        for version, digest in sorted(
            self._leased() - {(one.layout.version, one.layout.manifest) for one in self._kept}
        ):
            if not self._recalling.allows((version, digest)):
                continue
            try:
                manifest = read_version(self._place, version)
                if manifest.digest != digest:
                    raise CollectionNotFoundError(f"version {version} has another manifest by now")
                self._kept = (self._open(manifest), *self._kept)
                self._recalling.succeeded()
            except (HashlightError, OSError, ValueError) as error:
                self._recalling.failed((version, digest))
                logger.info("version %d, which a router serves, cannot be opened: %s", version, error)

    def _drop(self) -> None:
        """Stop serving what is neither among the newest nor served by a router, nor asked for."""
        leased = {manifest for _, manifest in self._leased()}
        for one in self._kept[:-KEPT]:
            manifest = one.layout.manifest
            if manifest not in leased and self._server.idle_s(manifest) > IDLE_S:
                self._kept = tuple(other for other in self._kept if other is not one)
                self._server.drop(manifest)

    def _leased(self) -> set[tuple[int, str]]:
        """Return the versions that routers serve, with the digests of their manifests."""
        now_s = self._clock()
        with self._noting:
            self._wanted = {router: lease for router, lease in self._wanted.items() if lease[1] > now_s}
            return {version for versions, _ in self._wanted.values() for version in versions}
