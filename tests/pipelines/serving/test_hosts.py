"""A cluster of many hosts on this machine: each scenario is a function of `on_hosts`, run in namespaces of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.pipelines.serving.network import isolated, why_not

REASON = why_not()
WITHOUT_REDIS = shutil.which("redis-server") is None and shutil.which("redis-check-rdb") is None


def run(scenario, *arguments):
    command = isolated([sys.executable, "-m", "tests.pipelines.serving.on_hosts", scenario, *arguments])
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, f"{done.stdout[-15000:]}\n{done.stderr[-5000:]}"


@pytest.mark.slow
@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_a_cluster_of_hosts_by_the_commands_of_the_manifests(corpus, encoder, tmp_path_factory):
    run("kubernetes", tmp_path_factory.getbasetemp(), corpus, encoder)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(bool(REASON), reason=REASON)
@pytest.mark.skipif(WITHOUT_REDIS, reason="Redis is not installed: Debian's package redis-tools has it")
def test_queries_go_on_without_the_head_of_ray(tmp_path_factory):
    run("ray", tmp_path_factory.getbasetemp())
