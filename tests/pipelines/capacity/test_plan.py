"""The capacity plan: its arithmetic by hand, its formulas against real shards, and the measurement it rests on."""

from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.multi_index.planner import machine_file
from hashlight.engine.storage.shard import write_shard
from hashlight.pipelines.capacity import calibrate
from hashlight.pipelines.capacity import constants as capacity
from hashlight.pipelines.capacity.constants import Constants, bytes_per_code, load_constants, work_of_radius
from hashlight.pipelines.capacity.plan import GIB, Demand, plan
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.jobs.errors import PipelineError

ROUND = Constants(
    cores=4,
    memory_bytes=100 * GIB,
    encoder="round numbers",
    image_core_s=1e-3,
    build_core_s=1e-6,
    disk_bytes_s=1e9,
    query_s=10e-6,
    lookup_s=100e-9,
    candidate_s=10e-9,
    scan_word_s=1e-9,
    rows=2**24,
    call_s=1e-3,
    merge_s=1e-6,
)


def demand_of(**demand):
    return Demand(**{"bits": 64, "qps": 100.0, "node_cores": 4, "node_bytes": 100 * GIB} | demand)


def values(**demand):
    lines = plan(demand_of(**demand), ROUND)
    return {line.name: line.value for line in lines}


def test_a_plan_by_hand():
    got = values(images=10 * 2**24, radius=4, shard_codes=2**24, replicas=2)
    # Shards of 2^24 codes have tables of 21, 21 and 22 bits; radius 4 asks 22 + 22 + 1 buckets of 8, 8 and 4 codes.
    code = 8 + 8 + 4 + 2 * 8 + 4 * (2**21 + 2**21 + 2**22 + 3) / 2**24
    shard_s = 10e-6 + 45 * 100e-9 + (44 * 8 + 4) * 10e-9
    assert got["shards"] == 10
    assert got["bytes per code"] == pytest.approx(code)
    assert got["memory"] == pytest.approx(2 * 10 * 2**24 * code)
    assert got["disk"] == 2 * got["memory"]
    assert got["query to a shard"] == pytest.approx(shard_s)
    assert got["busy cores"] == pytest.approx(100 * 10 * shard_s * 1.05)
    assert (got["nodes by memory"], got["nodes by cores"], got["groups"], got["nodes"]) == (1, 1, 1, 2)
    assert got["latency, idle"] == pytest.approx(1e-3 + 3 * shard_s + 1e-6)
    assert got["hours to encode"] == pytest.approx(10 * 2**24 * 1e-3 / 8 / 3600)
    build_s = 10 * 2**24 * 1e-6 / 8 + 10 * 2**24 * code / 1e9 / 2
    assert got["hours to build"] == pytest.approx(build_s / 3600)
    units = 83_887  # of 2,000 images, the last with 160
    assert (got["units of work"], got["encode, driver"], got["encode, each actor"]) == (units, 450 * units, 24 * units)
    assert got["build, driver"] == 450 * units + 6_000 * 10 + 16 * 2**24


def test_what_binds_decides_the_nodes():
    few = values(images=10**9, radius=4, qps=1.0, node_bytes=16 * GIB)
    assert few["nodes by memory"] == math.ceil(few["memory"] / (16 * GIB * 0.8)) > few["nodes by cores"]
    busy = values(images=10**9, radius=4, qps=50_000.0, node_bytes=1000 * GIB, replicas=3)
    assert busy["nodes by cores"] == math.ceil(busy["busy cores"] / (4 * 0.4)) > busy["nodes by memory"]
    assert busy["nodes"] == 3 * math.ceil(busy["nodes by cores"] / 3)


def test_wide_radii_are_scanned():
    wide = values(images=2**24, radius=32, shard_codes=2**24)
    assert wide["query to a shard"] == pytest.approx(10e-6 + 2**24 * 1e-9)


def test_the_nearest_are_a_radius():
    nearest = values(images=2**24, k=10, shard_codes=2**24)["query to a shard"]
    within = [2**24 * sum(math.comb(64, d) for d in range(radius + 1)) / 2**64 for radius in range(20)]
    radius = next(radius for radius, codes in enumerate(within) if codes >= 10)
    assert nearest == values(images=2**24, radius=radius, shard_codes=2**24)["query to a shard"]


