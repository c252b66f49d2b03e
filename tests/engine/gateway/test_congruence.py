"""The same tests for every way to search: all give the answers of the oracle.

`SEARCHERS` has the searchers behind a client; each is used directly and through a gateway.
"""

from __future__ import annotations

import collections
import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from hashlight.engine.client.client import SearchClient
from hashlight.engine.client.errors import IdNotFoundError, VersionGoneError
from hashlight.engine.client.results import Cursor
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.searcher import CollectionSearcher
from hashlight.engine.service.control.finding import Finder
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.pipelines.serving.ray_servers import RayServers
from tests import oracles, serving
from tests.engine.service.conftest import serving as shard_servers


@contextlib.contextmanager
def embedded(collection):
    yield CollectionSearcher(collection)


@contextlib.contextmanager
def flight(collection):
    """Three groups of shard servers in this process, over Arrow Flight."""
    with shard_servers(collection.path) as (_, cluster_map), contextlib.closing(ClusterRouter(cluster_map)) as router:
        yield router


@contextlib.contextmanager
def on_ray(collection):
    """Two groups of shard servers that are Ray actors."""
    with (
        RayServers(collection.path, groups=2, replicas=1, cpus=0.1) as cluster,
        contextlib.closing(Finder(cluster.source, security=cluster.security)) as finder,
    ):
        finder.wait(60.0)
        with contextlib.closing(ClusterRouter(finder.map, security=cluster.security)) as router:
            yield router


SEARCHERS = {"embedded": embedded, "flight": flight, "ray": on_ray}  # name -> context manager: Collection -> Searcher
WAYS = ("direct", "http")


@pytest.fixture(scope="module", params=SEARCHERS)
def any_searcher(request, collection):
    if request.param == "ray":
        request.getfixturevalue("ray_session")
    with SEARCHERS[request.param](collection) as searcher:
        yield searcher


@pytest.fixture(scope="module", params=WAYS)
def client(request, any_searcher):
    encoder = serving.AverageHash()
    with contextlib.ExitStack() as stack:
        if request.param == "http":
            target, options = stack.enter_context(serving.running(create_app(any_searcher, encoder=encoder))), {}
        else:
            target, options = any_searcher, {"encoder": encoder}
        yield stack.enter_context(SearchClient(target, timeout_s=60, **options))


@pytest.fixture(scope="module")
def rows(collection):
    """All stored ids, codes and attributes, in the order of ids."""
    ids = np.sort(np.concatenate([shard.ids_N for shard in collection.shards]))
    table = collection.get(ids)
    codes = np.frombuffer(b"".join(table["code"].to_pylist()), np.uint64).reshape(-1, 1)
    return ids, codes, table.drop_columns(["id", "code"]).to_pylist()


@pytest.fixture(scope="module")
def queries(rows):
    """Some stored codes with up to three bits flipped."""
    flips = np.array([0, 1, 5, 1 << 59, 0b111], np.uint64)
    return (rows[1][:35].reshape(7, 5) ^ flips).reshape(-1, 1)


def pairs(hits):
    return list(zip(hits.distances.tolist(), hits.ids.tolist(), strict=True))


@pytest.mark.parametrize("count", [1, 4, 35])
@pytest.mark.parametrize("k", [1, 9, 600])
def test_nearest(client, rows, queries, count, k):
    ids, codes, _ = rows
    found = client.search(queries[:count], k)
    distances, expected = oracles.knn(queries[:count], codes, ids, min(k, len(ids)))
    assert [hits.ids.tolist() for hits in found] == expected.tolist()
    assert [hits.distances.tolist() for hits in found] == distances.tolist()
    coverage = found.coverage
    assert (coverage.codes, coverage.searched, coverage.complete, found.version) == (500, 500, True, 1)
    assert found.to_arrow().num_rows == count * min(k, 500)


@pytest.mark.parametrize("count", [1, 35])
@pytest.mark.parametrize(("radius", "limit"), [(0, 100), (3, 100), (12, 4), (60, 500)])
def test_within_a_radius(client, rows, queries, count, radius, limit):
    ids, codes, _ = rows
    found = client.range_search(queries[:count], radius, limit)
    answers, cut = oracles.within_radius(queries[:count], codes, ids, radius, limit)
    assert [pairs(hits) for hits in found] == answers
    assert [hits.truncated for hits in found] == cut
    assert sum(map(len, answers)) > 0


