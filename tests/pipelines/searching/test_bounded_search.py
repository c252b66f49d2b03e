"""Searches whose answers are bounded by hits, not by queries, give the same answers as others."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hashlight.engine.collection.bounded import search_bounded
from hashlight.engine.collection.collection import Collection
from hashlight.engine.places.folder import Folder
from hashlight.engine.query import Query
from hashlight.engine.storage.versions import read_current
from hashlight.pipelines.codes.parts import Part, Piece
from hashlight.pipelines.jobs.folder import JobFolder
from hashlight.pipelines.searching import batch as batch_search
from hashlight.pipelines.searching.batch import Block, SearchJob, merge_block, search_block
from tests import oracles

BITS = 48


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """2,000 codes, half of them near one centre, in three shards; 300 queries, some near that centre."""
    rng = np.random.default_rng(2)
    near = oracles.clustered_codes(rng, 1000, BITS, centres=1, flips=3)
    codes = np.concatenate([near, oracles.clustered_codes(rng, 1000, BITS, centres=300, flips=3)])
    ids = rng.choice(10**12, len(codes), replace=False)
    folder = tmp_path_factory.mktemp("bounded")
    opened = Collection.create(folder / "c", codes, ids=ids, bits=BITS, shards=3)
    queries = codes[rng.choice(len(codes), 300, replace=False)]
    column = pa.array([code.tobytes() for code in queries], pa.binary(8))
    pq.write_table(pa.table({"id": np.arange(300), "code": column}), folder / "queries.parquet")
    return folder, opened, codes, ids, queries


@pytest.mark.parametrize("max_hits", [1, 50, 700, 10**9])
def test_runs_are_bounded_whole_and_in_order(database, max_hits):
    _, opened, _, _, queries = database
    longest = 0
    for shard in opened.shards:
        expected, _ = oracles.within_radius(queries, np.asarray(shard.codes_NW), np.asarray(shard.ids_N), 6)
        place = 0
        for run, found in search_bounded(shard.answer, queries, Query(radius=6), max_hits=max_hits):
            assert run.start == place
            place = run.stop
            assert len(found.ids) <= max(max_hits, place - run.start) or place - run.start == 1
            assert not found.truncated.any()
            answers = [
                list(zip(found.distances[a:b].tolist(), found.ids[a:b].tolist(), strict=True))
                for a, b in zip(found.lims[:-1], found.lims[1:], strict=True)
            ]
            assert answers == expected[run]
        assert place == len(queries)
        longest = max(longest, *map(len, expected))
    assert longest > 100, "some find many"


@pytest.mark.parametrize("asked", [{"k": 7}, {"radius": 6}, {"radius": 6, "limit": 9}])
@pytest.mark.parametrize("hits", [1, 64, 10**6])
def test_blocks_are_merged_however_shards_cut_them(tmp_path, monkeypatch, database, asked, hits):
    monkeypatch.setattr(batch_search, "BATCH_QUERIES", 77)
    monkeypatch.setattr(batch_search, "BATCH_HITS", hits)
    folder, _, codes, ids, queries = database
    live = read_current(Folder(folder / "c"))
    job = SearchJob(str(folder / "c"), 1, BITS, None, len(codes), asked.get("k"), asked.get("radius"),
                    asked.get("limit"), len(queries), ())  # fmt: skip
    part = Part(str(folder / "queries.parquet"), 300, "")
    block = Block(0, 0, (Piece(part, 0, 300),))
    work = JobFolder(str(tmp_path), batch_search.ANSWERS)
    work.begin({"of": "this test"}, overwrite=False)
    merge_block(job, work, block, *(search_block(job, work, block, spec, None) for spec in live.shards))
    rows = pq.read_table(tmp_path / "block-000000.parquet").to_pylist()
    assert [row["query"] for row in rows] == list(range(300))
    if "k" in asked:
        distances, nearest = oracles.knn(queries, codes, ids, 7)
        assert [row["ids"] for row in rows] == nearest.tolist()
        assert [row["distances"] for row in rows] == distances.tolist()
        assert not any(row["truncated"] for row in rows)
        return
    within, cut = oracles.within_radius(queries, codes, ids, asked["radius"], asked.get("limit"))
    assert [list(zip(row["distances"], row["ids"], strict=True)) for row in rows] == within
    assert [row["truncated"] for row in rows] == cut
