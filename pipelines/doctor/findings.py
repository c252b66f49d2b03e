"""What a check finds, and what it is told to look at."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

State = Literal["ok", "warning", "problem"]

STATES: tuple[State, ...] = ("ok", "warning", "problem")
GIB = 2**30


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to look at besides this machine.

    Attributes
    ----------
    collection : str or None
        A folder, or the URI of one in a bucket.
    gateway : str or None
        URL.
    shards : str or None
        Where shard servers are: `dns:///...`, with `groups`, or `ray://NAME`.
    groups : int or None
        How many groups of them there are.
    map : str or None
        A file that lists them.
    shard_cert, shard_key, shard_authority : str or None
        Files of the certificates between gateways and shard servers.
    seconds : float
        For the test of the kernels.
    """

    collection: str | None = None
    gateway: str | None = None
    shards: str | None = None
    groups: int | None = None
    map: str | None = None
    shard_cert: str | None = None
    shard_key: str | None = None
    shard_authority: str | None = None
    seconds: float = 5.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found out about one thing.

    Attributes
    ----------
    check : str
        Name of the check.
    state : {"ok", "warning", "problem"}
        A problem keeps something from working, a warning makes it slow or may become a problem.
    found : str
        In one line.
    advice : str
        What to do; empty if it is ok.
    numbers : dict
        The same for programs.
    """

    check: str
    state: State
    found: str
    advice: str = ""
    numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.state in STATES
        assert bool(self.advice) == (self.state != "ok"), "whoever reads of a fault is told what to do"


def worst(findings: Sequence[Finding]) -> State:
    """Return the worst state of some findings; "ok" if there are none."""
    return max((finding.state for finding in findings), key=STATES.index, default="ok")


def gib(num_bytes: float) -> str:
    """Write bytes as GiB."""
    return f"{num_bytes / GIB:,.1f} GiB"
