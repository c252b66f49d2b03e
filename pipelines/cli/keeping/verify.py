"""`hashlight verify`."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import out, progress_bar
from hashlight.pipelines.cli.options import ExistingCollectionArgument, JsonOption

if TYPE_CHECKING:
    from hashlight.engine.collection.verifying.report import Fault, Report


def verify(
    collection: ExistingCollectionArgument,
    live: Annotated[bool, typer.Option("--live", help="The live version only; else all that are kept.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Rebuild what can be made from codes, ids and attributes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Hash and check everything that a collection consists of; exit with 1 if a fault is left."""
    from hashlight.engine.collection.verifying.repair import repair as repair_collection
    from hashlight.engine.collection.verifying.verify import verify as verify_collection

    with progress_bar("verifying") as report:
        found = (repair_collection if repair else verify_collection)(collection, live_only=live, progress=report)
    if as_json:
        typer.echo(json.dumps(_as_document(found)))
    else:
        for fault in found.mended:
            out.print(f"mended {_line(fault)}", soft_wrap=True)
        for fault in found.faults:
            out.print(f"{'can be mended' if fault.is_mendable else 'FAULT'} {_line(fault)}", soft_wrap=True)
        out.print(_summary(found), soft_wrap=True)
    if not found.is_sound:
        raise typer.Exit(1)


def _line(fault: Fault) -> str:
    return f"[{fault.kind}] {fault}"


def _summary(found: Report) -> str:
    what = ", ".join(
        counted(count, noun)
        for count, noun in ((len(found.versions), "version"), (found.shards, "shard"), (found.rows, "row"))
    )
    state = "sound" if found.is_sound else counted(len(found.faults), "fault")
    return f"{state}: version {found.version} of {found.location} ({what})"


def _as_document(found: Report) -> dict[str, Any]:
    return {**dataclasses.asdict(found), "sound": found.is_sound}
