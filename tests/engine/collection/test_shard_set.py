"""The shards of one process searched together: the same answers with any batch and threads, and sums over shards."""

import subprocess
import sys

import numpy as np
import pytest

from hashlight.engine.collection import shard_set
from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.query import Query
from hashlight.engine.results import Explanation, SearchResult, merge_explanations, merge_search
from tests import oracles
from tests.engine.indexes.test_indexes_exact import assert_range, assert_search, make_case


def shards_of(codes, ids, bits, count):
    cuts = np.array_split(np.arange(len(codes)), count)
    return [MultiIndex.build(np.ascontiguousarray(codes[rows]), ids[rows], bits=bits) for rows in cuts]


@pytest.mark.parametrize("worth", [0.0, 1e9])
@pytest.mark.parametrize("queries_asked", [1, 2, 3, 12])
@pytest.mark.parametrize("threads", [1, 2, 5, None])
def test_answers_depend_on_neither_threads_nor_shards(monkeypatch, worth, queries_asked, threads):
    monkeypatch.setattr(shard_set, "_WORTH_A_THREAD_S", worth)
    codes, ids, queries = make_case(4, 700, 64, queries=queries_asked)
    whole = shard_set.ShardSet.of(shards_of(codes, ids, 64, 6), version=1)
    for k in (1, 5, 200):
        assert_search(whole.answer(queries, Query(k=k, threads=threads)), queries, codes, ids, k)
    assert_range(whole.answer(queries, Query(radius=9, threads=threads)), queries, codes, ids, 9)
    assert_range(whole.answer(queries, Query(radius=9, limit=4, threads=threads)), queries, codes, ids, 9, 4)


def test_explanations_add_up_over_shards():
    def part(plan, number):
        explain = Explanation((plan,), np.array([number]), np.array([10 * number]), np.array([0.5 * number]))
        return SearchResult(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.int64), explain=explain)

    explain = merge_explanations([part("scan", 1), part("tables", 2), part("scan", 4)])
    assert explain.plans == ("scan + tables",)
    assert (explain.probes[0], explain.candidates[0], explain.seconds[0]) == (7, 70, 3.5)


def test_parts_without_k_columns_are_padded():
    part = SearchResult(np.array([[1, 3]], np.int32), np.array([[7, 2]]))
    other = SearchResult(np.array([[1]], np.int32), np.array([[4]]))
    merged = merge_search([part, other], 4)
    assert merged.ids.tolist() == [[4, 7, 2, -1]]
    assert merged.distances.tolist() == [[1, 1, 3, 2**31 - 1]]
    assert merge_search([other], 2).ids.tolist() == [[4, -1]]


OUTGROWING = """
import itertools
import numpy as np
from hashlight.engine.collection import shard_set
from hashlight.engine.indexes import scan, threads
from hashlight.engine.indexes.multi_index import index
from hashlight.engine.query import Query
from tests.engine.collection.test_shard_set import make_case, shards_of

threads.usable_cores = shard_set.usable_cores = index.usable_cores = lambda: 2
for name in ("MAX_HEAP_PLACES", "MAX_COUNTERS"):
    setattr(scan, name, 100)
    setattr(index, name, 100)
shard_set._WORTH_A_THREAD_S = 0.0
codes, ids, queries = make_case(4, 300, 64, queries=3)
tables = shards_of(codes, ids, 64, 3)
scans = [scan.ScanIndex.build(shard.codes_NW, shard.ids_N, bits=64) for shard in tables]
for shards, query in itertools.product((tables, scans), (Query(k=90), Query(radius=20, limit=90), Query(radius=20))):
    found = shard_set.ShardSet.of(shards, version=1).answer(queries, query)
    print(found.ids[found.ids >= 0].tolist())
"""


def test_answers_that_outgrow_a_call_in_every_shard_at_once():
    """Shards answer in the threads of the pool; each then cuts its queries again, because their answers are large."""
    done = subprocess.run([sys.executable, "-c", OUTGROWING], capture_output=True, text=True, timeout=600, check=True)
    codes, ids, queries = make_case(4, 300, 64, queries=3)
    nearest = oracles.knn(queries, codes, ids, 90)[1]
    limited, every = (oracles.within_radius(queries, codes, ids, 20, limit)[0] for limit in (90, None))
    within = [[number for pairs in answers for _, number in pairs] for answers in (limited, every)]
    assert done.stdout == 2 * "".join(f"{answer}\n" for answer in (nearest[nearest >= 0].tolist(), *within))