def test_filters(client, rows, queries):
    ids, codes, attributes = rows
    kept = np.array([row["label"] == 3 and row["name"] is not None for row in attributes])
    assert 20 < kept.sum() < 100
    found = client.search(queries, 5, filter="label == 3 and name is not null")
    assert [hits.ids.tolist() for hits in found] == oracles.knn(queries, codes[kept], ids[kept], 5)[1].tolist()
    within = client.range_search(queries[:2], 60, 500, filter="label == 3 and name is not null")
    assert sorted(within[1].ids.tolist()) == ids[kept].tolist()


def test_ids_seen_already_are_left_out_and_ids_allowed_are_kept(client, rows, queries):
    ids, codes, attributes = rows
    label = np.array([row["label"] for row in attributes])
    seen, mine = ids[::2], np.concatenate([ids[:300], np.arange(10**6, 10**6 + 100_000)])
    text = "id not in :seen and (id in :mine or label == 3)"
    lists = {"seen": seen[::-1], "mine": mine.tolist()}
    kept = ~np.isin(ids, seen) & (np.isin(ids, mine) | (label == 3))
    assert 100 < kept.sum() < 200
    for count in (1, 35):  # as JSON, and more than what is sent as JSON without parameters
        found = client.search(queries[:count], 5, filter=text, parameters=lists)
        expected = oracles.knn(queries[:count], codes[kept], ids[kept], 5)[1]
        assert [hits.ids.tolist() for hits in found] == expected.tolist()
    within = client.range_search(queries[:2], 60, 500, filter=text, parameters=lists)
    assert sorted(within[1].ids.tolist()) == ids[kept].tolist()
    again = client.search(queries[:1], 500, filter=text, parameters={**lists, "seen": []})  # the same text, other lists
    assert sorted(again[0].ids.tolist()) == ids[np.isin(ids, mine) | (label == 3)].tolist()


def test_what_is_included(client, rows, queries):
    ids, codes, attributes = rows
    found = client.search(queries[:3], 4, include=["attributes", "code", "explain"])
    for hits in found:
        assert len(hits) == 4
        assert {"plan", "probes", "candidates", "seconds"} == set(hits.explain)
        for hit in hits:
            row = np.searchsorted(ids, hit.id)
            assert hit.code.tolist() == codes[row].tolist()
            np.testing.assert_equal(hit.attributes, attributes[row])
    assert found.to_arrow().column_names == ["query", "id", "distance", "code", "label", "name", "price"]
    bare = client.search(queries[:1], 1)[0][0]
    assert (bare.attributes, bare.code) == (None, None)


def test_images_ids_and_codes_side_by_side(client, rows, tmp_path):
    ids, codes, _ = rows
    picture = serving.make_pictures(30)[11]
    data = serving.png(picture)
    (tmp_path / "query.png").write_bytes(data)
    code = client.encode(data)
    assert (code.dtype, code.shape) == (np.uint64, (1, 1))
    path = tmp_path / "query.png"
    asked = [data, path, str(path), Image.fromarray(picture), int(ids[20]), codes[20]]
    found = client.search(asked, 6, rerank="hamming")
    expected = oracles.knn(np.concatenate([code] * 4 + [codes[20:21]] * 2), codes, ids, 6)[1]
    assert [hits.ids.tolist() for hits in found] == expected.tolist()
    assert client.search(int(ids[20]), 1)[0].distances.tolist() == [0]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_reranking(client, collection, rows, metric):
    ids, codes, _ = rows
    asked = [int(ids[3]), serving.png(serving.make_pictures(40)[31])]
    found = client.search(asked, 5, rerank=Rerank(pool=40, metric=metric))
    encoded = serving.AverageHash()
    features = [
        collection.features_of(ids[3:4])[0].astype(float),
        encoded.encode([encoded.decode(asked[1], 10**6)]).features[0].astype(float),
    ]
    query_codes = np.concatenate([codes[3:4], client.encode(asked[1])])
    pools = oracles.knn(query_codes, codes, ids, 40)[1]
    for hits, feature, pool in zip(found, features, pools, strict=True):
        stored = collection.features_of(pool).astype(float)
        if metric == "l2":
            distances = np.sqrt(((stored - feature) ** 2).sum(axis=1))
        else:
            distances = 1 - stored @ feature / np.sqrt((stored**2).sum(axis=1) * (feature**2).sum())
        order = np.lexsort((pool, distances.astype(np.float32)))[:5]
        np.testing.assert_allclose(hits.distances, distances[order], rtol=1e-4, atol=1e-5)
        assert len(set(hits.ids) & set(pool[order].tolist())) >= 4


