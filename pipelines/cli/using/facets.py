"""`hashlight facets`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Column, Table

from hashlight.pipelines.cli.console import fetching_bar, out
from hashlight.pipelines.cli.options import CacheSizeOption, ExistingCollectionArgument, FilterOption, JsonOption


def facets(
    collection: ExistingCollectionArgument,
    column: Annotated[str, typer.Argument(help="An attribute.")],
    filter: FilterOption = None,
    limit: Annotated[int, typer.Option(min=1, help="The most frequent values.")] = 20,
    as_json: JsonOption = False,
    cache_size: CacheSizeOption = None,
) -> None:
    """Count how often each value of an attribute occurs."""
    from hashlight.engine.collection.collection import Collection

    with fetching_bar() as report:
        opened = Collection.open(collection, progress=report)
        found = opened.facets(column, filter, limit=limit).to_pylist()
    if as_json:
        typer.echo(json.dumps({"version": opened.version, "column": column, "facets": found}, default=str))
        return
    table = Table(Column(column, overflow="fold"), Column("codes", justify="right"))
    for line in found:
        table.add_row("(none)" if line["value"] is None else str(line["value"]), f"{line['count']:,}")
    out.print(table)
