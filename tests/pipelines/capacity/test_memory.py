"""What a process of a job holds for every unit, reject, id and shard: slopes between two sizes, against the plan's."""

from __future__ import annotations

import ctypes
import gc
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine import ids as engine_ids
from hashlight.engine.collection.writing.adding import split_rows
from hashlight.engine.ids import RepeatedIds
from hashlight.engine.storage.manifest import parse_shard
from hashlight.pipelines.building.build import BUILD
from hashlight.pipelines.building.shards import sidecar_of
from hashlight.pipelines.capacity.constants import (
    BUILD_DRIVER_SHARD_BYTES,
    BUILD_DRIVER_UNIT_BYTES,
    ENCODE_ACTOR_UNIT_BYTES,
    ENCODE_DRIVER_UNIT_BYTES,
)
from hashlight.pipelines.codes.parts import CODES, cut_parts, list_parts, part_name
from hashlight.pipelines.codes.parts import STEPS as STEPS_OF_A_UNIT
from hashlight.pipelines.corpora.work import Units, WorkList, WorkSummary, list_work
from hashlight.pipelines.encoding import encode, rejects
from hashlight.pipelines.jobs.folder import JobFolder


def traced(work):
    """Run `work`; return the bytes that Python and numpy hold after it, while its result lives, and their peak."""
    gc.collect()
    tracemalloc.start()
    try:
        result = work()
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del result
    return held, peak


class _Allocated(ctypes.Structure):
    """`struct mallinfo2` of glibc: its fifth field counts bytes in separate maps, its eighth bytes in use."""

    _fields_ = [(f"field_{number}", ctypes.c_size_t) for number in range(10)]


def native():
    """Bytes that C and C++ have allocated, which Python does not see: a Parquet footer is such memory."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Allocated
    found = mallinfo2()
    return found.field_4 + found.field_7 + pa.total_allocated_bytes()


def fill(folder, units, rejects):
    """A folder of codes whose units each have this many rejects."""
    rejected = [
        {"row": row, "id": row, "uri": f"/data/{row:09d}.jpg", "kind": "format", "reason": f"damaged: byte {row}"}
        for row in range(rejects)
    ]
    counts = {"codes": 10, "rejects": rejects, "skipped": {}, "left_out": []}
    said = {
        "job": "j",
        **counts,
        "rejected": rejected,
        "bytes": 1,
        "entries": 0,
        "seconds": dict.fromkeys(STEPS_OF_A_UNIT, 0),
    }
    for name in ("parts", "sidecars"):
        (folder / name).mkdir(parents=True)
    for unit in range(units):
        sha256 = f"{unit:016d}{unit:048d}"
        (folder / part_name(unit, sha256)).write_bytes(b"x")
        (folder / "sidecars" / f"{unit:05d}.json").write_text(json.dumps({**said, "sha256": sha256}))
    images = units * (10 + rejects)
    work = WorkSummary("c", "images", units=units, images=images, columns=[], digest="", ids="auto", name="c")
    listed = Units(np.arange(units), np.zeros(units, np.uint64), np.arange(units), np.zeros(units, np.int64))
    return encode._Job(JobFolder(folder, CODES, name="j"), {}, work, listed)


def plan_of_a_build(job):
    parts = list_parts(str(job.folder))
    return list(cut_parts(parts, split_rows(sum(part.rows for part in parts), 10)))


STEPS = {
    "encode": (encode._take_stock, ENCODE_DRIVER_UNIT_BYTES),
    "build": (plan_of_a_build, BUILD_DRIVER_UNIT_BYTES),
    "rejects": (lambda job: rejects.write_rejects(job.folder, job.folder.units()), ENCODE_DRIVER_UNIT_BYTES),
}


@pytest.mark.parametrize("step", STEPS)
def test_the_driver_holds_as_much_for_a_unit_as_planned_and_nothing_for_a_reject(tmp_path, step):
    run, planned = STEPS[step]
    few, many = fill(tmp_path / "few", 100, 0), fill(tmp_path / "many", 500, 0)
    run(few)  # imports and caches are no part of a slope
    slope = (traced(lambda: run(many))[1] - traced(lambda: run(few))[1]) / 400
    assert slope <= planned, "more than `hashlight size` says"
    assert step == "rejects" or slope > planned / 4, "the plan is far too careful"


@pytest.mark.parametrize("step", STEPS)
def test_the_driver_does_not_keep_rejects(tmp_path, monkeypatch, step):
    """Were they kept, 500 units of 40 rejects would take over 5 MB, as the sidecars of all of them do."""
    monkeypatch.setattr(rejects, "_ROW_GROUP_ROWS", 1000)
    run, _ = STEPS[step]
    few, many = fill(tmp_path / "few", 250, 40), fill(tmp_path / "many", 500, 40)
    run(few)
    slope = (traced(lambda: run(many))[1] - traced(lambda: run(few))[1]) / (250 * 40)
    assert slope < 25, "bytes a reject; it is some 300 in memory, and its unit's share of the plan's bytes is 11"


def test_an_actor_holds_the_index_of_the_work_list(tmp_path):
    held = []
    for units in (2_000, 10_000):
        (tmp_path / f"{units}.txt").write_text("".join(f"/data/{row:09d}.jpg\n" for row in range(units)))
        list_work(tmp_path / f"{units}.txt", tmp_path / f"{units}.arrow", unit_images=1)
        with (tmp_path / f"{units}.arrow").open("rb") as raw:
            gc.collect()
            before = native()
            work = WorkList(pa.PythonFile(raw), "work.arrow")
            held.append(native() - before)
            assert work.read(units - 1)["uri"].to_pylist() == [f"/data/{units - 1:09d}.jpg"]
    slope = (held[1] - held[0]) / 8_000
    assert ENCODE_ACTOR_UNIT_BYTES / 2 < slope <= ENCODE_ACTOR_UNIT_BYTES * 1.1


def test_comparing_ids_holds_none_of_them(monkeypatch):
    monkeypatch.setattr(engine_ids, "_BUFFER_IDS", 1 << 12)

    def compare(count):
        with RepeatedIds() as ids:
            for start in range(0, count, 10_000):
                ids.add(np.arange(start, start + 10_000))
            return ids.find()

    few, many = (traced(lambda count=count: compare(count))[1] for count in (100_000, 400_000))
    assert (many - few) / 300_000 < 1, "bytes an id, of 8"


def test_the_driver_of_a_build_holds_as_much_for_a_shard_as_planned(tmp_path):
    tables = [f"tables/{name}" for name in ("entries.npy", "offsets.npy", "starts.npy", "tables.json")]
    arrays = ["codes.faiss", "ids.npy", "rows_by_id.npy", "features.npy"]
    names = [*arrays, *tables, "attributes.arrow", "thumbnails.arrow"]
    files = {name: {"bytes": 1, "sha256": "b" * 64} for name in names}
    held = []
    for count in (50, 250):
        (tmp_path / str(count) / "sidecars").mkdir(parents=True)
        for number in range(count):
            said = {"job": "j", **sidecar_of(parse_shard({"name": f"{number:032x}", "rows": 5, "files": files}))}
            (tmp_path / str(count) / "sidecars" / f"{number:05d}.json").write_text(json.dumps(said))
        job = JobFolder(tmp_path / str(count), BUILD, name="j")
        held.append(traced(lambda job=job: [parse_shard(said["shard"]) for _, said in job.done()])[0])
    slope = (held[1] - held[0]) / 200
    assert BUILD_DRIVER_SHARD_BYTES / 8 < slope <= BUILD_DRIVER_SHARD_BYTES
