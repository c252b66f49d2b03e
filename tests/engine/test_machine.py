"""What a process may use, read from made trees of `/proc` and `/sys` as the kernel writes them."""

from __future__ import annotations

import math
import os

import pytest

from hashlight.engine import machine
from hashlight.engine.indexes import threads

V2 = {
    "proc/self/cgroup": "0::/pods/one/app\n",
    "sys/fs/cgroup/pods/one/app/cpu.max": "max 100000\n",
    "sys/fs/cgroup/pods/one/cpu.max": "250000 100000\n",
    "sys/fs/cgroup/pods/cpu.max": "800000 100000\n",
    "sys/fs/cgroup/pods/one/app/memory.max": "max\n",
    "sys/fs/cgroup/pods/one/memory.max": "4000000\n",
    "sys/fs/cgroup/pods/one/memory.current": "3500000\n",
    "sys/fs/cgroup/pods/one/memory.stat": "anon 1000000\ninactive_file 1500000\nactive_file 7\n",
    "sys/fs/cgroup/pods/one/app/pids.max": "max\n",
    "sys/fs/cgroup/pods/one/app/pids.current": "9\n",
    "sys/fs/cgroup/pods/one/pids.max": "100\n",
    "sys/fs/cgroup/pods/one/pids.current": "30\n",
}
V1 = {
    "proc/self/cgroup": "5:pids:/docker/abc\n4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n",
    "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000\n",
    "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "4000000\n",
    "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "3500000\n",
    "sys/fs/cgroup/memory/docker/abc/memory.stat": "cache 7\ntotal_inactive_file 1500000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "12345678\n",
    "sys/fs/cgroup/pids/docker/abc/pids.max": "100\n",
    "sys/fs/cgroup/pids/docker/abc/pids.current": "30\n",
}
# A container of version 1 is told its path outside, and sees its own group at the top.
V1_INSIDE = {path.replace("/docker/abc", ""): text for path, text in V1.items() if path.find("/docker/abc") > 0} | {
    "proc/self/cgroup": V1["proc/self/cgroup"]
}
MEMORY = {"proc/meminfo": "MemTotal:       8000 kB\nMemFree:  1 kB\nMemAvailable:   6000 kB\nHugePages_Total:  0\n"}


def made(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("files", [V2, V1, V1_INSIDE], ids=["version 2", "version 1", "version 1, inside"])
def test_the_tightest_limit_of_all_groups_above_counts(tmp_path, files):
    root = made(tmp_path, files | MEMORY)
    assert machine.cpu_limit(root) == 2.5
    assert machine.memory(root) == (4_000_000, 2_000_000, True)
    assert machine.threads_left(root) == 70


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n"},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n"},
        {"proc/self/cgroup": "what\n0\n::\n", "sys/fs/cgroup/cpu.max": ""},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n", "sys/fs/cgroup/memory.max": "a b\n"},
    ],
)
def test_without_a_limit_all_that_the_machine_has_counts(tmp_path, files):
    root = made(tmp_path, files | MEMORY)
    assert machine.cpu_limit(root) is None
    assert machine.memory(root) == (8_192_000, 6_144_000, False)
    assert machine.threads_left(root) is None


def test_a_group_that_may_have_more_than_the_machine_has_limits_nothing(tmp_path):
    more = {"sys/fs/cgroup/pods/one/memory.max": "9000000\n", "sys/fs/cgroup/pods/one/memory.current": "1\n"}
    assert machine.memory(made(tmp_path, V2 | MEMORY | more)) == (8_192_000, 6_144_000, False)


def test_where_the_system_does_not_say_nothing_is_known(tmp_path):
    assert machine.memory(tmp_path) is None


@pytest.mark.parametrize(("limit", "cores"), [(None, 4), (8.0, 4), (4.0, 4), (2.5, 3), (1.0, 1), (0.2, 1)])
def test_a_process_uses_no_more_cores_than_its_container_is_given(monkeypatch, limit, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr(threads, "_cpu_limit", lambda: limit)
    assert threads.usable_cores() == cores


def test_this_machine_is_read():
    limit, memory = machine.cpu_limit(), machine.memory()
    assert limit is None or 0 < limit < math.inf
    assert memory is None or 0 < memory.available <= memory.total
