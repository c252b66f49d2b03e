"""`hashlight compact`."""

from __future__ import annotations

from typing import Annotated

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.console import progress_bar
from hashlight.pipelines.cli.keeping.given import say
from hashlight.pipelines.cli.options import AddressOption, ExistingCollectionArgument, JsonOption


def compact(
    collection: ExistingCollectionArgument,
    full: Annotated[
        bool, typer.Option("--full", help="Merge all shards, so that nothing is left of deleted codes.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Groups of shards merged at once; one per core.")] = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge shards that are small or have many deleted codes; many of them on Ray."""
    from hashlight.engine.places.opening import open_place
    from hashlight.pipelines.building.compact import compact_collection
    from hashlight.pipelines.jobs.session import joined

    with joined(address), progress_bar("compacting") as report:
        done = compact_collection(collection, full=full, workers=workers, progress=report)
    what = f"merged {counted(done.before, 'shard')} into {done.after:,}" if done.before else "no shard is worth merging"
    line = f"{what}: version {done.version} of {open_place(collection)}"
    say(line, {"version": done.version, "merged": done.before, "into": done.after}, as_json=as_json)
