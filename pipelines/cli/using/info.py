"""`hashlight info`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from hashlight.pipelines.cli.console import fetching_bar, key_value_table, out
from hashlight.pipelines.cli.options import CacheSizeOption, ExistingCollectionArgument, JsonOption, PrefetchOption


def info(
    collection: ExistingCollectionArgument,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file again.")] = False,
    as_json: JsonOption = False,
    prefetch: PrefetchOption = False,
    cache_size: CacheSizeOption = None,
) -> None:
    """Describe a collection and check its files; of one in a bucket only with --verify or --prefetch."""
    from hashlight.engine.collection.collection import Collection
    from hashlight.engine.places.opening import open_place
    from hashlight.pipelines.codes.encoder import input_of

    with fetching_bar() as report:
        opened = Collection.open(collection, verify=verify, prefetch=prefetch, progress=report)
    place, folder = open_place(opened.location), opened.manifest.encoder_folder
    facts: dict[str, Any] = {
        "path": str(open_place(collection)),
        "version": opened.version,
        "codes": len(opened),
        "deleted": opened.manifest.dead_rows,
        "oldest_version": opened.manifest.oldest,
        "tags": {tag: int(name[:8]) for tag, name in sorted(opened.manifest.tags.items())},
        "bits": opened.bits,
        "shards": len(opened.shards),
        "bytes": opened.num_bytes,
        "tables": opened.has_tables,
        "encoder": opened.fingerprint,
        "encoder_takes": None if folder is None else input_of(open_place(place.location_of(f"encoder/{folder}"))),
        "attributes": opened.schema.names,
        "columns": sorted({name for spec in opened.manifest.shards for name in spec.columns}),
    }
    if as_json:
        facts["verified"] = verify
        typer.echo(json.dumps(facts))
        return
    facts["bytes"] = f"{opened.num_bytes:,}"
    facts["tables"] = "in every shard" if opened.has_tables else "not in every shard: --index multi is refused"
    facts["codes"] = f"{len(opened):,}"
    facts["deleted"] = f"{opened.manifest.dead_rows:,}, which compaction removes" if facts["deleted"] else "none"
    facts["oldest_version"] = f"{facts['oldest_version']}, which can be opened, with those after it"
    facts["tags"] = ", ".join(f"{tag} (version {number})" for tag, number in facts["tags"].items()) or "none"
    facts["columns"] = ", ".join(facts["columns"]) or "none, all attributes are in their shards"
    facts["encoder"] = opened.fingerprint or "not kept"
    facts["encoder_takes"] = facts["encoder_takes"] or "not known"
    facts["attributes"] = ", ".join(facts["attributes"]) or "none"
    if verify:
        facts["verified"] = "every file, against its SHA-256"
    out.print(key_value_table("collection", facts))
