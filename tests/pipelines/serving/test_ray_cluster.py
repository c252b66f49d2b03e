"""Shard servers on Ray: the same answers, restarts at new addresses, a new version, servers that outlive a driver."""

import contextlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import NotReadyError
from hashlight.engine.service.control.finding import Finder
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.serving import ray_servers as ray_cluster
from hashlight.pipelines.serving.ray_lookup import RayAddresses
from hashlight.pipelines.serving.ray_servers import Named, RayServers, _parse, find_actors
from tests.engine.service.conftest import BITS, Corpus, Load, eventually
from tests.oracles import clustered_codes, knn, within_radius


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("ray") / "collection", np.random.default_rng(3), rows=900, shards=4)


@contextlib.contextmanager
def routed(cluster):
    with contextlib.closing(Finder(cluster.source, security=cluster.security)) as finder:
        finder.wait(60.0)
        with contextlib.closing(ClusterRouter(finder.map, security=cluster.security, refresh_s=0.2)) as router:
            yield router


@pytest.fixture(scope="module")
def running(own, ray_session):
    with RayServers(own.path, groups=2, replicas=2, cpus=0.1) as cluster, routed(cluster) as router:
        yield cluster, router


def all_connected(router, replicas=4):
    states = [replica["state"] for replica in router.stats()["replicas"]]
    return states == ["connected"] * replicas


def addresses(cluster, group):
    return [f"grpc://{address}" for address in cluster.source()[group]]


def test_answers_match_the_oracle(own, running):
    router = running[1]
    found = router.search(own.queries, 10)
    assert (found.ids == knn(own.queries, own.codes, own.ids, 10)[1]).all()
    within = router.range_search(own.queries, 5)
    pairs = [pair for row in within_radius(own.queries, own.codes, own.ids, 5)[0] for pair in row]
    assert list(zip(within.distances.tolist(), within.ids.tolist(), strict=True)) == pairs
    assert within.coverage.complete
    router.ready()


def test_a_killed_actor_fails_no_query_and_comes_back_elsewhere(own, running):
    cluster, router = running
    eventually(lambda: all_connected(router))
    victim = cluster.health()[0, 1]
    expected = router.search(own.queries, 5).ids
    with Load(lambda: np.testing.assert_array_equal(router.search(own.queries, 5).ids, expected), threads=2) as load:
        load.wait_for(5)
        os.kill(victim["pid"], signal.SIGKILL)
        load.wait_for(5)
        eventually(lambda: victim["address"] not in addresses(cluster, 0))
        eventually(lambda: all_connected(router))
        load.wait_for(5)
    assert load.errors == []
    assert cluster.health()[0, 1]["pid"] != victim["pid"]


def test_a_new_version_is_served_and_kept_over_a_restart(own, running):
    cluster, router = running
    eventually(lambda: all_connected(router))
    new = Corpus(own.path, np.random.default_rng(4), rows=900, shards=5, overwrite=True)
    with Load(lambda: router.search(own.queries, 5, allow_partial=False), threads=2) as load:
        load.wait_for(5)
        eventually(lambda: router.version == new.collection.version)
        load.wait_for(5)
    assert load.errors == []
    expected = knn(new.queries, new.codes, new.ids, 5)[1]
    assert (router.search(new.queries, 5).ids == expected).all()
    victim = cluster.health()[1, 0]
    os.kill(victim["pid"], signal.SIGKILL)
    eventually(lambda: victim["address"] not in addresses(cluster, 1))
    eventually(lambda: all_connected(router))
    assert (router.search(new.queries, 5).ids == expected).all()


def test_replicas_come_and_go(own, running):
    cluster, router = running
    eventually(lambda: all_connected(router))
    with Load(lambda: router.search(own.queries, 5, allow_partial=False), threads=2) as load:
        cluster.scale(1)
        eventually(lambda: all_connected(router, 2))
        load.wait_for(5)
        cluster.scale(3)
        eventually(lambda: all_connected(router, 6))
        load.wait_for(5)
        cluster.scale(2)
        eventually(lambda: all_connected(router, 4))
        load.wait_for(5)
    assert load.errors == []


def test_what_cannot_be_added_leaves_everything_as_it_was(running, monkeypatch):
    cluster, router = running
    eventually(lambda: all_connected(router))
    with pytest.raises(ValueError, match=r"`replicas` must be fewer than 40: they need 7\.6 CPUs more"):
        cluster.scale(40)
    with monkeypatch.context() as patch:
        patch.setattr(ray_cluster, "READY_S", 0.0)
        with pytest.raises(NotReadyError, match="do not start"):
            cluster.scale(3)
    assert len(cluster.health()) == 4
    cluster.scale(3)
    eventually(lambda: all_connected(router, 6))
    cluster.scale(2)
    eventually(lambda: all_connected(router, 4))


def test_a_lost_server_that_is_no_longer_wanted_is_forgotten(running):
    cluster, router = running
    eventually(lambda: all_connected(router))
    os.kill(cluster.health()[0, 1]["pid"], signal.SIGKILL)
    cluster.scale(1)
    eventually(lambda: [len(group) for group in cluster.source()] == [1, 1])
    eventually(lambda: all_connected(router, 2))
    cluster.scale(2)
    eventually(lambda: all_connected(router, 4))


