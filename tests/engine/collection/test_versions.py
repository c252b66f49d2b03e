"""An open collection keeps its version, opening survives writers, and a failed write changes nothing that is live."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import gc
import os
import subprocess
import sys

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.opening import Fresh
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import CollectionNotFoundError, CorruptDataError
from hashlight.engine.places import files
from hashlight.engine.places import folder as folder_module
from hashlight.engine.places.bucket import Bucket
from hashlight.engine.places.folder import Folder
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.protocol.cluster_map import Assignment, open_group
from hashlight.engine.storage import readers
from hashlight.engine.storage.versions import holding_live, read_current

BITS = 48
CODES = np.random.default_rng(3).integers(2**BITS, size=(40, 1), dtype=np.uint64)
LABELS = np.arange(40) % 5


def make(path, version=0, **options):
    attributes = {"label": LABELS, "price": LABELS + version}
    return Collection.create(path, CODES, attributes=attributes, bits=BITS, shards=2, **options)


def write_versions(path, count):
    """Replace a collection `count` times; each version lets go of the one before the last."""
    for version in range(count):
        make(path, 100 + version, overwrite=True)


def encoder_folder(path, text):
    path.mkdir()
    (path / "config.json").write_text(text)
    return path


def shards_in(path):
    return {folder.name for folder in (path / "shards").iterdir()}


def test_filters_not_asked_before_are_answered_from_the_open_version(tmp_path):
    make(tmp_path / "c")
    opened = Collection.open(tmp_path / "c")
    write_versions(tmp_path / "c", 3)
    for label in range(5):
        found = opened.search(CODES[:1], 40, filter=f"price == {label}")
        assert sorted(found.ids[found.ids >= 0].tolist()) == np.flatnonzero(label == LABELS).tolist()


def test_the_encoder_of_an_open_collection_stays(tmp_path):
    first, second = (encoder_folder(tmp_path / name, name) for name in ("first", "second"))
    opened = make(tmp_path / "c", encoder=first, fingerprint="a")
    for _ in range(3):
        make(tmp_path / "c", encoder=second, fingerprint="b", overwrite=True)
    assert (opened.encoder_path / "config.json").read_text() == "first"
    assert (Collection.open(tmp_path / "c").encoder_path / "config.json").read_text() == "second"


def test_a_group_of_a_shard_server_keeps_its_version(tmp_path):
    whole = make(tmp_path / "c")
    names = [shard.name for shard in whole.shards]
    group = open_group(tmp_path / "c", Assignment(1, whole.manifest.digest, (names[0],)))
    del whole
    write_versions(tmp_path / "c", 3)
    kept = group.search(CODES[:1], 40, filter="price < 100").ids
    assert (kept >= 0).sum() == len(group.shards[0])
    assert names[0] in shards_in(tmp_path / "c")


def test_a_group_of_shards_in_a_bucket_keeps_its_version(bucket):
    """Also when its copies are swept because no version in the bucket has its shards any more."""
    uri = bucket.uri("c")
    whole = make(uri, features=np.ones((40, 2), np.float16))
    ids = np.concatenate([shard.ids_N for shard in whole.shards])
    group = open_group(uri, Assignment(1, whole.manifest.digest, tuple(shard.name for shard in whole.shards)))
    del whole
    write_versions(uri, 3)
    live = read_current(open_place(uri))
    open_group(uri, Assignment(live.version, live.digest, tuple(spec.name for spec in live.shards)))
    kept = group.search(CODES[:1], 40, filter="price < 100 and id != 3").ids
    assert sorted(kept[kept >= 0].tolist()) == [number for number in range(40) if number != 3]
    assert group.get(ids[:3])["price"].to_pylist() == LABELS[ids[:3]].tolist()
    assert (group.features_of(ids) == 1).all()
    assert group.thumbnails_of(ids[:2]) == [None, None]


def test_a_job_keeps_the_version_that_it_began_with(tmp_path):
    make(tmp_path / "c")
    with holding_live(open_place(tmp_path / "c")) as live:
        write_versions(tmp_path / "c", 3)
        assert {spec.name for spec in live.shards} < shards_in(tmp_path / "c")
    write_versions(tmp_path / "c", 1)
    assert not {spec.name for spec in live.shards} & shards_in(tmp_path / "c")


def test_a_reader_in_another_process_keeps_its_version_until_it_ends(tmp_path):
    names = {shard.name for shard in make(tmp_path / "c").shards}
    child = (
        "import sys; from hashlight import Collection; c = Collection.open(sys.argv[1]); print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", child, str(tmp_path / "c")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout.readline() == b"1\n"
        write_versions(tmp_path / "c", 3)
        assert names < shards_in(tmp_path / "c")
        reader.kill()
    write_versions(tmp_path / "c", 1)
    assert not names & shards_in(tmp_path / "c")


def test_a_closed_version_is_removed(tmp_path):
    opened = make(tmp_path / "c")
    names = {shard.name for shard in opened.shards}
    write_versions(tmp_path / "c", 2)
    assert names < shards_in(tmp_path / "c")
    del opened
    gc.collect()
    write_versions(tmp_path / "c", 1)
    assert len(shards_in(tmp_path / "c")) == 4, "the live version and the one before it"


@pytest.fixture
def interrupting(monkeypatch):
    """Have a writer commit twice between what a reader reads first and what it reads next, once."""

    def interrupt(kind, method, wanted, path):
        original = getattr(kind, method)
        left = [True]

        def read(self, name, *rest):
            found = original(self, name, *rest)
            if left and wanted in name:
                left.clear()
                write_versions(path, 2)
            return found

        monkeypatch.setattr(kind, method, read)
        return left

    return interrupt


@pytest.mark.parametrize("after", ["CURRENT", "manifests/"])
def test_opening_between_two_commits_opens_the_newer_version(tmp_path, interrupting, after):
    make(tmp_path / "c")
    left = interrupting(Folder, "find", after, tmp_path / "c")
    opened = Collection.open(tmp_path / "c", verify=True)
    assert not left
    assert opened.version == 3
    assert len(opened.search(CODES, 1, filter="price > 100").ids) == 40


def test_fetching_from_a_bucket_between_two_commits_fetches_the_newer_version(bucket, interrupting):
    make(bucket.uri("c"))
    left = interrupting(Bucket, "find", "manifests/", bucket.uri("c"))
    opened = Collection.open(bucket.uri("c"), prefetch=True)
    assert not left
    assert opened.version == 3


def test_opening_in_a_bucket_between_two_commits_that_remove_it_says_so_when_it_is_searched(bucket, interrupting):
    make(bucket.uri("c"))
    left = interrupting(Bucket, "find", "manifests/", bucket.uri("c"))
    opened = Collection.open(bucket.uri("c"))
    assert not left
    with pytest.raises(CollectionNotFoundError, match="is gone, because newer versions were written"):
        opened.search(CODES, 1)


def test_a_collection_that_is_truly_damaged_is_still_refused(tmp_path):
    path = make(tmp_path / "c").path
    (manifest,) = (path / "manifests").iterdir()
    manifest.unlink()
    with pytest.raises(CorruptDataError, match=rf"{manifest.name} is missing, which CURRENT names"):
        Collection.open(path)


@pytest.mark.parametrize("mode", ["overwrite", "add"])
@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_failed_write_leaves_the_live_encoder(tmp_path, bucket, where, mode):
    path = tmp_path / "c" if where == "folder" else bucket.uri("c")
    make(path, encoder=encoder_folder(tmp_path / "e", "live"), fingerprint="a")

    def write_and_fail():
        fresh = Fresh(BITS, "a", overwrite=True) if mode == "overwrite" else None
        with Transaction(path, fresh=fresh) as writer:
            writer.add_encoder({"config.json": b"newer"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    place = open_place(path)
    assert place.names("encoder") == [read_current(place).encoder_folder], "nothing is left of the failed write"
    assert (Collection.open(path).encoder_path / "config.json").read_text() == "live"


def test_adding_keeps_the_encoder_or_takes_the_newer_copy(tmp_path):
    make(tmp_path / "c", encoder=encoder_folder(tmp_path / "e", "first"), fingerprint="a")
    more = {"label": LABELS, "price": LABELS}
    opened = Collection.open(tmp_path / "c").add(CODES, attributes=more)
    assert (opened.encoder_path / "config.json").read_text() == "first"
    with opened.transaction() as writer:
        writer.add_encoder({"config.json": b"second"})
        writer.commit()
    assert (Collection.open(tmp_path / "c").encoder_path / "config.json").read_text() == "second"
    assert (opened.encoder_path / "config.json").read_text() == "first"


@pytest.mark.parametrize(("highest", "rows"), [(2**63 - 1, 1), (2**63 - 2, 2), (2**63 - 40, 40)])
def test_there_are_no_ids_after_the_last(tmp_path, highest, rows):
    collection = Collection.create(tmp_path / "c", CODES[:1], ids=np.array([highest]), bits=BITS)
    with pytest.raises(ValueError, match=f"no {rows} ids after the highest, {highest}"):
        collection.add(CODES[:rows])
    assert Collection.open(tmp_path / "c").version == 1


def test_the_last_id_can_be_given(tmp_path):
    collection = Collection.create(tmp_path / "c", CODES[:1], ids=np.array([2**63 - 4]), bits=BITS).add(CODES[1:4])
    assert collection.search(CODES[:4], 1).ids[:, 0].tolist() == [2**63 - 4 + n for n in range(4)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("how", ["create", "add"])
def test_features_that_are_no_finite_numbers_are_refused(tmp_path, bad, how):
    features = np.ones((40, 3), np.float16)
    features[7, 1] = bad
    good = Collection.create(tmp_path / "c", CODES, bits=BITS, features=np.ones((40, 3), np.float16))
    write = good.add if how == "add" else functools.partial(Collection.create, tmp_path / "d", bits=BITS)
    with pytest.raises(ValueError, match="`features` must be finite as float16, up to 65,504, got others in 1 rows"):
        write(CODES, features=features)
    assert not (tmp_path / "d").exists()
    assert Collection.open(tmp_path / "c").version == 1


@pytest.mark.parametrize("kind", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_files_cannot_be_locked_collections_open_and_the_last_two_versions_are_kept(tmp_path, monkeypatch, kind):
    def refuse(descriptor, how):
        raise OSError(kind, os.strerror(kind))

    first = make(tmp_path / "c")
    monkeypatch.setattr(readers.fcntl, "flock", refuse)
    monkeypatch.setattr(files, "writer_lock", lambda folder, wait=False: contextlib.nullcontext())
    monkeypatch.setattr(folder_module, "writer_lock", files.writer_lock)
    write_versions(tmp_path / "c", 2)
    assert len(shards_in(tmp_path / "c")) == 4
    assert not {spec.name for spec in first.manifest.shards} & shards_in(tmp_path / "c")
    opened = Collection.open(tmp_path / "c")
    assert all(opened.shards.is_open(number) for number in range(len(opened.shards))), "their files may go at any time"


def test_versions_are_removed_where_exclusive_locks_need_files_that_are_open_for_writing(tmp_path, monkeypatch):
    flock = fcntl.flock

    def flock_of_nfs(descriptor, how):
        if how & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, how)

    monkeypatch.setattr(readers.fcntl, "flock", flock_of_nfs)
    make(tmp_path / "c")
    write_versions(tmp_path / "c", 3)
    assert len(shards_in(tmp_path / "c")) == 4


def test_a_write_succeeds_beside_an_old_version_that_is_open_and_damaged(tmp_path, caplog):
    first = make(tmp_path / "c")
    (tmp_path / "c" / "manifests" / first.manifest.file_name).write_bytes(b"{}")
    make(tmp_path / "c", 1, overwrite=True)
    assert make(tmp_path / "c", 2, overwrite=True).version == 3
    assert make(tmp_path / "c", 3, overwrite=True).version == 4
    assert "removing nothing" in caplog.text
    assert {shard.name for shard in first.shards} <= shards_in(tmp_path / "c")


def test_a_lock_that_fails_for_another_reason_is_an_error(tmp_path, monkeypatch):
    def fail(descriptor, how):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    make(tmp_path / "c")
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(readers.fcntl, "flock", fail)
    for _ in range(5):
        with pytest.raises(OSError, match="Input/output error"):
            Collection.open(tmp_path / "c")
    assert len(os.listdir("/proc/self/fd")) <= before, "no descriptor is left open"
