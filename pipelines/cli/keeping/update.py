"""`hashlight update` and `hashlight set-column`."""

from __future__ import annotations

from typing import Annotated

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.keeping.given import (
    IdsFileOption,
    SomeIdsOption,
    parse_ids,
    parse_values,
    read_table,
    say,
)
from hashlight.pipelines.cli.options import ExistingCollectionArgument, JsonOption, refuse_missing

_VALUES_HELP = "Parquet, Arrow or CSV with a column `id` and attributes, or s3://."


def update(
    collection: ExistingCollectionArgument,
    values: Annotated[str | None, typer.Argument(help=_VALUES_HELP, callback=refuse_missing)] = None,
    ids: SomeIdsOption = None,
    ids_file: IdsFileOption = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="With ids: an attribute's value.")
    ] = None,
    nulls: Annotated[
        list[str] | None, typer.Option("--set-null", metavar="NAME", help="With ids: an attribute without a value.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Give codes other attributes: the same to some ids, or each its own, from a file."""
    has_ids, has_values = ids is not None or ids_file is not None, bool(settings or nulls)
    if (values is not None) == has_ids or has_ids != has_values:
        raise typer.BadParameter("give a file of values, or ids with --set NAME=VALUE or --set-null NAME")
    from hashlight.engine.collection.writing.transaction import Transaction

    with Transaction(collection) as change:
        schema = change.live.schema if change.live else None
        if values is not None:
            ids_M, table = read_table(values, schema)
        else:
            ids_M = parse_ids(ids, ids_file)
            table = parse_values(settings or [], nulls or [], schema, len(ids_M))
        change.update(ids_M, table)
        done = change.commit()
        where = change.place
    line = (
        f"updated {', '.join(table.schema.names)} of {counted(len(ids_M), 'code')}: version {done.version} of {where}"
    )
    say(line, {"version": done.version, "updated": len(ids_M)}, as_json=as_json)


def set_column(
    collection: ExistingCollectionArgument,
    values: Annotated[str, typer.Argument(help=_VALUES_HELP, callback=refuse_missing)],
    as_json: JsonOption = False,
) -> None:
    """Add attributes, or replace those of many codes, without writing a code again.

    Codes that the file does not name keep their values, or have none.
    """
    from hashlight.engine.collection.writing.transaction import Transaction

    with Transaction(collection) as change:
        ids_M, table = read_table(values, change.live.schema if change.live else None)
        for name in table.schema.names:
            change.set_column(name, table[name], ids=ids_M)
        done = change.commit()
        where = change.place
    line = f"set {', '.join(table.schema.names)} of {counted(len(ids_M), 'code')}: version {done.version} of {where}"
    say(line, {"version": done.version, "set": table.schema.names, "codes": len(ids_M)}, as_json=as_json)
