"""`hashlight evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from hashlight.pipelines.cli.console import key_value_table, out, spinner
from hashlight.pipelines.cli.options import CorpusNames, EncoderOption, IndexOption, refuse_missing


def evaluate(
    *,
    encoder: EncoderOption,
    database: Annotated[str, typer.Option(help="Corpus to rank, with labels or without.", callback=refuse_missing)],
    output: Annotated[str, typer.Option("--output", help="Folder for the report, or s3://.")],
    queries: Annotated[
        str | None,
        typer.Option(
            help="Corpus to query with; up to 500 images of the database, left out there, if left out here.",
            callback=refuse_missing,
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(help="Corpus that the baselines learn from; the database if left out.", callback=refuse_missing),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="Methods on features to compare with; by default itq, where it fits, and lsh."),
    ] = None,
    index: IndexOption = "auto",
    names: CorpusNames,
) -> None:
    """Measure how well an encoder retrieves: images with the query's label, if there are labels, and its neighbours."""
    from hashlight.engine.places.opening import open_place
    from hashlight.pipelines.evaluation.evaluate import evaluate_encoder

    options = names.parsed()
    with spinner("loading") as say:
        report = evaluate_encoder(
            encoder,
            database=database,
            queries=queries,
            output=output,
            train=train,
            baselines=baseline,
            index=index,
            options=options,
            progress=say,
        )
    rows = {}
    if report.methods:
        rows = {f"mAP, {title}": f"{report.methods[name].map_all:.4f}" for name, title in report.titles().items()}
        signs = f"{report.map_signs_of_those:.4f}, gap {report.relaxed_gap:+.4f}"
        rows["mAP, relaxed codes"] = f"{report.map_relaxed:.4f} (signs, same queries: {signs})"
    for name, title in report.titles().items():
        found = report.label_free[name]
        rows[f"recall of 10 neighbours, {title}"] = (
            f"{found.recall:.4f}, in asymmetric order {found.recall_asymmetric:.4f}, "
            f"100 re-ranked {found.recall_reranked:.4f}"
        )
    out.print(key_value_table("retrieval", rows))
    out.print(f"report: {open_place(output).path('report.md')}", soft_wrap=True)
