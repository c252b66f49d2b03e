"""`hashlight doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from hashlight.pipelines.cli.console import out, spinner
from hashlight.pipelines.cli.options import JsonOption, ShardTls, local_file

if TYPE_CHECKING:
    from hashlight.pipelines.doctor.findings import Finding

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Where shard servers are that are to be asked, too."""

    shards: Annotated[
        str | None,
        typer.Option(
            help="Shard servers to ask, too, as of `hashlight gateway`: dns:///shard-{group}.NAME:PORT or ray://."
        ),
    ] = None
    groups: Annotated[int | None, typer.Option(min=1, help="With dns:/// names: how many groups there are.")] = None
    map: Annotated[Path | None, local_file("Or a file that lists them, as of `hashlight gateway`.")] = None

    def check(self) -> None:
        """Refuse what names servers twice, or names of no groups."""
        if self.shards is not None and self.map is not None:
            raise typer.BadParameter("give either --shards or --map, which say where the shard servers are")
        if self.shards is not None and not self.shards.startswith("ray://") and self.groups is None:
            raise typer.BadParameter("--shards dns:///... goes with --groups: how many groups there are")


def doctor(
    collection: Annotated[
        str | None, typer.Argument(help="A collection to look at, too: a folder, or the URI of one in a bucket.")
    ] = None,
    *,
    gateway: Annotated[
        str | None, typer.Option(help="URL of a gateway to ask, too, with the key in HASHLIGHT_API_KEY.")
    ] = None,
    servers: Servers,
    shard_tls: ShardTls,
    as_json: JsonOption = False,
) -> None:
    """Look for what is wrong with this machine and what it is connected to, and say what to do about it.

    The exit code is 1 if there is a problem.
    """
    from hashlight.pipelines.doctor.checks import checks_of
    from hashlight.pipelines.doctor.findings import Asked, worst
    from hashlight.pipelines.doctor.running import run_checks

    servers.check()
    shard_tls.check()
    asked = Asked(
        collection=collection,
        gateway=gateway,
        shards=servers.shards,
        groups=servers.groups,
        map=_text(servers.map),
        shard_cert=_text(shard_tls.shard_tls_cert),
        shard_key=_text(shard_tls.shard_tls_key),
        shard_authority=_text(shard_tls.shard_tls_authority),
    )
    with spinner("looking") as say:
        findings = run_checks(checks_of(asked), asked, say=say)
    state = worst(findings)
    if as_json:
        typer.echo(json.dumps({"state": state, "findings": [asdict(finding) for finding in findings]}))
    else:
        _show(findings)
    if state == "problem":
        raise typer.Exit(1)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _show(findings: Sequence[Finding]) -> None:
    for finding in findings:
        state = Text(f"{finding.state:8}", style=_STYLES[finding.state])
        out.print(Text.assemble(state, f" {finding.check:11} {finding.found}"), soft_wrap=True)
        if finding.advice:
            out.print(f"{'':20} {finding.advice}", soft_wrap=True)
    counts = {state: sum(finding.state == state for finding in findings) for state in _STYLES}
    out.print(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['problem']} problems")
