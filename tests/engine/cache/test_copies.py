"""Collections in a bucket are opened by their manifest, and fetched as far as they are used; moto speaks S3."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import obstore
import pytest

from hashlight.engine.cache import size
from hashlight.engine.cache.locks import uses_of
from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import CollectionNotFoundError, CorruptDataError, PlaceError
from hashlight.engine.indexes.multi_index import planner
from hashlight.engine.places.bucket import Bucket
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.asking.searcher import try_search
from hashlight.engine.service.protocol.cluster_map import Assignment, open_group
from hashlight.engine.storage.copies import open_shard
from tests import oracles
from tests.costs import FIXED_COSTS

BITS = 48
NUM_SHARDS = 4


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(8)
    return oracles.clustered_codes(rng, 400, BITS, centres=20, flips=5), rng.choice(10**9, 400, replace=False)


@pytest.fixture
def uri(bucket, rows, monkeypatch, tmp_path):
    """A collection in a bucket, of which nothing is on this machine."""
    codes, ids = rows
    uri = bucket.uri("c")
    Collection.create(uri, codes, ids=ids, bits=BITS, shards=NUM_SHARDS, attributes={"n": np.arange(400)})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    planner.write_machine_file(planner.machine_file("costs"), asdict(FIXED_COSTS))
    return uri


@pytest.fixture
def requests(monkeypatch):
    """What is asked of the bucket: kind of request, and the kind of name."""
    counts = collections.Counter()
    guard = threading.Lock()

    def count(verb, real):
        def counted(store, *arguments, **options):
            name = str(arguments[0]) if arguments else ""
            with guard:
                counts[verb, next((kind for kind in KINDS if f"/{kind}" in f"/{name}"), name)] += 1
            return real(store, *arguments, **options)

        return counted

    for verb in ("get", "head", "list", "list_with_delimiter", "put", "delete", "get_range"):
        monkeypatch.setattr(obstore, verb, count(verb, getattr(obstore, verb)))
    return counts


KINDS = ("CURRENT", "manifests", "shards", "deletions", "columns", "encoder", ".lock", "intents")
FILES = 8  # of a shard: codes, ids, rows by id, four of tables, attributes


def assert_exact(opened, rows):
    codes, ids = rows
    assert opened.search(codes[::40].copy(), 5).ids.tolist() == oracles.knn(codes[::40], codes, ids, 5)[1].tolist()


def shards_at(opened):
    folder = opened.path / "shards"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_opening_needs_the_manifest_only(uri, rows, requests):
    opened = Collection.open(uri)
    assert (len(opened), len(opened.shards), opened.schema.names) == (400, NUM_SHARDS, ["n"])
    assert requests == {("get", "CURRENT"): 1, ("get", "manifests"): 1}
    assert not shards_at(opened)


def test_a_search_fetches_each_file_of_each_shard_by_one_request(uri, rows, requests):
    opened = Collection.open(uri)
    requests.clear()
    assert_exact(opened, rows)
    assert_exact(opened, rows)
    assert_exact(Collection.open(uri), rows)
    again = {("get", "CURRENT"): 1, ("get", "manifests"): 1}
    assert requests == {("get", "shards"): NUM_SHARDS * FILES, **again}


def test_one_id_fetches_the_shards_that_may_have_it(bucket, requests):
    codes = np.arange(40, dtype=np.uint64)[:, None]
    uri = bucket.uri("ranges")
    collection = Collection.create(uri, codes[:10], bits=BITS)
    for start in (10, 20, 30):
        collection = collection.add(codes[start : start + 10], ids=np.arange(start, start + 10))
    opened = Collection.open(uri)
    requests.clear()
    assert opened.get([25])["id"].to_pylist() == [25]
    assert shards_at(opened) == [opened.manifest.shards[2].name]
    assert set(requests) == {("get", "shards")}


def test_large_files_are_fetched_in_ranges(uri, rows, requests, monkeypatch):
    monkeypatch.setattr("hashlight.engine.cache.cache._RANGE_BYTES", 100)
    opened = Collection.open(uri)
    sizes = [file.bytes for spec in opened.manifest.shards for file in spec.files.values()]
    assert_exact(opened, rows)
    assert requests["get", "shards"] == sum(-(-each // 100) for each in sizes) > len(sizes)


def test_progress_and_prefetch(uri, rows, requests):
    told = []
    opened = Collection.open(uri, prefetch=True, progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, opened.num_bytes)
    assert told[-1] == (opened.num_bytes, opened.num_bytes)
    assert all(before < after for (before, _), (after, _) in itertools.pairwise(told))
    requests.clear()
    assert_exact(opened, rows)
    assert not requests


def test_deleted_rows_and_columns_come_with_their_shard(uri, rows, requests):
    codes, ids = rows
    changed = Collection.open(uri).delete(ids[:3]).set_column("late", ["x"] * 2, ids=ids[3:5])
    requests.clear()
    opened = Collection.open(changed.location)
    assert_exact(opened, (codes[3:], ids[3:]))
    assert opened.get(ids[3:6])["late"].to_pylist() == ["x", "x", None]
    dead = sum(spec.dead is not None for spec in opened.manifest.shards)
    columns = sum(len(spec.columns) for spec in opened.manifest.shards)
    assert min(dead, columns) > 0
    assert requests["get", "shards"] == NUM_SHARDS * FILES
    assert (requests["get", "deletions"], requests["get", "columns"]) == (dead, columns)


def test_the_encoder_is_fetched_when_it_is_asked_for(bucket, rows, tmp_path, requests):
    codes, ids = rows
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text("{}")
    uri = bucket.uri("encoded")
    Collection.create(uri, codes, ids=ids, bits=BITS, encoder=tmp_path / "encoder", fingerprint="f" * 64)
    requests.clear()
    opened = Collection.open(uri)
    assert requests == {("get", "CURRENT"): 1, ("get", "manifests"): 1}
    for _ in range(2):
        assert (opened.encoder_path / "config.json").read_text() == "{}"
    assert requests["get", "encoder"] == 1


def test_an_encoder_that_went_with_its_version_is_said_to_be_gone(bucket, rows, tmp_path):
    codes, _ = rows
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "config.json").write_text("{}")
    uri = bucket.uri("replaced")
    old = Collection.create(uri, codes, bits=BITS, encoder=tmp_path / "encoder", fingerprint="f" * 64)
    for _ in range(2):
        Collection.create(uri, codes[:9], bits=BITS, overwrite=True)
    with pytest.raises(CollectionNotFoundError, match=r"encoder/.* is gone, because newer"):
        old.encoder_path  # noqa: B018


def test_a_server_fetches_the_shards_of_its_group(uri, rows):
    manifest = Collection.open(uri).manifest
    names = [spec.name for spec in manifest.shards[1:3]]
    group = open_group(uri, Assignment(1, manifest.digest, tuple(names)))
    try_search(group)
    assert shards_at(group) == sorted(names)


def test_a_deletion_fetches_ids_alone(uri, rows, requests):
    _, ids = rows
    opened = Collection.open(uri)
    opened.delete(ids[:1])
    assert {name for verb, name in requests if verb == "get"} >= {"shards"}
    assert requests["get", "shards"] <= NUM_SHARDS, "of each shard at most the ids"
    assert not shards_at(opened)


def test_a_compaction_needs_no_tables(uri, rows, requests):
    merged = Collection.open(uri).compact(full=True)
    assert len(merged.shards) == 1
    # ids, codes and attributes; what may be read again is small: the start of a file.
    assert requests["get", "shards"] <= NUM_SHARDS * 5
    assert_exact(merged, rows)


# What is kept, and what goes.


def test_the_least_recently_used_shards_go(uri, rows, monkeypatch):
    opened = Collection.open(uri)
    names = [spec.name for spec in opened.manifest.shards]
    sizes = [sum(file.bytes for file in spec.files.values()) for spec in opened.manifest.shards]
    copies = opened.shards.copies
    for number in (2, 0, 1):
        copies.fetch([opened.manifest.shards[number]])
        age(opened.path, names[number], seconds=100 - number)
    age(opened.path, names[2], seconds=1000)
    monkeypatch.setenv(size.VARIABLE, str(sum(sizes[number] for number in (0, 1, 3))))
    copies.fetch([opened.manifest.shards[3]])
    assert shards_at(opened) == sorted(names[number] for number in (0, 1, 3))
    used = {path.name for path in (opened.path / "used").iterdir()}
    assert used == {f"shards-{names[number]}" for number in (0, 1, 3)}


def age(folder, name, *, seconds):
    path = size.used_file(folder, f"shards/{name}")
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_what_is_open_stays(uri, rows, monkeypatch, caplog):
    monkeypatch.setenv(size.VARIABLE, "1")
    monkeypatch.setattr(size, "_WARNING_PAUSE_S", -1)
    opened = Collection.open(uri)
    assert_exact(opened, rows)
    assert len(shards_at(opened)) == NUM_SHARDS
    assert "above its limit" in caplog.text
    other = Collection.open(uri)
    first = other.shards[0]
    path = opened.path
    del opened
    with size.room_for(1):
        pass
    assert [each.name for each in (path / "shards").iterdir()] == [first.name]
    assert first.rows == len(first.codes_NW)


def test_threads_open_shards_while_others_remove_them(uri, rows, monkeypatch):
    monkeypatch.setenv(size.VARIABLE, "1")
    manifest = Collection.open(uri).manifest
    wanted = {spec.name: spec.rows for spec in manifest.shards}

    def open_often(number):
        place, specs = open_place(uri), manifest.shards[number:] + manifest.shards[:number]
        # Every shard that is fetched removes those that are not open.
        return [(spec.name, len(open_shard(place, spec, bits=BITS).ids_N)) for spec in specs * 3]

    with ThreadPoolExecutor(NUM_SHARDS) as pool:
        for found in pool.map(open_often, range(NUM_SHARDS)):
            assert len(found) == 3 * NUM_SHARDS
            assert all(wanted[name] == num_rows for name, num_rows in found)
    assert not uses_of(Collection.open(uri).path / size.LOCKS)._counts, "all is released"


HOLDER = """
import sys
from hashlight.engine.collection.collection import Collection
collection = Collection.open(sys.argv[1])
shard = collection.shards[int(sys.argv[2])]
print("open", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def running(program, *arguments):
    """A process, which is gone when the context exits."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def fetch_until_killed(uri, step):
    """Have another process killed when it is about to send this request for a shard's file."""
    with running(FETCHER, uri, step) as killed:
        killed.stdin.close()
        assert killed.wait() == -signal.SIGKILL


def test_what_another_process_has_open_stays_until_it_ends(uri, monkeypatch):
    with running(HOLDER, uri, 2) as holder:
        assert holder.stdout.readline() == "open\n"
        opened = Collection.open(uri)
        opened.shards.copies.fetch(opened.manifest.shards)
        monkeypatch.setenv(size.VARIABLE, "1")
        with size.room_for(1):
            pass
        assert shards_at(opened) == [opened.manifest.shards[2].name]
    with size.room_for(1):
        pass
    assert shards_at(opened) == []


@pytest.mark.parametrize("text", ["", "x", "-1", "5 parsecs", "1GBB"])
def test_a_size_that_is_none(text):
    with pytest.raises(ValueError, match="a size is a number of bytes, such as"):
        size.parse_size(text)


def test_sizes(monkeypatch):
    sizes = {"17": 17, "5k": 5000, "1.5 TB": 1_500_000_000_000, "200GB": 200 * 10**9, "3 mb": 3_000_000}
    assert {text: size.parse_size(text) for text in sizes} == sizes
    monkeypatch.setenv(size.VARIABLE, "much")
    with pytest.raises(ValueError, match=f"{size.VARIABLE}: a size is .* got 'much'"):
        size.max_bytes(0)


# Other processes, and the loss of one.

FETCHER = """
import os, signal, sys
import obstore
from hashlight.engine.collection.collection import Collection
real, fetched = obstore.get, []
def get(store, key, **options):
    if "/shards/" in key:
        fetched.append(key)
        if len(fetched) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
    return real(store, key, **options)
obstore.get = get
collection = Collection.open(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
collection.shards.copies.fetch(collection.manifest.shards)
print(len(fetched))
"""


def test_two_processes_fetch_a_shard_once(uri, rows):
    with running(FETCHER, uri, 0) as one, running(FETCHER, uri, 0) as other:
        assert [each.stdout.readline() for each in (one, other)] == ["open\n"] * 2
        for each in (one, other):
            each.stdin.close()
        fetched = [int(each.stdout.read()) for each in (one, other)]
        assert [each.wait() for each in (one, other)] == [0, 0]
    assert sum(fetched) == NUM_SHARDS * FILES
    assert_exact(Collection.open(uri), rows)


@pytest.mark.parametrize("step", [1, NUM_SHARDS * FILES])
def test_a_killed_fetch_leaves_nothing_that_is_taken_for_whole(uri, rows, step):
    fetch_until_killed(uri, step)
    opened = Collection.open(uri)
    whole = [name for name in shards_at(opened) if not name.startswith(".")]
    assert len(whole) < NUM_SHARDS
    assert_exact(opened, rows)
    assert shards_at(opened) == sorted(spec.name for spec in opened.manifest.shards), "and no leftovers"


def test_leftovers_of_killed_processes_go_first(uri, monkeypatch):
    fetch_until_killed(uri, FILES)
    opened = Collection.open(uri)
    spec = opened.manifest.shards[0]
    opened.shards.copies.fetch([spec])
    age(opened.path, spec.name, seconds=1000)
    monkeypatch.setenv(size.VARIABLE, str(sum(file.bytes for file in spec.files.values()) + 1))
    with size.room_for(1):
        pass
    assert shards_at(opened) == [spec.name]


# What is wrong with the bucket.


def test_a_shard_of_a_pruned_version_is_said_to_be_gone(bucket, uri, rows):
    codes, ids = rows
    old = Collection.open(uri)
    seen = old.shards[1]
    new = Collection.open(uri).compact(full=True)
    new.prune(keep=1)
    new.delete(ids[:1]).prune(keep=1)
    left = bucket.keys("c/shards/")
    assert not [key for key in left if any(spec.name in key for spec in old.manifest.shards)]
    for _ in range(2):
        with pytest.raises(CollectionNotFoundError, match=r"shards/.* is gone, because newer .* open the"):
            old.search(codes[:1], 3)
    assert seen.rows == len(seen.ids_N), "what was fetched stays"
    assert_exact(Collection.open(uri), (codes[1:], ids[1:]))


def test_a_missing_object_of_a_kept_version_is_damage(bucket, uri, rows, requests):
    (key, *_) = (key for key in bucket.keys("c/shards/") if key.endswith("ids.npy"))
    bucket._client.delete_object(Bucket=bucket.name, Key=key)
    opened = Collection.open(uri)
    with pytest.raises(CorruptDataError, match=r"ids\.npy is missing, which a version of the collection names"):
        opened.search(rows[0][:1], 3)


def test_other_bytes_of_the_same_size_are_damage(bucket, uri, rows):
    (key, *_) = (key for key in bucket.keys("c/shards/") if key.endswith("ids.npy"))
    data = bucket.get(key)
    bucket.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    opened = Collection.open(uri)
    with pytest.raises(CorruptDataError, match=rf"s3://{bucket.name}/{key} is damaged: expected SHA-256"):
        opened.search(rows[0][:1], 3)
    bucket.put(key, data)
    assert_exact(opened, rows)


def test_a_full_disk_leaves_nothing_behind(uri, rows, monkeypatch):
    opened = Collection.open(uri)
    real = Bucket.read_range

    def full(place, name, start, stop):
        if name.endswith("codes.faiss"):
            raise OSError(28, "No space left on device")
        return real(place, name, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "read_range", full)
        with pytest.raises(OSError, match="No space left"):
            opened.search(rows[0][:1], 3)
    assert not [name for name in shards_at(opened) if name.startswith(".")]
    assert_exact(opened, rows)


@pytest.mark.parametrize("write", ["create", "add", "delete", "compact"])
def test_nothing_is_written_where_conditional_puts_are_ignored(bucket, uri, rows, monkeypatch, write):
    put = obstore.put
    before = contents_of(bucket)
    monkeypatch.setattr(
        obstore, "put", lambda store, key, data, *, mode=None, **options: put(store, key, data, **options)
    )
    writes = {
        "create": lambda: Collection.create(bucket.uri("other"), rows[0]),
        "add": lambda: Collection.open(uri).add(rows[0][:1], ids=[10**10]),
        "delete": lambda: Collection.open(uri).delete(rows[1][:1]),
        "compact": lambda: Collection.open(uri).compact(full=True),
    }
    with pytest.raises(PlaceError, match="ignores the conditions of puts"):
        writes[write]()
    assert contents_of(bucket) == before


def contents_of(bucket):
    """Everything but what the check of conditional puts itself writes."""
    return {key: bucket.get(key) for key in bucket.keys("") if not key.endswith(".lock")}
