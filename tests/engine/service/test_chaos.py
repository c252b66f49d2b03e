"""Shard servers that are killed, stopped, slowed down, replaced or given bad data while queries run."""

import contextlib
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import IncompleteError
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.control.finding import Finder
from hashlight.engine.service.protocol.actions import control
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.engine.storage.versions import read_current
from hashlight.pipelines.serving.local_servers import LocalServers
from tests.engine.service.conftest import Corpus, Load, eventually
from tests.oracles import knn, within_radius

GROUPS = 2


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A collection that these tests write to."""
    return Corpus(tmp_path_factory.mktemp("chaos") / "collection", np.random.default_rng(8), shards=4)


@contextlib.contextmanager
def routed(cluster):
    with (
        contextlib.closing(Finder(cluster.source, security=cluster.security)) as finder,
        contextlib.closing(ClusterRouter(finder.map, security=cluster.security, refresh_s=0.2)) as router,
    ):
        yield router


@pytest.fixture(scope="module")
def running(own):
    more = ["--faults", "--poll", "0.2"]
    with LocalServers(own.path, groups=GROUPS, replicas=2, more=more) as cluster, routed(cluster) as router:
        yield cluster, router


@pytest.fixture
def cluster(running):
    """Two groups of two replicas, all healthy."""
    cluster, router = running
    cluster.scale(2)
    eventually(lambda: states(router) == ["connected"] * 2 * GROUPS)
    return cluster


@pytest.fixture
def router(cluster, running):
    return running[1]


def states(router):
    return [replica["state"] for replica in router.stats()["replicas"]]


def asking(router, corpus, **more):
    """Radius and k-nearest queries in turn, checked against the oracle over the current collection."""
    shards = Collection.open(corpus.path).shards
    codes = np.concatenate([shard.codes_NW for shard in shards])
    ids = np.concatenate([shard.ids_N for shard in shards])
    queries = np.ascontiguousarray(codes[:4])
    pairs = [pair for row in within_radius(queries, codes, ids, 5)[0] for pair in row]
    assert pairs
    _, nearest = knn(queries, codes, ids, 5)

    def ask():
        within = router.range_search(queries, 5, **more)
        assert within.coverage.complete
        assert list(zip(within.distances.tolist(), within.ids.tolist(), strict=True)) == pairs
        found = router.search(queries, 5, **more)
        assert found.coverage.complete
        assert (found.ids == nearest).all()

    return ask


def test_a_killed_replica_fails_no_query_and_is_replaced(own, cluster, router):
    victim = cluster.processes[0, 1]
    with Load(asking(router, own)) as load:
        load.wait_for(20)
        os.kill(victim.pid, signal.SIGKILL)
        load.wait_for(20)
        eventually(lambda: cluster.processes.get((0, 1), victim) is not victim)
        eventually(lambda: states(router) == ["connected"] * 2 * GROUPS)
        load.wait_for(20)
    assert load.errors == []
    assert cluster.processes[0, 1].pid != victim.pid


def test_a_stopped_replica_delays_no_query_past_its_deadline(own, cluster, router):
    stopped = cluster.processes[1, 0]
    with Load(asking(router, own, timeout_s=20.0)) as load:
        load.wait_for(20)
        os.kill(stopped.pid, signal.SIGSTOP)
        try:
            load.wait_for(20)
            eventually(lambda: "silent" in states(router))
            load.wait_for(20)
        finally:
            os.kill(stopped.pid, signal.SIGCONT)
        eventually(lambda: states(router) == ["connected"] * 2 * GROUPS)
        load.wait_for(10)
    assert load.errors == []


def test_calls_to_a_slow_replica_are_hedged(own, cluster, router):
    slow = cluster.processes[0, 0]
    ask = asking(router, own)
    for _ in range(100):  # until the router knows what late means
        ask()
    router.budget.earn(400)  # enough for every hedge
    before = router.stats()["hedges"]
    control(slow.address, "fault", cluster.security, delay_s=2.0)
    # One at a time, so that the slow one is asked first half of the time; concurrent calls would avoid its load.
    for _ in range(8):
        ask()
    control(slow.address, "fault", cluster.security, delay_s=0.0)
    assert router.stats()["hedges"] > before


def test_a_new_version_goes_live_without_failed_or_mixed_answers(own, cluster, router):
    old = Collection.open(own.path)
    new = Corpus(own.path, np.random.default_rng(99), shards=5, overwrite=True)
    fresh = new.collection
    queries = np.concatenate([own.queries[:5], new.queries[:5]])
    expected = {
        version.version: (version.search(queries, 8), version.range_search(queries, 6)) for version in (old, fresh)
    }
    assert (expected[old.version][0].ids != expected[fresh.version][0].ids).any()
    seen = set()

    def ask():
        for result, number in ((router.search(queries, 8), 0), (router.range_search(queries, 6), 1)):
            version = result.coverage.version
            assert result.coverage.complete
            assert (result.ids == expected[version][number].ids).all()
            seen.add(version)

    with Load(ask) as load:
        eventually(lambda: router.version == fresh.version)
        load.wait_for(10)
    assert load.errors == []
    assert fresh.version in seen <= {old.version, fresh.version}


def test_a_corrupt_version_is_refused_and_the_old_one_stays_live(own, cluster, router):
    serving = router.version
    before = router.search(own.queries, 5)
    Corpus(own.path, np.random.default_rng(100), shards=4, overwrite=True)
    broken = read_current(open_place(own.path))
    damaged = own.path / "shards" / broken.shards[2].name / "codes.faiss"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    versions = [
        [one["version"] for one in control(process.address, "look", cluster.security)["versions"]]
        for process in cluster.processes.values()
    ]
    assert all(serving in had for had in versions)
    assert any(broken.version not in had for had in versions)
    router.renew()
    assert router.version == serving
    assert (router.search(own.queries, 5).ids == before.ids).all()
    data[-1] ^= 1
    damaged.write_bytes(data)
    eventually(lambda: router.version == broken.version)


def test_scaling_down_and_up_fails_no_query(own, cluster, router):
    current = router.search(own.queries, 5).ids
    with Load(lambda: np.testing.assert_array_equal(router.search(own.queries, 5).ids, current)) as load:
        load.wait_for(10)
        cluster.scale(1)
        eventually(lambda: len(states(router)) == GROUPS)
        load.wait_for(10)
        cluster.scale(2)
        eventually(lambda: states(router) == ["connected"] * 2 * GROUPS)
        load.wait_for(10)
    assert load.errors == []


def test_without_replicas_a_dead_group_is_named_and_restarted(own, cluster, router):
    cluster.scale(1)
    eventually(lambda: states(router) == ["connected"] * GROUPS)
    lost = set(router._view.map.groups[0].shards)
    os.kill(cluster.processes[0, 0].pid, signal.SIGKILL)
    partial = router.search(own.queries, 5)
    assert set(partial.coverage.degraded) == lost
    assert not partial.coverage.complete
    with pytest.raises(IncompleteError) as caught:
        router.range_search(own.queries, 5)
    assert set(caught.value.missing) == lost
    assert router.range_search(own.queries, 5, allow_partial=True).coverage.searched == partial.coverage.searched
    eventually(lambda: router.search(own.queries, 5).coverage.complete)
    assert router.range_search(own.queries, 5).coverage.complete


def test_a_terminated_server_answers_its_accepted_requests(own, cluster, router):
    leaving = cluster.processes[0, 0]
    control(leaving.address, "fault", cluster.security, delay_s=0.5)
    with Load(asking(router, own)) as load:
        load.wait_for(3)
        os.kill(leaving.pid, signal.SIGTERM)
        eventually(lambda: not leaving.alive)
        load.wait_for(3)
    assert load.errors == []
    assert leaving._process.returncode == 0


def test_servers_exit_with_their_parent_process(own, tmp_path):
    copy = tmp_path / "collection"
    shutil.copytree(own.path, copy)
    with LocalServers(copy, groups=1, replicas=1) as cluster:
        first = cluster.processes[0, 0]
        first._process.stdin.close()
        eventually(lambda: cluster.processes.get((0, 0), first) is not first)
        assert not first.alive


def children():
    """Processes that any thread of this one has started."""
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def stop_successor(victim):
    """Kill a server, and stop the process that replaces it as soon as it appears; return the pid of that process."""
    before = children()
    os.kill(victim.pid, signal.SIGKILL)
    eventually(lambda: children() - before)
    (successor,) = children() - before
    os.kill(successor, signal.SIGSTOP)
    return successor


@pytest.fixture
def small(tmp_path):
    return Corpus(tmp_path / "collection", np.random.default_rng(41), rows=400, shards=2)


def test_a_server_that_hangs_at_startup_blocks_nothing_else(small):
    with LocalServers(small.path, groups=2, replicas=1) as cluster:
        hanging = stop_successor(cluster.processes[0, 0])
        other = cluster.processes[1, 0]
        os.kill(other.pid, signal.SIGKILL)
        eventually(lambda: cluster.processes.get((1, 0), other) is not other)
        assert (0, 0) not in cluster.processes
        closing = threading.Thread(target=cluster.close, daemon=True)
        closing.start()
        eventually(lambda: not closing.is_alive())
        assert hanging not in children()
