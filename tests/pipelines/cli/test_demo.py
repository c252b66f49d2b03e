"""What the main job on real images promises; a test of the package runs it."""

from __future__ import annotations

import json

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.pipelines.cli.demo import _OWN_ENTRIES, run_demo
from hashlight.pipelines.codes.parts import codes_column
from hashlight.pipelines.jobs.errors import PipelineError
from tests import oracles


def check_demo(demo):
    """What `hashlight demo` wrote finds images of the query's class."""
    report = json.loads((demo / "report.json").read_bytes())
    methods = report["methods"]
    assert methods["hashnet"]["map_all"] >= 0.80
    assert abs(methods["hashnet"]["map_all"] - report["map_relaxed"]) <= 0.02
    assert methods["hashnet"]["map_all"] > methods["itq"]["map_all"] > methods["lsh"]["map_all"] > 0.5
    assert list(methods) == ["hashnet", "itq-cca", "ksh", "itq", "lsh"], "methods with the same labels stand beside it"
    for picture in ("answers.png", "precision_recall.png"):
        assert (demo / picture).stat().st_size > 20_000
    check_collection(demo)
    drawings = Collection.open(demo / "drawings-collection")
    assert (len(drawings), drawings.bits, drawings.num_features) == (350, 256, 1280)
    assert {path.name for path in demo.iterdir()} <= _OWN_ENTRIES, "it may be run again"


def check_collection(demo):
    """Its four shards answer 500 real queries as the oracle does, and FAISS opens each."""
    collection = Collection.open(demo / "collection", verify=True)
    stored = pq.read_table(demo / "codes" / "database" / "parts", columns=["id", "code"])
    codes, ids = codes_column(stored["code"]), stored["id"].to_numpy()
    queries = codes_column(pq.read_table(demo / "codes" / "queries" / "parts")["code"])[:500].copy()
    assert (len(collection.shards), len(collection)) == (4, 9000)
    distances, expected = oracles.knn(queries, codes, ids, 10)
    found = collection.search(queries, 10)
    np.testing.assert_array_equal(found.distances, distances)
    np.testing.assert_array_equal(found.ids, expected)
    within, _ = oracles.within_radius(queries, codes, ids, 2)
    result = collection.range_search(queries, 2)
    pairs = list(zip(result.distances.tolist(), result.ids.tolist(), strict=True))
    assert pairs == [pair for answers in within for pair in answers]
    assert len(pairs) > 10_000, "an empty answer must not pass"
    for shard in collection.shards:
        index = faiss.read_index_binary(str(demo / "collection" / "shards" / shard.name / "codes.faiss"))
        assert index.ntotal == len(shard)


def test_the_demo_leaves_other_folders_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(PipelineError, match=r"thesis\.tex"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
