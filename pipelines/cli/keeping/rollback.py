"""`hashlight rollback`."""

from __future__ import annotations

from typing import Annotated

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.keeping.given import say
from hashlight.pipelines.cli.options import DryRunOption, ExistingCollectionArgument, JsonOption


def rollback(
    collection: ExistingCollectionArgument,
    version: Annotated[str, typer.Argument(help="Its number, or its tag; see `hashlight versions`.")],
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a version that is what an earlier one was. The versions between stay."""
    from hashlight.engine.collection.writing.transaction import Transaction
    from hashlight.engine.storage.versions import find_version

    with Transaction(collection) as change:
        live, place = change.live, change.place
        assert live is not None, "there is a live version, or beginning would have failed"
        before = find_version(place, live, int(version) if version.isdecimal() else version)
        if dry_run:
            what = f"{counted(live.rows, 'code')} to the {before.rows:,} of version {before.version}"
            line = f"would go from {what} of {place}"
            document = {
                "version": live.version,
                "rolled_back_to": before.version,
                "codes": before.rows,
                "dry_run": True,
            }
            say(f"{line}: nothing was changed", document, as_json=as_json)
            return
        change.rollback(before.version)
        done = change.commit()
    line = f"rolled back to version {before.version}, {counted(before.rows, 'code')}: version {done.version} of {place}"
    say(
        line,
        {"version": done.version, "rolled_back_to": before.version, "codes": before.rows},
        as_json=as_json,
    )
