"""`hashlight build`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import out, progress_bar
from hashlight.pipelines.cli.options import AddressOption, FeaturesAsOption, OverwriteOption, refuse_missing


@dataclass(frozen=True, kw_only=True)
class ShardSize:
    """How the codes are cut into shards: one of the three, or none."""

    shards: Annotated[int | None, typer.Option(min=1, help="Number of shards.")] = None
    shard_rows: Annotated[int | None, typer.Option(min=1, help="Maximum codes per shard; 20 million.")] = None
    shard_bytes: Annotated[str | None, typer.Option(help="Approximate maximum size of a shard: 500MB, 2GB.")] = None


def build(
    codes: Annotated[
        str, typer.Option("--codes", help="Folder that `hashlight encode` wrote, or s3://.", callback=refuse_missing)
    ],
    output: Annotated[str, typer.Option("--output", help="The collection: a folder, or s3://BUCKET/PREFIX.")],
    size: ShardSize,
    tables: Annotated[
        bool,
        typer.Option(
            "--tables/--no-tables", help="Build the multi-index (tables that find codes without comparing all)."
        ),
    ] = True,
    append: Annotated[bool, typer.Option("--append", help="Add to the collection that is there.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Shards built at once, each in up to 3 times its size; one per core.")
    ] = None,
    features_as: FeaturesAsOption = None,
    address: AddressOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Build a collection from codes on Ray, or add codes to one."""
    if sum(given is not None for given in (size.shards, size.shard_rows, size.shard_bytes)) > 1:
        raise typer.BadParameter("give one of --shards, --shard-rows and --shard-bytes")
    if append and overwrite:
        raise typer.BadParameter("give --append or --overwrite, not both")
    from hashlight.engine.places.opening import open_place
    from hashlight.engine.storage.versions import read_current
    from hashlight.pipelines.building.build import build_collection
    from hashlight.pipelines.jobs.session import joined

    with joined(address), progress_bar("building") as report:
        build_collection(
            codes,
            output,
            shards=size.shards,
            shard_rows=size.shard_rows,
            shard_bytes=None if size.shard_bytes is None else _parse_bytes(size.shard_bytes),
            tables=tables,
            overwrite=overwrite,
            append=append,
            workers=workers,
            features_as=features_as,
            progress=report,
        )
    place = open_place(output)
    built = read_current(place)
    what = f"{counted(built.rows, 'code')} of {counted(built.bits, 'bit')} in {counted(len(built.shards), 'shard')}"
    out.print(f"built version {built.version} of {place}: {what}, {built.num_bytes:,} bytes", soft_wrap=True)


def _parse_bytes(text: str) -> int:
    """Read a number of bytes: 1000, 500MB, 2GB, 1.5GiB."""
    units = {
        "": 1,
        **{f"{c}B": 1000**n for n, c in enumerate("KMGT", 1)},
        **{f"{c}iB": 1024**n for n, c in enumerate("KMGT", 1)},
    }
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?B)?", text)
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"expected a number of bytes such as 500MB, 2GB or 1.5GiB, got {text!r}")
    return int(float(found[1]) * units[found[2] or ""])
