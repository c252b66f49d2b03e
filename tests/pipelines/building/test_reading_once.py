"""A build reads and checks each part once, a few ahead, and keeps little of it in memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine import features
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.ids import RepeatedIds
from hashlight.engine.places.opening import open_place
from hashlight.pipelines.building import build, shards
from hashlight.pipelines.building.shards import ShardJob
from hashlight.pipelines.codes.parts import Piece
from hashlight.pipelines.jobs.folder import JobFolder
from tests.pipelines.building.test_build import BITS, FINGERPRINT, write_codes
from tests.pipelines.reads import Reads

PART_ROWS = 200


def codes_with_everything(folder, rows, *, dim=8):
    """Codes with attributes, features and thumbnails; return the columns, too."""
    rng = np.random.default_rng(1)
    codes = rng.integers(2**BITS, size=(rows, 1), dtype=np.uint64)
    features = rng.standard_normal((rows, dim)).astype("<f2")
    more = {
        "label": pa.array([None if row % 7 == 0 else f"class {row % 5}" for row in range(rows)]),
        "features": pa.array([row.tobytes() for row in features], pa.binary(2 * dim)),
        "thumbnail": pa.array([b"x%d" % row if row % 3 else None for row in range(rows)], pa.binary()),
    }
    return write_codes(folder, codes, rng.permutation(rows), part_rows=PART_ROWS, more=more), codes, features, more


def one_task(found, output):
    """The only task of a build."""
    pieces = tuple(Piece(part, 0, part.rows) for part in found.parts)
    folder = JobFolder(output / "build", build.BUILD, name="j")
    return ShardJob(
        number=0,
        folder=folder,
        output=str(output),
        pieces=pieces,
        schema=found.schema,
        bits=BITS,
        tables=True,
        threads=1,
        features_as=("float16", "float16"),
    )


def build_here(folder, output):
    """Do in this process what a build does with the parts: its look at all of them, and its one task."""
    with RepeatedIds() as ids:
        found = build._find_codes(folder, ids)
        assert not len(ids.find())
    with Transaction(str(output), fresh=Fresh(BITS, FINGERPRINT)) as writer:
        spec = shards.build_shard(one_task(found, output))
        writer.check_shard(spec)
        writer.adopt([spec])
        writer.add_encoder({"config.json": b"{}"})
        writer.commit()
    return found


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_each_part_is_looked_into_once_and_read_once(tmp_path, monkeypatch, request, where):
    folder, codes, features, more = codes_with_everything(tmp_path / "codes", 1000)
    location = folder
    if where == "bucket":
        bucket = request.getfixturevalue("bucket")
        for path in folder.rglob("*.*"):
            bucket.put(f"codes/{path.relative_to(folder)}", path.read_bytes())
        location = bucket.uri("codes")
    reads = Reads(monkeypatch)
    found = build_here(location, tmp_path / "c")
    once = dict.fromkeys((str(open_place(part.path)).rpartition("/")[2] for part in found.parts), 1)
    assert len(once) == 5
    # Footer and ids, and then all of it: one kind of data after another, it was read four times.
    assert {name: count for name, count in reads.opened.items() if name.endswith(".parquet")} == once
    assert {name: count for name, count in reads.whole.items() if name.endswith(".parquet")} == once
    monkeypatch.undo()
    built = Collection.open(tmp_path / "c", verify=True)
    ids = np.random.default_rng(1)
    ids.integers(2**BITS, size=(1000, 1), dtype=np.uint64)
    ids.standard_normal((1000, 8))
    order = ids.permutation(1000)
    table = built.get(order)
    assert np.array_equal(np.stack([np.frombuffer(code, "<u8") for code in table["code"].to_pylist()]), codes)
    assert table["label"].to_pylist() == more["label"].to_pylist()
    assert built.thumbnails_of(order) == more["thumbnail"].to_pylist()
    assert np.array_equal(built.features_of(order), features)


def test_features_are_not_all_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_COPIED_ROWS", 1000)
    peaks = []
    for rows in (4_000, 12_000):
        folder, *_ = codes_with_everything(tmp_path / f"codes {rows}", rows, dim=512)
        pa.default_memory_pool().release_unused()
        tracemalloc.start()
        build_here(folder, tmp_path / f"c {rows}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    slope = (peaks[1] - peaks[0]) / 8_000
    assert slope < 400, "bytes a row; its features alone have 1,024"
