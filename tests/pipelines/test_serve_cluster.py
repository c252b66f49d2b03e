"""`hashlight serve --groups`: a gateway over shard servers, in processes of their own."""

import numpy as np
import pytest

import hashlight
from pipelines.serve_cluster import cluster_router
from tests.engine.service.conftest import Corpus, eventually
from tests.oracles import knn, within_radius
from tests.pipelines.test_serve import end, start


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("cluster") / "collection", np.random.default_rng(11), rows=800, shards=4)


@pytest.fixture(scope="module")
def url(own):
    server, url = start(own.path, "--port", 0, "--groups", 2, "--replicas", 2)
    yield url
    end(server)
    assert server.returncode == 0


def test_answers_over_http_are_the_oracle_s(own, url):
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


def test_a_published_version_is_taken_up(own, url):
    with hashlight.SearchClient(url, timeout_s=60) as client:
        new = Corpus(own.path, np.random.default_rng(12), rows=700, shards=5, overwrite=True)
        eventually(lambda: client.describe()["version"] == new.collection.version, timeout_s=60)
        found = client.search(new.queries, 10)
        assert [answer.ids.tolist() for answer in found] == knn(new.queries, new.codes, new.ids, 10)[1].tolist()


def test_more_groups_than_shards_are_refused(own):
    with pytest.raises(ValueError, match=r"`groups` must be 1 to \d"), cluster_router(own.path, groups=9, replicas=1):
        pass
