"""`hashlight prune`."""

from __future__ import annotations

import datetime
import re
from typing import Annotated

import typer

from hashlight.pipelines.cli.keeping.given import say
from hashlight.pipelines.cli.options import DryRunOption, ExistingCollectionArgument, JsonOption

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def prune(
    collection: ExistingCollectionArgument,
    keep: Annotated[int | None, typer.Option(min=1, help="Versions that stay, pruning's own included.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Younger versions stay: 30m, 12h, 7d, 4w.")] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let old versions go that are neither tagged nor read, with what only they consist of."""
    if keep is None and older_than is None:
        raise typer.BadParameter("give --keep, --older-than, or both")
    from hashlight.engine.collection.writing.transaction import Transaction
    from hashlight.engine.storage.versions import is_kept, list_versions, read_current

    with Transaction(collection) as change:
        before = list_versions(change.place)
        change.prune(keep=keep, older_than=None if older_than is None else _parse_age(older_than))
        if dry_run:
            planned = change.preview()
            tagged = planned.live.tags.values()
            dropped = [v.version for v in before if v.version < planned.oldest and v.file_name not in tagged]
            version = planned.live.version
        else:
            version = change.commit().version
            live = read_current(change.place)
            dropped = [each.version for each in before if not is_kept(each, live)]
        where = change.place
    what = _listed(sorted(dropped))
    line = f"would remove {what}" if dry_run else f"removed {what}: version {version}"
    document = {"version": version, "pruned": sorted(dropped)} | ({"dry_run": True} if dry_run else {})
    say(f"{line} of {where}{': nothing was changed' if dry_run else ''}", document, as_json=as_json)


def _listed(numbers: list[int]) -> str:
    if not numbers:
        return "no version"
    if len(numbers) == 1:
        return f"version {numbers[0]}"
    known = set(numbers)
    ends = [number for number in numbers if number + 1 not in known]
    begins = [number for number in numbers if number - 1 not in known]
    runs = [str(begin) if begin == end else f"{begin} to {end}" for begin, end in zip(begins, ends, strict=True)]
    return f"{len(numbers)} versions ({', '.join(runs)})"


def _parse_age(text: str) -> datetime.timedelta:
    found = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if found is None:
        raise typer.BadParameter(f"--older-than must be an age such as 30m, 12h, 7d or 4w, got {text!r}")
    return datetime.timedelta(**{_UNITS[found[2]]: int(found[1])})
