"""Clusters of pairs, against SciPy's components."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hashlight.pipelines.dedup import dedup


def pairs_file(path, rng, nodes, edges, ids):
    a, b = rng.integers(nodes, size=(2, edges))
    a, b = np.minimum(a, b)[a != b], np.maximum(a, b)[a != b]
    columns = [ids[a], ids[b], np.zeros(len(a), np.int32)]
    pq.write_table(pa.table(columns, schema=dedup.PAIRS), path, row_group_size=97)
    return a, b


@pytest.mark.parametrize(("nodes", "edges"), [(50, 10), (1000, 400), (1000, 3000), (20_000, 15_000)])
@pytest.mark.parametrize("at_once", [1, 100, 4_000_000])
def test_clusters_are_the_components(tmp_path, monkeypatch, nodes, edges, at_once):
    monkeypatch.setattr(dedup, "_PAIRS_AT_ONCE", at_once)
    rng = np.random.default_rng(nodes + edges)
    ids = np.sort(rng.choice(10**15, nodes, replace=False))
    files = [tmp_path / f"{number}.parquet" for number in range(3)]
    ends = [pairs_file(path, rng, nodes, edges // 3, ids) for path in files]
    a, b = (np.concatenate(part) for part in zip(*ends, strict=True))
    label = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(nodes, nodes)), directed=False)[1]
    degree = np.bincount(np.concatenate([a, b]), minlength=nodes)
    members = np.flatnonzero(degree)
    lowest = {}
    for node in members:
        lowest.setdefault(label[node], node)
    expected = sorted(zip(ids[members], ids[[lowest[label[node]] for node in members]], degree[members], strict=True))
    table = dedup.cluster_pairs(files)
    found = sorted(zip(*(table[name].to_numpy() for name in ("id", "cluster", "pairs")), strict=True))
    assert found == expected
    assert len(found) > 10


def test_a_long_chain_is_one_cluster(tmp_path):
    ids = np.arange(50_000) * 3
    order = np.random.default_rng(0).permutation(49_999)
    table = pa.table([ids[order], ids[order + 1], np.zeros(49_999, np.int32)], schema=dedup.PAIRS)
    pq.write_table(table, tmp_path / "a.parquet")
    clusters = dedup.cluster_pairs([tmp_path / "a.parquet"])
    assert set(clusters["cluster"].to_pylist()) == {0}
    assert len(clusters) == 50_000
