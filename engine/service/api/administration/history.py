"""The versions of a collection: what each write did, and going back to an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.places.opening import open_place
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.versions import list_versions


def describe_versions(location: str) -> list[dict[str, Any]]:
    """Return the versions that can be rolled back to, the latest first; see `schemas.VersionModel`.

    Raises
    ------
    CollectionNotFoundError, CorruptDataError, OSError
        If they cannot be read.
    """
    found = list_versions(open_place(location))
    by_name = {each.file_name: each for each in found}
    tags: dict[str, list[str]] = {}
    for tag, name in sorted(found[0].tags.items()):
        tags.setdefault(name, []).append(tag)
    return [
        {
            "version": each.version,
            "live": each is found[0],
            "written": each.written or None,
            "operation": operation_of(each, found),
            "items": each.rows,
            "items_before": None if (before := by_name.get(each.parent or "")) is None else before.rows,
            "deleted_rows": each.dead_rows,
            "shards": len(each.shards),
            "bytes": each.num_bytes,
            "tags": tags.get(each.file_name, []),
        }
        for each in found
    ]


def operation_of(version: Manifest, kept: Sequence[Manifest]) -> str:
    """Return what made a version of the one before, as far as the two tell; see `schemas.VersionModel`."""
    if version.parent is None:
        return "created"
    before = next((each for each in kept if each.file_name == version.parent), None)
    if before is None:
        return "unknown"
    if _contents(version) == _contents(before):
        return "relabelled"
    if any(_contents(version) == _contents(each) for each in kept if each.version < before.version):
        return "rolled_back"
    gone = {shard.name for shard in before.shards} - {shard.name for shard in version.shards}
    new = {shard.name for shard in version.shards} - {shard.name for shard in before.shards}
    if gone and version.rows == before.rows:
        return "compacted"
    columns = {shard.name: shard.columns for shard in before.shards}
    if not new and any(shard.columns != columns[shard.name] for shard in version.shards):
        return "column_set"
    if new and version.rows > before.rows:
        return "added"
    return "changed" if new else "deleted"


def _contents(version: Manifest) -> tuple[Any, ...]:
    """Return what a version shows."""
    shards = sorted((one.name, str(one.dead), str(one.columns)) for one in version.shards)
    return version.encoder, version.schema, shards


def roll_back(location: str, version: int | str) -> int:
    """Write a version that is what an earlier one was, and return its number; errors as in `Transaction`."""
    with Transaction(location) as change:
        change.rollback(version)
        return change.commit().version
