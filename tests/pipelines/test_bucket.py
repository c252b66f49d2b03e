"""Collections in a bucket, through a server that speaks S3: whole or absent, copied only where they are searched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.rows import Reader
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import CollectionBusyError, CollectionNotFoundError, CorruptDataError
from hashlight.engine.places.bucket import Bucket
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.protocol.cluster_map import Assignment, open_group
from hashlight.engine.storage import leftovers
from hashlight.engine.storage.versions import list_versions, read_current
from hashlight.pipelines.building.build import build_collection
from hashlight.pipelines.dedup.dedup import find_duplicates
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.searching.batch import search_codes
from tests import oracles
from tests.engine.collection.by_hand import Part, assemble, write_next
from tests.engine.storage.forging import replace
from tests.pipelines import elsewhere
from tests.pipelines.building.test_build import BITS, answers, write_codes


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(4)
    return oracles.clustered_codes(rng, 900, BITS, centres=30, flips=5), rng.choice(10**12, 900, replace=False)


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    return write_codes(tmp_path_factory.mktemp("codes") / "codes", *rows, part_rows=200)


@pytest.mark.usefixtures("ray_session")
def test_a_collection_is_built_searched_appended_and_replaced_in_a_bucket(tmp_path, bucket, rows, folder):
    codes, ids = rows
    uri = bucket.uri("photos/c")
    with pytest.raises(CollectionNotFoundError, match=rf"no collection at s3://{bucket.name}/photos/c:"):
        Collection.open(uri)
    build_collection(folder, uri, shards=3)
    opened = Collection.open(uri, verify=True)
    queries = codes[::30].copy()
    assert answers(opened, queries)[0] == oracles.knn(queries, codes, ids, 20)[1].tolist()
    assert opened.get(ids[:3])["uri"].to_pylist() == [f"{id_}.png" for id_ in ids[:3]]
    assert (opened.encoder_path / "config.json").read_text() == "{}"
    with pytest.raises(ValueError, match=r"in s3://.* already"):
        opened.add(codes[:5], ids=ids[:5], attributes={"uri": ["x"] * 5})
    more = opened.add(codes[:5], attributes={"uri": list("abcde")})
    assert (len(more), more.version, len(opened)) == (905, 2, 900)
    assert more.get([int(ids.max()) + 1])["uri"].to_pylist() == ["a"]
    build_collection(folder, uri, overwrite=True)
    again = Collection.open(uri)
    assert (len(again), again.version, len(again.shards)) == (900, 3, 1)
    names = {key.split("/")[3] for key in bucket.keys("photos/c/shards/") if key.count("/") > 3}
    assert len(names) == 5, "the live version's shard, and the four of the one before it"


@pytest.mark.usefixtures("ray_session")
def test_what_a_build_reads_stays(tmp_path, bucket, rows, folder, monkeypatch):
    codes, ids = rows
    uri = bucket.uri("c")
    build_collection(folder, uri)
    Collection.open(uri).delete(ids[:10])
    real, left = Reader.dead, [True]

    def overtaken(self, spec):
        if left:
            left.clear()
            Collection.open(uri).delete(ids[10:20]).prune(keep=1).prune(keep=1)
        return real(self, spec)

    monkeypatch.setattr(Reader, "dead", overtaken)
    more = write_codes(tmp_path / "more", codes[:5], 10**13 + np.arange(5), part_rows=5)
    assert build_collection(more, uri, append=True).added == 5
    assert not left
    assert len(Collection.open(uri)) == 900 - 20 + 5
    assert bucket.keys("c/leases") == []


@pytest.mark.usefixtures("ray_session")
def test_codes_in_a_bucket_are_built_from(tmp_path, bucket, rows, folder):
    codes, ids = rows
    for file in (path for path in folder.rglob("*") if path.is_file()):
        bucket.put(f"codes/{file.relative_to(folder).as_posix()}", file.read_bytes())
    build_collection(bucket.uri("codes"), tmp_path / "c", shards=2)
    opened = Collection.open(tmp_path / "c")
    assert answers(opened, codes[::30].copy())[0] == oracles.knn(codes[::30], codes, ids, 20)[1].tolist()
    assert opened.get(ids[:3])["uri"].to_pylist() == [f"{id_}.png" for id_ in ids[:3]]
    assert (opened.encoder_path / "config.json").read_text() == "{}"
    part = next(key for key in bucket.keys("codes/parts/") if "/00001-" in key)
    bucket.put(part, bucket.get(part)[:-1])
    with pytest.raises(PipelineError, match=r"parts/00001-.* is damaged"):
        build_collection(bucket.uri("codes"), tmp_path / "d", shards=2)
    assert not (tmp_path / "d" / "CURRENT").exists()


@pytest.mark.usefixtures("ray_session")
def test_jobs_over_a_bucket(tmp_path, bucket, rows, folder):
    codes, ids = rows
    build_collection(folder, bucket.uri("c"), shards=2)
    search_codes(bucket.uri("c"), folder, tmp_path / "r.parquet", k=3)
    found = pq.read_table(tmp_path / "r.parquet")
    assert found["ids"].to_pylist() == oracles.knn(codes, codes, ids, 3)[1].tolist()
    duplicates = find_duplicates(bucket.uri("c"), tmp_path / "d", radius=0)
    distances = oracles.hamming_distances(codes, codes)
    assert duplicates.pairs == (np.count_nonzero(distances == 0) - 900) // 2 > 0


def test_what_may_have_been_live_keeps_its_shards(bucket, rows, monkeypatch):
    """Its put of CURRENT succeeds, the response is lost, and another writer appends before it learns that it lost."""
    codes, ids = rows
    real = Bucket.replace

    def overtaken(store, name, data, found):
        written = real(store, name, data, found)
        if name == "CURRENT":
            monkeypatch.undo()
            with Transaction(bucket.uri("c")) as other:
                other.add(codes[10:20], ids[10:20])
                other.commit()
            return False
        return written

    monkeypatch.setattr(Bucket, "replace", overtaken)
    with Transaction(bucket.uri("c"), fresh=Fresh(BITS, None)) as first:
        first.add(codes[:10], ids[:10])
        assert first.commit().version == 1
    opened = Collection.open(bucket.uri("c"), verify=True)
    assert (len(opened), opened.version) == (20, 2)
    assert [version.rows for version in list_versions(open_place(bucket.uri("c")))] == [20, 10]


@pytest.mark.parametrize("written", [True, False])
def test_a_store_that_fails_may_have_written_before(bucket, rows, monkeypatch, written):
    codes, ids = rows
    real = Bucket.replace

    def fail(store, name, data, found):
        if written:
            real(store, name, data, found)
        raise OSError("the store answered 500")

    with Transaction(bucket.uri("c"), fresh=Fresh(BITS, None)) as writer:
        writer.add(codes[:10], ids[:10])
        with monkeypatch.context() as patch:
            patch.setattr(Bucket, "replace", fail)
            if written:
                writer.commit()
            else:
                with pytest.raises(OSError, match="answered 500"):
                    writer.commit()
    if not written:
        with pytest.raises(CollectionNotFoundError):
            Collection.open(bucket.uri("c"))
        # What was asked of the store may still happen.
        real(open_place(bucket.uri("c")), "CURRENT", manifest_key(bucket), None)
    assert len(Collection.open(bucket.uri("c"), verify=True)) == 10


def manifest_key(bucket):
    (key,) = bucket.keys("c/manifests/")
    return f"{key.rpartition('/')[2]}\n".encode()


def test_of_two_writers_the_later_is_refused(bucket, rows):
    codes, ids = rows
    for expected in (1, 2):
        fresh = Fresh(BITS, None, overwrite=True)
        with Transaction(bucket.uri("c"), fresh=fresh) as first, Transaction(bucket.uri("c"), fresh=fresh) as second:
            first.add(codes[:10], ids[:10])
            second.add(codes[:20], ids[:20])
            second.commit()
            with pytest.raises(CollectionBusyError, match="another process meanwhile"):
                first.commit()
        opened = Collection.open(bucket.uri("c"))
        assert (len(opened), opened.version) == (20, expected)


def test_a_damaged_object_is_refused_and_a_damaged_copy_fetched_again(bucket, rows):
    codes, ids = rows
    uri = bucket.uri("c")
    opened = Collection.create(uri, codes, ids=ids, bits=BITS)
    assert len(opened.search(codes[:1], 3).ids) == 1
    copy = next(opened.path.glob("shards/*/ids.npy"))
    whole = copy.read_bytes()
    copy.unlink()
    copy.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = Collection.open(uri)
    assert (again.search(codes[:30], 3).ids == opened.search(codes[:30], 3).ids).all()
    assert copy.read_bytes() == whole
    (key,) = (key for key in bucket.keys("c/shards") if key.endswith("codes.faiss"))
    bucket.put(key, bucket.get(key)[:-1])
    copy.unlink()
    damaged = Collection.open(uri)
    for _ in range(2):
        with pytest.raises(CorruptDataError, match=rf"s3://{bucket.name}/c/shards/.*codes\.faiss: expected"):
            damaged.search(codes[:1], 3)


def test_deleted_rows_and_columns_are_copied_with_their_shards(tmp_path, bucket):
    schema = pa.schema({"label": pa.int64(), "later": pa.string()})
    later = {"later": (pa.string(), dict.fromkeys([1, 2, 3], "x"))}
    parts = [Part([[1], [2], [3]], [1, 2, 3], {"label": [1, 2, 3]}, dead={2}, columns=later), Part([[4]], [4])]
    path = assemble(tmp_path / "c", parts, bits=BITS, schema=schema)

    def upload():
        for file in (path for path in path.rglob("*") if path.is_file() and path.name != ".lock"):
            bucket.put(f"c/{file.relative_to(path).as_posix()}", file.read_bytes())

    upload()
    uri, nothing = bucket.uri("c"), np.zeros((1, 1), np.uint64)
    before = Collection.open(uri)
    assert before.search(nothing, 5, filter="later = 'x' or label is null").ids.tolist() == [[1, 4, 3, -1, -1]]
    group = open_group(uri, Assignment(1, before.manifest.digest, (before.shards[0].name,)))
    assert group.search(nothing, 5).ids.tolist() == [[1, 3, -1, -1, -1]]
    del group
    write_next(path, lambda document: document.update(shards=[]))
    upload()
    again = Collection.open(uri, reuse=before)
    assert (len(again), again.version) == (0, 2)
    old = Collection.open(uri, version=1, reuse=before)
    assert (len(old), old.version, old.shards[0] is before.shards[0]) == (3, 1, True)
    assert len(Collection.open(uri)) == 0
    with pytest.raises(CollectionNotFoundError, match="no version 3"):
        Collection.open(uri, version=3)
    for folder in ("deletions", "columns"):
        (copy,) = (before.path / folder).iterdir()
        replace(copy, copy.read_bytes()[:-1])
    assert Collection.open(uri, version=1).get([1])["later"].to_pylist() == ["x"]


DRIVER = """
import sys
from hashlight.pipelines.building.build import build_collection
build_collection(sys.argv[1], sys.argv[2], shards=3, overwrite=True, workers=1)
"""


def build_elsewhere(folder, uri, faults, rule):
    return elsewhere.run_program(DRIVER, [folder, uri], faults, rule)


@pytest.mark.parametrize(
    ("step", "skip", "finished"),
    [
        ("build:shard-done", 1, 2),
        pytest.param("build:shard-written", 1, 1, marks=pytest.mark.slow),
        pytest.param("build:before-commit", 0, 3, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("ray_session")
def test_a_killed_build_resumes_in_a_bucket(tmp_path, bucket, rows, folder, step, skip, finished):
    codes, ids = rows
    uri = bucket.uri("c")
    rule = {"step": step, "do": "kill-driver", "skip": skip}
    done = build_elsewhere(folder, uri, tmp_path / "faults", rule)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = {
        int(key.rpartition("/")[2].partition(".")[0]): json.loads(bucket.get(key))["shard"]["name"]
        for key in bucket.keys("c/build/sidecars/")
    }
    assert len(before) >= finished
    build_collection(folder, uri, shards=3, overwrite=True)
    specs = read_current(open_place(uri)).shards
    assert len(specs) == 3
    assert {number: specs[number].name for number in before} == before, "no finished shard is built again"
    found = Collection.open(uri).search(codes[::30].copy(), 20)
    assert found.ids.tolist() == oracles.knn(codes[::30], codes, ids, 20)[1].tolist()
    assert not bucket.keys("c/build/")


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("before", [pytest.param(0, marks=pytest.mark.slow), 50])
def test_a_killed_upload_leaves_no_half_collection(tmp_path, bucket, rows, folder, before, monkeypatch):
    codes, ids = rows
    uri = bucket.uri("c")
    if before:
        Collection.create(uri, codes[:50], ids=ids[:50], bits=BITS)
    rule = {"step": "build:before-commit" if before else "build:shard", "do": "kill-driver", "skip": 0 if before else 1}
    done = build_elsewhere(folder, uri, tmp_path / "faults", rule)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any("/shards/" in key for key in bucket.keys("c/")), "something was uploaded"
    if before:
        assert len(Collection.open(uri, verify=True)) == 50
    else:
        with pytest.raises(CollectionNotFoundError):
            Collection.open(uri)
    build_collection(folder, uri, shards=2, overwrite=True)
    opened = Collection.open(uri)
    assert (len(opened), len(opened.shards)) == (900, 2)
    sweep_after_a_week(uri, monkeypatch)
    assert len(shards_in(bucket)) == 2 + bool(before), "leftovers of killed writers are removed"
    assert not open_place(uri).names("intents")


def sweep_after_a_week(uri, monkeypatch):
    """What is in a bucket may be that of a living writer: only its age tells."""
    place = open_place(uri)
    left = len(list(place.walk("")))
    leftovers.sweep_intents(place)
    assert len(list(place.walk(""))) == left, "so far it may be alive"
    monkeypatch.setattr(leftovers, "_DEAD_AFTER_S", -1)
    leftovers.sweep_intents(place)


def shards_in(bucket):
    return {key.split("/")[2] for key in bucket.keys("c/shards/") if key.count("/") > 2}


UPLOADER = """
import os, signal, sys
import numpy as np
from hashlight.engine.collection.collection import Collection
from hashlight.engine.places.bucket import Bucket
copy, uploaded = Bucket.put_file, []
def copy_some(*arguments, **options):
    if len(uploaded) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    uploaded.append(arguments)
    copy(*arguments, **options)