def test_images_are_answered_in_asymmetric_order(client, rows):
    ids, codes, _ = rows
    asked = [serving.png(picture) for picture in serving.make_pictures(40)[28:34]]
    encoder = serving.AverageHash()
    encoded = encoder.encode([encoder.decode(picture, 10**6) for picture in asked])
    bits_N = np.unpackbits(codes.view(np.uint8), axis=1, bitorder="little")[:, : serving.BITS]
    row_of = {id_: row for row, id_ in enumerate(ids.tolist())}
    differs = 0
    for rerank, pool in ((None, 100), ("asymmetric", 100), (Rerank(pool=20, metric="asymmetric"), 20)):
        found = client.search(asked, 8, rerank=rerank)
        assert found.order == "asymmetric"
        pool_distances, pools = oracles.knn(encoded.codes, codes, ids, pool)
        for query, hits in enumerate(found):
            row_P = [row_of[id_] for id_ in pools[query].tolist() if id_ != -1]
            products = np.where(bits_N[row_P], 1, -1) @ encoded.projections[query].astype(int)
            distances = pool_distances[query][: len(row_P)]
            order = np.lexsort((ids[row_P], distances, -products))[:8]
            assert hits.ids.tolist() == ids[row_P][order].tolist()
            assert hits.distances.tolist() == distances[order].tolist()
            differs += hits.ids.tolist() != pools[query][:8].tolist()
    assert differs
    plain = client.search(asked, 8, rerank="hamming")
    assert plain.order == "hamming"
    assert [hits.ids.tolist() for hits in plain] == oracles.knn(encoded.codes, codes, ids, 8)[1].tolist()
    mixed = client.search([asked[0], int(ids[3]), codes[5]], 8)
    assert mixed.order == "asymmetric"
    assert mixed[0].ids.tolist() == client.search(asked[0], 8)[0].ids.tolist()
    assert [hits.ids.tolist() for hits in mixed[1:]] == oracles.knn(codes[[3, 5]], codes, ids, 8)[1].tolist()
    without_images = client.search([int(ids[3]), codes[5]], 8, rerank="asymmetric")
    assert without_images.order == client.range_search(asked, 3).order == "hamming"
    assert [hits.ids.tolist() for hits in without_images] == [hits.ids.tolist() for hits in mixed[1:]]


def test_items_thumbnails_and_what_is_served(client, rows):
    ids, codes, attributes = rows
    wanted = [int(ids[5]), int(ids[2]), int(ids[5])]
    items = client.get(wanted)
    assert [item.id for item in items] == wanted
    assert [item.code.tolist() for item in items] == [codes[row].tolist() for row in (5, 2, 5)]
    np.testing.assert_equal([item.attributes for item in items], [attributes[row] for row in (5, 2, 5)])
    pictures = [client.thumbnail(int(id_)) for id_ in ids[:40]]
    assert None in pictures
    assert all(Image.open(io.BytesIO(picture)).size == (16, 16) for picture in pictures if picture is not None)
    assert sum(picture is not None for picture in pictures) > 20
    told = client.describe()
    assert (told["bits"], told["rows"], told["version"], told["features"]) == (60, 500, 1, True)
    client.ready()


FILTERS = (None, "label == 3 and name is not null", "id < 5000", "label > 100")


def matching(attributes, ids, text):
    conditions = {
        None: lambda id_, row: True,
        "label == 3 and name is not null": lambda id_, row: row["label"] == 3 and row["name"] is not None,
        "id < 5000": lambda id_, row: id_ < 5000,
        "label > 100": lambda id_, row: False,
    }
    return [number for number, id_ in enumerate(ids.tolist()) if conditions[text](id_, attributes[number])]


@pytest.mark.parametrize("text", FILTERS)
def test_items_are_counted_and_read_page_by_page(client, rows, text):
    ids, codes, attributes = rows
    kept = matching(attributes, ids, text)
    assert client.count(text) == len(kept)
    for limit in (7, 100, 1000):
        pages = list(client.scan(text, limit=limit))
        assert [len(page) for page in pages if page] == [
            min(limit, len(kept) - begin) for begin in range(0, len(kept), limit)
        ]
        items = [item for page in pages for item in page]
        assert [item.id for item in items] == ids[kept].tolist()
        assert [item.code.tolist() for item in items] == codes[kept].tolist()
        np.testing.assert_equal([item.attributes for item in items], [attributes[number] for number in kept])
    if kept:
        page = client.scroll(text, after=int(ids[kept[0]]), limit=2)
        assert [item.id for item in page] == ids[kept[1:3]].tolist()
        assert (page.next, page.version) == (int(ids[kept[2]]), 1)


