from __future__ import annotations

import resource

import pytest

from hashlight.engine.machine import Memory
from hashlight.pipelines.doctor import hardware
from hashlight.pipelines.doctor.findings import GIB, Asked

NONE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("architecture", "features", "state"),
    [
        ("x86_64", {"popcnt": True, "avx2": True, "avx512vpopcntdq": True, "sse2": True}, "ok"),
        ("x86_64", {"popcnt": True, "avx2": True, "avx512vpopcntdq": False}, "ok"),
        ("x86_64", {"popcnt": True, "avx2": False}, "warning"),
        ("x86_64", {}, "warning"),
        ("aarch64", {"neon": True}, "ok"),
    ],
)
def test_features_of_a_processor(architecture, features, state):
    found = hardware.features_of(architecture, "some-cpu", features)
    assert found.state == state
    assert set(found.numbers["features"]) == {name for name, has in features.items() if has} - {"sse2"}
    assert ("-cpu host" in found.advice) == (state == "warning")


@pytest.mark.parametrize(
    ("installed", "allowed", "limit", "state", "found"),
    [
        (8, 8, None, "ok", "8 cores"),
        (64, 4, None, "ok", "4 of 64 cores"),
        (64, 64, 2.0, "ok", "64 cores, and time of 2 for this container"),
        (8, 8, 8.0, "ok", "8 cores"),
        (64, 64, 2.5, "warning", "64 cores, and time of 2.5 for this container"),
        (64, 64, 0.5, "warning", "64 cores, and time of 0.5 for this container"),
    ],
)
def test_cores_against_the_limit_of_a_container(installed, allowed, limit, state, found):
    finding = hardware.cores_of(installed, allowed, limit)
    assert (finding.state, finding.found) == (state, found)
    assert finding.numbers == {"installed": installed, "allowed": allowed, "limit": limit}


@pytest.mark.parametrize(
    ("available", "state", "advice"),
    [(0.4, "problem", "killed while they start"), (1.5, "warning", "at least 2 GiB"), (3, "ok", "")],
)
def test_memory_that_is_available(available, state, advice):
    finding = hardware.memory_of(Memory(16 * GIB, int(available * GIB), True))
    assert finding.state == state
    assert advice in finding.advice
    assert f"{available:.1f} GiB of the 16.0 GiB of this container" in finding.found


@pytest.mark.parametrize(
    ("soft", "hard", "state"),
    [(NONE, NONE, "ok"), (65_536, NONE, "ok"), (4_096, 4_096, "ok"), (2_048, 4_096, "warning"), (1_024, 1, "problem")],
)
def test_open_files(soft, hard, state):
    finding = hardware.files_of(soft, hard)
    assert finding.state == state
    assert ("ulimit -n 65536" in finding.advice) == (state != "ok")


@pytest.mark.parametrize(
    ("left", "processes", "state"),
    [(None, NONE, "ok"), (None, 90_000, "ok"), (100, NONE, "warning"), (5_000, 60, "warning"), (5_000, 6_000, "ok")],
)
def test_threads(left, processes, state):
    assert hardware.threads_of(left, processes).state == state


@pytest.mark.parametrize(("soft", "state"), [(NONE, "ok"), (8 * GIB, "warning")])
def test_virtual_memory(soft, state):
    assert hardware.addresses_of(soft).state == state


def test_this_machine_is_looked_at():
    found = [*hardware.processor(Asked()), *hardware.memory(Asked()), *hardware.limits(Asked())]
    assert [finding.check for finding in found] == ["processor"] * 2 + ["memory"] + ["limits"] * 3
