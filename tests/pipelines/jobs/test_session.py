"""Ray's own session: begun again where its processes were too slow to start."""

from __future__ import annotations

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
