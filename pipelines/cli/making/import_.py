"""`hashlight import`."""

from __future__ import annotations

from typing import Annotated

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import out, spinner
from hashlight.pipelines.cli.options import (
    CollectionArgument,
    ExchangeKind,
    FeaturesAsOption,
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
    features_as: FeaturesAsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a collection from codes of other programs: a FAISS index, Parquet or Arrow."""
    kind = kind or exchange_kind(source, "--from")
    if kind == "faiss" and (columns != SourceColumns() or features_as):
        raise typer.BadParameter("a FAISS index has no columns: leave out --*-column, --number-rows and --features-as")
    from hashlight.engine.collection.collection import Collection
    from hashlight.engine.collection.importing import import_rows
    from hashlight.engine.exchange.arrow import open_batches
    from hashlight.engine.exchange.columns import read_batches
    from hashlight.engine.exchange.parquet import open_parquet
    from hashlight.engine.places.opening import open_place

    with spinner("importing"):
        if kind == "faiss":
            made = Collection.from_faiss(
                source, collection, bits=bits, shard_rows=shard_rows, tables=tables, overwrite=overwrite
            )
        else:
            named = columns.named(features_as)
            with (open_parquet if kind == "parquet" else open_batches)(source) as (schema, batches):
                incoming = read_batches(schema, batches, named, bits=bits)
                if features_as and incoming.features_as is None:
                    raise typer.BadParameter("--features-as needs features: name their column by --features-column")
                import_rows(collection, incoming, shard_rows=shard_rows, tables=tables, overwrite=overwrite)
            made = Collection.open(collection)
    what = f"{counted(len(made), 'code')} of {counted(made.bits, 'bit')} in {counted(len(made.shards), 'shard')}"
    out.print(f"imported {what}: {open_place(collection)}", soft_wrap=True)
