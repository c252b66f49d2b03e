"""Only the shards that were asked for answer, whoever has an address, and whatever number a version has."""

import contextlib
import shutil

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import CollectionNotFoundError, IncompleteError, NoShardError, NotReadyError
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.protocol.actions import control
from hashlight.engine.service.protocol.cluster_map import Assignment, open_group
from hashlight.engine.service.protocol.wire import OtherServerError
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.engine.service.shards.server import ShardServer
from hashlight.engine.storage.versions import read_current
from tests.engine.service.conftest import BITS, Corpus, eventually, serving, shut_down
from tests.oracles import knn, within_radius


@pytest.fixture
def own(tmp_path):
    return Corpus(tmp_path / "collection", np.random.default_rng(61), rows=600, shards=4)


def held_by(corpus, shards):
    """Which rows of a corpus are in the shards of these names."""
    ids = [shard.ids_N for shard in corpus.collection.shards if shard.name in shards]
    return np.isin(corpus.ids, np.concatenate(ids))


@contextlib.contextmanager
def successor(path, port, assignment):
    """Another server at a port, as when a pod gets the address of one that is gone."""
    server = ShardServer(path, port=port)
    server.load(*assignment)
    try:
        yield server
    finally:
        shut_down(server)


def test_a_server_of_another_group_at_the_address_is_not_taken_for_its_predecessor(own):
    with serving(own.path, groups=2) as (servers, cluster):
        gone, left = cluster.groups
        port = servers[0][0].port
        shut_down(servers[0][0])
        other = Assignment(cluster.version, left.manifest, tuple(left.shards))
        with successor(own.path, port, other), contextlib.closing(ClusterRouter(cluster)) as router:
            here = held_by(own, left.shards)
            assert 0 < here.sum() < len(own.ids)
            found = router.search(own.queries, 10)
            assert (found.ids == knn(own.queries, own.codes[here], own.ids[here], 10)[1]).all()
            assert not found.coverage.complete
            assert set(found.coverage.degraded) == set(gone.shards)
            assert all("the address belongs to another" in reason for reason in found.coverage.degraded.values())
            within = router.range_search(own.queries, 5, allow_partial=True)
            pairs = [pair for row in within_radius(own.queries, own.codes[here], own.ids[here], 5)[0] for pair in row]
            assert list(zip(within.distances.tolist(), within.ids.tolist(), strict=True)) == pairs
            with pytest.raises(IncompleteError) as caught:
                router.range_search(own.queries, 5)
            assert set(caught.value.missing) == set(gone.shards)


def test_items_and_features_are_not_read_from_another_groups_server(own):
    with serving(own.path, groups=2) as (_, cluster):
        wrong = cluster.with_replicas([cluster.groups[1].replicas, cluster.groups[1].replicas])
        here = held_by(own, cluster.groups[1].shards)
        inside, outside = own.ids[here][:3], own.ids[~here][:1]
        with contextlib.closing(ClusterRouter(wrong)) as router:
            assert router.get(inside)["id"].to_pylist() == inside.tolist()
            assert (router.features_of(inside) == own.features[here][:3]).all()
            for ask in (router.get, router.features_of, lambda ids: router.thumbnail(int(ids[0]))):
                with pytest.raises(IncompleteError):  # not that the id does not exist
                    ask(outside)
            assert set(router.ready().degraded) == set(cluster.groups[0].shards)


def test_one_right_replica_is_enough(own):
    with serving(own.path, groups=2) as (_, cluster):
        first, second = (group.replicas for group in cluster.groups)
        mixed = cluster.with_replicas([[*first, *second], [*second, *first]])
        with contextlib.closing(ClusterRouter(mixed)) as router:
            eventually(lambda: all(replica["state"] == "connected" for replica in router.stats()["replicas"]))
            for _ in range(10):
                found = router.search(own.queries, 5, allow_partial=False)
                assert (found.ids == knn(own.queries, own.codes, own.ids, 5)[1]).all()


