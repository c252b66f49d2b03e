"""`hashlight facets`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Column, Table

from hashlight.pipelines.cli.console import out
from hashlight.pipelines.cli.options import ExistingCollectionArgument, FilterOption, JsonOption


def facets(
    collection: ExistingCollectionArgument,
    column: Annotated[str, typer.Argument(help="An attribute.")],
    filter: FilterOption = None,
    limit: Annotated[int, typer.Option(min=1, help="The most frequent values.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Count how often each value of an attribute occurs."""
    from hashlight.engine.collection.collection import Collection

    opened = Collection.open(collection)
    found = opened.facets(column, filter, limit=limit).to_pylist()
    if as_json:
        typer.echo(json.dumps({"version": opened.version, "column": column, "facets": found}, default=str))
        return
    table = Table(Column(column, overflow="fold"), Column("codes", justify="right"))
    for line in found:
        table.add_row("(none)" if line["value"] is None else str(line["value"]), f"{line['count']:,}")
    out.print(table)
