"""A version goes live only if every group has a server that has searched it; else the old one stays live."""

import contextlib
import dataclasses
import shutil

import numpy as np
import pytest

from hashlight.engine.errors import CorruptDataError, NotReadyError
from hashlight.engine.places.integrity import describe_files
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.control.registry import Registry, UnreachableError, control
from hashlight.engine.service.protocol.cluster_map import ServerName
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.engine.service.shards.server import ShardServer
from hashlight.engine.storage.versions import publish, read_current
from tests.engine.service.conftest import Corpus, shut_down
from tests.oracles import knn

GROUPS = 2
ROWS = 40_000  # with several thousand per shard, k-nearest queries use the tables
NOBODY = ServerName("grpc://127.0.0.1:1", "nobody")


@pytest.fixture
def own(tmp_path):
    return Corpus(tmp_path / "collection", np.random.default_rng(21), rows=ROWS, shards=4)


@contextlib.contextmanager
def registered(path, *, replicas):
    """Shard servers in this process, by group and number, and their registry."""
    registry = Registry(path, groups=GROUPS)
    servers = {(group, number): ShardServer(path) for group in range(GROUPS) for number in range(replicas)}
    for (group, number), server in servers.items():
        wanted = registry.assignment(group)
        server.load(*wanted)
        registry.register(group, number, server.name, [wanted.identity])
    try:
        yield registry, servers
    finally:
        for server in servers.values():
            shut_down(server)


def versions_of(server):
    return [group["version"] for group in server.describe()["groups"].values()]


def publish_with_wrong_tables(path):
    """Publish a version in which one shard has the tables of another, with correct checksums for all files."""
    store = open_place(path)
    live = read_current(store)
    wrong, other = live.shards[0], live.shards[1]
    folder = path / "shards" / wrong.name
    fresh = path / "shards" / ("f" * 32)
    shutil.copytree(folder, fresh)
    shutil.rmtree(fresh / "tables")
    shutil.copytree(path / "shards" / other.name / "tables", fresh / "tables")
    spec = dataclasses.replace(wrong, name=fresh.name, files=describe_files(fresh))
    manifest = dataclasses.replace(
        live, version=live.version + 1, parent=live.file_name, shards=(spec, *live.shards[1:])
    )
    assert publish(store, manifest, store.find("CURRENT"), in_doubt=lambda: None)
    return manifest.version


def test_a_version_that_does_not_find_its_own_codes_is_not_served(own):
    with (
        registered(own.path, replicas=2) as (registry, servers),
        contextlib.closing(ClusterRouter(registry.map)) as router,
    ):
        expected = knn(own.queries, own.codes, own.ids, 5)[1]
        new = publish_with_wrong_tables(own.path)
        with pytest.raises(CorruptDataError, match="do not belong to"):
            registry.roll(linger_s=0.0)
        assert registry.version == registry.map().version == new - 1
        assert [versions_of(server) for server in servers.values()] == [[new - 1]] * 4
        router.renew()
        found = router.search(own.queries, 5, allow_partial=False)
        assert found.coverage.version == new - 1
        assert (found.ids == expected).all()


def test_a_version_without_a_known_server_in_every_group_is_not_served(own):
    with registered(own.path, replicas=1) as (registry, servers):
        old = registry.version
        new = Corpus(own.path, np.random.default_rng(22), shards=4, overwrite=True).collection.version
        before = registry.assignment(1).identity
        registry.register(1, 0, NOBODY, [before])  # the server of group 1 is unreachable
        with pytest.raises(NotReadyError, match=rf"no server of groups \[1\] has version {new}"):
            registry.roll(linger_s=0.0)
        assert registry.version == old
        assert versions_of(servers[0, 0]) == [old]
        registry.register(1, 0, servers[1, 0].name, [before])
        assert registry.roll(linger_s=0.0)
        assert [group.replicas for group in registry.map().groups] == [(servers[g, 0].address,) for g in range(GROUPS)]


def test_an_unreachable_server_does_not_block_a_version_that_another_replica_has(own):
    with registered(own.path, replicas=2) as (registry, servers):
        new = Corpus(own.path, np.random.default_rng(23), shards=4, overwrite=True).collection.version
        registry.register(0, 1, NOBODY, [registry.assignment(0).identity])
        assert registry.roll(linger_s=0.0)
        assert registry.map().version == new
        assert registry.map().groups[0].replicas == (servers[0, 0].address,)
        assert versions_of(servers[0, 0]) == [new]


def test_a_late_registration_does_not_undo_a_version_the_server_was_told_to_load(own):
    with registered(own.path, replicas=1) as (registry, servers):
        old = registry.assignment(0).identity
        Corpus(own.path, np.random.default_rng(24), shards=4, overwrite=True)
        assert registry.roll(linger_s=0.0)
        wanted = registry.register(0, 0, servers[0, 0].name, [old])  # what it had before the roll
        assert wanted.version == registry.version == 2
        assert all(group.replicas for group in registry.map().groups)
        registry.register(0, 0, NOBODY, [old])  # another server in its place
        assert registry.map().groups[0].replicas == ()


def test_unreachable_and_refusing_servers_raise_different_errors(own):
    with pytest.raises(UnreachableError, match="cannot be reached"):
        control(NOBODY.address, "health", timeout_s=5.0)
    with registered(own.path, replicas=1) as (_, servers):
        servers[0, 0].drain()
        with pytest.raises(NotReadyError, match="is shutting down") as caught:
            control(servers[0, 0].address, "ready")
        assert not isinstance(caught.value, UnreachableError)
