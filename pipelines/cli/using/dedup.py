"""`hashlight dedup`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import err, out, progress_bar
from hashlight.pipelines.cli.options import AddressOption, JsonOption, OverwriteOption, refuse_missing

# What its authors recommend.
PDQ_RADIUS = 31


def dedup(
    collection: Annotated[
        str,
        typer.Argument(
            help="A collection; or images (a folder or another corpus), which become one, OUTPUT.collection, by PDQ "
            "codes.",
            callback=refuse_missing,
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            help="Folder, or s3://, for the pairs, the clusters (images connected by pairs), and a gallery to look at.",
        ),
    ],
    radius: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Images whose codes differ in at most this many bits (their Hamming distance) are near-duplicates; 31 "
            "of images, which are given as such.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Pairs of shards (parts of the collection) compared at once; one per core."),
    ] = None,
    address: AddressOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find all near-duplicates of a collection, or of images, on Ray; an interrupted job resumes where it stopped."""
    from hashlight.engine.places.opening import open_place, open_target
    from hashlight.pipelines.dedup.dedup import find_duplicates
    from hashlight.pipelines.jobs.session import joined

    open_target(output)
    is_collection = open_place(collection).exists("CURRENT")
    if is_collection and radius is None:
        raise typer.BadParameter("a collection needs --radius: how near is near depends on its encoder")
    radius, start = PDQ_RADIUS if radius is None else radius, time.perf_counter()
    with joined(address):
        if not is_collection:
            collection = _collection_of(collection, output)
        with progress_bar("joining") as report:
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


def _collection_of(images: str, output: str) -> str:
    """Index images by PDQ, and return where: beside the output, which has ids alone."""
    from hashlight.engine.places.opening import open_place
    from hashlight.engine.places.uris import split_name, without_credentials
    from hashlight.pipelines.cli.indexing import run_steps
    from hashlight.pipelines.dedup.dedup import NEAR_DUPLICATES
    from hashlight.pipelines.indexing.index import index_job
    from hashlight.pipelines.jobs.folder import JobFolder

    JobFolder(output, NEAR_DUPLICATES).refuse_foreign()
    folder, name = split_name(open_place(output).location)
    place = open_place(folder).location_of(f"{name}.collection")
    with index_job(images, place, "pdq") as job:
        if job.plan is not None:
            run_steps(job)
    err.print(f"the images are in the collection {without_credentials(place)}", soft_wrap=True)
    return place
