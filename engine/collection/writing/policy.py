"""Which shards are worth merging, and why."""

from __future__ import annotations

from collections.abc import Sequence

from hashlight.engine.storage.manifest import ShardSpec

# About a gigabyte of 64-bit codes with their tables, as builds make them. Larger ones gain nothing in a search, and
# take longer to copy and to compact than an operator wants to wait for.
TARGET_ROWS = 20_000_000

# A search pays for deleted rows as for others: beyond a fifth of them, radius search takes more than 1.2 times as long.
# With a twentieth as the limit, rows would be written five times as often.
MAX_DEAD_SHARE = 0.2

# Shards of similar size are merged when there are four, so that at most three of each size are searched, and a row that
# was added alone is written again once for each factor of four: seven times up to 20 million rows. Two at a time, it
# would be fourteen times; eight at a time, there could be seven of each size.
_ALIKE = 4
# Smaller ones count as equal: opening and searching a shard costs more than some thousand rows in it.
_SMALLEST_ROWS = 4_000

_Group = list[ShardSpec]


def groups_to_merge(shards: Sequence[ShardSpec], *, least: int = 1) -> list[_Group]:
    """Return groups of shards each of which should become one; a group may be of one shard with many deleted rows.

    Parameters
    ----------
    shards : sequence of ShardSpec
    least : int
        Shards that should be left, if there are as many: one for each server that shares the rows with others.
    """
    target = min(TARGET_ROWS, sum(spec.alive for spec in shards) // least)
    groups = [[spec] for spec in shards if spec.alive <= target // 2]
    size = 0
    while any(_size_of(group) >= size for group in groups):
        alike = [group for group in groups if _size_of(group) == size]
        if len(alike) >= _ALIKE:
            others = [group for group in groups if _size_of(group) != size]
            groups = others + _packed([spec for group in alike for spec in group], target)
        size += 1
    merging = [group for group in groups if len(group) > 1]
    taken = {spec.name for group in merging for spec in group}
    return merging + [[spec] for spec in shards if spec.name not in taken and _dead_share(spec) >= MAX_DEAD_SHARE]


def groups_of_all(shards: Sequence[ShardSpec]) -> list[_Group]:
    """Return groups after whose merging no row is deleted, no column beside its shard, and few shards are small."""
    groups = _packed(sorted(shards, key=lambda spec: spec.alive), TARGET_ROWS)
    return [group for group in groups if len(group) > 1 or group[0].dead is not None or group[0].columns]


def _packed(shards: Sequence[ShardSpec], target: int) -> list[_Group]:
    """Put shards into groups of at most `target` rows, in their order."""
    groups: list[_Group] = []
    for spec in shards:
        if groups and sum(each.alive for each in groups[-1]) + spec.alive <= target:
            groups[-1].append(spec)
        else:
            groups.append([spec])
    return groups


def _dead_share(spec: ShardSpec) -> float:
    return (spec.rows - spec.alive) / spec.rows


def _size_of(group: _Group) -> int:
    """Return 0 for the smallest shards, and one more for each factor of four."""
    rows, size = sum(spec.alive for spec in group), 0
    while rows >= _SMALLEST_ROWS * _ALIKE**size:
        size += 1
    return size
