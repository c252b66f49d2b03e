"""What a plan means for the Helm chart of deploy/helm/hashlight: the values that it sets, each with its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from hashlight.pipelines.capacity.plan import CORE_SHARE, GIB, MEMORY_SHARE, Demand, Line
from hashlight.pipelines.jobs.errors import PipelineError

_FIRST_LINE = "# Sizes of the chart, written by `hashlight size --helm`."


def chart_values(demand: Demand, lines: Sequence[Line]) -> str:
    """Return the sizes of the chart's shard servers as YAML: groups, replicas, processors, memory and disk.

    A shard server gets its share of the plan, and no more of a node than the plan counts on: the memory that holds its
    shards, with room for the process, and the processors that it needs when another replica of its group is lost.

    Parameters
    ----------
    demand : Demand
    lines : sequence of Line
        What `plan` computed for it.
    """
    planned = {line.name: line.value for line in lines}
    groups, servers = int(planned["groups"]), int(planned["nodes"])
    share = CORE_SHARE * max(demand.replicas - 1, 1) / demand.replicas
    cores = max(1, math.ceil(planned["busy cores"] / servers / share))
    memory = max(1, math.ceil(planned["memory"] / servers / MEMORY_SHARE / GIB))
    disk = max(1, math.ceil(planned["disk"] / servers / GIB))
    within = "of uniform codes" if demand.radius is None else f"within radius {demand.radius} of uniform codes"
    what = f"{demand.k} nearest " if demand.radius is None else ""
    return "\n".join(
        [
            _FIRST_LINE,
            f"# {demand.images:,} images of {demand.bits} bits, {demand.qps:g} queries/s, {what}{within}, on nodes of",
            f"# {demand.node_cores} cores and {demand.node_bytes / GIB:.1f} GiB.",
            f"# {_numbers(lines, 'groups')}",
            f"groups: {groups}",
            "shards:",
            f"  replicas: {demand.replicas}",
            f"  # {_numbers(lines, 'disk')}, over {servers} servers",
            f"  cacheGiB: {disk}",
            "  resources:",
            "    requests:",
            f"      # {_numbers(lines, 'busy cores')}, over {servers} servers, each at most {share:.0%} busy",
            f'      cpu: "{cores}"',
            f"      # {_numbers(lines, 'memory')}, over {servers} servers, each {MEMORY_SHARE:.0%} full of codes",
            f"      memory: {memory}Gi",
            "    limits:",
            f"      memory: {memory}Gi",
            "",
        ]
    )


def write_values(path: Path, text: str) -> None:
    """Write values of the chart to a file of this machine.

    Raises
    ------
    PipelineError
        If the file has other values, which somebody has written by hand, or cannot be written.
    """
    try:
        if path.exists() and not path.read_text(encoding="utf-8").startswith(_FIRST_LINE):
            raise PipelineError(
                f"{path} was not written by `hashlight size` and is left as it is: name another, and give helm both "
                "with -f"
            )
        path.write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} cannot be written: {error}") from error


def _numbers(lines: Sequence[Line], name: str) -> str:
    found: Mapping[str, Line] = {line.name: line for line in lines}
    return f"{name}: {found[name].numbers} = {found[name].text}"
