"""`hashlight list`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import out, spinner
from hashlight.pipelines.cli.options import (
    CORPUS_HELP,
    AddressOption,
    CorpusNames,
    IdsOption,
    JsonOption,
    UnitImagesOption,
    refuse_missing,
)


def list_(
    corpus: Annotated[str, typer.Argument(help=CORPUS_HELP, callback=refuse_missing)],
    output: Annotated[str, typer.Option("--output", help="The work list (.arrow), local or s3://.")],
    names: CorpusNames,
    unit_images: UnitImagesOption = 2000,
    ids: IdsOption = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="List on Ray, so many parts at a time: a large bucket, or many files.")
    ] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a corpus once into a work list, which `hashlight encode --input` takes in place of the corpus."""
    if address is not None and workers is None:
        raise typer.BadParameter("--address goes with --workers: say how many parts to list at a time")
    options = names.parsed()
    from hashlight.engine.places.uris import without_credentials
    from hashlight.pipelines.corpora.listing import told
    from hashlight.pipelines.corpora.work import SUFFIX, list_work
    from hashlight.pipelines.jobs.session import joined

    if not output.partition("?")[0].endswith(SUFFIX):
        raise typer.BadParameter(f"--output must end in {SUFFIX}, got {without_credentials(output)}")
    with joined(address), spinner("listing") as say:
        work = list_work(
            corpus,
            output,
            unit_images=unit_images,
            ids=ids,
            options=options,
            workers=workers,
            progress=lambda n: say(f"listing: {n:,} entries"),
        )
    if as_json:
        typer.echo(json.dumps(asdict(work)))
        return
    what = (
        f"{counted(work.units, 'unit')} of tar files"
        if work.images is None
        else f"{counted(work.images, 'image')} in {counted(work.units, 'unit')}"
    )
    beside = f"; left out {told(work.skipped)}" if work.skipped else ""
    out.print(f"listed {what}: {without_credentials(output)}{beside}", soft_wrap=True)