@pytest.mark.parametrize("text", FILTERS)
@pytest.mark.parametrize("column", ["label", "name", "price"])
def test_the_values_of_an_attribute_are_counted(client, rows, text, column):
    ids, _, attributes = rows
    found = collections.Counter(
        None if value is None else "nan" if value != value else value
        for value in (attributes[number][column] for number in matching(attributes, ids, text))
    )
    # The most frequent first, then the lowest; no number comes after all numbers, and no value after all values.
    order = sorted(found.items(), key=lambda one: (-one[1], one[0] is None, one[0] == "nan", one[0] or 0))
    order = (
        order if column != "name" else sorted(found.items(), key=lambda one: (-one[1], one[0] is None, one[0] or ""))
    )
    for limit in (3, 1000):
        counts = client.facets(column, text, limit=limit)
        told = [("nan" if one.value != one.value else one.value, one.count) for one in counts]
        assert told == order[:limit]
        assert counts.version == 1


@pytest.mark.parametrize("text", FILTERS)
@pytest.mark.parametrize("count", [1, 35])
def test_items_are_counted_at_each_distance(client, rows, queries, text, count):
    ids, codes, attributes = rows
    kept = matching(attributes, ids, text)
    nobody = np.zeros((count, len(kept)), bool)
    expected, _ = oracles.distance_histograms(queries[:count], codes[kept], nobody, serving.BITS)
    counts = client.histogram(queries[:count], filter=text)
    assert (counts.tolist(), counts.dtype) == (expected.tolist(), np.int64)


def test_items_are_counted_around_queries_of_every_kind(client, rows):
    ids, codes, _ = rows
    picture = serving.png(serving.make_pictures(3)[2])
    code = client.encode([picture])
    asked = np.concatenate([codes[5:6], codes[9:10], code])
    (expected, _) = oracles.distance_histograms(asked, codes, np.zeros((3, 500), bool), serving.BITS)
    found = client.histogram([int(ids[5]), codes[9], picture], filter="id not in :seen", parameters={"seen": [10**6]})
    assert found.tolist() == expected.tolist()
    with pytest.raises(IdNotFoundError, match="id 1000000 was not found"):
        client.histogram([10**6])
    with pytest.raises(ValueError, match="`filter`, at character"):
        client.histogram(codes[:1], filter="label ==")


def test_lists_of_ids_go_with_counts_and_pages(client, rows):
    ids, _, attributes = rows
    lists = {"seen": ids[::2]}
    other = "\U0001f600" * 9000  # in a URL longer than that may be
    text = f'id in :seen and not (name is not null and name == "{other}")'
    pages = list(client.scan(text, lists, limit=60))
    assert [[item.id for item in page] for page in pages] == [ids[::2][start : start + 60].tolist() for start in
                                                              range(0, 250, 60)]  # fmt: skip
    page = client.scroll("id not in :seen", lists, after=int(ids[6]), limit=3)
    assert [item.id for item in page] == ids[7:13:2].tolist()
    assert client.count("id not in :seen", lists) == 250
    counts = client.facets("label", "id in :seen", lists)
    assert {one.value: one.count for one in counts} == collections.Counter(row["label"] for row in attributes[::2])


