"""Runs a command of `hashlight` as the child of another process, whose end it does not outlive.

    python -m hashlight.pipelines.serving.child shard-server ...

The parent holds the other end of the standard input. When that is closed, the command gets SIGTERM.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def _end_with_input() -> None:
    while sys.stdin.buffer.read(4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True).start()
    sys.argv[0] = "hashlight"
    runpy.run_module("hashlight", run_name="__main__", alter_sys=False)
