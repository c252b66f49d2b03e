"""Batch search: the oracle's answers to every query, whatever the blocks and shards, published whole or not at all."""

from __future__ import annotations

import json
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import CollectionBusyError
from hashlight.engine.places.files import writer_lock
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.searching import batch as batch_search
from hashlight.pipelines.searching.batch import search_codes
from tests import oracles
from tests.engine.collection.by_hand import Part, assemble
from tests.pipelines import elsewhere

pytestmark = pytest.mark.usefixtures("ray_session")

BITS = 48


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A collection of 2,000 codes with many ties in three shards, and 500 queries in a file of uneven row groups."""
    rng = np.random.default_rng(3)
    codes = oracles.clustered_codes(rng, 2000, BITS, centres=60, flips=6)
    ids = rng.choice(10**12, 2000, replace=False)
    folder = tmp_path_factory.mktemp("batch")
    Collection.create(folder / "c", codes, ids=ids, bits=BITS, shards=3)
    queries = oracles.clustered_codes(np.random.default_rng(3), 500, BITS, centres=60, flips=5)
    write_queries(folder / "queries.parquet", queries, ids=np.arange(5000, 5500))
    return folder, codes, ids, queries


def write_queries(path, queries, ids=None, kind=None):
    kind = kind or pa.binary(8 * queries.shape[1])
    columns = {"code": pa.array([code.tobytes() for code in queries], kind)}
    pq.write_table(pa.table(columns if ids is None else {"id": ids, **columns}), path, row_group_size=130)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks for 500 queries; the driver cuts them and tells each task its block."""
    monkeypatch.setattr(batch_search, "BLOCK_QUERIES", 190)


def check(path, database, *, k=None, radius=None, limit=None, first=5000):
    _, codes, ids, queries = database
    rows = pq.read_table(path).to_pylist()
    assert [row["query"] for row in rows] == list(range(first, first + 500))
    if k is not None:
        distances, nearest = oracles.knn(queries, codes, ids, k)
        assert [row["ids"] for row in rows] == nearest.tolist()
        assert [row["distances"] for row in rows] == distances.tolist()
        assert not any(row["truncated"] for row in rows), "no limit cuts the k nearest"
        return
    within, cut = oracles.within_radius(queries, codes, ids, radius, limit)
    assert [list(zip(row["distances"], row["ids"], strict=True)) for row in rows] == within
    assert [row["truncated"] for row in rows] == cut
    assert sum(map(len, within)) > 500, "an empty answer must not pass"


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("asked", [{"k": 7}, {"radius": 3}, {"radius": 4, "limit": 5}])
def test_answers_equal_the_oracle(tmp_path, database, asked):
    seen = []
    job = search_codes(
        database[0] / "c", database[0] / "queries.parquet", tmp_path / "r.parquet",
        progress=lambda done, total: seen.append((done, total)), **asked,
    )  # fmt: skip
    check(tmp_path / "r.parquet", database, **asked)
    assert (job.queries, job.codes) == (500, 2000)
    assert seen[0] == (0, 500)
    assert seen[-1] == (500, 500)
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]
    about = json.loads(pq.read_schema(tmp_path / "r.parquet").metadata[b"hashlight"])
    assert (about["version"], about["radius"], about["k"]) == (1, asked.get("radius"), asked.get("k"))


@pytest.mark.parametrize("asked", [{"k": 7}, {"radius": 4, "limit": 5}])
def test_a_filter_leaves_out_what_does_not_satisfy_it(tmp_path, database, asked):
    folder, codes, ids, queries = database
    path = tmp_path / "c"
    Collection.create(path, codes[:1000], ids=ids[:1000], attributes={"label": np.arange(1000) % 3}, bits=BITS)
    Collection.open(path).add(codes[1000:], ids=ids[1000:])  # without labels
    search_codes(path, folder / "queries.parquet", tmp_path / "r.parquet", filter="label == 2", **asked)
    labelled = np.arange(1000) % 3 == 2
    check(tmp_path / "r.parquet", (folder, codes[:1000][labelled], ids[:1000][labelled], queries), **asked)
    with pytest.raises(ValueError, match="colour"):
        search_codes(path, folder / "queries.parquet", tmp_path / "s.parquet", filter="colour == 2", **asked)
    assert not list(tmp_path.glob(".s.parquet*"))


def test_two_searches_into_one_file_are_refused(tmp_path, database):
    work = tmp_path / ".r.parquet.work"
    work.mkdir()
    (work / "block-000000.parquet").write_bytes(b"the other's")
    asked = [database[0] / "c", database[0] / "queries.parquet", tmp_path / "r.parquet"]
    with writer_lock(work), pytest.raises(CollectionBusyError, match="being written by another process"):
        search_codes(*asked, k=3)
    assert (work / "block-000000.parquet").read_bytes() == b"the other's"
    search_codes(*asked, k=3)
    check(tmp_path / "r.parquet", database, k=3)


