"""`hashlight delete`."""

from __future__ import annotations

import typer

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
    from hashlight.engine.collection.writing.transaction import Transaction

    with Transaction(collection) as change:
        if filter is not None:
            change.delete_where(filter)
        else:
            change.delete(parse_ids(ids, ids_file))
        live = change.live
        assert live is not None, "there is a live version, or beginning would have failed"
        where = change.place
        if dry_run:
            found = change.preview()
            line = f"would delete {found.deleted:,} of {found.live.rows:,} codes in {where}: nothing was changed"
            say(line, {"version": found.live.version, "deleted": found.deleted, "dry_run": True}, as_json=as_json)
            return
        done = change.commit()
    what = f"deleted {done.deleted:,} codes" if done.deleted else "found none of these codes"
    say(
        f"{what}: version {done.version} of {where}",
        {"version": done.version, "deleted": done.deleted},
        as_json=as_json,
    )
