"""`hashlight count`."""

from __future__ import annotations

import json

import typer

from hashlight.pipelines.cli.console import fetching_bar
from hashlight.pipelines.cli.options import CacheSizeOption, ExistingCollectionArgument, FilterOption, JsonOption


def count(
    collection: ExistingCollectionArgument,
    filter: FilterOption = None,
    as_json: JsonOption = False,
    cache_size: CacheSizeOption = None,
) -> None:
    """Count the codes of a collection, or those that satisfy a condition."""
    from hashlight.engine.collection.collection import Collection

    with fetching_bar() as report:
        opened = Collection.open(collection, progress=report)
        found = opened.count(filter)
    typer.echo(json.dumps({"version": opened.version, "count": found}) if as_json else str(found))
