"""A router with a stale map: it renews the map within the query's deadline, and continues if that fails."""

import contextlib
import threading
import time

import numpy as np
import pytest

from hashlight.engine.collection import rerank as rerank_module
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.errors import IncompleteError, NotReadyError
from hashlight.engine.service.routing import router as router_module
from hashlight.engine.service.routing.router import ClusterRouter
from tests.engine.service.conftest import Corpus, eventually, serving
from tests.oracles import knn


class Directory:
    """A directory that the test can stop, and whose answer it can change."""

    def __init__(self, cluster):
        self.map, self.asked, self.answered = cluster, 0, 0
        self.error = None
        self.open = threading.Event()
        self.open.set()

    def __call__(self):
        self.asked += 1
        found = self.map
        self.open.wait(60)
        if self.error is not None:
            raise self.error
        self.answered += 1
        return found


@pytest.fixture
def quiet(monkeypatch):
    """Routers ask the directory only when something triggers it."""
    monkeypatch.setattr(router_module, "REFRESH_S", 3600.0)


@contextlib.contextmanager
def routed(cluster, **options):
    """A router that has already asked its directory once and no longer polls it, and the directory."""
    directory = Directory(cluster)
    with contextlib.closing(ClusterRouter(directory, **options)) as router:
        eventually(lambda: all(replica["state"] == "connected" for replica in router.stats()["replicas"]))
        eventually(lambda: looks_no_more(directory))
        yield router, directory


def looks_no_more(directory):
    asked = directory.asked
    time.sleep(0.3)
    return directory.asked == asked


def test_a_failing_directory_does_not_affect_answers(corpus, quiet):
    with serving(corpus.path, groups=3) as (servers, cluster), routed(cluster) as (router, directory):
        servers[1][0].drop(cluster.manifest)
        directory.error, asked = NotReadyError("the directory is being restarted"), directory.asked
        found = router.search(corpus.queries, 5)
        assert directory.asked > asked
        assert set(found.coverage.degraded) == set(cluster.groups[1].shards)
        with pytest.raises(IncompleteError):
            router.range_search(corpus.queries, 5)


def test_a_slow_directory_delays_no_query_past_its_deadline(corpus, quiet):
    with serving(corpus.path, groups=3) as (servers, cluster), routed(cluster) as (router, directory):
        servers[1][0].drop(cluster.manifest)
        directory.open.clear()
        answered = directory.answered
        try:
            found = router.search(corpus.queries, 5, timeout_s=3.0)
            assert directory.answered == answered
        finally:
            directory.open.set()
        assert set(found.coverage.degraded) == set(cluster.groups[1].shards)


def test_every_query_follows_servers_to_their_new_version(tmp_path, quiet):
    old = Corpus(tmp_path / "collection", np.random.default_rng(31), rows=600, shards=4)
    with contextlib.ExitStack() as stack:
        servers, cluster = stack.enter_context(serving(old.path, groups=2))
        new = Corpus(old.path, np.random.default_rng(32), rows=500, shards=4, overwrite=True)
        _, fresh = stack.enter_context(serving(new.path, groups=2))
        router, directory = stack.enter_context(routed(cluster))
        wanted = new.ids[:3]
        queries = {
            "search": lambda: router.search(new.queries, 5).ids,
            "get": lambda: router.get(wanted)["id"].to_numpy(),
            "features_of": lambda: router.features_of(wanted),
        }
        expected = {
            "search": knn(new.queries, new.codes, new.ids, 5)[1],
            "get": wanted,
            "features_of": new.features[:3],
        }
        for server in (server for group in servers for server in group):
            server.drop(cluster.manifest)
        for name, ask in queries.items():
            directory.map = cluster
            router.renew()
            assert router.version == 1
            directory.map = fresh
            np.testing.assert_array_equal(ask(), expected[name])
            assert router.version == 2


@contextlib.contextmanager
def two_versions(tmp_path, monkeypatch):
    """A router over one version, another version that it may go over to, and what each of them answers."""
    monkeypatch.setattr(rerank_module, "MAX_POOL", 64)  # the pools of two queries of the twenty at a time
    old = Corpus(tmp_path / "collection", np.random.default_rng(31), rows=600, shards=4)
    with contextlib.ExitStack() as stack:
        servers, cluster = stack.enter_context(serving(old.path, groups=2))
        expected = [old.collection.search(old.queries, 5, **reranking(old))]
        new = Corpus(old.path, np.random.default_rng(32), rows=500, shards=4, overwrite=True)
        _, fresh = stack.enter_context(serving(new.path, groups=2))
        expected.append(new.collection.search(old.queries, 5, **reranking(old)))
        router, directory = stack.enter_context(routed(cluster))
        yield router, directory, fresh, servers, old, expected


def reranking(corpus):
    features = np.random.default_rng(1).normal(size=(len(corpus.queries), 8)).astype(np.float32)
    return {"rerank": Rerank(pool=32), "features": features}


def after_calls(router, number, act):
    """Act after so many of a router's calls to its groups."""
    calls, fan_out = [], router._fan_out

    def count(*arguments):
        parts = fan_out(*arguments)
        calls.append(1)
        if len(calls) == number:
            act()
        return parts

    router._fan_out = count
    return calls


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_all_pools_of_a_call_are_of_one_version(tmp_path, quiet, monkeypatch, calls):
    with two_versions(tmp_path, monkeypatch) as (router, directory, fresh, _, old, expected):

        def renew():
            directory.map = fresh
            router.renew()

        made = after_calls(router, calls, renew)
        found = router.search(old.queries, 5, **reranking(old))
        assert router.version == 2
        assert len(made) == 20  # a search and its features for every two queries
        assert found.coverage.version == 1
        np.testing.assert_array_equal(found.ids, expected[0].ids)


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_call_whose_version_is_dropped_meanwhile_starts_over(tmp_path, quiet, monkeypatch, calls):
    with two_versions(tmp_path, monkeypatch) as (router, directory, fresh, servers, old, expected):

        def drop():
            directory.map = fresh
            for server in (server for group in servers for server in group):
                server.drop(old.collection.manifest.digest)

        after_calls(router, calls, drop)
        found = router.search(old.queries, 5, **reranking(old))
        assert found.coverage.version == 2
        np.testing.assert_array_equal(found.ids, expected[1].ids)
        np.testing.assert_array_equal(found.distances, expected[1].distances)


def test_a_new_map_does_not_wait_for_lost_servers(corpus, quiet):
    with serving(corpus.path, groups=2, replicas=2) as (servers, cluster), routed(cluster, connect_s=3600.0) as held:
        router, directory = held
        first, second = (group.replicas for group in cluster.groups)
        servers[1][0].drain()
        eventually(lambda: "leaving" in [replica["state"] for replica in router.stats()["replicas"]])
        directory.map = cluster.with_replicas([first, second[:1]])
        looking = threading.Thread(target=router.renew, daemon=True)
        looking.start()
        eventually(lambda: not looking.is_alive())
        assert len(router.stats()["replicas"]) == 3