Bucket.put_file = copy_some
Collection.create(sys.argv[1], np.arange(100, dtype=np.uint64)[:, None], bits=48, shards=2, overwrite=True)
"""


@pytest.mark.parametrize("before", [0, 50])
def test_an_upload_killed_between_the_files_of_a_shard_leaves_the_old_collection(bucket, rows, before, monkeypatch):
    codes, ids = rows
    uri = bucket.uri("c")
    if before:
        Collection.create(uri, codes[:50], ids=ids[:50], bits=BITS)
    had = len(bucket.keys("c/shards/"))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", UPLOADER, uri, "2"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sum(not key.endswith("/") for key in bucket.keys("c/shards/")) >= had + 2, "half a shard is there"
    if before:
        assert len(Collection.open(uri, verify=True)) == 50
    else:
        with pytest.raises(CollectionNotFoundError):
            Collection.open(uri)
    assert len(Collection.create(uri, codes, ids=ids, bits=BITS, shards=2, overwrite=True)) == 900
    sweep_after_a_week(uri, monkeypatch)
    assert len(shards_in(bucket)) == 2 + bool(before), "leftovers of killed writers are removed"


@pytest.fixture
def lost_responses(monkeypatch):
    """Make every conditional put succeed but lose its response, so that the client's retry is refused."""
    put = obstore.put

    def twice(store, key, data, *, mode=None, **options):
        if mode is not None:
            put(store, key, data, mode=mode, **options)
        return put(store, key, data, mode=mode, **options)

    monkeypatch.setattr(obstore, "put", twice)


@pytest.mark.usefixtures("lost_responses")
def test_a_commit_whose_response_was_lost_is_ours(bucket, rows):
    codes, ids = rows
    for size in (10, 20):
        with Transaction(bucket.uri("c"), fresh=Fresh(BITS, None, overwrite=True)) as writer:
            writer.add(codes[:size], ids[:size])
            assert writer.commit().added == size
        assert len(Collection.open(bucket.uri("c"), verify=True)) == size


@pytest.mark.usefixtures("lost_responses")
def test_a_new_file_whose_response_was_lost_is_ours(bucket):
    folder = open_place(bucket.uri("codes"))
    assert folder.put_new("job.json", b"ours")
    assert not folder.put_new("job.json", b"another's")
    assert bucket.get("codes/job.json") == b"ours"
