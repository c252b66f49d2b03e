"""Many small shards are searched as one: the same answers, with deleted rows and filters, from version to version."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashlight.engine.collection import parts
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.gathered import MAX_ROWS_TOGETHER, Gathered, gather, plan_groups
from hashlight.engine.errors import IdNotFoundError
from hashlight.engine.query import Query
from tests import oracles

BITS = 48
SIZES = (1, 2, 60, 7, 90)


def rows_of(seed, count):
    """Codes with many ties, ids in no order, and a label for each."""
    rng = np.random.default_rng(seed)
    codes = oracles.clustered_codes(np.random.default_rng([5, seed]), count, BITS, centres=5, flips=5)
    return codes, seed * 10**6 + rng.permutation(10 * count)[:count], rng.integers(4, size=count)


class Kept:
    """What a collection must hold, in a dict."""

    def __init__(self):
        self.rows = {}

    def put(self, codes, ids, labels):
        self.rows |= {int(id_): (code, int(label)) for code, id_, label in zip(codes, ids, labels, strict=True)}

    def arrays(self, labels=None):
        ids = [id_ for id_, (_, label) in self.rows.items() if labels is None or label in labels]
        codes = np.array([self.rows[id_][0] for id_ in ids], np.uint64).reshape(len(ids), 1)
        return codes, np.array(ids, np.int64)


def make(path, *, shards=24, **options):
    codes, ids, labels = rows_of(1, 40 * shards)
    kept = Kept()
    kept.put(codes, ids, labels)
    attributes = {"label": labels}
    return Collection.create(path, codes, ids=ids, attributes=attributes, bits=BITS, shards=shards, **options), kept


def add(collection, kept, seed, count):
    codes, ids, labels = rows_of(seed, count)
    kept.put(codes, ids, labels)
    return collection.add(codes, ids=ids, attributes={"label": labels})


def delete(collection, kept, ids):
    for id_ in ids:
        del kept.rows[int(id_)]
    return collection.delete(ids)


def queries_of(seed, count):
    return oracles.clustered_codes(np.random.default_rng([5, seed]), count, BITS, centres=5, flips=4)


def assert_exact(collection, kept, queries, *, k=7, radius=6, limit=3, labels=None, **options):
    """Compare a collection with all rows that must be there, bit by bit."""
    if labels is not None:
        options["filter"] = f"label in ({', '.join(map(str, labels))})"
    codes, ids = kept.arrays(labels)
    nearest = collection.search(queries, k, **options)
    expected = oracles.knn(queries, codes, ids, k)
    np.testing.assert_array_equal(nearest.distances, expected[0])
    np.testing.assert_array_equal(nearest.ids, expected[1])
    within = collection.range_search(queries, radius, limit, **options)
    pairs, cut = oracles.within_radius(queries, codes, ids, radius, limit)
    assert [
        list(zip(within.distances[a:b].tolist(), within.ids[a:b].tolist(), strict=True))
        for a, b in zip(within.lims, within.lims[1:], strict=False)
    ] == pairs
    assert within.truncated.tolist() == cut
    for found in (nearest, within):
        assert (found.coverage.shards, found.coverage.codes) == (len(collection.manifest.shards), len(kept.rows))
        assert found.coverage.complete
        assert (found.explain is not None) == options.get("explain", False)


@pytest.fixture(scope="module", params=["tables", "scan"])
def changed(request, tmp_path_factory):
    """Shards of several sizes, in several groups, a third of their rows deleted and one shard gone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hashlight.engine.collection.gathered._WORTH_TABLES", 100)
        path = tmp_path_factory.mktemp("many") / "c"
        collection, kept = make(path, shards=12, tables=request.param == "tables")
        collection.search(queries_of(1, 1))
        for seed, count in enumerate(SIZES, 2):
            collection = add(collection, kept, seed, count)
            collection.search(queries_of(1, 1))
        gone = np.fromiter(kept.rows, np.int64)
        collection = delete(collection, kept, np.unique(np.append(gone[::3], gone[gone // 10**6 == 4][1:])))
        yield collection, kept


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(1, 9),
    k=st.sampled_from([1, 2, 30, 400, 1000]),
    radius=st.integers(0, BITS),
    limit=st.sampled_from([None, 1, 5, 500]),
    labels=st.sampled_from([None, (1,), (0, 2, 3), (9,)]),
    threads=st.sampled_from([None, 1, 3]),
    explain=st.booleans(),
)
def test_answers_equal_the_oracle(changed, queries, k, radius, limit, labels, threads, explain):
    collection, kept = changed
    asked = queries_of(3, 9)[:queries]
    options = {"threads": threads, "explain": explain}
    assert_exact(collection, kept, asked, k=k, radius=radius, limit=limit, labels=labels, **options)


def test_plans_are_those_that_were_followed(changed):
    collection, _ = changed
    explain = Collection.open(collection.path, index="scan").search(queries_of(3, 5), 3, explain=True).explain
    assert explain.plans == ("scan",) * 5
    assert explain.candidates.tolist() == [len(collection)] * 5
    if collection.has_tables:
        explain = Collection.open(collection.path, index="multi").search(queries_of(3, 5), 3, explain=True).explain
        assert explain.plans == ("tables",) * 5
        assert (explain.probes > 0).all()


def test_no_queries_have_no_answers(changed):
    found = changed[0].search(queries_of(3, 5)[:0], 3), changed[0].range_search(queries_of(3, 5)[:0], 3)
    assert (found[0].ids.shape, found[1].lims.tolist()) == ((0, 3), [0])


def test_items_are_found_by_their_ids(changed):
    collection, kept = changed
    codes, ids = kept.arrays()
    order = np.random.default_rng(0).permutation(len(ids))[:50]
    items = collection.get(ids[order])
    assert items["id"].to_pylist() == ids[order].tolist()
    assert items["code"].to_pylist() == [code.tobytes() for code in codes[order]]
    assert items["label"].to_pylist() == [kept.rows[id_][1] for id_ in ids[order].tolist()]
    missing = [2, int(ids[0]), next(id_ for id_ in rows_of(1, 480)[1].tolist() if id_ not in kept.rows)]
    with pytest.raises(IdNotFoundError, match="2 of 3 ids"):
        collection.get(missing)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from([48, 100]),
)
def test_gathered_rows_are_found_in_any_order_and_number(sizes, seed, plan_tables, bits):
    """Ids may stand in several shards, alive in one of them at most."""
    rng = np.random.default_rng(seed)
    total = sum(sizes)
    codes = oracles.clustered_codes(rng, total, bits, centres=3, flips=3)
    ids = np.concatenate([rng.permutation(50)[:size] for size in sizes]).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    spans = {str(n): slice(starts[n], starts[n + 1]) for n in range(len(sizes))}
    gathered = gather(
        list(spans),
        sizes,
        lambda name: (codes[spans[name]], ids[spans[name]]),
        words=codes.shape[1],
        bits=bits,
        tables=plan_tables,
        plan="tables" if plan_tables else "auto",
    )
    alive = np.zeros(total, np.bool_)
    for id_ in range(50):
        if len(rows := np.flatnonzero(ids == id_)) and rng.random() < 0.8:
            alive[rng.choice(rows)] = True
    in_order = np.empty(total, np.bool_)
    in_order[gathered.place_N] = alive
    wanted = np.arange(-1, 52)
    expected = [next(iter(np.flatnonzero(alive & (ids == id_))), -1) for id_ in wanted]
    assert gathered.find(wanted, in_order).tolist() == expected
    member, row = gathered.split(np.arange(total))
    assert (starts[member] + row == np.arange(total)).all()
    for each in gathered.members:
        assert (gathered.rows_of(each)[1] == ids[each.span]).all()
        assert (gathered.rows_of(each)[0] == codes[each.span]).all()
    found = gathered.index.search(codes[:3], 5, mask=in_order)
    assert (found.ids == oracles.knn(codes[:3], codes[alive], ids[alive], 5)[1]).all()


def test_adding_a_shard_costs_its_rows(tmp_path, monkeypatch):
    """A version takes over what the one before has gathered, whatever was deleted since."""
    gathered_rows = []

    def counted(names, rows, read, **options):
        gathered_rows.append(sum(rows))
        return gather(names, rows, read, **options)

    monkeypatch.setattr(parts, "gather", counted)
    collection, kept = make(tmp_path / "c")
    assert_exact(collection, kept, queries_of(2, 3))
    assert gathered_rows == [960]
    collection = add(collection, kept, 2, 1)
    assert_exact(collection, kept, queries_of(2, 3))
    collection = delete(collection, kept, list(kept.rows)[:40:2])
    assert_exact(collection, kept, queries_of(2, 3), labels=(1, 2))
    assert gathered_rows == [960, 1]
    for seed in range(3, 12):
        collection = add(collection, kept, seed, 1)
        assert_exact(collection, kept, queries_of(2, 3))
    assert max(gathered_rows[1:]) == 4, "single rows are gathered again by fours"
    assert sum(gathered_rows[1:]) <= 10 + 8


@pytest.mark.parametrize("seed", [0, 1])
def test_any_writes_in_any_order(tmp_path, monkeypatch, seed):
    """What is gathered is carried along versions in which shards come, lose rows and go, and rows move."""
    monkeypatch.setattr("hashlight.engine.collection.gathered._WORTH_TABLES", 100)
    monkeypatch.setattr(parts, "FEW_SHARDS", 1)
    rng = np.random.default_rng(seed)
    collection, kept = make(tmp_path / "c", shards=10)
    snapshots = {collection.version: dict(kept.rows)}
    for step in range(2, 26):
        what = rng.choice(["add", "add", "delete", "drop", "upsert", "update", "rollback", "skip"])
        what = "compact" if step % 12 == 0 else what
        if what == "add":
            collection = add(collection, kept, step, int(rng.integers(1, 30)))
        elif what == "delete":
            collection = delete(collection, kept, rng.choice(list(kept.rows), len(kept.rows) // 10, replace=False))
        elif what == "drop" and len(collection.shards) > 2:  # all rows of a shard, and so the shard
            shard = sorted(collection.shards, key=len)[int(rng.integers(len(collection.shards) - 1))]
            collection = delete(collection, kept, [id_ for id_ in shard.ids_N.tolist() if id_ in kept.rows])
        elif what == "upsert":
            codes, new, labels = rows_of(step, 20)
            ids = np.append(rng.choice(list(kept.rows), 10, replace=False), new[:10])
            kept.put(codes, ids, labels)
            collection = collection.upsert(codes, ids=ids, attributes={"label": labels})
        elif what == "update":
            ids = rng.choice(list(kept.rows), len(kept.rows) // 5, replace=False)
            labels = rng.integers(4, size=len(ids))
            kept.put([kept.rows[id_][0] for id_ in ids.tolist()], ids, labels)
            collection = collection.update(ids, {"label": labels})
        elif what == "rollback" and collection.version > 2:
            before = collection.version - 1
            collection, kept.rows = collection.rollback(before), dict(snapshots[before])
        elif what == "compact":
            collection = collection.compact()
        snapshots[collection.version] = dict(kept.rows)
        if what != "skip":  # a version that nobody searched
            for labels in (None, (1, 2)):
                assert_exact(collection, kept, queries_of(step, 4), k=12, labels=labels)
            some = rng.choice(list(kept.rows), 10)
            assert collection.get(some)["label"].to_pylist() == [kept.rows[id_][1] for id_ in some.tolist()]
    assert_exact(Collection.open(collection.path), kept, queries_of(0, 4))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 500), st.just(0)), max_size=60), st.integers(0, 10**6))
def test_groups_stay_few_and_are_seldom_gathered_again(steps, seed):
    """Add shards of these sizes one by one, or (0) drop some."""
    rng = np.random.default_rng(seed)
    rows, groups, written, added = {}, [], 0, 0
    for step, size in enumerate(steps):
        if size:
            rows[str(step)] = size
            added += size
        else:
            for name in [name for name in rows if rng.random() < 0.2]:
                del rows[name]
        plan = plan_groups(rows, groups)
        assert all(any(group is kept for group in groups) for kept in plan.kept)
        new = [fake(names, rows) for names in plan.new]
        written += sum(map(len, new))
        groups = [*plan.kept, *new]
        held = [member.name for group in groups for member in group.members if member.name in rows]
        assert sorted(held) == sorted(rows), "each shard is gathered once"
        assert len(groups) <= 3 * 8 + 1
    if 0 not in steps:
        assert written <= added * 8


def fake(names, rows):
    """Gathered rows without contents."""
    sizes = [rows[name] for name in names]
    codes = np.zeros((sum(sizes), 1), np.uint64)
    return Gathered(names, sizes, codes, np.arange(sum(sizes)), bits=BITS, tables=False, plan="scan")


def test_groups_are_not_larger_than_a_limit():
    rows = {str(n): MAX_ROWS_TOGETHER // 2 for n in range(5)}
    assert sorted(map(len, plan_groups(rows, []).new)) == [1, 2, 2]


def test_nothing_is_opened_before_it_is_used(tmp_path, monkeypatch):
    make(tmp_path / "c")
    monkeypatch.delattr(parts, "gather")
    collection = Collection.open(tmp_path / "c", reuse=Collection.open(tmp_path / "c"))
    assert opened(collection) == []
    monkeypatch.undo()
    found = collection.search(queries_of(1, 1), 2)
    assert opened(collection) == [], "codes and ids are read without opening shards"
    first = collection.get(found.ids[0, :1])
    assert len(opened(collection)) == 1
    assert collection.get(found.ids[0, :1]).equals(first)
    collection.search(queries_of(1, 1), 2, filter="label == 1")
    assert len(opened(collection)) == 24


def opened(collection):
    return [number for number in range(len(collection.shards)) if collection.shards.is_open(number)]


def test_few_shards_and_large_ones_are_searched_from_their_files(tmp_path, monkeypatch):
    assert len(make(tmp_path / "few", shards=parts.FEW_SHARDS)[0]._parts.gathered) == 0
    monkeypatch.setattr(parts, "SMALL_ROWS", 39)
    collection, kept = make(tmp_path / "large")
    collection = add(collection, kept, 2, 39)
    assert len(collection._parts.gathered) == 0
    assert_exact(collection, kept, queries_of(1, 5), threads=2)


def test_memory_is_bounded(tmp_path, monkeypatch):
    collection, kept = make(tmp_path / "c", shards=12)
    row_bytes = 8 + 25 + 40
    monkeypatch.setattr(parts, "MAX_GATHERED_BYTES", 5 * 40 * row_bytes)
    collection = Collection.open(collection.path)
    assert [len(part) for part in collection._parts.gathered] == [5 * 40]
    assert len(collection._parts.asked(Query(k=1))) == 1 + 7
    assert_exact(collection, kept, queries_of(1, 5))


def test_faiss_answers_the_same(tmp_path):
    pytest.importorskip("faiss")
    collection, kept = make(tmp_path / "c", shards=12)
    assert_exact(Collection.open(collection.path, index="faiss-flat"), kept, queries_of(1, 5))


FEW_FILES = """
import resource, sys
from hashlight.engine.collection.collection import Collection

Collection.open(sys.argv[1]).search  # whatever is loaded once
used = len(__import__("os").listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, used + 20))
collection = Collection.open(sys.argv[1])
query = collection.shards[0].codes_NW[:1].copy()
print(collection.search(query, 1).distances[0, 0], collection.search(query, 1, filter="label >= 0").distances[0, 0])
print(len(collection.get([shard.ids_N[0] for shard in collection.shards])))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_open_files_do_not_limit_shards(tmp_path):
    make(tmp_path / "c", shards=60)
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, str(tmp_path / "c")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "0", "60"]
