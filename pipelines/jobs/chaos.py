"""Deliberate faults, for tests of what survives them.

The pipelines call `step(name, key)` at every point where a process may die, and so do the writes of `engine.places`
(`aside`, `published`, with the file's name) in a process that imported this module. It does nothing unless the
environment variable `HASHLIGHT_CHAOS` names a folder with `rules.json`, a list of objects:

=========  ============================================================================================================
``step``   name of the step
``key``    only this key (any if left out)
``skip``   let this many pass first (across all processes)
``times``  fire this often (across all processes), 1 if left out
``do``     ``kill`` this process, ``kill-parent`` (the one that started it), ``kill-driver`` (the process whose id is in
           `driver.pid`), ``no-space`` (raise ENOSPC), ``segfault``, ``hang`` (loop for ever), ``wait`` (until there is
           a file `go` in the folder) or ``log`` (do nothing)
=========  ============================================================================================================

Every step passed that a rule names is a line of `steps.log` in that folder.
"""

from __future__ import annotations

import errno
import faulthandler
import functools
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from hashlight.engine.places.files import on_step

VARIABLE = "HASHLIGHT_CHAOS"


def step(name: str, key: object = "") -> None:
    """Pass a point at which a test may want something to go wrong."""
    for number, rule in _rules().get(name, ()):
        folder = Path(os.environ[VARIABLE])
        with (folder / "steps.log").open("a") as log:
            log.write(f"{name} {key}\n")
        if str(rule.get("key", key)) == str(key) and _is_due(folder, number, rule):
            _act(rule["do"], folder)


def watches(name: str) -> bool:
    """Whether a rule names this step, so that its key is worth computing."""
    return name in _rules()


@functools.cache
def _rules() -> dict[str, list[tuple[int, dict[str, Any]]]]:
    if VARIABLE not in os.environ:
        return {}
    rules: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for number, rule in enumerate(json.loads(Path(os.environ[VARIABLE], "rules.json").read_text())):
        rules.setdefault(rule["step"], []).append((number, rule))
    return rules


def _is_due(folder: Path, number: int, rule: dict[str, Any]) -> bool:
    """Count that a rule was passed; no two processes get the same position from appending a byte to the file."""
    with (folder / f"passed-{number}").open("ab") as counter:
        counter.write(b".")
        counter.flush()
        passed = counter.tell()
    first = int(rule.get("skip", 0)) + 1
    return first <= passed < first + int(rule.get("times", 1))


def _act(what: str, folder: Path) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "kill-parent":
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    elif what == "kill-driver":
        os.kill(int((folder / "driver.pid").read_text()), signal.SIGKILL)
    elif what == "no-space":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif what == "segfault":
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "hang":
        while True:
            pass
    elif what == "wait":
        while not (folder / "go").exists():
            time.sleep(0.05)


on_step(step)
