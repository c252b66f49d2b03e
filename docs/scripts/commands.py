"""The page of the command line, made from what `hashlight COMMAND --help` shows."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from hashlight.pipelines.cli.main import app

INTRODUCTION = """\
# Command line

Every command with all its options, as `hashlight COMMAND --help` shows them. Exit codes: 0 done, 1 failed, 2 wrong
usage. Errors are one line; `hashlight --debug COMMAND ...` shows where they came from.

A corpus, an encoder, codes, a collection or a result may be a folder or a bucket (`s3://BUCKET/PREFIX`, `gs://`,
`az://`). Jobs that were interrupted (`index`, `train`, `encode`, `build`, `dedup`, `search --codes`) go on by the same
command.
"""


def render_page() -> str:
    """Return the page as Markdown."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [INTRODUCTION]
    for name, command in commands.items():
        lines += [f"## hashlight {name}", "", inspect.cleandoc(command.help or ""), "", *_options(command.params), ""]
    return "\n".join(lines)


def _options(parameters: list[Any]) -> Iterator[str]:
    yield from ("| option | default | |", "|---|---|---|")
    for parameter in parameters:
        if parameter.name != "help" and not getattr(parameter, "hidden", False):
            default = "**required**" if parameter.required else _default(parameter.default)
            yield f"| {_name(parameter)} | {default} | {_cell(getattr(parameter, 'help', None) or '')} |"


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])


def _default(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "" else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
