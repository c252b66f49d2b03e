"""Jobs on clusters of unlike nodes: each scenario is a function of `two_nodes`, run in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.pipelines.jobs.nodes import Node, Seen, look, probe_places


def run(scenario, *arguments):
    command = [sys.executable, "-m", "tests.pipelines.jobs.two_nodes", scenario, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.mark.slow
@pytest.mark.long
def test_a_gpu_on_one_node_is_not_waited_for(corpus, encoder, scratch):
    run("a_gpu_on_one_node", corpus, encoder, scratch)


@pytest.mark.slow
@pytest.mark.long
def test_actors_for_which_there_was_no_room_start_when_nodes_join(corpus, encoder, scratch):
    run("actors_start_when_nodes_join", corpus, encoder, scratch)


def can_mount():
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not can_mount(), reason="a node with a disk of its own takes the right to mount one")
def test_disks_that_are_not_shared_are_refused(corpus, encoder, codes, collection, scratch):
    run("disks_that_are_not_shared", corpus, encoder, codes, collection, scratch)


@pytest.mark.slow
@pytest.mark.skipif(not can_mount(), reason="a node with a disk of its own takes the right to mount one")
def test_every_job_goes_from_bucket_to_bucket_on_a_node_with_a_disk_of_its_own(
    corpus, encoder, codes, bucket, tmp_path_factory
):
    bucket.put("corpus.parquet", corpus.read_bytes())
    for file in encoder.iterdir():
        bucket.put(f"encoder/{file.name}", file.read_bytes())
    run("bucket_to_bucket", bucket.uri("{}"), tmp_path_factory.getbasetemp())
    opened = Collection.open(bucket.uri("c"), verify=True)
    expected = pa.concat_tables(map(pq.read_table, codes.glob("parts/*.parquet"))).sort_by("id")
    assert opened.get(expected["id"].to_numpy())["code"].to_pylist() == expected["code"].to_pylist()
    found = pq.read_table(pa.BufferReader(bucket.get("found.parquet"))).sort_by("query")
    codes_NW = np.frombuffer(b"".join(expected["code"].to_pylist()), np.uint64).reshape(300, 1)
    nearest_NN = np.sort(np.bitwise_count(codes_NW ^ codes_NW.T), axis=1)
    assert sorted(found["distances"].to_pylist()) == sorted(nearest_NN[:, :3].tolist())
    pairs = sum(len(pq.read_table(pa.BufferReader(bucket.get(key)))) for key in bucket.keys("pairs/pairs/"))
    assert pairs == (np.count_nonzero(nearest_NN <= 6) - 300) // 2 > 0


@pytest.fixture
def place(tmp_path):
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / "a.parquet").write_bytes(b"abc")
    return tmp_path / "codes"


def test_a_node_that_sees_what_the_driver_sees_has_nothing_to_say(place):
    seen = look("--codes", str(place), [str(place / "a.parquet"), str(place / "none.parquet")])
    assert seen.files == {str(place / "a.parquet"): 3}
    (place / ".probe.1.tmp").write_bytes(b"")
    before = sorted(os.listdir(place))
    assert probe_places([seen], {"--output": str(place)}, ".probe.1.tmp", "node") == []
    assert sorted(os.listdir(place)) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda place: (place / "a.parquet").unlink(), r"does not see --codes .*codes \(it has no a\.parquet there\)"),
        (
            lambda place: (place / "a.parquet").write_bytes(b"a"),
            r"sees another --codes .*a\.parquet has 1 bytes there, 3",
        ),
        (lambda place: (place / ".probe.1.tmp").unlink(), r"does not see --output .*codes"),
    ],
)
def test_a_node_that_sees_something_else_says_what(place, change, said):
    seen = look("--codes", str(place), [str(place / "a.parquet")])
    (place / ".probe.1.tmp").write_bytes(b"")
    change(place)
    [what] = probe_places([seen], {"--output": str(place)}, ".probe.1.tmp", "node")
    assert re.match(said, what)
    assert not (place / ".probe.1.node.tmp").exists()


def test_a_place_that_a_node_may_not_read_is_named_without_its_key():
    seen = Seen("--input", "s3://KEY:SECRET@photos/x", {"s3://KEY:SECRET@photos/x?endpoint_override=127.0.0.1:1": 3})
    [what] = probe_places([seen], {}, "", "node")
    assert what.startswith("cannot read --input s3://photos/x (")
    assert "SECRET" not in what


@pytest.mark.parametrize(
    ("cpus", "gpus", "room"), [(1, 0, 8), (3, 0, 2), (9, 0, 0), (0, 1, 2), (4, 1, 2), (5, 1, 1), (1, 3, 0)]
)
def test_the_room_of_a_node_is_that_of_its_scarcest_resource(cpus, gpus, room):
    assert Node("a", "10.0.0.1", 8.5, 2.0).room(cpus=cpus, gpus=gpus) == room