def test_queries_without_ids_get_their_row_numbers(tmp_path, database, monkeypatch):
    monkeypatch.setattr(batch_search, "BLOCK_QUERIES", 123)
    write_queries(tmp_path / "q.parquet", database[3], kind=pa.binary())
    search_codes(database[0] / "c", tmp_path / "q.parquet", tmp_path / "r.parquet", k=3)
    check(tmp_path / "r.parquet", database, k=3, first=0)


def test_a_folder_of_codes_can_be_asked(tmp_path, collection, codes):
    search_codes(collection, codes, tmp_path / "r.parquet", k=1)
    found = pq.read_table(tmp_path / "r.parquet")
    assert found["distances"].to_pylist() == [[0]] * 300
    assert found["query"].to_pylist() == pq.read_table(codes / "parts")["id"].to_pylist()


def test_the_command(tmp_path, database):
    arguments = ["search", str(database[0] / "c"), "--codes", str(database[0] / "queries.parquet")]
    run = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "r.parquet"), "--radius", "3", "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["queries"] == 500
    check(tmp_path / "r.parquet", database, radius=3)
    by_faiss = ["--output", str(tmp_path / "f.parquet"), "--radius", "3", "--index", "faiss-flat"]
    assert CliRunner().invoke(app, [*arguments, *by_faiss]).exit_code == 0
    assert pq.read_table(tmp_path / "f.parquet").equals(pq.read_table(tmp_path / "r.parquet"))
    again = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "r.parquet")])
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"x"]}, "no column `code`"),
        ({"code": pa.array([b"x" * 16], pa.binary(16))}, r"fixed_size_binary\[16\], codes of 48 bits are binary of 8"),
        ({"code": [b"x" * 7]}, "must be 8 bytes in every row"),
        ({"code": pa.array([b"\xff" * 8], pa.binary(8))}, "has bits set past bit 47"),
        ({"code": pa.array([], pa.binary(8))}, "no rows"),
        ({"code": pa.array([b"x" * 8], pa.binary(8)), "id": ["a"]}, "`id` must be whole numbers, got string"),
    ],
)
def test_bad_queries_are_refused(tmp_path, database, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    with pytest.raises((PipelineError, ValueError), match=message):
        search_codes(database[0] / "c", tmp_path / "q.parquet", tmp_path / "r.parquet", k=1)
    assert not (tmp_path / "r.parquet").exists()


@pytest.mark.usefixtures("small_blocks")
def test_another_search_into_the_same_file_is_refused_until_it_is_overwritten(tmp_path, database, monkeypatch):
    asked = [database[0] / "c", database[0] / "queries.parquet", tmp_path / "r.parquet"]

    def fail(*_):
        raise OSError("No space left")

    with monkeypatch.context() as patch:
        patch.setattr(batch_search, "_publish", fail)
        with pytest.raises(OSError, match="No space"):
            search_codes(*asked, k=3)
    work = tmp_path / ".r.parquet.work"
    kept = {path: path.read_bytes() for path in work.rglob("*.parquet")}
    assert len(kept) == 3
    with pytest.raises(PipelineError, match=r"unfinished answers of another job, with k 3 \(asked: 4\)"):
        search_codes(*asked, k=4)
    assert {path: path.read_bytes() for path in work.rglob("*.parquet")} == kept
    seen = []
    search_codes(*asked, k=3, progress=lambda done, _total: seen.append(done))
    assert seen == [500], "all blocks were done"
    check(tmp_path / "r.parquet", database, k=3)
    search_codes(*asked, k=4, overwrite=True)
    check(tmp_path / "r.parquet", database, k=4)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_answers_do_not_depend_on_the_workers(tmp_path, database, workers):
    search_codes(database[0] / "c", database[0] / "queries.parquet", tmp_path / "r.parquet", k=3, workers=workers)
    check(tmp_path / "r.parquet", database, k=3)


@pytest.mark.usefixtures("small_blocks")
def test_a_damaged_block_is_named_and_answered_again(tmp_path, database, monkeypatch):
    asked = [database[0] / "c", database[0] / "queries.parquet", tmp_path / "r.parquet"]

    def fail(*_):
        raise OSError("No space left")

    with monkeypatch.context() as patch:
        patch.setattr(batch_search, "_publish", fail)
        with pytest.raises(OSError, match="No space"):
            search_codes(*asked, k=3)
    block = tmp_path / ".r.parquet.work" / "block-000001.parquet"
    data = bytearray(block.read_bytes())
    data[len(data) // 3] ^= 1
    block.write_bytes(data)
    with pytest.raises(PipelineError, match=r"block-000001\.parquet is damaged .*: run the same search again"):
        search_codes(*asked, k=3)
    assert not (tmp_path / "r.parquet").exists()
    seen = []
    search_codes(*asked, k=3, progress=lambda done, _total: seen.append(done))
    assert seen == [310, 500], "one block is answered again"
    check(tmp_path / "r.parquet", database, k=3)


@pytest.mark.usefixtures("small_blocks")
def test_queries_and_answers_in_a_bucket(tmp_path, database, bucket, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bucket.put("queries.parquet", (database[0] / "queries.parquet").read_bytes())
    search_codes(database[0] / "c", bucket.uri("queries.parquet"), bucket.uri("found/r.parquet"), radius=3)
    (tmp_path / "r.parquet").write_bytes(bucket.get("found/r.parquet"))
    check(tmp_path / "r.parquet", database, radius=3)
    assert bucket.keys("found/") == ["found/r.parquet"]
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"], "no folder is called s3:"
    with pytest.raises(PipelineError, match="exists already"):
        search_codes(database[0] / "c", bucket.uri("queries.parquet"), bucket.uri("found/r.parquet"), radius=3)


DRIVER = """
import sys
from hashlight.pipelines.searching import batch as batch_search
batch_search.BLOCK_QUERIES = 100
batch_search.search_codes(sys.argv[1], sys.argv[2], sys.argv[3], radius=3, workers=2)
"""


@pytest.mark.parametrize(
    ("step", "act", "skip"),
    [
        ("search:merge", "kill-driver", 3),
        pytest.param("search:shard", "no-space", 11, marks=pytest.mark.slow),
        pytest.param("search:written-aside", "kill-driver", 0, marks=pytest.mark.slow),
        pytest.param("search:published", "kill-driver", 0, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_search_resumes(tmp_path, database, monkeypatch, step, act, skip):
    monkeypatch.setattr(batch_search, "BLOCK_QUERIES", 100)
    faults = tmp_path / "faults"
    asked = [str(database[0] / "c"), str(database[0] / "queries.parquet"), str(tmp_path / "r.parquet")]
    done = elsewhere.run_program(DRIVER, asked, faults, {"step": step, "do": act, "skip": skip})
    assert done.returncode == (-signal.SIGKILL if act == "kill-driver" else 1), done.stderr
    kept = len(list((tmp_path / ".r.parquet.work" / "sidecars").glob("*.json")))
    assert kept > 0
    assert (tmp_path / "r.parquet").exists() == (step == "search:published")
    if step == "search:published":
        check(tmp_path / "r.parquet", database, radius=3)
        with pytest.raises(PipelineError, match="exists already"):
            search_codes(*asked, radius=3)
        assert not (tmp_path / ".r.parquet.work").exists()
        return
    seen = []
    search_codes(*asked, radius=3, progress=lambda done, _total: seen.append(done))
    assert seen[0] >= 100 * kept
    check(tmp_path / "r.parquet", database, radius=3)
    search_codes(*asked[:2], tmp_path / "undisturbed.parquet", radius=3)
    assert (tmp_path / "r.parquet").read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()
    assert not (tmp_path / ".r.parquet.work").exists()


@pytest.mark.parametrize("asked", [{"k": 10}, {"radius": 4}, {"radius": 12, "limit": 3}], ids=str)
def test_deleted_rows_are_not_found(tmp_path, database, small_blocks, asked):
    folder, codes, ids, queries = database
    dead = {*ids[:900:2].tolist(), *ids[900:1000].tolist()}
    cuts = (slice(0, 900), slice(900, 1000), slice(1000, None))
    parts = [Part(codes[cut], ids[cut], dead=dead & set(ids[cut].tolist())) for cut in cuts]
    path = assemble(tmp_path / "c", parts, bits=BITS, schema=None)
    job = search_codes(path, folder / "queries.parquet", tmp_path / "r.parquet", **asked)
    alive = np.array([id_ not in dead for id_ in ids.tolist()])
    check(tmp_path / "r.parquet", (folder, codes[alive], ids[alive], queries), **asked)
    assert job.codes == alive.sum()


def test_a_version_without_codes_answers_every_query(tmp_path, database, small_blocks):
    folder = database[0]
    path = assemble(tmp_path / "c", [Part([[1]], [1], dead={1})], bits=BITS, schema=None)
    search_codes(path, folder / "queries.parquet", tmp_path / "r.parquet", k=3)
    rows = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["query"] for row in rows] == list(range(5000, 5500))
    assert not any(row["ids"] for row in rows)
