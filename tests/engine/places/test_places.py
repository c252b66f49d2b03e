"""Folders and buckets through the same calls: they behave the same, and the tests show where they differ."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import pickle
import threading

import fsspec
import numpy as np
import obstore
import pytest
from obstore import exceptions

from hashlight.engine.errors import CollectionBusyError, PlaceError, ReadFailedError
from hashlight.engine.places import failures, files, uris
from hashlight.engine.places.bucket import Bucket
from hashlight.engine.places.failures import NoFileError, RefusedError, TooManyBytesError
from hashlight.engine.places.folder import Folder
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.reading import map_ahead, read_blocks

NAMES = ["a.bin", "a b/c?#%25.png", "ü/[1]~*.jpg", "deep/er/x", "z"]


@pytest.fixture(params=["folder", "bucket"])
def place(request, tmp_path):
    """An empty place."""
    if request.param == "folder":
        return open_place(tmp_path / "some" / "place")
    return open_place(request.getfixturevalue("bucket").uri("some/place"))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(failures, "_FIRST_WAIT_S", 0.001)


def content_of(name):
    return hashlib.sha256(name.encode()).digest() * 3


def test_what_is_written_is_read_listed_and_removed(place):
    assert (place.entry(), place.names(), list(place.walk())) == (None, [], [])
    for name in [*NAMES, ".hidden", "deep/.hidden/y"]:
        place.put(name, content_of(name))
    assert [place.read(name) for name in NAMES] == [content_of(name) for name in NAMES]
    assert list(place.read_many(NAMES)) == [content_of(name) for name in NAMES]
    assert sorted(entry.name for entry in place.walk()) == sorted(NAMES)
    assert all(entry.size == 96 and entry.stamp.startswith("96:") for entry in place.walk())
    assert place.names() == ["a b", "a.bin", "deep", "z", "ü"]
    assert place.names(hidden=True) == [".hidden", "a b", "a.bin", "deep", "z", "ü"]
    assert [(entry.name, entry.is_folder) for entry in place.children("deep")] == [("er", True)]
    assert [entry.name for entry in place.walk("deep")] == ["er/x"]
    assert (place.exists("a.bin"), place.exists("deep"), place.exists("a")) == (True, False, False)
    assert (place.entry("deep").is_folder, place.entry().is_folder, place.entry("a.bin").size) == (True, True, 96)
    place.remove("deep")
    place.remove("z")
    place.remove("never")
    assert place.names() == ["a b", "a.bin", "ü"]
    assert open_place(place.location_of("a.bin")).read() == content_of("a.bin")
    assert pickle.loads(pickle.dumps(place)).read("a.bin") == content_of("a.bin")


def test_a_file_is_read_at_any_position(place):
    data = np.random.default_rng(0).bytes(5000)
    place.put("a", data)
    with place.open("a") as file:
        assert file.read(100) == data[:100]
        assert (file.seek(-50, io.SEEK_CUR), file.read(10)) == (50, data[50:60])
        assert (file.seek(-7, io.SEEK_END), file.read()) == (4993, data[-7:])
        assert (file.read(), file.seek(6000), file.read(5)) == (b"", 6000, b"")
    with io.BufferedReader(place.open("a"), 1 << 10) as file:
        assert file.read() == data


def test_errors_are_the_same_everywhere(place):
    place.put("folder/a", b"123")
    for call in (place.read, place.open):
        with pytest.raises(FileNotFoundError, match="none"):
            call("none")
    assert place.find("none") is None
    with pytest.raises(TooManyBytesError, match="above 2"):
        place.read("folder/a", max_bytes=2)
    assert place.read("folder/a", max_bytes=3) == b"123"
    with pytest.raises(OSError, match="folder"):
        place.read("folder")


def test_only_the_first_put_new_writes(place):
    assert place.put_new("a/job.json", b"ours")
    assert not place.put_new("a/job.json", b"another's")
    assert place.read("a/job.json") == b"ours"
    assert place.names("a", hidden=True) == ["job.json"]


def test_replace_needs_the_version_that_was_found(place):
    assert place.replace("CURRENT", b"1", None)
    assert not place.replace("CURRENT", b"2", None)
    found = place.find("CURRENT")
    assert found.data == b"1"
    assert place.replace("CURRENT", b"3", found)
    assert not place.replace("CURRENT", b"4", found), "it was replaced after it was found"
    assert place.read("CURRENT") == b"3"
    place.remove("CURRENT")
    assert not place.replace("CURRENT", b"5", found)
    assert not place.exists("CURRENT")


def test_large_files_go_through_scratch_space(place, tmp_path):
    data = np.random.default_rng(1).bytes(20 << 20)
    with place.scratch("large/file") as path:
        path.write_bytes(data)
        assert not place.exists("large/file")
        place.put_file("large/file", path)
    assert not path.exists()
    assert place.read("large/file") == data
    assert place.names("large", hidden=True) == ["file"]
    (tmp_path / "elsewhere").write_bytes(b"other")
    place.put_file("large/file", tmp_path / "elsewhere")
    assert place.read("large/file") == b"other"
    assert (tmp_path / "elsewhere").exists()
    place.put("empty", b"")
    place.download("large/file", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"other"
    place.download("", tmp_path / "all")
    assert (tmp_path / "all" / "large" / "file").read_bytes() == b"other"
    assert (tmp_path / "all" / "empty").read_bytes() == b""


def test_objects_larger_than_a_range_are_read_in_ranges(bucket, monkeypatch, tmp_path):
    data = np.random.default_rng(1).bytes(10_001)
    monkeypatch.setattr("hashlight.engine.places.bucket._RANGE_BYTES", 1000)
    bucket.put("a", data)
    place = open_place(bucket.uri(""))
    assert place.read("a") == data
    place.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data


def test_an_object_replaced_during_a_read_is_not_mixed(bucket):
    bucket.put("a", b"1" * 100)
    with open_place(bucket.uri("a")).open() as file:
        assert file.read(10) == b"1" * 10
        bucket.put("a", b"2" * 100)
        with pytest.raises(OSError, match="was written by another process meanwhile"):
            file.read(10)


def test_a_new_folder_appears_if_its_context_exits_without_an_error(place):
    with place.new_folder("shards/one") as path:
        path.mkdir()
        (path / "inner").mkdir()
        (path / "inner" / "x").write_bytes(b"x")
    assert [entry.name for entry in place.walk("shards")] == ["one/inner/x"]

    def fail():
        with place.new_folder("shards/two") as path:
            path.mkdir()
            (path / "x").write_bytes(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert place.names("shards") == ["one"]


def test_a_folder_has_one_writer(tmp_path):
    place = open_place(tmp_path / "a")
    with place.lock(), pytest.raises(CollectionBusyError, match="being written"), open_place(tmp_path / "a").lock():
        pass
    with place.lock():
        pass


def test_a_lock_on_a_folder_that_was_removed_meanwhile_is_taken_again(tmp_path, monkeypatch):
    place, waits, held, let_go = Folder(tmp_path / "work"), threading.Event(), threading.Event(), threading.Event()

    def wait_for_lock():
        with place.lock(wait=True):
            held.set()
            assert let_go.wait(60)

    with place.lock():
        real = fcntl.flock
        monkeypatch.setattr(fcntl, "flock", lambda *arguments: (waits.set(), real(*arguments))[1])
        waiter = threading.Thread(target=wait_for_lock)
        waiter.start()
        assert waits.wait(60), "it has opened the file that is removed here"
        place.remove("")
    assert held.wait(60)
    with pytest.raises(CollectionBusyError), place.lock():
        pass
    let_go.set()
    waiter.join()


def test_new_files_are_published_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    place = Folder(tmp_path)
    assert place.put_new("a", b"first")
    assert not place.put_new("a", b"second")
    assert (place.read("a"), [path.name for path in tmp_path.iterdir()]) == (b"first", ["a"])


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    place = open_place(tmp_path)
    place.put("parts/a", b"1")
    files.aside_of(tmp_path / "parts" / "b").write_bytes(b"half")
    files.aside_of(tmp_path / "parts" / "c").mkdir()
    place.remove_leftovers("parts")
    assert place.names("parts", hidden=True) == ["a"]


def test_folder_markers_of_other_tools_are_not_files(bucket):
    for key in ("p/", "p/x/", "p/x/1", "p/y/", "p/y.txt"):
        bucket.put(key, b"" if key.endswith("/") else b"1")
    place = open_place(bucket.uri("p"))
    assert [entry.name for entry in place.walk()] == ["x/1", "y.txt", "y"]
    assert place.names() == ["x", "y", "y.txt"]


def test_pages_are_listed_in_the_order_of_the_keys(bucket):
    for number in range(25):
        bucket.put(f"p/{number:04d}", b"1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hashlight.engine.places.bucket._LIST_PAGE", 7)
        assert [entry.name for entry in open_place(bucket.uri("p")).walk()] == [f"{number:04d}" for number in range(25)]


def test_a_key_that_the_client_cannot_read_is_named(bucket):
    bucket.put("p/a//b", b"1")
    place = open_place(bucket.uri("p"))
    with pytest.raises(NoFileError, match="a//b"):
        list(place.walk())
    with pytest.raises(NoFileError, match="a//b"):
        place.read("a//b")


def test_a_bucket_without_conditional_puts_is_refused(bucket, monkeypatch):
    place = open_place(bucket.uri("c"))
    with place.lock():
        pass
    put = obstore.put

    def ignoring(store, key, data, *, mode=None, **options):
        return put(store, key, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(obstore, "put", ignoring)
        with pytest.raises(PlaceError, match="ignores the conditions of puts"), place.lock():
            pass

    def unable(store, key, data, *, mode=None, **options):
        if mode is not None:
            raise exceptions.NotSupportedError("not implemented")
        return put(store, key, data, **options)

    monkeypatch.setattr(obstore, "put", unable)
    with pytest.raises(PlaceError, match="needs conditional puts"), place.lock():
        pass


@pytest.mark.parametrize("mode", ["new", "swap"])
def test_a_put_whose_response_was_lost_is_recognised(bucket, monkeypatch, mode):
    place, put = open_place(bucket.uri("c")), obstore.put
    if mode == "swap":
        place.put("a", b"before")
    found = place.find("a")

    def twice(*arguments, **options):
        put(*arguments, **options)
        return put(*arguments, **options)

    monkeypatch.setattr(obstore, "put", twice)
    assert place.replace("a", b"ours", found)
    monkeypatch.undo()
    assert not place.replace("a", b"another's", found)
    assert bucket.get("c/a") == b"ours"


STORE_ERRORS = [
    (exceptions.PermissionDeniedError("Access Denied"), PermissionError, 1),
    (exceptions.UnauthenticatedError("who are you"), PermissionError, 1),
    (exceptions.GenericError("Server returned non-2xx status code: 400 Bad Request: no"), RefusedError, 1),
    (exceptions.InvalidPathError("empty segment"), NoFileError, 1),
    (exceptions.GenericError("Server returned non-2xx status code: 503 Slow Down: busy"), ReadFailedError, 3),
    (exceptions.GenericError("Server returned non-2xx status code: 429 Too Many Requests"), ReadFailedError, 3),
    (exceptions.GenericError("error sending request\n\nDebug source:\ninternals"), ReadFailedError, 3),
]


@pytest.mark.parametrize(("error", "expected", "tries"), STORE_ERRORS)
def test_permanent_errors_are_not_retried(bucket, monkeypatch, error, expected, tries):
    asked = []

    def fail(*arguments, **options):
        asked.append(arguments)
        raise error

    monkeypatch.setattr(obstore, "get", fail)
    with pytest.raises(expected) as raised:
        open_place(bucket.uri("some/place")).read("a")
    assert len(asked) == tries
    assert f"s3://{bucket.name}/some/place/a" in str(raised.value)
    assert "internals" not in str(raised.value)


def test_transient_errors_of_a_store_are_retried(monkeypatch, bucket):
    bucket.put("a", b"data")
    get, errors = obstore.get, [exceptions.GenericError("reset"), exceptions.GenericError("reset")]

    def stumble(*arguments, **options):
        if errors:
            raise errors.pop()
        return get(*arguments, **options)

    monkeypatch.setattr(obstore, "get", stumble)
    assert open_place(bucket.uri("a")).read() == b"data"
    assert errors == []


def test_messages_contain_no_credentials(s3_server, bucket, monkeypatch):
    bucket.put("a", b"1")
    query = bucket.uri("a").partition("?")[2]
    place = open_place(f"s3://KEY:SECRET%2F1@{bucket.name}/?{query}")
    assert place.read("a") == b"1"
    messages = [str(place), repr(place), place.path("a")]
    for call in (place.read, place.open):
        with pytest.raises(FileNotFoundError) as raised:
            call("none")
        messages.append(str(raised.value))
    for location in ("s3://KEY:SECRET@/x", "nowhere://KEY:SECRET@host/x", "no_scheme://KEY:SECRET@host/x"):
        with pytest.raises(PlaceError) as refused:
            open_place(location)
        messages.append(str(refused.value))
    assert not any("SECRET" in message or "KEY" in message for message in messages), messages
    assert uris.without_credentials("abfss://box@account.dfs.core.windows.net/a?anonymous=true") == (
        "abfss://box@account.dfs.core.windows.net/a"
    )


def test_the_shared_files_of_aws_tools_are_read(tmp_path, monkeypatch, s3_server, bucket):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile work]\nregion = eu-west-1\nendpoint_url = http://{s3_server}\n")
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = K\naws_secret_access_key = S\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    uris._store_of.cache_clear()
    bucket.put("a", b"1")
    assert open_place(f"s3://{bucket.name}").read("a") == b"1"
    config = uris._store_of("s3", bucket.name, "").config
    assert {name: config[name] for name in ("access_key_id", "secret_access_key", "region")} == {
        "access_key_id": "K",
        "secret_access_key": "S",
        "region": "eu-west-1",
    }
    uris._store_of.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    assert uris._store_of("s3", bucket.name, "").config["endpoint"] == "http://127.0.0.1:1"
    uris._store_of.cache_clear()


def test_clients_of_other_clouds_are_created_from_their_uris(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for uri in ("gs://box/a?anonymous=true", "az://box/a?anonymous=true"):
        place = open_place(uri)
        assert (type(place), str(place)) == (Bucket, uri.partition("?")[0])
    place = open_place("abfss://box@other.dfs.core.windows.net/a?anonymous=true")
    assert place._store.config["account_name"] == "other"


def test_any_other_file_system_is_read_through_fsspec(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/album/a/1.png": b"1", "/album/2.png": b"22", "/album/.hidden": b""})
    place = open_place("memory://album")
    assert [(entry.name, entry.size) for entry in place.walk()] == [("2.png", 2), ("a/1.png", 1)]
    assert (place.read("2.png"), place.names(), place.exists("a")) == (b"22", ["2.png", "a"], False)
    with place.open("2.png") as file:
        assert (file.seek(1), file.read()) == (1, b"2")
    place.download("", tmp_path / "copy")
    assert (tmp_path / "copy" / "a" / "1.png").read_bytes() == b"1"
    with pytest.raises(FileNotFoundError):
        place.read("none")
    with pytest.raises(TooManyBytesError):
        place.read("2.png", max_bytes=1)
    with pytest.raises(PlaceError, match="can only be read"):
        place.put("x", b"")
    with pytest.raises(PlaceError, match="no file system for nowhere"):
        open_place("nowhere://x/y")


def test_names_that_are_not_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NoFileError, match="pipe is not a file"):
        open_place(tmp_path).read("pipe")
    for name in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(NoFileError, match="is not a file"):
            open_place(name).open()
    with pytest.raises(IsADirectoryError):
        open_place(tmp_path).read()
    with pytest.raises(OSError, match="name too long"):
        open_place(tmp_path).read("x" * 5000)


def test_reads_stop_at_max_bytes(tmp_path):
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, 1 << 40)
    with pytest.raises(TooManyBytesError, match="above 99"):
        open_place(huge).read(max_bytes=99)

    class Endless:
        given = 0

        def read(self, size):
            self.given += size
            return bytes(size)

    with pytest.raises(TooManyBytesError, match="above 99"):
        read_blocks(stream := Endless(), 99)
    assert stream.given <= 1 << 20


@pytest.mark.parametrize("where", ["folder", "bucket", "elsewhere"])
def test_a_file_of_exactly_max_bytes_is_read(tmp_path, bucket, where):
    if where == "folder":
        (tmp_path / "a").write_bytes(bytes(100))
        place = open_place(tmp_path / "a")
    elif where == "bucket":
        bucket.put("a", bytes(100))
        place = open_place(bucket.uri("a"))
    else:
        fsspec.filesystem("memory").pipe("/many/a", bytes(100))
        place = open_place("memory://many/a")
    assert len(place.read(max_bytes=100)) == 100
    with pytest.raises(TooManyBytesError, match="above 99"):
        place.read(max_bytes=99)


def test_mapping_ahead_keeps_order_and_bounds_the_calls_in_flight():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    for number, result in enumerate(map_ahead(lambda number: number * 2, items(), 8)):
        assert result == 2 * number
        assert len(taken) <= number + 8
    assert len(taken) == 100


def test_locations():
    assert open_place("file:///tmp/a").local == open_place("/tmp/a").local
    assert type(open_place("relative")) is Folder
    assert open_place("relative").location == os.path.abspath("relative")
    assert uris.split_name("s3://b/k/x.parquet?region=r") == ("s3://b/k?region=r", "x.parquet")
    assert uris.join("s3://b/k?region=r", "x/y") == "s3://b/k/x/y?region=r"
    assert uris.split_options("s3://b/what?.png") == ("s3://b/what?.png", "")


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
@pytest.mark.parametrize("slashes", ["", "/", "///"])
def test_a_uri_without_a_bucket_is_named_as_it_was_given(scheme, slashes):
    with pytest.raises(PlaceError, match=f"^{scheme}:// does not name a bucket: expected {scheme}://BUCKET/NAME"):
        open_place(f"{scheme}://{slashes}")


def test_a_bucket_that_is_missing_is_named(bucket):
    place = open_place(bucket.uri("p").replace(bucket.name, "no-such-bucket"))
    for ask in (lambda: place.put("a", b"1"), lambda: place.read("a"), lambda: list(place.walk())):
        with pytest.raises(FileNotFoundError, match=r"there is no such bucket: create it.*no-such-bucket"):
            ask()
