"""The actors of an encode job: how many a cluster has room for, and what each takes of its node."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.nodes import Node, live_nodes

logger = logging.getLogger(__name__)

# A start may fail for reasons of the moment or of one node: a GPU whose memory is in use, a kill for want of memory.
_STARTS_PER_ACTOR = 3
# How many blocks Ray hands to an actor ahead: two that it works on, and as many that wait.
BLOCKS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Stage:
    """How many actors encode, and where.

    Attributes
    ----------
    actors : int
        Those that there is room for now.
    max_actors : int
        Those that there will be if nodes join.
    shares : int
        Into how many blocks the work must be divided at least, so that all actors asked for have one, also those
        that start later.
    num_cpus, num_gpus : int
        What each takes of its node.
    settings : dict
        The settings of units that follow from that.
    nodes : sequence of Node
        Where they have room.
    """

    actors: int
    max_actors: int
    shares: int
    num_cpus: int
    num_gpus: int
    settings: dict[str, Any]
    nodes: Sequence[Node]

    @property
    def failed_starts(self) -> int:
        """How many starts in a row may fail before the job does."""
        return _STARTS_PER_ACTOR * self.actors

    def __str__(self) -> str:
        """Say what an actor takes."""
        gpus = f"{self.num_gpus} GPU and " if self.num_gpus else ""
        return f"{gpus}{self.num_cpus} CPU{'' if self.num_cpus == 1 else 's'} of one node"


def plan_actors(actors: int | None, units: int) -> Stage:
    """Fit actors to the nodes of the cluster: one per GPU, with its share of the node's cores, else one per core.

    Where nodes differ, the share is that of the node with the fewest cores per GPU, so that every GPU can be used.

    Parameters
    ----------
    actors : int or None
        How many are asked for.
    units : int
        Units of work, of which an actor needs one.

    Raises
    ------
    PipelineError
        If there is no node with a CPU or GPU.
    """
    stage = fit_actors(live_nodes(), actors, units)
    _tell(stage, actors, units)
    return stage


def fit_actors(nodes: Sequence[Node], actors: int | None, units: int) -> Stage:
    """Fit actors to nodes, as `plan_actors` does."""
    with_gpu = [node for node in nodes if node.gpus >= 1]
    gpus = 1 if with_gpu else 0
    cpus = int(min(node.cpus // int(node.gpus) for node in with_gpu)) if with_gpu else 1
    used = [node for node in with_gpu or nodes if node.room(cpus=cpus, gpus=gpus)]
    room = sum(node.room(cpus=cpus, gpus=gpus) for node in used)
    if not room:
        there = ", ".join(f"{node} has {node.cpus:g} CPUs" for node in nodes)
        raise PipelineError(f"encoding takes a CPU or a GPU of a node, and the cluster has none: {there}")
    settings = {"device": "cuda", "decoders": max(1, cpus - 1)} if gpus else {"device": "cpu", "decoders": 1}
    wanted = min(actors or units, units)
    now = min(wanted, room)
    later = 0 if actors is None else wanted - now
    shares = BLOCKS_AT_ONCE * now + later if later else now
    return Stage(now, wanted, shares, cpus, gpus, settings, used)


def _tell(stage: Stage, actors: int | None, units: int) -> None:
    """Say why there are fewer actors than were asked for, and what the job has to wait for."""
    import ray

    if actors is not None and units < actors:
        logger.warning(
            "%d of %d actors will work: each takes a unit at a time, and %d are left (--unit-images sets their size)",
            units, actors, units,
        )  # fmt: skip
    elif actors is not None and stage.actors < actors:
        logger.warning(
            "%d of %d actors start now: each takes %s, and there is no room for more; the others start when nodes join",
            stage.actors, actors, stage,
        )  # fmt: skip
    free = ray.available_resources()
    if free.get("CPU", 0) < stage.num_cpus or free.get("GPU", 0) < stage.num_gpus:
        logger.warning("waiting for other jobs on the cluster: an actor takes %s", stage)
