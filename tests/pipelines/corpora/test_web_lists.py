"""Lists of URLs: one image that cannot be fetched costs only itself, and what is of the moment can be had later."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from hashlight.encoders.encoder import HashEncoder
from hashlight.engine.errors import MissingDependencyError, ReadFailedError
from hashlight.engine.places import failures, web
from hashlight.pipelines.cli.main import app
from hashlight.pipelines.codes.summary import read_summary
from hashlight.pipelines.corpora.corpus import list_corpus, read_images, read_uri
from hashlight.pipelines.corpora.reasons import reason_of
from hashlight.pipelines.corpora.work import list_work
from hashlight.pipelines.encoding import encode as encode_module
from hashlight.pipelines.encoding.encode import encode_corpus, retry_rejects
from hashlight.pipelines.jobs.errors import PipelineError
from tests.encoded import read_codes
from tests.web import WebServer


@pytest.fixture
def server(monkeypatch):
    web._cached_server.cache_clear()
    monkeypatch.setattr(failures, "_FIRST_WAIT_S", 0.001)
    server = WebServer()
    yield server
    server.close()


def test_every_url_has_its_outcome(tmp_path, server):
    urls = {
        server.put("/good.png", b"image"): b"image",
        server.put("/gone.png", 410): "missing",
        server.put("/none.png", 404): "missing",
        server.put("/secret.png", 403): "denied",
        server.put("/busy.png", 429): "network",
        server.put("/broken.png", 500): "network",
        "http://no-such-host.invalid/a.png": "network",
        "http://[::1": "missing",
        "nowhere://x/y.png": "missing",
        server.put("/large.png", (200, {"Content-Length": str(1 << 40)}, b"")): "limit",
        server.put("/late.png", 503, b"image"): b"image",
    }
    (tmp_path / "list.txt").write_text("\n".join(urls))
    pq.write_table(pa.table({"uri": list(urls), "price": range(len(urls))}), tmp_path / "list.parquet")
    for corpus in (tmp_path / "list.txt", tmp_path / "list.parquet"):
        entries = list_corpus(corpus)
        found = [image if isinstance(image, bytes) else reason_of(image).kind for image in read_images(entries)]
        assert dict(zip(urls, found, strict=True)) == urls
        server.requests.clear()


def test_a_store_that_fails_is_no_reason_to_reject_its_images(tmp_path, bucket, monkeypatch):
    """An outage of the one store of a corpus ends the job, and costs no image."""
    monkeypatch.setattr(failures, "_FIRST_WAIT_S", 0.001)
    bucket.put("a.png", b"1")
    (tmp_path / "list.txt").write_text(bucket.uri("a.png"))
    entries = list_corpus(tmp_path / "list.txt")
    monkeypatch.setattr("hashlight.engine.places.bucket.obstore.get", raising(ValueError("status code: 503")))
    monkeypatch.setattr("hashlight.engine.places.bucket.translated", AsBusy)
    with pytest.raises(ReadFailedError):
        list(read_images(entries))


def raising(error):
    def call(*_arguments, **_options):
        raise error

    return call


class AsBusy:
    def __init__(self, where):
        self.where = where

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _trace):
        if error is not None:
            raise OSError(f"{self.where}: {error}")


def test_shards_and_tables_are_read_from_a_web_server(server, tmp_path):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [b"1", b"22"]}), buffer)
    for path, headers in (("/a.parquet", {"Accept-Ranges": "bytes"}), ("/b.parquet", {})):
        url = server.put(path, (200, headers, buffer.getvalue()))
        entries = list_corpus(url)
        assert list(read_images(entries)) == [b"1", b"22"]
        assert read_uri(f"{url}#1") == b"22"
    server.put("/list.txt", b"x/1.png\nhttp://elsewhere.invalid/2.png\n")
    assert list_corpus(server.url("/list.txt"))["uri"].to_pylist() == [
        server.url("/x/1.png"),
        "http://elsewhere.invalid/2.png",
    ]


def test_options_of_a_list_in_a_bucket_are_not_for_urls(bucket, server):
    bucket.put("list.txt", f"{server.put('/a.png', b'image')}\nb.png".encode())
    bucket.put("b.png", b"other")
    assert list(read_images(list_corpus(bucket.uri("list.txt")))) == [b"image", b"other"]


def test_a_missing_package_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\nsftp://host/b.png\n")
    pq.write_table(pa.table({"uri": ["sftp://host/b.png"]}), tmp_path / "list.parquet")
    for name in ("list.txt", "list.parquet"):
        with pytest.raises(MissingDependencyError, match="sftp:// needs a package that is not installed"):
            list_work(tmp_path / name, tmp_path / "work.arrow")
    assert not (tmp_path / "work.arrow").exists()


@pytest.fixture
def png(pictures):
    def encoded(number):
        buffer = io.BytesIO()
        Image.fromarray(pictures[0][number]).save(buffer, "PNG")
        return buffer.getvalue()

    return encoded


@pytest.mark.usefixtures("ray_session")
def test_what_is_of_the_moment_is_encoded_later(tmp_path, server, png, pictures, encoder, monkeypatch):
    """A busy server is asked again at the end of the job; what is rejected for good is tried when that is asked for."""
    monkeypatch.setattr(encode_module, "_REST_S", 0.0)
    urls = [server.put(f"/{number}.png", png(number)) for number in range(6)]
    server.put("/1.png", 503, 503, 503, png(1))
    server.put("/3.png", 404)
    server.put("/4.png", 503)
    server.put("/5.png", b"no image")
    (tmp_path / "list.txt").write_text("\n".join(urls))
    job = (tmp_path / "list.txt", encoder, tmp_path / "codes")
    with pytest.raises(PipelineError, match="holds no codes whose rejects"):
        retry_rejects(*job)
    # Before they are tried again there are four.
    summary = encode_corpus(*job, actors=1, max_rejects=3)
    assert (summary.codes, summary.reject_kinds) == (3, {"missing": 1, "network": 1, "format": 1})
    assert {path: server.requests[path] for path in ("/0.png", "/1.png", "/3.png", "/4.png")} == {
        "/0.png": 1, "/1.png": 4, "/3.png": 1, "/4.png": 6,
    }  # fmt: skip
    rejects = pq.read_table(tmp_path / "codes" / "rejects.parquet").to_pylist()
    assert [(reject["uri"], reject["kind"]) for reject in rejects] == [
        (urls[3], "missing"), (urls[4], "network"), (urls[5], "format"),
    ]  # fmt: skip
    server.put("/3.png", png(3))
    server.requests.clear()
    options = ("--input", job[0], "--encoder", job[1], "--output", job[2], "--retry-rejects", "--json", "--actors", 1)
    result = CliRunner().invoke(app, ["encode", *map(str, options)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["reject_kinds"] == {"network": 1, "format": 1}
    assert server.requests == {"/3.png": 1, "/4.png": 3, "/5.png": 1}
    summary = read_summary(job[2])
    assert (summary.images, summary.codes, summary.rejects) == (6, 4, 2)
    again = read_codes(job[2])
    np.testing.assert_array_equal(again.codes, HashEncoder.load(encoder).encode(pictures[0][:4]))
    assert again.attributes["uri"].to_pylist() == urls[:4]
    with pytest.raises(PipelineError, match="holds the codes of another job, with corpus"):
        retry_rejects(tmp_path / "other.txt", encoder, job[2])
    assert read_summary(job[2]) == summary


def test_a_share_of_rejects_is_of_the_images_in_tars_too(tmp_path, png, encoder):
    """Their number is known only once they are read, also if only rejects are tried again."""
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name, data in (("0.png", png(0)), ("1.png", png(1)), ("2.png", b"no image")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    job = (tmp_path / "shard.tar", encoder, tmp_path / "codes")
    summary = encode_corpus(*job, actors=1)
    assert (summary.images, summary.rejects) == (3, 1)
    assert retry_rejects(*job, actors=1, max_rejects="50%") == summary
    with pytest.raises(PipelineError, match="1 of 3 images were rejected so far, more than --max-rejects 10%"):
        retry_rejects(*job, actors=1, max_rejects="10%")
