"""Opening the shards of a version, as far as another open version does not have them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from hashlight.engine.indexes.choice import IndexChoice
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.shard import Shard


def open_shards(
    root: Path,
    manifest: Manifest,
    *,
    verify: bool = False,
    index: IndexChoice = "auto",
    reuse: Iterable[Shard] = (),
) -> list[Shard]:
    """Open the shards of a version, in the manifest's order.

    Parameters
    ----------
    root : Path
        Folder of the collection, or of a local copy.
    manifest : Manifest
    verify, index
        As in `engine.collection.collection.Collection.open`.
    reuse : iterable of Shard
        Shards of other versions: what the version has in common with them is not opened again.

    Raises
    ------
    CorruptDataError
        If a file is missing or damaged.
    MissingDependencyError
        If FAISS is to answer and is not installed.
    ValueError
        If tables are to answer and a shard was built without.
    """
    schema = shown_schema(manifest)
    known = {} if verify else {shard.name: shard for shard in reuse}
    opened = []
    for spec in manifest.shards:
        shard = known.get(spec.name)
        if shard is not None and shard.is_of(spec, index):
            opened.append(shard.as_of(root, spec, schema=schema))
        else:
            opened.append(Shard(root, spec, bits=manifest.bits, schema=schema, verify_all=verify, index=index))
    return opened


def shown_schema(manifest: Manifest) -> pa.Schema | None:
    """Return the attributes that a version shows; None for those of each shard, as in manifests of format 1."""
    return manifest.schema if manifest.format_version == 1 else manifest.schema or pa.schema([])
