"""`hashlight versions`."""

from __future__ import annotations

import json

import typer
from rich.table import Column, Table

from hashlight.pipelines.cli.console import out
from hashlight.pipelines.cli.options import ExistingCollectionArgument, JsonOption


def versions(collection: ExistingCollectionArgument, as_json: JsonOption = False) -> None:
    """List the versions that can be opened, tagged, and rolled back to."""
    from hashlight.engine.places.opening import open_place
    from hashlight.engine.storage.versions import list_versions

    found = list_versions(open_place(collection))
    live = found[0]
    lines = [
        {
            "version": each.version,
            "written": each.written or None,
            "codes": each.rows,
            "deleted": each.dead_rows,
            "shards": len(each.shards),
            "bytes": each.num_bytes,
            "tags": sorted(tag for tag, name in live.tags.items() if name == each.file_name),
        }
        for each in found
    ]
    if as_json:
        typer.echo(json.dumps(lines))
        return
    table = Table(*(Column(name, justify="left" if name in ("written", "tags") else "right") for name in lines[0]))
    for line in lines:
        table.add_row(*(_as_text(value) for value in line.values()))
    out.print(table)


def _as_text(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(value) if isinstance(value, list) else str(value or "")
