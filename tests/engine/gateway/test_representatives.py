"""Items that stand for the collection: medoids of a sample, the same however the shards are served."""

from __future__ import annotations

import contextlib

import httpx
import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking import representatives
from hashlight.engine.service.asking.representatives import find_medoids
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.routing.router import ClusterRouter
from tests import oracles, serving
from tests.engine.service.conftest import serving as shard_servers

CENTRES = np.array([0, 2**60 - 1, 0x0F0F0F0F0F0F0F0F & (2**60 - 1)], np.uint64)


def three_groups(rng, sizes):
    """Codes within three bits of three centres that are far apart, shuffled."""
    codes = np.repeat(CENTRES, sizes)
    for _ in range(3):
        codes ^= np.uint64(1) << rng.integers(60, size=len(codes)).astype(np.uint64)
    return rng.permutation(codes)[:, None]


def test_groups_that_are_plain_to_see_are_found():
    codes = three_groups(np.random.default_rng(3), [400, 200, 50])
    medoids, nearest = find_medoids(codes, 3)
    distances = oracles.hamming_distances(codes, codes)
    assert sorted(np.bincount(nearest).tolist()) == [50, 200, 400]
    assert (nearest == distances[medoids].argmin(axis=0)).all()
    for number, medoid in enumerate(medoids):
        members = np.flatnonzero(nearest == number)
        sums = distances[np.ix_(members, members)].sum(axis=1)
        assert distances[medoid, members].sum() == sums.min()


@pytest.mark.parametrize("words", [1, 3])
def test_each_medoid_has_a_code_of_its_own(words):
    codes = np.random.default_rng(4).integers(3, size=(300, words), dtype=np.uint64)
    distinct = len(np.unique(codes, axis=0))
    for count in (1, 2, distinct, 200):
        medoids, nearest = find_medoids(codes, count)
        assert len(np.unique(codes[medoids], axis=0)) == len(medoids) == min(count, distinct)
        assert (nearest == oracles.hamming_distances(codes[medoids], codes).argmin(axis=0)).all()
    assert [len(part) for part in find_medoids(codes[:0], 5)] == [0, 0]


def ask(url, **params):
    answer = httpx.get(f"{url}/v1/representatives", params=params, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def asked(collection, url):
    """The answers of one process, and of shard servers."""
    with contextlib.ExitStack() as stack:
        _, cluster = stack.enter_context(shard_servers(collection.path, groups=2))
        router = stack.enter_context(contextlib.closing(ClusterRouter(cluster)))
        yield url, stack.enter_context(serving.running(create_app(router)))


@pytest.mark.parametrize("count", [1, 7, 60])
def test_the_representatives_do_not_depend_on_how_shards_are_served(asked, collection, count):
    one, several = (ask(url, count=count) for url in asked)
    assert one == several
    assert (one["version"], one["sampled"], one["coverage"]["searched"]) == (1, 500, 500)
    table = collection.get(np.sort(np.concatenate([shard.ids_N for shard in collection.shards])))
    codes = np.frombuffer(b"".join(table["code"].to_pylist()), np.uint64).reshape(-1, 1)
    code_of = dict(zip(table["id"].to_pylist(), codes[:, 0].tolist(), strict=True))
    ids = [item["id"] for item in one["items"]]
    assert [int.from_bytes(bytes.fromhex(item["code"]), "little") for item in one["items"]] == [
        code_of[id_] for id_ in ids
    ]
    sizes = [item["size"] for item in one["items"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 500
    medoids = np.array([[code_of[id_]] for id_ in ids], np.uint64)
    distances = oracles.hamming_distances(medoids, codes)
    alone = (distances == distances.min(axis=0)).sum(axis=0) == 1
    surely = np.bincount(distances.argmin(axis=0)[alone], minlength=len(ids))
    at_most = (distances == distances.min(axis=0)).sum(axis=1)
    assert ((surely <= sizes) & (sizes <= at_most)).all()


def test_they_are_found_once_for_a_version(tmp_path, monkeypatch):
    found, find = [], representatives.find_medoids
    monkeypatch.setattr(representatives, "find_medoids", lambda *args: found.append(args[1]) or find(*args))
    codes = three_groups(np.random.default_rng(5), [40, 30, 20])
    collection = Collection.create(tmp_path / "c", codes, bits=60)
    searcher = CollectionSearcher(collection)
    with serving.running(create_app(searcher)) as url:
        first = ask(url, count=3)
        assert ask(url, count=3) == first
        assert ask(url)["items"] != first["items"]
        assert found == [3, 60]
        gone = first["items"][0]["id"]
        collection.delete([gone])
        searcher.renew()
        then = ask(url, count=3)
        assert (then["version"], then["sampled"], len(found)) == (2, 89, 3)
        assert gone not in [item["id"] for item in then["items"]]
        Collection.create(tmp_path / "c", codes[:1], bits=60, overwrite=True)
        searcher.renew()
        assert [item["size"] for item in ask(url, count=3)["items"]] == [1]


@pytest.mark.parametrize(("params", "message"), [({"count": 0}, "greater than"), ({"count": 501}, "less than")])
def test_counts_that_make_no_sense_are_refused(url, params, message):
    answer = httpx.get(f"{url}/v1/representatives", params=params)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "count")
    assert message in answer.json()["error"]["message"]
