"""What a shard server says it has, and how a version is divided into groups, as routers read them.

Nobody keeps a list of who serves what: routers ask the servers, at addresses that come from DNS, a file or Ray.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, get_type_hints

from hashlight.engine.service.protocol.cluster_map import Assignment, Group, assign_groups, identity_of
from hashlight.engine.service.protocol.wire import ProtocolError
from hashlight.engine.storage.manifest import Manifest


class Offered(NamedTuple):
    """A version that a server has.

    Attributes
    ----------
    version : int
    manifest : str
        Digest of its manifest.
    identity : str
        Of the server's shards of it (`engine.service.protocol.cluster_map.identity_of`).
    collection : str
        The id of the collection that it is a version of; one that was built again has another.
    shards : int
        How many of them the server has.
    """

    version: int
    manifest: str
    identity: str
    collection: str
    shards: int


class Failing(NamedTuple):
    """The live version, while a server cannot take it up; see `engine.service.asking.following.Pending`."""

    version: int | None
    attempts: int
    retry_s: float
    error: str


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    """What a server has.

    Attributes
    ----------
    instance : str
        Tells it from others that had or will have its address.
    address : str
        Where it says it can be reached.
    location : str
        Where its collection is.
    group, groups : int
        Which of how many groups it is of; the first is 1.
    draining : bool
        Whether it is to end soon, and is to be asked only if no other can be.
    protocols : tuple of int
        Which it speaks.
    versions : tuple of Offered
        In the order in which it took them up, the newest last.
    pending : Failing or None
    """

    instance: str
    address: str
    location: str
    group: int
    groups: int
    draining: bool
    protocols: tuple[int, ...]
    versions: tuple[Offered, ...]
    pending: Failing | None = None

    def document(self) -> dict[str, Any]:
        """Return it in plain types for JSON."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "versions": [one._asdict() for one in self.versions],
            "pending": None if self.pending is None else self.pending._asdict(),
        }

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Offer:
        """Undo `document`; what is not known here is left out.

        Raises
        ------
        ProtocolError
            If it is something else.
        """
        try:
            pending = document.get("pending")
            return cls(
                instance=str(document["instance"]),
                address=str(document["address"]),
                location=str(document["location"]),
                group=int(document["group"]),
                groups=int(document["groups"]),
                draining=bool(document["draining"]),
                protocols=tuple(map(int, document["protocols"])),
                versions=tuple(_known(Offered, one) for one in document["versions"]),
                pending=None if pending is None else _known(Failing, pending),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"expected what a shard server has, got {document!s:.200} ({error!r})") from error

    def of(self, manifest: str) -> Offered | None:
        """Return what it has of the version with this manifest digest."""
        return next((one for one in self.versions if one.manifest == manifest), None)


class Layout(NamedTuple):
    """How a version is divided into groups; every server works out the same from the manifest.

    Attributes
    ----------
    version : int
    manifest : str
        Digest of the version's manifest.
    about : dict
        `engine.service.asking.searcher.Searcher.describe` of the whole collection.
    groups : tuple of dict of str to int
        Of each group, its shards: name -> codes, without deleted ones. Some may be empty.
    """

    version: int
    manifest: str
    about: Mapping[str, Any]
    groups: tuple[Mapping[str, int], ...]

    @classmethod
    def of(cls, manifest: Manifest, groups: int) -> Layout:
        """Divide a version by `assign_groups`; `about` is left empty."""
        rows = {spec.name: spec.alive for spec in manifest.shards}
        divided = tuple({name: rows[name] for name in names} for names in assign_groups(manifest, groups))
        return cls(manifest.version, manifest.digest, {}, divided)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Layout:
        """Undo `_asdict`; ProtocolError if it is something else."""
        try:
            about = dict(document["about"])
            int(about["bits"])
            groups = tuple({str(name): int(rows) for name, rows in one.items()} for one in document["groups"])
            return cls(int(document["version"]), str(document["manifest"]), about, groups)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(f"expected the groups of a version, got {document!s:.200} ({error!r})") from error

    @property
    def asked(self) -> list[int]:
        """Which groups are asked, counted from 0: those with shards, or the first one if there are no shards."""
        return [group for group, shards in enumerate(self.groups) if shards] or [0]

    def identity(self, group: int) -> str:
        """Return the identity of a group's shards; the first group is 0."""
        return identity_of(self.manifest, self.groups[group])

    def assignment(self, group: int) -> Assignment:
        """Return what a server of a group has to serve."""
        return Assignment(self.version, self.manifest, tuple(self.groups[group]))

    def group(self, number: int, replicas: tuple[str, ...]) -> Group:
        """Return a group at the addresses of its servers."""
        return Group(self.manifest, self.groups[number], replicas)


def _known(kind: Any, document: Mapping[str, Any]) -> Any:
    """Return a tuple of this kind; a newer release may say more."""
    told = {name: document[name] for name in kind._fields}
    for name, wanted in get_type_hints(kind).items():
        if not isinstance(told[name], float | int if wanted is float else wanted):
            raise TypeError(f"{name} is {told[name]!r}")
    return kind(**told)