def rebuilt(path, seed):
    """The collection built again from other images: the same version number, and as many shards."""
    shutil.rmtree(path)
    return Corpus(path, np.random.default_rng(seed), rows=500, shards=4)


def test_a_collection_that_was_built_again_does_not_answer_for_the_one_before(own):
    with serving(own.path, groups=2) as (servers, cluster):
        new = rebuilt(own.path, 62)
        assert new.collection.version == cluster.version
        assert new.collection.manifest.digest != cluster.manifest
        for group in servers:
            shut_down(group[0])
        with (
            serving(new.path, groups=2) as (_, fresh),
            contextlib.closing(ClusterRouter(fresh)) as well,
        ):
            assert (well.search(new.queries, 5).ids == knn(new.queries, new.codes, new.ids, 5)[1]).all()
            stale = cluster.with_replicas([group.replicas for group in fresh.groups])
            with contextlib.closing(ClusterRouter(stale)) as router:
                with pytest.raises(NoShardError, match="the collection was built again"):
                    router.search(own.queries, 5)
                with pytest.raises(NotReadyError, match="none of 4 shards can be searched"):
                    router.ready()


def test_a_rebuilt_collection_is_noticed_under_the_same_version_number(own):
    searcher = CollectionSearcher(own.path)
    new = rebuilt(own.path, 63)
    expected = knn(new.queries, new.codes, new.ids, 5)[1]
    assert searcher.renew()
    assert not searcher.renew()
    assert (searcher.search(new.queries, 5).ids == expected).all()


def test_the_manifest_is_checked_before_shards_are_opened(own):
    old = read_current(open_place(own.path))
    shards = tuple(shard.name for shard in old.shards)
    assert len(open_group(own.path, Assignment(1, old.digest, shards))) == len(own.ids)
    rebuilt(own.path, 64)
    with pytest.raises(CollectionNotFoundError, match="built again under the same version number"):
        open_group(own.path, Assignment(1, old.digest, shards))


def test_a_question_for_a_server_that_is_gone_is_not_answered_by_its_successor(own):
    manifest = read_current(open_place(own.path))
    wanted = Assignment(manifest.version, manifest.digest, tuple(shard.name for shard in manifest.shards))
    first = ShardServer(own.path)
    shut_down(first)
    with successor(own.path, first.port, wanted) as second:
        assert second.address == first.address
        with pytest.raises(OtherServerError, match=f"belongs to server {second.name.instance}, not to"):
            control(first.address, "health", instance=first.name.instance)
        assert control(first.address, "health", instance=second.name.instance)["served"] == [wanted.identity]


@pytest.mark.parametrize(
    ("rows_by_id", "said"), [(False, "ids that are not those of its codes"), (True, "which is also in shard")]
)
def test_ids_of_another_shard_are_noticed_before_a_server_is_ready(tmp_path, rows_by_id, said):
    codes = np.random.default_rng(66).permutation(400).astype(np.uint64).reshape(-1, 1)
    searcher = CollectionSearcher(Collection.create(tmp_path / "c", codes, bits=BITS - 8, shards=2))
    searcher.ready()
    # As if the files had been exchanged, and their checksums made anew.
    shard, other = searcher._collection.shards
    shard.ids_N = other.ids_N
    if rows_by_id:
        shard._rows_by_id_N = other._rows_by_id_N
    assert shard.index.find_fault(shard.codes_NW) is None
    with pytest.raises(NotReadyError, match=said):
        searcher.ready()


def test_ids_out_of_order_among_equal_codes_are_noticed(tmp_path):
    codes = np.repeat(np.arange(4, dtype=np.uint64), 50).reshape(-1, 1)
    collection = Collection.create(tmp_path / "c", codes, bits=BITS - 8)
    searcher = CollectionSearcher(collection)
    searcher.ready()
    shard = collection.shards[0]
    shard.ids_N = np.asarray(shard.ids_N)[::-1].copy()
    shard._rows_by_id_N = np.argsort(shard.ids_N).astype(np.uint32)
    with pytest.raises(NotReadyError, match="their ids do not ascend"):
        searcher.ready()
