"""`hashlight tag`."""

from __future__ import annotations

from typing import Annotated

import typer

from hashlight.pipelines.cli.keeping.given import say
from hashlight.pipelines.cli.options import ExistingCollectionArgument, JsonOption


def tag(
    collection: ExistingCollectionArgument,
    name: Annotated[str, typer.Argument(help="Letters, digits, and any of . _ + -")],
    version: Annotated[int | None, typer.Option(min=1, help="The version to keep; the live one.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the tag.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Keep a version under a name, by which it can be rolled back to."""
    if remove and version is not None:
        raise typer.BadParameter("--remove removes a name, whatever version has it: leave out --version")
    from hashlight.engine.collection.writing.transaction import Transaction

    with Transaction(collection) as change:
        live = change.live
        assert live is not None, "there is a live version, or beginning would have failed"
        version = live.version if version is None else version
        if remove:
            change.untag(name)
        else:
            change.tag(name, version)
        done = change.commit()
        where = change.place
    what = f"removed tag {name}" if remove else f"tagged version {version} as {name}"
    document = {"version": done.version, "tag": name, "tagged": None if remove else version}
    say(f"{what}: version {done.version} of {where}", document, as_json=as_json)