def test_named_servers_outlive_who_started_them_and_are_found_by_any_gateway(own, ray_session, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    security = Security(token="of these tests")
    with RayServers(own.path, groups=2, replicas=1, name="shared", security=security, cpus=0.1) as first:
        before = {place: told["instance"] for place, told in first.health().items()}
    with pytest.raises(ValueError, match=r"servers of 2 groups run as 'shared' .* expected 3 groups"):
        RayServers(own.path, groups=3, replicas=1, name="shared", security=security, cpus=0.1)
    again = RayServers.of("shared")
    assert {place: told["instance"] for place, told in again.health().items()} == before
    lookup = RayAddresses("shared")
    try:
        with contextlib.closing(Finder(lookup, security=security)) as finder:
            found = finder.wait(240.0)
            assert [len(group.replicas) for group in found.groups] == [1, 1]
            with contextlib.closing(ClusterRouter(finder.map, security=security, refresh_s=0.2)) as router:
                expected = router.search(own.queries, 5, allow_partial=False).ids
                again.scale(2)
                eventually(lambda: all_connected(router, 4))
                # What joined Ray for the gateway is lost, as it is some time after Ray's head; another one takes over.
                lookup._child.kill()
                assert (router.search(own.queries, 5, allow_partial=False).ids == expected).all()
                again.scale(1)
                eventually(lambda: all_connected(router, 2))
                assert (router.search(own.queries, 5, allow_partial=False).ids == expected).all()
    finally:
        lookup.close()
        again.stop()
    eventually(lambda: not find_actors("shared"))
    with pytest.raises(NotReadyError, match="no shard servers named 'shared' answer"):
        RayServers.of("shared")
    assert ray.is_initialized()


def test_another_process_finds_what_is_reserved_and_gives_it_back(own, ray_session):
    import ray
    from ray.util.placement_group import placement_group_table

    def reserved():
        found = [one for one in placement_group_table().values() if "/elsewhere/" in one["name"]]
        return sorted((one["name"], len(one["bundles"])) for one in found if one["state"] == "CREATED")

    def scale(replicas):
        command = [sys.executable, "-P", "-m", "hashlight", "scale", "ray://elsewhere", "--replicas", str(replicas)]
        address = ray.get_runtime_context().gcs_address
        done = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": address}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    security = Security(token="of these tests")
    with RayServers(own.path, groups=2, replicas=1, name="elsewhere", security=security, cpus=0.1):
        before = reserved()
        assert [bundles for _, bundles in before] == [1, 1]
    scale(2)
    assert reserved() == before
    assert len(find_actors("elsewhere")) == 4
    scale(0)
    eventually(lambda: not find_actors("elsewhere"))
    assert reserved() == []


def test_names_of_others_are_not_taken_for_ours():
    assert _parse("a/2/3/0", "a") == Named(1, 3, 0)
    for name in ("b/2/3/0", "a/2/3", "a/x/3/0", "a/4/3/0", "a/0/3/0", "a", "aa/2/3/0"):
        assert _parse(name, "a") is None


def test_a_cluster_that_has_no_room_leaves_nothing_reserved(own, ray_session, monkeypatch):
    import ray

    free = ray.available_resources()["CPU"]
    monkeypatch.setattr(ray_cluster, "PLACED_S", 5.0)
    with pytest.raises(PipelineError, match="add nodes, or serve fewer groups or replicas"):
        RayServers(own.path, groups=2, replicas=1, cpus=0.75 * free)
    # More, if servers of the test before were still ending when this one began.
    eventually(lambda: ray.available_resources()["CPU"] > free - 0.01)


def test_a_collection_in_a_bucket_is_served(bucket, ray_session):
    rng = np.random.default_rng(5)
    codes, ids = clustered_codes(rng, 500, BITS), rng.permutation(500)
    uri = bucket.uri("photos")
    Collection.create(uri, codes, ids=ids, bits=BITS, shards=2)
    with (
        RayServers(uri, groups=2, replicas=1, cpus=0.1) as cluster,
        routed(cluster) as router,
    ):
        assert (router.search(codes[:9], 10).ids == knn(codes[:9], codes, ids, 10)[1]).all()


def test_the_servers_answer_with_the_index_that_was_chosen(tmp_path, ray_session):
    own = Corpus(tmp_path / "collection", np.random.default_rng(4), rows=900, shards=4)
    with (
        RayServers(own.path, groups=1, replicas=1, cpus=0.1, index="faiss-flat") as cluster,
        routed(cluster) as router,
    ):
        found = router.search(own.queries, 10, explain=True)
        assert (found.ids == knn(own.queries, own.codes, own.ids, 10)[1]).all()
        assert set(found.explain.plans) == {"faiss-flat"}


@pytest.mark.slow
def test_a_lost_node_fails_no_query(own):
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipelines.serving.node_loss", str(own.path)],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
