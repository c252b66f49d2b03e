"""`hashlight import`."""

from __future__ import annotations

from typing import Annotated

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import out, spinner
from hashlight.pipelines.cli.options import (
    CollectionArgument,
    ExchangeKind,
    OverwriteOption,
    SourceColumns,
    exchange_kind,
    refuse_missing,
)


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="A file of FAISS (from an origin you trust), Parquet or Arrow, a folder of Parquet files, or s3://.",
            callback=refuse_missing,
        ),
    ],
    collection: CollectionArgument,
    kind: Annotated[
        ExchangeKind | None,
        typer.Option("--from", help="What it is; by default what the name ends in: .faiss, .parquet, .arrow."),
    ] = None,
    *,
    columns: SourceColumns,
    bits: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Bits of a code; those that the source says, or all it has.")
    ] = None,
    shard_rows: Annotated[int | None, typer.Option(min=1, help="Maximum codes per shard; 5 million.")] = None,
    tables: Annotated[
        bool,
        typer.Option(
            "--tables/--no-tables", help="Build the multi-index (tables that find codes without comparing all)."
        ),
    ] = True,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a collection from codes of other programs: a FAISS index, Parquet or Arrow."""
    kind = kind or exchange_kind(source, "--from")
    if kind == "faiss" and columns != SourceColumns():
        raise typer.BadParameter("a FAISS index has no columns: leave out --*-column and --number-rows")
    from hashlight.engine.collection.collection import Collection
    from hashlight.engine.places.opening import open_place

    with spinner("importing"):
        if kind == "faiss":
            made = Collection.from_faiss(
                source, collection, bits=bits, shard_rows=shard_rows, tables=tables, overwrite=overwrite
            )
        else:
            read = Collection.from_parquet if kind == "parquet" else Collection.from_arrow
            made = read(
                source,
                collection,
                code_column=columns.code_column,
                id_column=None if columns.number_rows else columns.id_column,
                features_column=columns.features_column,
                thumbnail_column=columns.thumbnail_column,
                bits=bits,
                shard_rows=shard_rows,
                tables=tables,
                overwrite=overwrite,
            )
    what = f"{counted(len(made), 'code')} of {counted(made.bits, 'bit')} in {counted(len(made.shards), 'shard')}"
    out.print(f"imported {what}: {open_place(collection)}", soft_wrap=True)
