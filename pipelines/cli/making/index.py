"""`hashlight index`."""

from __future__ import annotations

from typing import Annotated

import typer

from hashlight.pipelines.cli.indexing import run_index
from hashlight.pipelines.cli.options import CORPUS_HELP, FeaturesAsOption, refuse_missing, refuse_missing_encoder


def index(
    images: Annotated[str, typer.Argument(help=CORPUS_HELP, callback=refuse_missing)],
    output: Annotated[
        str, typer.Option("--output", help="The collection: a folder, or s3://. One that is there gets what is new.")
    ],
    encoder: Annotated[
        str,
        typer.Option(
            help="auto: what suits the images, fitted to them without labels. pdq or phash: finds copies. Or the "
            "folder of an encoder.",
        ),
    ] = "auto",
    features_as: FeaturesAsOption = None,
) -> None:
    """Make a collection of images in one step: choose an encoder, encode, build; an interrupted job resumes."""
    if encoder != "auto":
        refuse_missing_encoder(encoder)
    run_index(images, output, encoder, features_as)
