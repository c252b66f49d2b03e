"""Runs operations in processes that kill themselves at one step after another.

Run as `python -m tests.engine.living.killing START FOLDER SKIP NAME...`: for every step of every operation, the first
`SKIP` left out, `FOLDER/NAME-STEP` is a copy of the collection `START` whose writer was killed at that step. A step is
a call that changes a folder, an fsync, or one that the writes of `engine.places` report.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from hashlight.engine.places.files import on_step
from tests.engine.living.operations import OPERATIONS
from tests.engine.power_loss import STEPS


def run_until(path: Path, name: str, wanted: int) -> None:
    """Run an operation in this process, and kill it at a step."""
    passed = 0

    def step(*_what):
        nonlocal passed
        if passed == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    def watched(function):
        def call(*arguments, **options):
            step()
            return function(*arguments, **options)

        return call

    on_step(step)
    for module, function in STEPS:
        setattr(module, function, watched(getattr(module, function)))
    OPERATIONS[name](path)


def main(start: str, folder: str, skip: str, *names: str) -> None:
    """Kill processes until one ends by itself, for each operation."""
    for name in names:
        for wanted in range(0, 1000, 1 + int(skip)):
            copy = Path(folder) / f"{name}-{wanted}"
            shutil.copytree(start, copy)
            child = os.fork()
            if not child:
                code = 1
                try:
                    run_until(copy, name, wanted)
                    code = 0
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status):
                if os.WEXITSTATUS(status):
                    sys.exit(f"{name} failed at step {wanted}")
                break


if __name__ == "__main__":
    main(*sys.argv[1:])
