"""The nodes of a Ray cluster: what each of them has, and whether all of them see the places of a job.

A process of a job takes what it needs from one node, so that sums over the cluster say little; and a path means the
same on every node only where all of them mount the same storage.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hashlight.engine.errors import HashlightError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import split_name, without_credentials
from hashlight.engine.storage.manifest import ShardSpec
from hashlight.pipelines.jobs.errors import PipelineError

# A node starts a process for the probe, which imports this package.
_ANSWER_S = 300.0


@dataclass(frozen=True, slots=True)
class Node:
    """A live node, with the resources that Ray gives out there, in use or not."""

    id: str
    address: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        """Return its address and, as several nodes may share one, the beginning of its id."""
        return f"{self.address} ({self.id[:6]})"

    def room(self, *, cpus: int, gpus: int) -> int:
        """Return how many processes that each take this much it has room for."""
        needs = [there // needed for there, needed in ((self.cpus, cpus), (self.gpus, gpus)) if needed]
        return int(min(needs))


def live_nodes() -> list[Node]:
    """Return the nodes of the cluster that this process has joined."""
    import ray

    return [
        Node(
            id=node["NodeID"],
            address=node["NodeManagerAddress"],
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


@dataclass(frozen=True, slots=True)
class Seen:
    """What this process sees of a place that a job reads: the sizes of some of its files, by their locations."""

    option: str
    location: str
    files: Mapping[str, int]


def look(option: str, location: str, files: Iterable[str]) -> Seen:
    """Look at some files of a place that a job reads, for `refuse_unshared`.

    Parameters
    ----------
    option : str
        What the place is called on the command line, for messages.
    location : str
    files : iterable of str
        Their locations. Those that this process cannot find are not compared.
    """
    sizes = {}
    for file in files:
        with contextlib.suppress(OSError):  # whoever reads it says what is wrong
            if (entry := open_place(file).entry()) is not None:
                sizes[file] = entry.size
    return Seen(option, location, sizes)


def look_at_collection(location: str, shards: Sequence[ShardSpec]) -> Seen:
    """Look at a collection that a job reads: at its first and last shard."""
    place = open_place(location)
    return look(
        "COLLECTION",
        location,
        [place.location_of(f"shards/{spec.name}/ids.npy") for spec in shards[:: max(1, len(shards) - 1)]],
    )


def refuse_unshared(reads: Sequence[Seen], writes: Mapping[str, str], nodes: Sequence[Node] | None = None) -> None:
    """Check from other nodes that they see what this process sees of a job's places.

    Parameters
    ----------
    reads : sequence of Seen
    writes : mapping of str to str
        Folders that the job writes to, by what they are called on the command line. For a moment there is a hidden
        file in each.
    nodes : sequence of Node, optional
        Those that will work; all if left out. This process's own is not asked.

    Raises
    ------
    PipelineError
        If a node does not see a place, sees another one there, or cannot write to it.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    others = [node for node in (live_nodes() if nodes is None else nodes) if node.id != here]
    if not others:
        return
    mark = f".probe.{uuid.uuid4().hex}.tmp"
    places = [open_place(location) for location in writes.values()]
    try:
        for place in places:
            place.put(mark, mark.encode(), durable=False)
        wrong = _ask(others, reads, writes, mark)
    finally:
        for place in places:
            place.remove(mark)
    if wrong:
        said = "; ".join(f"{' and '.join(map(str, nodes))} {what}" for what, nodes in wrong.items())
        raise PipelineError(
            f"not every node of the cluster can work on this job: {said}. Use storage that all nodes mount at the same "
            "path, or a bucket (s3://...) that all of them may access"
        )


def _ask(nodes: Sequence[Node], reads: Sequence[Seen], writes: Mapping[str, str], mark: str) -> dict[str, list[Node]]:
    """Return what is wrong, and on which nodes."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(num_cpus=0, max_retries=0)(probe_places)
    asked = {
        probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            reads, writes, mark, node.id
        ): node
        for node in nodes
    }
    ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    wrong: dict[str, list[Node]] = {}
    for ref, node in asked.items():
        for what in _answer(ref):
            wrong.setdefault(what, []).append(node)
    return wrong


def _answer(ref: Any) -> list[str]:
    import ray

    try:
        answer: list[str] = ray.get(ref, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return [f"did not answer within {_ANSWER_S:.0f} s"]
    except ray.exceptions.RayError as error:
        return [f"cannot run hashlight ({str(error).strip().splitlines()[-1]})"]
    return answer


def probe_places(reads: Sequence[Seen], writes: Mapping[str, str], mark: str, node: str) -> list[str]:
    """Return what is wrong with the places of a job on this node; see `refuse_unshared`."""
    return [
        *(what for seen in reads if (what := _compare(seen))),
        *(what for option, location in writes.items() if (what := _try_to_write(option, location, mark, node))),
    ]


def _compare(seen: Seen) -> str | None:
    place = f"{seen.option} {without_credentials(seen.location)}"
    for file, size in seen.files.items():
        name = split_name(without_credentials(file))[1]
        try:
            entry = open_place(file).entry()
        except (OSError, HashlightError) as error:
            return f"cannot read {place} ({error})"
        if entry is None:
            return f"does not see {place} (it has no {name} there)"
        if entry.size != size:
            return f"sees another {place} ({name} has {entry.size:,} bytes there, {size:,} here)"
    return None


def _try_to_write(option: str, location: str, mark: str, node: str) -> str | None:
    place = open_place(location)
    try:
        if place.find(mark) is None:
            return f"does not see {option} {place}"
        own = f"{mark.removesuffix('.tmp')}.{node}.tmp"
        place.put(own, b"", durable=False)
        place.remove(own)
    except (OSError, HashlightError) as error:
        return f"cannot write to {option} {place} ({error})"
    return None