@pytest.mark.parametrize("limit", [1, 3, 40])
def test_all_within_a_radius_are_read_page_by_page(client, rows, queries, limit):
    ids, codes, _ = rows
    (expected,), _ = oracles.within_radius(queries[:1], codes, ids, 12, 500)
    assert len(expected) > 20
    found, after, pages = [], None, 0
    while pages == 0 or after is not None:
        (hits,) = client.range_search(queries[:1], 12, limit, after=after, include=["attributes"])
        found, after, pages = found + pairs(hits), hits.next, pages + 1
        assert hits.truncated == (hits.next is not None)
        assert after is None or after.version == 1
    assert found == expected
    assert pages == -(-len(expected) // limit)
    (rest,) = client.range_search(queries[:1], 12, 500, after=expected[4])
    assert pairs(rest) == expected[5:]


def test_a_version_that_is_gone_is_not_read_on(client, queries):
    with pytest.raises(VersionGoneError, match="version 7 is not served any more, version 1 is"):
        client.range_search(queries[:1], 12, 3, after=Cursor(1, 5, 7))
    with pytest.raises(VersionGoneError, match="version 7 is not served any more"):
        client.scroll(version=7)


def test_very_many_queries_in_a_stream(client, rows, queries):
    ids, codes, _ = rows
    many = np.tile(queries, (4, 1))
    batches = list(client.stream_search(many, 3, batch_size=60))
    assert [len(batch) for batch in batches] == [60, 60, 20]
    expected = oracles.knn(many, codes, ids, 3)[1].tolist()
    assert [hits.ids.tolist() for batch in batches for hits in batch] == expected
    mixed = client.stream_search(iter([int(ids[0]), codes[1]]), 1, batch_size=1)
    assert [batch[0].ids.tolist() for batch in mixed] == oracles.knn(codes[:2], codes, ids, 1)[1].tolist()


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda client, code: client.search(10**6), IdNotFoundError, "id 1000000 was not found"),
        (lambda client, code: client.get([10**6]), IdNotFoundError, "id 1000000 was not found"),
        (lambda client, code: client.thumbnail(10**6), IdNotFoundError, "id 1000000 was not found"),
        (lambda client, code: client.search(2**63), ValueError, f"at most {2**63 - 1}, got {2**63}"),
        (lambda client, code: client.get([1, 2**63]), ValueError, f"at most {2**63 - 1}, got {2**63}"),
        (lambda client, code: client.get(2**63), ValueError, f"at most {2**63 - 1}, got {2**63}"),
        (lambda client, code: client.thumbnail(2**63), ValueError, f"at most {2**63 - 1}, got {2**63}"),
        (lambda client, code: client.delete([2**63]), ValueError, f"at most {2**63 - 1}, got {2**63}"),
        (lambda client, code: client.count("label =="), ValueError, "`filter`, at character"),
        (lambda client, code: client.facets("colour"), ValueError, "`column` must be an attribute, got 'colour'"),
        (lambda client, code: client.facets("label", limit=0), ValueError, "`limit`"),
        (lambda client, code: client.scroll("colour == 3"), ValueError, "colour"),
        (lambda client, code: client.scroll(limit=0), ValueError, "limit"),
        (lambda client, code: client.scroll("id in :seen"), ValueError, "`:seen` has no values"),
        (lambda client, code: client.scroll("id > 3", {"seen": [1]}), ValueError, "`filter` does not name"),
        (lambda client, code: client.range_search([code] * 2, after=(1, 5)), ValueError, "single query"),
        (lambda client, code: client.search(code, 0), ValueError, "`k`"),
        (lambda client, code: client.range_search(code, 61), ValueError, "`radius` must be 0 to 60"),
        (lambda client, code: client.range_search(code, -1), ValueError, "`radius`"),
        (lambda client, code: client.range_search(code, 2, 0), ValueError, "`limit`"),
        (lambda client, code: client.search(code, filter="colour == 3"), ValueError, "`colour` is not an attribute"),
        (lambda client, code: client.search(code, filter="id in :seen"), ValueError, "`:seen` has no values"),
        (
            lambda client, code: client.search(code, filter="id > 3", parameters={"seen": [1]}),
            ValueError,
            "`parameters` has seen, which `filter` does not name",
        ),
        (lambda client, code: client.search(code, parameters={"seen": [1]}), ValueError, "named by `filter`, got none"),
        (lambda client, code: client.count(parameters={"seen": [1]}), ValueError, "named by `filter`, got none"),
        (lambda client, code: client.facets("label", parameters={"seen": [1]}), ValueError, "named by `filter`"),
        (lambda client, code: client.histogram(code, parameters={"seen": [1]}), ValueError, "named by `filter`"),
        (lambda client, code: client.search(code, parameters={"seen": [1.5]}), TypeError, "whole numbers"),
        (lambda client, code: client.search(b"no image"), ValueError, "not an image"),
        (lambda client, code: client.search(code.repeat(2, axis=1)), ValueError, "60"),
        (lambda client, code: client.search(code | np.uint64(1 << 62)), ValueError, "bits set past bit 59"),
        (lambda client, code: client.search(code, rerank=Rerank(pool=30)), ValueError, "features"),
        (lambda client, code: client.search(code, rerank=Rerank(radius=3)), ValueError, "`pool`"),
        (lambda client, code: client.search(code, rerank="symmetric"), ValueError, "'asymmetric' or 'hamming'"),
        (lambda client, code: client.search([]), ValueError, "at least one"),
        (lambda client, code: client.search(3.5), TypeError, "float"),
        (lambda client, code: client.search(code.astype(np.int32)), TypeError, "int32"),
        (lambda client, code: client.search(code, include=["colour"]), ValueError, "`include`"),
        (lambda client, code: client.search(code, timeout_s=0), ValueError, "`timeout_s`"),
    ],
)
def test_every_client_raises_the_same_errors(client, queries, ask, error, message):
    with pytest.raises(error) as caught:
        ask(client, queries[:1])
    assert message in str(caught.value)
