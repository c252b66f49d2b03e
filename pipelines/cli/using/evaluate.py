"""`hashlight evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from hashlight.pipelines.cli.console import key_value_table, out, spinner
from hashlight.pipelines.cli.options import EncoderOption, IndexOption, refuse_missing


def evaluate(
    encoder: EncoderOption,
    database: Annotated[str, typer.Option(help="Labelled corpus to rank.", callback=refuse_missing)],
    queries: Annotated[str, typer.Option(help="Labelled corpus to query with.", callback=refuse_missing)],
    output: Annotated[str, typer.Option("--output", help="Folder for the report, or s3://.")],
    train: Annotated[
        str | None,
        typer.Option(help="Corpus that the baselines learn from; the database if left out.", callback=refuse_missing),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="Methods on features to compare with; by default itq, where it fits, and lsh."),
    ] = None,
    index: IndexOption = "auto",
) -> None:
    """Measure how well an encoder retrieves images that share a label with the query."""
    from hashlight.engine.places.opening import open_place
    from hashlight.pipelines.evaluation.evaluate import evaluate_encoder

    with spinner("loading") as say:
        report = evaluate_encoder(
            encoder,
            database=database,
            queries=queries,
            output=output,
            train=train,
            baselines=baseline,
            index=index,
            progress=say,
        )
    rows = {f"mAP, {title}": f"{report.methods[name].map_all:.4f}" for name, title in report.titles().items()}
    relaxed = f"{report.map_relaxed:.4f} (signs, same queries: {report.map_signs_of_those:.4f})"
    out.print(key_value_table("retrieval", {**rows, "mAP, relaxed codes": relaxed}))
    out.print(f"report: {open_place(output).path('report.md')}", soft_wrap=True)
