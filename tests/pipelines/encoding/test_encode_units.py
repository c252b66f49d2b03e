"""One unit of an encode job, without Ray around it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

from hashlight.encoders.encoder import HashEncoder
from hashlight.engine.places.opening import open_place
from hashlight.pipelines.codes.parts import CODES, part_name
from hashlight.pipelines.corpora import webdataset
from hashlight.pipelines.corpora.work import WorkSummary, plan_work
from hashlight.pipelines.decoding.worker import DecodeLimits
from hashlight.pipelines.encoding import encode
from hashlight.pipelines.encoding import units as encode_units
from hashlight.pipelines.encoding.actors import fit_actors
from hashlight.pipelines.encoding.rejects import RejectBudget, write_rejects
from hashlight.pipelines.encoding.units import STEPS, EncodeUnits, UnitSettings
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder, sidecar_name
from hashlight.pipelines.jobs.nodes import Node

OPTIONS = {"batch_size": 32, "features": False, "thumbnail": 0, "limits": DecodeLimits()}


@pytest.fixture
def folder(tmp_path, corpus, encoder):
    """An output as it is when its units begin: three units of 100 images."""
    plan_work(corpus, tmp_path / "codes" / "plan.arrow", unit_images=100)
    shutil.copytree(encoder, tmp_path / "codes" / "encoder")
    return tmp_path / "codes"


@pytest.fixture
def units(folder):
    units = EncodeUnits(str(folder), UnitSettings(job="ours", decoders=1, device="cpu", **OPTIONS))
    yield units
    units.close()


def ours(folder):
    """The folder of the job whose units these tests run."""
    return JobFolder(folder, CODES, name="ours")


def nodes(*resources):
    return [Node(f"{number:032x}", f"10.0.0.{number}", cpus, gpus) for number, (cpus, gpus) in enumerate(resources)]


@pytest.mark.parametrize(
    ("cluster", "actors", "units", "expected"),
    [
        (nodes((64, 0)), None, 1000, (64, 1000, "cpu", 1, 1)),
        (nodes((64, 0)), 3, 1000, (3, 3, "cpu", 1, 1)),
        (nodes((2, 0)), 8, 1000, (2, 8, "cpu", 1, 1)),
        (nodes((64, 0)), None, 5, (5, 5, "cpu", 1, 1)),
        (nodes((64, 8)), None, 1000, (8, 1000, "cuda", 8, 7)),
        (nodes((64, 8)), 2, 1000, (2, 2, "cuda", 8, 7)),
        (nodes((64, 8)), 20, 1000, (8, 20, "cuda", 8, 7)),
        # All cores over all GPUs, 33 and 34, are on no node.
        (nodes((32, 0), (1, 1)), 4, 1000, (1, 4, "cuda", 1, 1)),
        (nodes((32, 0), (32, 4), (4, 2)), None, 1000, (6, 1000, "cuda", 2, 1)),
        # A node may give out GPUs alone, and a head nothing at all.
        (nodes((16, 1), (0, 2)), None, 1000, (3, 1000, "cuda", 0, 1)),
        (nodes((0, 0), (2, 0), (1.5, 0)), None, 1000, (3, 1000, "cpu", 1, 1)),
    ],
)
def test_actors_are_as_many_as_the_nodes_have_room_for(cluster, actors, units, expected):
    stage = fit_actors(cluster, actors, units)
    settings = stage.settings["device"], stage.num_cpus, stage.settings["decoders"]
    assert (stage.actors, stage.max_actors, *settings) == expected
    # An oracle that places them one by one.
    left = {node.id: [node.cpus, node.gpus] for node in cluster}
    for _ in range(stage.actors):
        fitting = [node for node in left.values() if node[0] >= stage.num_cpus and node[1] >= stage.num_gpus]
        assert fitting, "an actor would wait for ever"
        fitting[0][0] -= stage.num_cpus
        fitting[0][1] -= stage.num_gpus


def test_a_cluster_that_has_nothing_to_give_is_refused():
    with pytest.raises(PipelineError, match=r"none: 10\.0\.0\.0 \(000000\) has 0 CPUs, .* has 0\.5 CPUs"):
        fit_actors(nodes((0, 0), (0.5, 0)), 2, 10)


def test_the_rate_covers_the_time_from_the_first_begin_to_the_last_end(monkeypatch, tmp_path):
    """Rows do not come in the order in which units begin and end."""
    work = WorkSummary("c", "images", units=3, images=300, columns=[], digest="")
    job = encode._Job(ours(tmp_path), {}, work)
    times = [(10.0, 14.0), (9.0, 15.0), (12.0, 13.0)]
    rows = [
        {
            "codes": 90,
            "rejects": 10,
            "started": started,
            "ended": ended,
            **dict.fromkeys(map("{}_s".format, STEPS), 1.0),
        }
        for started, ended in times
    ]
    monkeypatch.setattr(encode, "ray_session", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(encode, "plan_actors", lambda *_: fit_actors(nodes((2, 0)), None, 3))
    monkeypatch.setattr(encode, "_refuse_unshared", lambda *_: None)
    monkeypatch.setattr(encode, "_encode_units", lambda *_: iter(rows))
    state, _ = encode._run(job, None, OPTIONS, RejectBudget(), lambda _state: None)
    assert (state.images, state.rejects, state.images_per_s) == (300, 30, 300 / 6)


def test_units_of_two_threads_do_not_mix(folder, units, encoder, pictures):
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(lambda unit: units({"unit": np.array([unit])}), range(3)))
    assert [row["codes"].tolist() for row in rows] == [[100]] * 3
    expected = HashEncoder.load(encoder).encode(pictures[0][:300])
    found = pq.read_table(folder / "parts")
    assert found["code"].to_pylist() == [code.tobytes() for code in expected]


def test_a_name_that_occurs_twice_in_a_shard_and_attributes_that_come_late(tmp_path, corpus, encoder, monkeypatch):
    monkeypatch.setattr(webdataset, "_LOOKED_AT", 2)
    images = pq.read_table(corpus)["image"].to_pylist()
    files = [("a.cls", b"1"), ("a.png", images[0]), ("b.png", images[1]), ("b.txt", b"two"), ("a.png", images[2])]
    (tmp_path / "shards").mkdir()
    for shard in ("0.tar", "1.tar"):
        with tarfile.open(tmp_path / "shards" / shard, "w") as tar:
            for name, data in [*files, ("c.png", images[3]), ("c.json", b"{}")]:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    folder = tmp_path / "codes"
    plan_work(tmp_path / "shards", folder / "plan.arrow")
    shutil.copytree(encoder, folder / "encoder")
    units = EncodeUnits(str(folder), UnitSettings(job="ours", decoders=1, device="cpu", **OPTIONS))
    row = units({"unit": np.arange(2)})
    units.close()
    assert (row["codes"].tolist(), row["rejects"].tolist()) == ([3, 3], [1, 1])
    table = pq.read_table(folder / part_name(1))
    assert table.select(["uri", "label", "txt"]).to_pylist() == [
        {"uri": f"{tmp_path}/shards/1.tar#a.png", "label": "1", "txt": None},
        {"uri": f"{tmp_path}/shards/1.tar#b.png", "label": None, "txt": "two"},
        {"uri": f"{tmp_path}/shards/1.tar#c.png", "label": None, "txt": None},
    ]
    gathered = write_rejects(ours(folder), range(2))
    assert gathered.left_out == {"json"}
    (first, _) = pq.read_table(folder / "rejects.parquet").to_pylist()
    assert first["uri"] == f"{tmp_path}/shards/0.tar#a.png"
    assert first["reason"] == "unreadable: a.png occurs twice in the shard"


def test_of_images_with_one_id_in_two_shards_the_later_is_a_reject(tmp_path, corpus, encoder, monkeypatch):
    images = pq.read_table(corpus)["image"].to_pylist()
    (tmp_path / "shards").mkdir()
    for number in range(3):
        with tarfile.open(tmp_path / "shards" / f"{number}.tar", "w") as tar:
            for row in range(4):
                member = tarfile.TarInfo(f"{row}.png")
                member.size = len(images[row])
                tar.addfile(member, io.BytesIO(images[row]))
    folder = tmp_path / "codes"
    summary = plan_work(tmp_path / "shards", folder / "plan.arrow")
    shutil.copytree(encoder, folder / "encoder")
    ids = {"1.tar#2.png": 7, "2.tar#2.png": 7, "0.tar#0.png": 7}
    hashed = webdataset.hashed_ids
    monkeypatch.setattr(
        webdataset, "hashed_ids", lambda names: np.array([ids.get(n, int(hashed([n])[0])) for n in names])
    )
    units = EncodeUnits(str(folder), UnitSettings(job="ours", decoders=1, device="cpu", **OPTIONS))
    units({"unit": np.arange(3)})
    units.close()
    whole = pq.read_table(folder / part_name(1))
    job = encode._Job(ours(folder), {}, summary)
    for _ in range(2):  # a second time there is nothing to do
        encode._reject_repeated(job)
        gathered = write_rejects(job.folder, range(3))
        assert (gathered.codes, gathered.rejects) == (10, 2)
        state, waiting = encode._take_stock(job)
        assert (state.units, state.images, state.rejects, waiting) == (3, 12, 2, [])
    assert pq.read_table(folder / part_name(1)).equals(whole.take([0, 1, 3]))
    rejects = pq.read_table(folder / "rejects.parquet").to_pylist()
    assert [reject["uri"] for reject in rejects] == [f"{tmp_path}/shards/{number}.tar#2.png" for number in (1, 2)]
    assert {reject["reason"] for reject in rejects} == {f"same id as another image: {tmp_path}/shards/0.tar#0.png"}


def publish_meanwhile(monkeypatch, folder, job):
    """Have another process publish unit 1 while it is encoded here."""
    said = json.dumps({"job": job, "codes": 99, "rejects": 1, "seconds": dict.fromkeys(STEPS, 0.0)})

    def step(name, key=""):
        if (name, key) == ("encoded", 1):
            open_place(folder).put(sidecar_name(1), said.encode())

    monkeypatch.setattr(encode_units.chaos, "step", step)


def test_a_unit_is_written_with_its_sidecar(folder, units, encoder, pictures):
    row = units({"unit": np.array([1])})
    assert (row["unit"].tolist(), row["codes"].tolist(), row["rejects"].tolist()) == ([1], [100], [0])
    table = pq.read_table(folder / part_name(1))
    expected = HashEncoder.load(encoder).encode(pictures[0][100:200])
    assert table["code"].to_pylist() == [code.tobytes() for code in expected]
    assert table["id"].to_pylist() == list(range(1100, 1200))
    sidecar = ours(folder).sidecar(1)
    assert (sidecar["codes"], sidecar["rejected"]) == (100, [])
    before = (folder / part_name(1)).stat().st_mtime_ns
    assert units({"unit": np.array([1])})["codes"].tolist() == [100]
    assert (folder / part_name(1)).stat().st_mtime_ns == before, "a finished unit is not encoded again"


def test_a_unit_that_another_job_publishes_meanwhile_stops_this_one(monkeypatch, folder, units):
    publish_meanwhile(monkeypatch, folder, "another")
    with pytest.raises(PipelineError, match="unit 1 was published by another job meanwhile"):
        units({"unit": np.array([1])})


def test_a_unit_that_a_lost_actor_publishes_meanwhile_counts_as_it_says(monkeypatch, folder, units):
    publish_meanwhile(monkeypatch, folder, "ours")
    assert units({"unit": np.array([1])})["codes"].tolist() == [99]


def test_units_of_another_job_are_not_committed(folder, units):
    units({"unit": np.arange(3)})
    output = open_place(folder)
    gathered = write_rejects(ours(folder), range(3))
    assert (gathered.codes, gathered.rejects) == (300, 0)
    said = json.loads(output.read(sidecar_name(2)))
    output.put(sidecar_name(2), json.dumps({**said, "job": "another"}).encode())
    with pytest.raises(PipelineError, match="unit 2 was published by another job"):
        write_rejects(ours(folder), range(3))
