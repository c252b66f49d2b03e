"""The sizes that a plan sets in the Helm chart, by hand, and the file that they are written to."""

from __future__ import annotations

import json

import pytest
import yaml

from hashlight.engine.indexes.multi_index.planner import machine_file
from hashlight.pipelines.capacity.chart import chart_values
from hashlight.pipelines.capacity.constants import Constants
from hashlight.pipelines.capacity.plan import GIB, plan

from .test_plan import ROUND, demand_of, run


def sizes(**demand):
    asked = demand_of(**demand)
    return yaml.safe_load(chart_values(asked, plan(asked, ROUND)))


def test_sizes_by_hand():
    # A code takes 38 bytes with its tables: 4 * 2^30 of them 152 GiB, with replicas 304 GiB, and twice that on disk.
    # Nodes of 100 GiB hold 80 GiB of them each, so four do, two groups of two: 76 GiB each, and 152 GiB of disk. 256
    # shards at 18.06 us, 900 times a second with 5 % hedges, are 4.4 cores: 3.6 of each node, which is 30 % busy.
    code = 8 + 8 + 4 + 2 * 8 + 4 * (2**21 + 2**21 + 2**22 + 3) / 2**24
    memory = 2 * 4 * 2**30 * code / 4
    values = sizes(images=4 * 2**30, radius=4, shard_codes=2**24, replicas=2, qps=900.0)
    assert values == {
        "groups": 2,
        "shards": {
            "replicas": 2,
            "cacheGiB": -int(-2 * memory // GIB),
            "resources": {
                "requests": {"cpu": "4", "memory": f"{-int(-memory / 0.8 // GIB)}Gi"},
                "limits": {"memory": f"{-int(-memory / 0.8 // GIB)}Gi"},
            },
        },
    }


def test_a_small_collection_takes_the_least():
    values = sizes(images=1000, k=10, replicas=1, qps=0.001)
    assert values["groups"] == 1
    assert values["shards"]["resources"]["requests"] == {"cpu": "1", "memory": "1Gi"}
    assert values["shards"]["cacheGiB"] == 1


@pytest.mark.parametrize("demand", [{"radius": 8}, {"k": 10}, {"radius": 0, "replicas": 1}])
@pytest.mark.parametrize("qps", [1.0, 5000.0])
def test_a_server_asks_for_no_more_than_a_node_has(demand, qps):
    values = sizes(images=10**9, qps=qps, **demand)
    requests = values["shards"]["resources"]["requests"]
    assert int(requests["cpu"]) <= 4
    assert int(requests["memory"].removesuffix("Gi")) <= 100


ASKED = ("size", "--images", "1e8", "--qps", 5, "--radius", 4)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = machine_file("capacity")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({name: getattr(ROUND, name) for name in Constants.__slots__}))
    return tmp_path


def test_the_file_is_written_and_written_again(measured):
    file = measured / "sizes.yaml"
    assert run(*ASKED, "--helm", file).exit_code == 0
    first = yaml.safe_load(file.read_text())
    assert first["shards"]["replicas"] == 2
    assert run(*ASKED, "--helm", file, "--replicas", 3).exit_code == 0
    assert yaml.safe_load(file.read_text())["shards"]["replicas"] == 3


def test_values_written_by_hand_are_left_alone(measured):
    file = measured / "values.yaml"
    file.write_text("groups: 7\n")
    refused = run(*ASKED, "--helm", file)
    assert refused.exit_code == 1
    assert "was not written by `hashlight size` and is left as it is" in " ".join(refused.stderr.split())
    assert file.read_text() == "groups: 7\n"


def test_a_file_that_cannot_be_written_is_named(measured):
    refused = run(*ASKED, "--helm", measured / "missing" / "sizes.yaml")
    assert refused.exit_code == 1
    assert "sizes.yaml cannot be written" in " ".join(refused.stderr.split()).replace("- ", "-")
