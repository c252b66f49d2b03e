"""`hashlight doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from hashlight.pipelines.cli.console import out, spinner
from hashlight.pipelines.cli.options import JsonOption

if TYPE_CHECKING:
    from hashlight.pipelines.doctor.findings import Finding

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    collection: Annotated[
        str | None, typer.Argument(help="A collection to look at, too: a folder, or the URI of one in a bucket.")
    ] = None,
    *,
    gateway: Annotated[
        str | None, typer.Option(help="URL of a gateway to ask, too, with the key in HASHLIGHT_API_KEY.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look for what is wrong with this machine and what it is connected to, and say what to do about it.

    The exit code is 1 if there is a problem.
    """
    from hashlight.pipelines.doctor.checks import checks_of
    from hashlight.pipelines.doctor.findings import Asked, worst
    from hashlight.pipelines.doctor.running import run_checks

    asked = Asked(collection=collection, gateway=gateway)
    with spinner("looking") as say:
        findings = run_checks(checks_of(asked), asked, say=say)
    state = worst(findings)
    if as_json:
        typer.echo(json.dumps({"state": state, "findings": [asdict(finding) for finding in findings]}))
    else:
        _show(findings)
    if state == "problem":
        raise typer.Exit(1)


def _show(findings: Sequence[Finding]) -> None:
    for finding in findings:
        state = Text(f"{finding.state:8}", style=_STYLES[finding.state])
        out.print(Text.assemble(state, f" {finding.check:11} {finding.found}"), soft_wrap=True)
        if finding.advice:
            out.print(f"{'':20} {finding.advice}", soft_wrap=True)
    counts = {state: sum(finding.state == state for finding in findings) for state in _STYLES}
    out.print(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['problem']} problems")
