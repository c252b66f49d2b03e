"""`hashlight delete`."""

from __future__ import annotations

from typing import Any

import typer

from hashlight.engine.wording import counted
from hashlight.pipelines.cli.keeping.given import IdsFileOption, SomeIdsOption, parse_ids, say
from hashlight.pipelines.cli.options import DryRunOption, ExistingCollectionArgument, FilterOption, JsonOption


def delete(
    collection: ExistingCollectionArgument,
    ids: SomeIdsOption = None,
    ids_file: IdsFileOption = None,
    filter: FilterOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete codes by their ids, or those that satisfy a condition."""
    if sum(given is not None for given in (ids, ids_file, filter)) != 1:
        raise typer.BadParameter("give one of --ids, --ids-file and --filter")
    import numpy as np

    from hashlight.engine.collection.writing.transaction import Transaction

    asked = None
    with Transaction(collection) as change:
        if filter is not None:
            change.delete_where(filter)
        else:
            ids_M = parse_ids(ids, ids_file)
            change.delete(ids_M)
            asked = len(np.unique(ids_M))
        live = change.live
        assert live is not None, "there is a live version, or beginning would have failed"
        where = change.place
        if dry_run:
            found = change.preview()
            what = f"would delete {_told(found.deleted, asked)}: {where} has {counted(found.live.rows, 'code')}"
            document = {**_document(found.live.version, found.deleted, asked), "dry_run": True}
            say(f"{what}, and nothing was changed", document, as_json=as_json)
            return
        done = change.commit()
    line = f"deleted {_told(done.deleted, asked)}: version {done.version} of {where}"
    say(line, _document(done.version, done.deleted, asked), as_json=as_json)


def _told(deleted: int, asked: int | None) -> str:
    """Say how many codes were deleted, of those whose ids were given."""
    if asked is None or deleted == asked:
        return counted(deleted, "code")
    missing = asked - deleted
    return f"{deleted:,} of {counted(asked, 'code')}, {missing:,} {'was' if missing == 1 else 'were'} not there"


def _document(version: int, deleted: int, asked: int | None) -> dict[str, Any]:
    return {"version": version, "deleted": deleted} | ({} if asked is None else {"not_found": asked - deleted})
