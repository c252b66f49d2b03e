"""One unit of an encode job, without Ray around it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from encoders.encoder import HashEncoder
from pipelines import encode_units
from pipelines.decode_worker import DecodeLimits
from pipelines.encode_units import STEPS, EncodeUnits, UnitSettings, parse_sidecar, part_name, sidecar_name
from pipelines.errors import PipelineError
from pipelines.rejects import write_rejects
from pipelines.stores import OutputFolder
from pipelines.work import plan_work

SETTINGS = {"batch_size": 32, "decoders": 1, "device": "cpu", "features": False, "thumbnail": 0}


@pytest.fixture
def folder(tmp_path, corpus, encoder):
    """An output as it is when the units begin: three of 100 images."""
    plan_work(corpus, tmp_path / "codes" / "plan.parquet", unit_images=100)
    shutil.copytree(encoder, tmp_path / "codes" / "encoder")
    return tmp_path / "codes"


@pytest.fixture
def units(folder):
    units = EncodeUnits(str(folder), UnitSettings(job="ours", limits=DecodeLimits(), **SETTINGS))
    yield units
    units.close()


def publish_meanwhile(monkeypatch, folder, job):
    """Have another process publish unit 1 while it is encoded here."""
    said = json.dumps({"job": job, "codes": 99, "rejects": 1, "seconds": dict.fromkeys(STEPS, 0.0)})

    def step(name, key=""):
        if (name, key) == ("encoded", 1):
            OutputFolder(folder).put(sidecar_name(1), said.encode())

    monkeypatch.setattr(encode_units.chaos, "step", step)


def test_a_unit_is_written_with_what_says_that_it_is_whole(folder, units, encoder, pictures):
    row = units({"unit": np.array([1])})
    assert (row["unit"].tolist(), row["codes"].tolist(), row["rejects"].tolist()) == ([1], [100], [0])
    table = pq.read_table(folder / part_name(1))
    expected = HashEncoder.load(encoder).encode(pictures[0][100:200])
    assert table["code"].to_pylist() == [code.tobytes() for code in expected]
    assert table["id"].to_pylist() == list(range(1100, 1200))
    sidecar = parse_sidecar((folder / sidecar_name(1)).read_bytes(), 1, "ours")
    assert (sidecar["codes"], sidecar["rejected"]) == (100, [])
    before = (folder / part_name(1)).stat().st_mtime_ns
    assert units({"unit": np.array([1])})["codes"].tolist() == [100]
    assert (folder / part_name(1)).stat().st_mtime_ns == before, "what is whole is not done again"


def test_a_unit_that_another_job_publishes_meanwhile_stops_this_one(monkeypatch, folder, units):
    publish_meanwhile(monkeypatch, folder, "another")
    with pytest.raises(PipelineError, match="unit 1 was published by another job meanwhile"):
        units({"unit": np.array([1])})


def test_a_unit_that_a_lost_actor_publishes_meanwhile_counts_as_it_says(monkeypatch, folder, units):
    publish_meanwhile(monkeypatch, folder, "ours")
    assert units({"unit": np.array([1])})["codes"].tolist() == [99]


def test_units_of_another_job_are_not_committed(folder, units):
    units({"unit": np.arange(3)})
    output = OutputFolder(folder)
    gathered = write_rejects(output, range(3), "ours")
    assert (gathered.codes, gathered.rejects) == (300, 0)
    said = json.loads(output.read(sidecar_name(2)))
    output.put(sidecar_name(2), json.dumps({**said, "job": "another"}).encode())
    with pytest.raises(PipelineError, match="unit 2 was published by another job"):
        write_rejects(output, range(3), "ours")
