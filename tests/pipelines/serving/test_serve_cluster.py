"""`hashlight serve --groups`: a gateway over shard servers, in processes of their own."""

import re
from pathlib import Path

import httpx
import numpy as np
import pytest

import hashlight
from hashlight.engine.client.errors import ConnectionFailedError
from hashlight.engine.collection.collection import Collection
from hashlight.pipelines.serving.cluster import shard_servers
from tests.engine.service.conftest import BITS, Corpus, Load, eventually
from tests.oracles import clustered_codes, distance_histograms, knn, within_radius
from tests.pipelines.cli.test_cli import run
from tests.pipelines.serving.test_serve import end, start


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("cluster") / "collection", np.random.default_rng(11), rows=800, shards=4)


@pytest.fixture(scope="module")
def url(own):
    server, url = start(own.path, "--port", 0, "--groups", 2)
    yield url
    end(server)
    assert server.returncode == 0


def children_of(pid):
    """Processes that any thread of a process has started."""
    return [child for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def test_answers_over_http_match_the_oracle(own, url):
    with hashlight.SearchClient(url, timeout_s=60) as client:
        found = client.search(own.queries, 10)
        assert found.coverage.complete
        assert [answer.ids.tolist() for answer in found] == knn(own.queries, own.codes, own.ids, 10)[1].tolist()
        within = client.range_search(own.queries, 4, limit=800)
        expected = within_radius(own.queries, own.codes, own.ids, 4)[0]
        assert [answer.ids.tolist() for answer in within] == [[id_ for _, id_ in row] for row in expected]
        filtered = client.search(own.queries, 5, filter="label == 3")
        kept = own.labels == 3
        assert [answer.ids.tolist() for answer in filtered] == knn(own.queries, own.codes[kept], own.ids[kept], 5)[
            1
        ].tolist()


def test_distances_are_counted_and_servers_told_over_processes(own, url):
    with hashlight.SearchClient(url, timeout_s=60) as client:
        counts = client.histogram(own.queries, filter="label == 3")
    kept = own.codes[own.labels == 3]
    nobody = np.zeros((len(own.queries), len(kept)), bool)
    assert counts.tolist() == distance_histograms(own.queries, kept, nobody, BITS)[0].tolist()
    told = httpx.get(f"{url}/v1/admin/servers", timeout=60).json()["servers"]
    assert [(one["group"], one["versions"], one["state"], one["fault"]) for one in told] == [
        (1, [1], "connected", None), (2, [1], "connected", None)
    ]  # fmt: skip
    assert all(one["last_answer_s"] < 60 for one in told)
    overview = httpx.get(f"{url}/v1/admin/collection", timeout=60).json()
    assert (overview["location"], overview["coverage"]["searched"]) == (str(own.path), 800)


@pytest.mark.parametrize(("index", "more"), [("faiss-multi-hash", ["--groups", 1]), ("faiss-flat", [])])
def test_the_index_can_be_chosen(own, index, more):
    server, url = start(own.path, "--port", 0, "--index", index, *more)
    try:
        with hashlight.SearchClient(url, timeout_s=60) as client:
            found = client.search(own.queries[:3], 10, include=["explain"])
            assert [answer.ids.tolist() for answer in found] == knn(own.queries[:3], own.codes, own.ids, 10)[1].tolist()
            assert {answer.explain["plan"] for answer in found} == {index}
    finally:
        end(server)


def test_a_published_version_is_taken_up(own, url):
    with hashlight.SearchClient(url, timeout_s=60) as client:
        new = Corpus(own.path, np.random.default_rng(12), rows=700, shards=5, overwrite=True)
        eventually(lambda: client.describe()["version"] == new.collection.version)
        found = client.search(new.queries, 10)
        assert [answer.ids.tolist() for answer in found] == knn(new.queries, new.codes, new.ids, 10)[1].tolist()


def test_replicas_of_a_running_server_come_and_go(own):
    server, url = start(own.path, "--port", 0, "--groups", 2)
    try:
        before = len(children_of(server.pid))
        with hashlight.SearchClient(url, timeout_s=60) as client, Load(lambda: client.search(own.queries, 3)) as load:
            for replicas in (2, 1):
                assert "in every group" in run("scale", url, "--replicas", replicas).output
                assert len(children_of(server.pid)) == before + 2 * (replicas - 1)
                load.wait_for(5)
        assert load.errors == []
    finally:
        end(server)


def test_another_gateway_takes_the_place_of_a_killed_one(own):
    server, url = start(own.path, "--port", 0, "--groups", 1)
    servers = children_of(server.pid)
    assert servers
    with hashlight.SearchClient(url, timeout_s=60) as client:
        expected = [answer.ids.tolist() for answer in client.search(own.queries, 5)]
        server.kill()
        server.communicate()
        with pytest.raises(ConnectionFailedError, match="cannot be reached"):
            client.search(own.queries, 5)
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in servers))
        server, _ = start(own.path, "--port", url.rpartition(":")[2], "--groups", 1)
        try:
            assert [answer.ids.tolist() for answer in client.search(own.queries, 5)] == expected
        finally:
            end(server)


@pytest.mark.parametrize("options", [(), ("--groups", 2)], ids=["embedded", "shard servers"])
def test_a_collection_in_a_bucket_is_served_and_its_new_versions(bucket, options):
    rng = np.random.default_rng(51)
    codes, ids = clustered_codes(rng, 500, BITS), rng.permutation(500)
    uri = bucket.uri("photos")
    Collection.create(uri, codes, ids=ids, bits=BITS, shards=2)
    server, url = start(uri, "--port", 0, *options)
    try:
        with hashlight.SearchClient(url, timeout_s=60) as client:
            found = client.search(codes[:9], 10)
            assert [answer.ids.tolist() for answer in found] == knn(codes[:9], codes, ids, 10)[1].tolist()
            fewer, fewer_ids = codes[100:], ids[100:]
            Collection.create(uri, fewer, ids=fewer_ids, bits=BITS, shards=3, overwrite=True)
            eventually(lambda: client.describe()["version"] == 2)
            found = client.search(codes[:9], 10)
            assert [answer.ids.tolist() for answer in found] == knn(codes[:9], fewer, fewer_ids, 10)[1].tolist()
    finally:
        end(server)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replicas", 2], "--replicas: there are no shard servers without --groups or --ray"),
        (["--shard-tls-cert", "pem", "--shard-tls-key", "pem"], "--shard-tls-cert, --shard-tls-key: there are no"),
        (["--write-log", "logs"], "--write-log goes with --writable"),
        (["--address", "auto"], "--address is that of a Ray cluster: give --ray"),
        (["--groups", 2, "--address", "auto"], "--address is that of a Ray cluster: give --ray"),
        (["--groups", 2, "--shard-tls-authority", "pem"], "goes with --shard-tls-cert and --shard-tls-key"),
    ],
)
def test_options_that_would_be_ignored_are_refused(own, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pem").write_text("never read")
    result = run("serve", own.path, *options)
    assert result.exit_code == 2
    assert said in " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())


def test_no_groups_are_refused(own):
    refused = pytest.raises(ValueError, match="`groups` must be at least 1, got 0")
    with refused, shard_servers(own.path, groups=0, replicas=1):
        pass