@pytest.mark.parametrize(("bits", "rows"), [(64, 20_000), (48, 3_000), (130, 5_000)])
def test_a_code_takes_what_its_files_take(tmp_path, bits, rows):
    words = -(-bits // 64)
    codes = np.random.default_rng(0).integers(2**64, size=(rows, words), dtype=np.uint64)
    codes[:, -1] &= np.uint64(2 ** (bits - 64 * (words - 1)) - 1)
    spec = write_shard(tmp_path / "shard", codes, np.arange(rows), None, bits=bits)
    size = sum((tmp_path / "shard" / name).stat().st_size for name in spec.files)
    # Headers of five files, and what is read beyond the last entry.
    assert size / rows == pytest.approx(bytes_per_code(bits, rows), abs=1500 / rows)


@pytest.mark.parametrize("radius", [0, 3, 4, 8])
def test_a_query_takes_what_the_index_says_it_took(radius):
    rng = np.random.default_rng(1)
    codes = rng.integers(2**64, size=(50_000, 1), dtype=np.uint64)
    queries = rng.integers(2**64, size=(200, 1), dtype=np.uint64)
    took = (
        MultiIndex.build(codes, np.arange(50_000), bits=64)
        .range_search(queries, radius, plan="tables", explain=True)
        .explain
    )
    expected = work_of_radius(64, 50_000, radius)
    assert set(took.probes) == {expected.lookups}
    assert took.candidates.mean() == pytest.approx(expected.candidates, rel=0.1)


def test_examples_in_docstrings():
    assert doctest.testmod(capacity).failed == 0


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_calibrate_then_plan(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = ("size", "--images", "5e9", "--qps", 500, "--radius", 4)
    before = run(*asked)
    assert before.exit_code == 1
    assert "this machine has not been measured" in " ".join(before.stderr.split())
    for name, value in {"ROWS": (2**11, 2**12, 2**14), "_IMAGES": 64, "_CALLS": 20, "_BLOCKS": 2}.items():
        monkeypatch.setattr(calibrate, name, value)
    measured = run("calibrate", "--json")
    assert measured.exit_code == 0, measured.output
    constants = json.loads(measured.stdout)
    assert load_constants() == Constants(**constants)
    assert 1e-6 < constants["image_core_s"] < 1
    assert 1e-9 < constants["build_core_s"] < 1e-3
    assert 1e-6 < constants["query_s"] + constants["lookup_s"] < 1e-1
    assert 1e-6 < constants["call_s"] < 1e-1
    lines = {line["name"]: line for line in json.loads(run(*asked, "--json").stdout)}
    assert lines["shards"]["value"] == 100
    assert lines["shards"]["numbers"] == "5,000,000,000 / 50,000,000"
    shown = run(*asked, "--node-memory", 64, "--node-cores", 16, "--replicas", 3).stdout
    assert "nodes of 16 cores and 64.0 GiB" in shown
    assert "= 5,000,000,000 / 50,000,000" in shown


def test_damaged_constants_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = machine_file("capacity")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(PipelineError, match="run `hashlight calibrate`"):
        load_constants()
    path.write_text(json.dumps({name: getattr(ROUND, name) for name in Constants.__slots__} | {"call_s": "soon"}))
    with pytest.raises(PipelineError, match="is damaged: run `hashlight calibrate` again"):
        load_constants()


@pytest.mark.parametrize(
    ("demand", "message"),
    [
        ({"radius": 4, "k": 3}, "exactly one of `radius` and `k`, got 4 and 3"),
        ({}, "exactly one of `radius` and `k`, got None and None"),
        ({"radius": 4, "qps": 0.0}, "must be above 0, got qps 0.0"),
        ({"radius": 4, "replicas": 0}, "must be above 0, got replicas 0"),
        ({"radius": 4, "bits": 2000}, "1 to 1024, as collections store, got 2000"),
    ],
)
def test_impossible_demands_are_refused(demand, message):
    with pytest.raises(ValueError, match=message):
        values(images=1000, **demand)
    assert run("size", "--images", 10, "--qps", 1, "--radius", 1, "-k", 2).exit_code == 2
