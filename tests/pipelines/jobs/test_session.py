"""Ray's own session: begun again where its processes were too slow to start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from hashlight.pipelines.jobs.session import ray_session

SLOW = Exception("The current node timed out during startup. This could happen because the GCS has become overloaded.")


@pytest.fixture
def starts(monkeypatch):
    """Have the next attempts to start Ray raise some errors, and collect the options of all."""
    errors, seen = [], []

    def init(**options):
        seen.append(options)
        if errors:
            raise errors.pop(0)

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: seen.append("shut down"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return errors, seen


def test_a_session_whose_processes_were_slow_is_begun_again(starts):
    errors, seen = starts
    errors += [SLOW] * 2
    with ray_session(num_cpus=3) as is_new:
        assert is_new
        assert seen == [seen[0], "shut down", seen[0], "shut down", seen[0]]
    assert seen[0]["num_cpus"] == 3


def test_one_that_is_always_slow_or_cannot_start_is_told(starts):
    errors, _ = starts
    errors += [SLOW] * 5
    with pytest.raises(Exception, match="timed out during startup"), ray_session(num_cpus=1):
        pass
    assert not errors
    errors += [ValueError("too little memory"), SLOW]
    with pytest.raises(ValueError, match="too little memory"), ray_session(num_cpus=1):
        pass
    assert errors == [SLOW]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "no.such.host.invalid:{}"])
def test_an_address_without_a_cluster_is_refused_at_once(form):
    """In a process of its own: Ray would end that one, with nothing said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = form.format(free.getsockname()[1])
    command = [sys.executable, "-P", "-m", "hashlight", "scale", "ray://photos", "--replicas", "2"]
    done = subprocess.run(
        command, env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert f"no Ray cluster answers at '{address}'" in done.stderr
    assert "ray start --head" in done.stderr
