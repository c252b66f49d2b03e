"""Runs of the pipelines in processes of their own, with their own Ray, where rules say what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from hashlight.pipelines.jobs import chaos

# Ray's helpers outlive a killed driver by a minute. They do nothing for the run, and hold what its output is read from.
AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")


class Run:
    """A process that has been started, its output in files."""

    def __init__(self, command, faults, rules):
        faults.mkdir(exist_ok=True)
        for leftover in faults.glob("passed-*"):
            leftover.unlink()
        (faults / "rules.json").write_text(json.dumps(rules))
        environment = {**os.environ, "PYTHONPATH": os.getcwd(), chaos.VARIABLE: str(faults)}
        environment.pop("RAY_ADDRESS", None)
        self.faults = faults
        self._output = faults / "stdout.txt", faults / "stderr.txt"
        with self._output[0].open("w") as stdout, self._output[1].open("w") as stderr:
            self.process = subprocess.Popen(list(map(str, command)), env=environment, stdout=stdout, stderr=stderr)
        (faults / "driver.pid").write_text(str(self.process.pid))

    def wait(self):
        """Wait for the process, and for all that it started: tasks of a killed driver finish what they have begun."""
        code = self.process.wait(300)
        wait_for_orphans(self.faults)
        return subprocess.CompletedProcess(self.process.args, code, *(file.read_text() for file in self._output))


def run(command, faults, *rules):
    """Run a command to its end.

    Parameters
    ----------
    command : sequence of str
    faults : Path
        The folder of the rules, made if it is not there.
    *rules : dict
        See `hashlight.pipelines.jobs.chaos`.

    Returns
    -------
    subprocess.CompletedProcess
        With its output as text.
    """
    return Run(command, faults, rules).wait()


def run_program(program, arguments, faults, *rules):
    """Run a Python program given as text; see `run`."""
    return run([sys.executable, "-c", program, *arguments], faults, *rules)


def wait_for_orphans(faults):
    """Wait until no process of a run is left, and end what Ray has left behind."""
    while left := processes_of(faults):
        for process in left:
            if command_of(process).startswith(AGENTS):
                with suppress(ProcessLookupError):
                    os.kill(int(process.name), signal.SIGKILL)
        time.sleep(0.05)


def processes_of(faults):
    mark = f"{chaos.VARIABLE}={faults}".encode()
    return [process for process in Path("/proc").glob("[0-9]*") if mark in read(process / "environ").split(b"\0")]


def command_of(process):
    return read(process / "cmdline")


def read(file):
    try:
        return file.read_bytes()
    except OSError:  # gone, or not ours
        return b""
