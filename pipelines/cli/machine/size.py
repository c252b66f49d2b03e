"""`hashlight size`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hashlight.pipelines.cli.console import out, plan_table
from hashlight.pipelines.cli.options import BitsOption, JsonOption, local_path

if TYPE_CHECKING:
    from hashlight.pipelines.capacity.constants import Constants
    from hashlight.pipelines.capacity.plan import Demand


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the collection has to carry."""

    images: Annotated[float, typer.Option(min=1, help="Images of the collection, such as 5e9.")]
    qps: Annotated[float, typer.Option(help="Queries per second, one at a time.")]
    bits: BitsOption = 64
    radius: Annotated[int | None, typer.Option(min=0, help="Hamming radius of the queries.")] = None
    k: Annotated[int | None, typer.Option("-k", min=1, help="Or: number of nearest images.")] = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How it is spread over machines."""

    replicas: Annotated[int, typer.Option(min=1, help="Copies of every shard.")] = 2
    shard_codes: Annotated[float, typer.Option(min=1, help="Codes per shard.")] = 50e6
    node_cores: Annotated[int | None, typer.Option(min=1, help="Cores per node; this machine's if left out.")] = None
    node_memory: Annotated[float | None, typer.Option(help="Node memory in GiB; this machine's if left out.")] = None


def size(
    load: Load,
    layout: Layout,
    helm: Annotated[
        Path | None,
        typer.Option(
            help="Write the sizes as values of the Helm chart, for helm install -f.",
            parser=local_path,
            metavar="FILE",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Plan shards, memory, disk, nodes and hours from what `hashlight calibrate` measured, with the arithmetic."""
    from hashlight.pipelines.capacity.chart import chart_values, write_values
    from hashlight.pipelines.capacity.constants import load_constants
    from hashlight.pipelines.capacity.plan import GIB, plan

    if (load.radius is None) == (load.k is None):
        raise typer.BadParameter("give one of --radius and -k")
    constants = load_constants()
    demand = _demand(load, layout, constants)
    lines = plan(demand, constants)
    if helm is not None:
        write_values(helm, chart_values(demand, lines))
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in lines]))
        return
    out.print(plan_table(lines))
    out.print(f"nodes of {demand.node_cores} cores and {demand.node_bytes / GIB:.1f} GiB; assuming uniform codes")


def _demand(load: Load, layout: Layout, constants: Constants) -> Demand:
    from hashlight.pipelines.capacity.plan import GIB, Demand

    return Demand(
        images=int(load.images),
        bits=load.bits,
        qps=load.qps,
        radius=load.radius,
        k=load.k,
        replicas=layout.replicas,
        shard_codes=int(layout.shard_codes),
        node_cores=layout.node_cores or constants.cores,
        node_bytes=constants.memory_bytes if layout.node_memory is None else int(layout.node_memory * GIB),
    )
