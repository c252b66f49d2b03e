"""`hashlight serve`: a process that answers, takes up new versions, and ends when it is told to."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
from PIL import Image

import hashlight
from hashlight.encoders.encoder import HashEncoder
from hashlight.engine.collection.collection import Collection
from hashlight.pipelines.building.build import build_collection
from tests.pipelines.cli.test_cli import run

pytestmark = pytest.mark.usefixtures("ray_session")


def start(*arguments, **environment):
    command = [sys.executable, "-P", "-m", "hashlight", "serve", "--drain-delay", "0", *map(str, arguments)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    line = server.stdout.readline()
    found = re.search(r"at (https?://\S+)", line)
    assert found, line
    return server, found[1]


def end(server):
    server.send_signal(signal.SIGTERM)
    server.communicate(timeout=60)


@pytest.fixture(scope="module")
def served(collection, tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "c"
    shutil.copytree(collection, path)
    server, url = start(path, "--port", 0, "--duplicates", path.parent / "found")
    yield path, url
    end(server)


def test_images_are_encoded_by_the_collections_encoder(served, pictures, encoder):
    path, url = served
    buffer = io.BytesIO()
    Image.fromarray(pictures[0][7]).save(buffer, "PNG")
    query = HashEncoder.load(encoder).encode_all([pictures[0][7]])
    expected = Collection.open(path).search(query.codes, 10, rerank="asymmetric", projections=query.projections)
    for target in (url, path):
        with hashlight.SearchClient(target, timeout_s=60) as client:
            found = client.search(buffer.getvalue(), 10, include=["attributes"])
            assert found[0].ids.tolist() == expected.ids[0].tolist()
            assert set(found[0][0].attributes) == {"uri", "label", "label_name"}
            assert (
                client.encode(pictures_as_png(pictures, 5)).tolist()
                == HashEncoder.load(encoder).encode(list(pictures[0][:5])).tolist()
            )


def pictures_as_png(pictures, count):
    return [Image.fromarray(pixels) for pixels in pictures[0][:count]]


def test_a_new_version_is_taken_up(served, codes):
    path, url = served
    with hashlight.SearchClient(url, timeout_s=60) as client:
        before = client.describe()["version"]
        build_collection(codes, path, shards=2, overwrite=True)
        until = time.monotonic() + 60
        while client.search(np.zeros((1, 1), np.uint64), 1).version == before and time.monotonic() < until:
            time.sleep(0.1)
        assert client.search(np.zeros((1, 1), np.uint64), 1).version == before + 1


def test_small_commits_are_compacted(tmp_path):
    path, codes = tmp_path / "c", np.arange(40, dtype=np.uint64)[:, None]
    collection = Collection.create(path, codes[:20], ids=np.arange(20), bits=64, shards=4)
    server, url = start(path, "--port", 0, "--writable")
    try:
        with hashlight.SearchClient(url, timeout_s=60) as client:
            assert client.describe()["shards"] == 4
            for row in range(20, 40):
                collection = collection.add(codes[row : row + 1], ids=np.array([row]))
            until = time.monotonic() + 240
            while (client.describe()["rows"] < 40 or client.describe()["shards"] > 4) and time.monotonic() < until:
                time.sleep(0.1)
            assert client.describe()["shards"] < 5
            assert [answer.ids.tolist() for answer in client.search(codes, 1)] == [[row] for row in range(40)]
        told = httpx.get(f"{url}/metrics").text
        assert float(re.search(r"^hashlight_compacted_rows_total (\S+)$", told, re.MULTILINE)[1]) >= 24
        assert "hashlight_compaction_failures_total 0.0" in told
    finally:
        end(server)
    assert not list((path / "intents").iterdir())


def test_what_cannot_be_scaled_is_reported(served):
    for address, message in ((served[1], "no shard servers"), ("http://127.0.0.1:9", "cannot be reached")):
        result = run("scale", address, "--replicas", 2)
        assert result.exit_code == 1
        assert message in result.output


def test_sigterm_ends_it(collection):
    server, url = start(collection, "--port", 0, "--host", "0.0.0.0", HASHLIGHT_API_KEYS="a search 0123456789abcdefg")
    with hashlight.SearchClient(url.replace("0.0.0.0", "127.0.0.1"), api_key="0123456789abcdefg") as client:
        client.ready(timeout_s=60)
    end(server)
    assert server.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM)


def test_operators_see_the_versions_and_what_jobs_have_left(served):
    path, url = served
    told = httpx.get(f"{url}/v1/admin/collections", timeout=60).json()["collections"]
    assert [(one["name"], one["location"]) for one in told] == [("c", str(path))]
    assert httpx.get(f"{url}/v1/admin/versions", timeout=60).json()["versions"][-1]["operation"] == "created"
    assert httpx.get(f"{url}/v1/duplicates", timeout=60).status_code == 503, "the folder is known, and has none yet"
    assert httpx.get(f"{url}/v1/admin/rejects", timeout=60).status_code == 404


def test_what_cannot_be_served_is_reported(collection, tmp_path):
    result = run("serve", collection, "--host", "0.0.0.0", "--port", 0)
    assert result.exit_code == 1
    assert "can be reached from other machines, and there are no API keys" in " ".join(result.stderr.split())
    (tmp_path / "keys").write_text("page fly 0123456789abcdefg")
    result = run("serve", collection, "--keys", tmp_path / "keys")
    assert "line 1: scopes must be search, write, metrics, admin" in result.stderr
    (tmp_path / "empty").mkdir()
    assert "no collection at" in " ".join(run("serve", tmp_path / "empty").stderr.split())
