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
    seconds : float
        For the test of the kernels.
    """

    collection: str | None = None
    gateway: str | None = None
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
