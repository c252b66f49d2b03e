"""`hashlight calibrate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from hashlight.pipelines.cli.console import key_value_table, out, spinner
from hashlight.pipelines.cli.options import JsonOption, refuse_missing


def calibrate(
    encoder: Annotated[
        str | None,
        typer.Option(help="Encoder to time, or s3://; an untrained small-cnn if left out.", callback=refuse_missing),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine once, for `hashlight size`."""
    from hashlight.pipelines.capacity.calibrate import calibrate as measure

    with spinner("measuring this machine") as say:
        constants = asdict(measure(encoder, say=say))
    if as_json:
        typer.echo(json.dumps(constants))
        return
    shown = {name: value if isinstance(value, str) else f"{value:.4g}" for name, value in constants.items()}
    out.print(key_value_table("this machine", shown))
