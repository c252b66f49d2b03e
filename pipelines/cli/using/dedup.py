"""`hashlight dedup`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import out, progress_bar
from hashlight.pipelines.cli.options import AddressOption, CollectionArgument, JsonOption, OverwriteOption


def dedup(
    collection: CollectionArgument,
    radius: Annotated[
        int,
        typer.Option(
            min=0,
            help="Images whose codes differ in at most this many bits (their Hamming distance) are near-duplicates.",
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            help="Folder, or s3://, for the pairs, the clusters (images connected by pairs), and a gallery to look at.",
        ),
    ],
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs of shards (parts of the collection) compared at once; one per core."),
    ] = None,
    address: AddressOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find all near-duplicates of a collection on Ray; an interrupted job resumes where it stopped."""
    from hashlight.engine.places.opening import open_place
    from hashlight.pipelines.dedup.dedup import find_duplicates
    from hashlight.pipelines.jobs.session import joined

    start = time.perf_counter()
    with joined(address), progress_bar("joining") as report:
        found = find_duplicates(
            collection, output, radius=radius, workers=workers, overwrite=overwrite, progress=report
        )
    seconds = time.perf_counter() - start
    if as_json:
        typer.echo(json.dumps({**asdict(found), "seconds": round(seconds, 3)}))
        return
    out.print(
        f"{counted(found.pairs, 'pair')} within radius {radius} among {counted(found.codes, 'image')}, in "
        f"{seconds:.1f} s: {counted(found.clusters, 'cluster')} of {counted(found.members, 'image')}, the largest of "
        f"{found.largest:,}; "
        f"{found.removable:,} could go; look at {open_place(output).path('gallery.html')}",
        soft_wrap=True,
    )
