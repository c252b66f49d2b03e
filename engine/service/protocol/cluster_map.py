"""The cluster map: the groups of shards of one collection version, and the addresses of their replicas.

Every request names the shards that must answer it by their *identity*, a hash of the manifest that lists them and of
their names. So an answer never comes from other shards, whoever listens at an address and whatever version number a
collection has after it was built again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.opening import open_shards
from hashlight.engine.errors import CollectionNotFoundError
from hashlight.engine.indexes.choice import IndexChoice
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.place import Place
from hashlight.engine.results import Coverage
from hashlight.engine.storage.copies import root_of
from hashlight.engine.storage.manifest import Manifest, ShardSpec
from hashlight.engine.storage.versions import close_held, read_held

# Of a group, in the mean of all: more would keep shards in place more often, and make the largest group slower.
_MAX_SHARE = 1.25


class Assignment(NamedTuple):
    """What a server has to serve: some shards of one version of a collection.

    Attributes
    ----------
    version : int
    manifest : str
        Digest of the version's manifest.
    shards : tuple of str
        Names.
    """

    version: int
    manifest: str
    shards: tuple[str, ...]

    @property
    def identity(self) -> str:
        """See `identity_of`."""
        return identity_of(self.manifest, self.shards)


class ServerName(NamedTuple):
    """A server: its Flight address, and what tells it from others that had or will have the address."""

    address: str
    instance: str


@dataclasses.dataclass(frozen=True)
class Group:
    """Shards that are served together.

    Attributes
    ----------
    manifest : str
        Digest of the manifest that lists them.
    shards : dict of str to int
        Name -> codes, without deleted ones.
    replicas : tuple of str
        Flight addresses (`grpc://HOST:PORT`, `grpc+tls://...`) of servers that have all of them open.
    """

    manifest: str
    shards: Mapping[str, int]
    replicas: tuple[str, ...]

    @functools.cached_property
    def identity(self) -> str:
        """See `identity_of`."""
        return identity_of(self.manifest, self.shards)

    @property
    def rows(self) -> int:
        """Number of codes."""
        return sum(self.shards.values())


@dataclasses.dataclass(frozen=True)
class ClusterMap:
    """One collection version behind shard servers.

    Attributes
    ----------
    about : dict
        `engine.service.asking.searcher.Searcher.describe` of the whole collection.
    groups : tuple of Group
        All of one manifest. Those without shards have no place here, but for one if there are no shards at all.
    """

    about: Mapping[str, Any]
    groups: tuple[Group, ...]

    @property
    def version(self) -> int:
        """The collection version."""
        return int(self.about["version"])

    @property
    def manifest(self) -> str:
        """Digest of the version's manifest."""
        return self.groups[0].manifest

    @functools.cached_property
    def coverage(self) -> Coverage:
        """Coverage of an answer from all groups."""
        shards, codes = sum(len(group.shards) for group in self.groups), sum(group.rows for group in self.groups)
        return Coverage(shards=shards, answered=shards, codes=codes, searched=codes, version=self.version)

    def with_replicas(self, replicas: Sequence[Sequence[str]]) -> ClusterMap:
        """Return the same shards at other addresses, one sequence of them for each group."""
        groups = [
            dataclasses.replace(group, replicas=tuple(addresses))
            for group, addresses in zip(self.groups, replicas, strict=True)
        ]
        return dataclasses.replace(self, groups=tuple(groups))


def identity_of(manifest: str, shards: Iterable[str]) -> str:
    """Return what identifies some shards of the version with this manifest digest: 32 hexadecimal digits."""
    return hashlib.sha256("\n".join([manifest, *sorted(shards)]).encode()).hexdigest()[:32]


def assign_groups(manifest: Manifest, count: int) -> list[list[str]]:
    """Divide the shards into `count` groups of similar size, some of which may be empty.

    Large shards come first, and each goes to the group that its name ranks highest (rendezvous hashing: Thaler and
    Ravishankar, "Using name-based mappings to increase hit rates", 1998) of those that its rows would not make too
    large (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", SODA 2018). So where a shard
    goes depends only on larger ones, and little on them: servers keep what they have open when small shards come and
    go.

    Raises
    ------
    ValueError
        If `count` is less than 1.
    """
    if count < 1:
        raise ValueError(f"`groups` must be at least 1, got {count}")
    groups: list[list[str]] = [[] for _ in range(count)]
    rows_G, total = [0] * count, 0
    # Only the order of magnitude counts, so that rows deleted and added change no place in the order.
    for shard in sorted(manifest.shards, key=lambda shard: -shard.rows.bit_length()):
        total += shard.rows
        limit = max(_MAX_SHARE * total / count, min(rows_G) + shard.rows)
        allowed = (group for group in range(count) if rows_G[group] + shard.rows <= limit)
        chosen = max(allowed, key=lambda group: hashlib.sha256(f"{group} {shard.name}".encode()).digest())
        groups[chosen].append(shard.name)
        rows_G[chosen] += shard.rows
    return groups


def open_group(
    path: str | Path, assignment: Assignment, *, index: IndexChoice = "auto", reuse: Iterable[Collection] = ()
) -> Collection:
    """Open some shards of one version of a collection.

    `index` as in `Collection.open`; what the version has in common with other open versions in `reuse` is not opened
    again.

    Raises
    ------
    CollectionNotFoundError
        If the collection no longer has that version, or has another one under its number.
    CorruptDataError
        If a file is missing or damaged.
    ValueError
        If the version has no shard of that name.
    """
    place = open_place(path)
    version, digest, shards = assignment
    manifest, held = read_held(place, version)
    try:
        if manifest.digest != digest:
            raise CollectionNotFoundError(
                f"version {version} of {place} has manifest {manifest.digest[:16]}…, expected {digest[:16]}…: the "
                "collection was built again under the same version number"
            )
        chosen = _choose(place, manifest, shards)
        part = dataclasses.replace(manifest, shards=chosen)
        root, copies = root_of(place, bits=manifest.bits)
        others = list(reuse)
        known = [other.shards for other in others]
        opened = open_shards(root, part, index=index, held=held, reuse=known, copies=copies)
    except BaseException:
        close_held(held)
        raise
    latest = others[-1] if others else None
    return Collection(root, part, opened, location=place.location, index=index, held=held, reuse=latest)


def _choose(place: Place, manifest: Manifest, shards: Sequence[str]) -> tuple[ShardSpec, ...]:
    specs = {spec.name: spec for spec in manifest.shards}
    unknown = sorted(set(shards) - set(specs))
    if unknown:
        raise ValueError(f"version {manifest.version} of {place} has no shards {', '.join(unknown)}")
    return tuple(specs[name] for name in shards)


def describe_whole(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine the descriptions of the groups of one version."""
    return {
        **parts[0],
        "rows": sum(part["rows"] for part in parts),
        "shards": sum(part["shards"] for part in parts),
    }
