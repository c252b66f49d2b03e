"""`hashlight shard-server` and `hashlight gateway`: processes that know each other by a list of addresses alone."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

import hashlight
from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.protocol.actions import control
from hashlight.engine.service.protocol.security import TOKEN_VARIABLE, Security
from tests.engine.service.conftest import Corpus, Load, eventually
from tests.oracles import knn
from tests.pipelines.cli.test_cli import run

TOKEN = "a token of these tests"
GROUPS = 2


def start(verb, *arguments, stderr=None):
    """Start a command; return the process, and the address that its first line ends in."""
    command = [sys.executable, "-P", "-m", "hashlight", verb, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, TOKEN_VARIABLE: TOKEN},
    )  # fmt: skip
    line = process.stdout.readline()
    found = re.search(r" at (\S+)$", line)
    assert found, line
    return process, found[1]


def status(url, health):
    return httpx.get(f"{url}/health/{health}", timeout=60).status_code


def end(process, number=signal.SIGTERM):
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


def kill(process):
    process.kill()
    process.wait()
    process.stdout.close()


class Deployment:
    """Shard servers by group and number, and the file that lists them."""

    def __init__(self, path, folder):
        self.path, self.map = path, folder / "map.json"
        self.servers = {}

    def start(self, *places):
        for place in places:
            self.servers[place] = start(
                "shard-server", self.path, "--group", f"{place[0]}/{GROUPS}", "--listen", "127.0.0.1:0",
                "--poll", 0.2, "--drain-delay", 1,
            )  # fmt: skip
        self.list()

    def list(self, *without):
        groups = [[], []]
        for place, (_, address) in sorted(self.servers.items()):
            if place not in without:
                groups[place[0] - 1].append(address.removeprefix("grpc://"))
        fresh = self.map.with_suffix(".new")
        fresh.write_text(json.dumps({"groups": groups}))
        fresh.replace(self.map)

    def gateway(self, *more, port=0):
        """Start a gateway, and wait until it has found all servers."""
        process, url = start("gateway", "--map", self.map, "--poll", 0.2, "--port", port, "--drain-delay", 0.5, *more)
        eventually(lambda: status(url, "complete") == 200)
        return process, url

    def tell(self, place, action="offers"):
        return control(self.servers[place][1], action, Security(token=TOKEN), timeout_s=60)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("gateway") / "collection", np.random.default_rng(11), rows=800, shards=4)


@pytest.fixture(scope="module")
def deployment(own, tmp_path_factory):
    found = Deployment(own.path, tmp_path_factory.mktemp("map"))
    try:
        found.start((1, 0), (1, 1), (2, 0), (2, 1))
        yield found
    finally:
        for process, _ in found.servers.values():
            kill(process)


@contextlib.contextmanager
def gateways(deployment, count, *more):
    started = [deployment.gateway(*more) for _ in range(count)]
    try:
        yield started
    finally:
        for process, _ in started:
            kill(process)


def ids_of(client, corpus):
    return [answer.ids.tolist() for answer in client.search(corpus.queries, 10, allow_partial=False)]


def nearest(corpus):
    return knn(corpus.queries, corpus.codes, corpus.ids, 10)[1].tolist()


def test_two_gateways_answer_the_same_and_either_may_die(own, deployment):
    with gateways(deployment, 2) as ((first, one), (second, other)):
        for url in (one, other):
            with hashlight.SearchClient(url, timeout_s=60) as client:
                assert ids_of(client, own) == nearest(own)
        ports = [url.rpartition(":")[2] for url in (one, other)]
        with hashlight.SearchClient([one, other], timeout_s=60) as client:

            def ask():
                assert ids_of(client, own) == nearest(own)

            with Load(ask) as load:
                load.wait_for(10)
                kill(first)
                load.wait_for(10)
                back, _ = deployment.gateway(port=ports[0])
                kill(second)
                load.wait_for(10)
            kill(back)
            assert load.errors == []


def test_servers_stay_warm_while_all_gateways_are_gone(own, deployment):
    with gateways(deployment, 1) as ((gateway, url),):
        with hashlight.SearchClient(url, timeout_s=60) as client:
            assert ids_of(client, own) == nearest(own)
        before = {place: deployment.tell(place) for place in deployment.servers}
        kill(gateway)
    with gateways(deployment, 1) as ((_, url),), hashlight.SearchClient(url, timeout_s=60) as client:
        assert ids_of(client, own) == nearest(own)
    after = {place: deployment.tell(place) for place in deployment.servers}
    assert {place: told["instance"] for place, told in after.items()} == {
        place: told["instance"] for place, told in before.items()
    }
    assert {place: told["versions"] for place, told in after.items()} == {
        place: told["versions"] for place, told in before.items()
    }


@pytest.mark.slow
def test_a_version_and_the_servers_are_replaced_one_by_one_without_a_failed_query(own, deployment, tmp_path):
    more = (own.path, "--writable", "--no-compact", "--write-log", tmp_path / "log")
    with gateways(deployment, 1, *more) as ((_, url),), hashlight.SearchClient(url, timeout_s=60) as client:
        seen = set()

        def ask():
            found = client.search(own.queries[:4], 5, allow_partial=False)
            assert found.coverage.complete
            seen.add(found.version)

        with Load(ask, threads=2) as load:
            load.wait_for(10)
            features = np.zeros((1, 8), np.float16)
            version = client.upsert(np.array([[1, 2]], np.uint64), ids=[10**6], features=features, visible=True)
            assert client.get(10**6)[0].id == 10**6
            load.wait_for(10)
            for place in list(deployment.servers):
                process, _ = deployment.servers[place]
                deployment.start((place[0], 9))
                deployment.list(place)
                assert end(process) == 0
                deployment.servers[place] = deployment.servers.pop((place[0], 9))
                load.wait_for(10)
        assert load.errors == []
        assert version in seen
        client.delete([10**6], visible=True)


def test_a_server_that_is_told_to_end_answers_for_a_while(own, deployment):
    deployment.start((1, 7))
    process, address = deployment.servers.pop((1, 7))
    deployment.list()
    with gateways(deployment, 1):
        assert control(address, "offers", Security(token=TOKEN))["draining"] is False
        process.send_signal(signal.SIGTERM)
        eventually(lambda: control(address, "offers", Security(token=TOKEN))["draining"])
        assert control(address, "health", Security(token=TOKEN))["status"] == "draining"
        process.communicate(timeout=60)
        assert process.returncode == 0


def test_a_gateway_is_not_ready_once_it_is_told_to_end_but_answers(own, deployment):
    process, url = start("gateway", "--map", deployment.map, "--port", 0, "--drain-delay", 30)
    try:
        eventually(lambda: status(url, "complete") == 200)
        assert status(url, "ready") == 200
        process.send_signal(signal.SIGTERM)
        eventually(lambda: status(url, "ready") == 503)
        body = {"queries": [{"code": "0" * 18}], "k": 1}
        assert httpx.post(f"{url}/v1/search", json=body).status_code == 200
    finally:
        assert end(process) == 0  # a second signal does not wait


def test_a_gateway_listens_before_there_are_servers_and_finds_them(own, tmp_path):
    later = Deployment(own.path, tmp_path)
    later.list()
    process, url = start(
        "gateway",
        own.path,
        "--writable",
        "--map",
        later.map,
        "--poll",
        0.2,
        "--port",
        0,
        "--write-log",
        tmp_path / "log",
    )
    try:
        with hashlight.SearchClient(url, timeout_s=60, max_retries=0) as client:
            for health, expected in (("live", 200), ("ready", 503), ("complete", 503)):
                assert status(url, health) == expected
            for ask in (client.describe, lambda: client.search(own.queries, 10), lambda: client.get(int(own.ids[0]))):
                with pytest.raises(hashlight.NotReadyError, match="no shard server has been found yet"):
                    ask()
            told = httpx.get(f"{url}/metrics", timeout=60).text
            assert "hashlight_coverage_ratio 0.0" in told
            assert "hashlight_router_groups 0.0" in told
            assert httpx.get(url, timeout=60).status_code == 200, "its page"
            client.delete([10**7])
            later.start((1, 0), (2, 0))
            eventually(lambda: status(url, "complete") == 200)
            assert ids_of(client, own) == nearest(own)
            assert end(process) == 0
    finally:
        kill(process)
        for server, _ in later.servers.values():
            kill(server)


def test_a_wrong_token_is_told_in_the_log(deployment, monkeypatch, tmp_path):
    monkeypatch.setattr(f"{__name__}.TOKEN", "another")
    with open(tmp_path / "log", "wb") as log:
        process, url = start("gateway", "--map", deployment.map, "--port", 0, stderr=log)
    try:
        eventually(lambda: "requires a token" in (tmp_path / "log").read_text())
        assert status(url, "ready") == 503
        assert "127.0.0.1" not in httpx.get(f"{url}/health/ready", timeout=60).text
    finally:
        kill(process)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give either --shards or --map"),
        (["--shards", "dns:///s-{group}:1", "--map", "MAP"], "give either --shards or --map"),
        (["--shards", "dns:///s-{group}:1"], "--shards dns:///... goes with --groups"),
        (["--shards", "s-{group}:1", "--groups", 2], "the servers' names must be `dns:///HOST:PORT`"),
        (["--shards", "dns:///s:1", "--groups", 2], "the servers' names must be `dns:///HOST:PORT`"),
        (["--map", "MAP", "--groups", 3], "has 2 groups, expected 3"),
        (["--map", "MAP", "--writable"], "--writable goes with a COLLECTION"),
        (["--map", "MAP", "--shard-tls-authority", "MAP"], "goes with --shard-tls-cert and --shard-tls-key"),
    ],
)
def test_options_that_do_not_fit_are_refused(deployment, options, said):
    result = run("gateway", "--port", 0, *(deployment.map if one == "MAP" else one for one in options))
    assert result.exit_code in (1, 2)
    assert said in " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())


def test_versions_are_taken_up_without_a_gateway_and_the_last_two_are_kept(tmp_path):
    path = tmp_path / "c"
    codes = np.arange(64, dtype=np.uint64)[:, None]
    collection = Collection.create(path, codes, bits=64, shards=4)
    found = Deployment(path, Path(tmp_path))
    found.start((1, 0))
    try:
        for step in range(3):
            collection = collection.delete([step])
            wanted = collection.version
            eventually(lambda wanted=wanted: found.tell((1, 0))["versions"][-1]["version"] == wanted)
        assert [one["version"] for one in found.tell((1, 0))["versions"]] == [3, 4]
    finally:
        end(found.servers[1, 0][0], signal.SIGINT)
