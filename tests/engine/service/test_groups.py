"""Shards are divided into groups: of similar size, few move from version to version, and some groups may be empty."""

import contextlib
import dataclasses

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.protocol.cluster_map import assign_groups
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.engine.storage.manifest import Manifest, ShardSpec
from hashlight.engine.storage.shard import Shard
from tests.engine.service.conftest import Fleet
from tests.oracles import clustered_codes, knn

GROUPS = 3


@pytest.fixture
def rng():
    return np.random.default_rng(31)


def manifest_of(*sizes, first=0):
    shards = tuple(ShardSpec(f"shard-{number + first}", rows, {}) for number, rows in enumerate(sizes))
    return Manifest(version=1, bits=64, encoder=None, shards=shards)


def places(manifest, count):
    return {name: group for group, names in enumerate(assign_groups(manifest, count)) for name in names}


def rows_by_group(manifest, count):
    rows = {spec.name: spec.rows for spec in manifest.shards}
    return [sum(rows[name] for name in names) for names in assign_groups(manifest, count)]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_groups_are_of_similar_size(count):
    rng = np.random.default_rng(4)
    for sizes in ([1000] * 48, rng.integers(1, 10_000, 60).tolist(), [2**20, *[1000] * 200], [5]):
        manifest = manifest_of(*sizes)
        rows = rows_by_group(manifest, count)
        assert sum(rows) == sum(sizes)
        # Where the largest one alone is more than its share, or a few are left over, nobody could do better by much.
        assert max(rows) <= 1.25 * sum(sizes) / count + max(sizes)


def test_equal_shards_are_divided_equally():
    assert sorted(rows_by_group(manifest_of(*[1000] * 6), 3)) == [2000] * 3


def test_small_shards_that_come_and_go_move_no_others():
    large = [20_000_000] * 9 + [3_000_000] * 5
    before = places(manifest_of(*large), 4)
    for number in range(30):
        small = manifest_of(*[100 * (1 + number)] * number, first=100).shards
        both = dataclasses.replace(manifest_of(*large), shards=(*small, *manifest_of(*large).shards))
        after = places(both, 4)
        assert {name: after[name] for name in before} == before


def test_a_commit_among_many_small_shards_moves_few_of_them():
    rng = np.random.default_rng(7)
    sizes = rng.integers(1, 5000, 300).tolist()
    before = places(manifest_of(*sizes), 4)
    after = places(manifest_of(*sizes, 1), 4)
    assert {name: after[name] for name in before} == before
    middle = places(manifest_of(*sizes, 2000), 4)
    assert sum(middle[name] != before[name] for name in before) <= 15
    fewer = places(manifest_of(*sizes[1:], first=1), 4)
    assert sum(fewer[name] != before[name] for name in fewer) <= 30


def test_groups_are_at_least_one():
    with pytest.raises(ValueError, match="`groups` must be at least 1, got 0"):
        assign_groups(manifest_of(5), 0)


@contextlib.contextmanager
def served(path):
    """A server of each group in this process, what finds them, and a router over them."""
    with Fleet(path, groups=GROUPS) as fleet:
        fleet.take_up()
        finder = fleet.finder()
        with contextlib.closing(ClusterRouter(finder.map)) as router:
            yield fleet, router


def renewed(fleet, router):
    fleet.take_up()
    router.renew()


def test_versions_with_fewer_shards_than_groups_are_served_one_after_another(tmp_path, rng):
    codes, ids = clustered_codes(rng, 400, 64), np.arange(400) * 3
    labels = np.arange(400) % 4
    collection = Collection.create(tmp_path / "c", codes, ids=ids, attributes={"label": labels}, bits=64, shards=6)
    with served(collection.path) as (fleet, router):

        def check(kept_N):
            found = router.search(codes[:9], 5, allow_partial=False)
            expected = knn(codes[:9], codes[kept_N], ids[kept_N], 5)
            np.testing.assert_array_equal(found.ids, expected[1])
            np.testing.assert_array_equal(found.distances, expected[0])
            assert found.coverage.codes == found.coverage.searched == len(kept_N)
            assert found.coverage.shards == found.coverage.answered == len(collection.shards)
            assert not found.coverage.degraded
            assert found.coverage.version == collection.version
            if len(kept_N):
                assert router.get(ids[kept_N[:3]])["label"].to_pylist() == labels[kept_N[:3]].tolist()

        everyone = np.arange(400)
        check(everyone)
        collection = collection.compact(full=True)
        assert len(collection.shards) == 1 < GROUPS
        renewed(fleet, router)
        check(everyone)
        collection = collection.add(codes[:1] ^ np.uint64(1), ids=np.array([5000]), attributes={"label": [9]}).delete(
            [5000]
        )
        renewed(fleet, router)
        check(everyone)
        collection = collection.delete(ids).compact(full=True)
        assert not len(collection.shards)
        renewed(fleet, router)
        check(np.arange(0))
        collection = collection.add(codes[100:103], ids=ids[100:103], attributes={"label": labels[100:103]})
        renewed(fleet, router)
        check(np.arange(100, 103))
        assert len(router._view.replicas) == 1
        for server in fleet.servers.values():
            server.ready()


def test_a_group_without_shards_needs_no_server(tmp_path, rng):
    codes = clustered_codes(rng, 50, 64)
    collection = Collection.create(tmp_path / "c", codes, bits=64, shards=1)
    (group,) = (number for number, names in enumerate(assign_groups(collection.manifest, GROUPS), 1) if names)
    with Fleet(collection.path, groups=GROUPS) as fleet:
        for other in set(range(1, GROUPS + 1)) - {group}:
            fleet.end((other, 0))
        fleet.take_up()
        finder = fleet.finder()
        address = fleet.servers[group, 0].address
        assert [each.replicas for each in finder.map().groups] == [(address,)]
        collection.delete([4])
        fleet.take_up()
        assert [(each.rows, each.replicas) for each in finder.map().groups] == [(49, (address,))]


def test_a_server_opens_only_the_shards_that_are_new(tmp_path, rng, monkeypatch):
    codes = clustered_codes(rng, 600, 64)
    collection = Collection.create(tmp_path / "c", codes, bits=64, shards=12)
    with served(collection.path) as (fleet, router):
        router.search(codes[:2], 3)
        opened, original = [], Shard.__init__

        def noted(self, root, spec, **options):
            opened.append(spec.name)
            original(self, root, spec, **options)

        monkeypatch.setattr(Shard, "__init__", noted)
        new = collection.add(codes[:2], ids=np.array([9000, 9001]))
        renewed(fleet, router)
        found = router.search(codes[:2], 3, allow_partial=False)
        assert found.coverage.version == new.version
    assert opened == [new.manifest.shards[-1].name]
