"""`hashlight export`."""

from __future__ import annotations

from typing import Annotated

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import fetching_text, out, spinner
from hashlight.pipelines.cli.options import (
    CacheSizeOption,
    ExchangeKind,
    ExistingCollectionArgument,
    OverwriteOption,
    exchange_kind,
)


def export(
    collection: ExistingCollectionArgument,
    target: Annotated[str, typer.Argument(help="The file to write, or s3://.")],
    kind: Annotated[
        ExchangeKind | None,
        typer.Option("--to", help="What to write; by default what the name ends in: .faiss, .parquet, .arrow."),
    ] = None,
    overwrite: OverwriteOption = False,
    cache_size: CacheSizeOption = None,
) -> None:
    """Write a collection as a file of FAISS, Parquet or Arrow."""
    kind = kind or exchange_kind(target, "--to")
    from hashlight.engine.collection.collection import Collection
    from hashlight.engine.exchange.arrow import write_arrow_file
    from hashlight.engine.exchange.faiss_indexes import faiss_bits
    from hashlight.engine.places.uris import without_credentials

    with spinner("exporting") as say:
        opened = Collection.open(collection, progress=fetching_text(say, "exporting"))
        if kind == "faiss":
            opened.to_faiss(target, overwrite=overwrite)
        elif kind == "parquet":
            opened.to_parquet(target, overwrite=overwrite)
        else:
            write_arrow_file(opened.to_arrow(), target, overwrite=overwrite)
    what = f"{counted(len(opened), 'code')} of {counted(opened.bits, 'bit')}, version {opened.version}"
    out.print(f"exported {what}: {without_credentials(target)}", soft_wrap=True)
    if kind == "faiss" and (stored := faiss_bits(opened.bits)) != opened.bits:
        out.print(
            f"FAISS knows only whole bytes, so that its codes have {stored} bits, the last {stored - opened.bits} of "
            f"them zero: import them with --bits {opened.bits}",
            soft_wrap=True,
        )
