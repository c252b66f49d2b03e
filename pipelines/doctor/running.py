"""Runs checks, each in a process of its own, so that none can hang or crash whoever asks.

    python -m hashlight.pipelines.doctor.running NAME ASKED

runs one and writes its findings as JSON. A library that was built for another processor ends its process by a signal,
a driver or a network file system may never answer: both are findings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hashlight.pipelines.doctor.findings import Asked, Finding

_MODULE = "hashlight.pipelines.doctor.running"
_REAP_S = 2.0  # for a process that was killed to end; one that waits for a device does not
_SHOWN = 300


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A check, by the names of its module and function, since it runs elsewhere.

    Attributes
    ----------
    name : str
    title : str
        What is being looked at, for whoever waits.
    module, function : str
        Takes `Asked`, returns an iterable of `Finding`.
    limit_s : float
        After which the check is ended.
    """

    name: str
    title: str
    module: str
    function: str
    limit_s: float


def run_checks(checks: Iterable[Check], asked: Asked, *, say: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """Run checks one after the other, so that none disturbs what another measures.

    Parameters
    ----------
    checks : iterable of Check
    asked : Asked
    say : callable
        Called with the title of each check before it runs.
    """
    findings: list[Finding] = []
    for check in checks:
        say(check.title)
        findings += run_check(check, asked)
    return findings


def run_check(check: Check, asked: Asked) -> list[Finding]:
    """Run one check in a process of its own, for as long as its limit says; whatever happens is a finding."""
    arguments = [json.dumps(dataclasses.asdict(check)), json.dumps(dataclasses.asdict(asked))]
    try:
        with _process([sys.executable, "-P", "-m", _MODULE, *arguments]) as process:
            out, err = process.communicate(timeout=check.limit_s)
    except subprocess.TimeoutExpired:
        return [_late(check)]
    except OSError as error:
        advice = "free memory or raise the limit on processes (`ulimit -u`, the container's limit on pids)"
        return [Finding(check=check.name, state="problem", found=f"no process can be started: {error}", advice=advice)]
    if process.returncode:
        return [_ended(check, process.returncode, err.decode(errors="replace"))]
    return [Finding(**document) for document in json.loads(out)]


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that ends with the context, together with those that it has started."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_REAP_S)


def _late(check: Check) -> Finding:
    found = f"{check.title} did not end within {check.limit_s:g} s"
    advice = (
        "something that it needs does not answer: a device, a file system or a server. Look at the system's log "
        "(`dmesg`) and at what processes wait for (`ps -o stat,wchan,cmd`)"
    )
    return Finding(check=check.name, state="problem", found=found, advice=advice)


def _ended(check: Check, status: int, said: str) -> Finding:
    last = said.strip().splitlines()[-1][:_SHOWN] if said.strip() else "without a word"
    if status >= 0:
        advice = "mend what it says, or install the packages again"
        return Finding(check=check.name, state="problem", found=f"{check.title} failed: {last}", advice=advice)
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    if -status == signal.SIGILL:
        advice = "a library was built for another kind of processor: install one that was built for this one"
    elif -status == signal.SIGKILL:
        advice = "it was killed, most likely for want of memory: free some, or raise the container's limit"
    else:
        advice = "a library crashed: install the packages again, in versions that fit together"
    return Finding(check=check.name, state="problem", found=f"{check.title} ended by {name}", advice=advice)


def main(arguments: list[str]) -> None:
    """Run a check in this process and write its findings to the standard output."""
    # Libraries that print anything print it among the errors.
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    check, asked = Check(**json.loads(arguments[0])), Asked(**json.loads(arguments[1]))
    function: Any = getattr(importlib.import_module(check.module), check.function)
    with results:
        json.dump([dataclasses.asdict(finding) for finding in function(asked)], results)


if __name__ == "__main__":
    main(sys.argv[1:])
