"""A cluster of many hosts on this machine: each scenario is a function of `on_hosts`, run in namespaces of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.pipelines.serving.network import isolated, why_not

REASON = why_not()


def run(scenario, *arguments):
    command = isolated([sys.executable, "-m", "tests.pipelines.serving.on_hosts", scenario, *arguments])
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, f"{done.stdout[-15000:]}\n{done.stderr[-5000:]}"


@pytest.mark.slow
@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_a_cluster_of_hosts_by_the_commands_of_the_manifests(corpus, encoder, tmp_path_factory):
    run("kubernetes", tmp_path_factory.getbasetemp(), corpus, encoder)
