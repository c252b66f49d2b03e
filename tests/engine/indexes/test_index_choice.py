"""A collection gives byte-identical answers with every index, and explanations name the index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import MissingDependencyError
from hashlight.engine.indexes.choice import INDEX_CHOICES, build_index
from hashlight.engine.query import Query
from hashlight.engine.results import RangeResult
from tests import oracles
from tests.engine.indexes.test_indexes_exact import assert_range, assert_search

BITS = 64
ROWS = 600
PLANS = {
    "auto": {"tables", "scan", "tables, then scan"},
    "multi": {"tables"},
    "scan": {"scan"},
    "faiss-flat": {"faiss-flat"},
    "faiss-multi-hash": {"faiss-multi-hash"},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Codes with many ties in three shards, their ids and labels, and queries near and far."""
    rng = np.random.default_rng(11)
    codes = oracles.clustered_codes(rng, ROWS, BITS, centres=9, flips=4)
    ids = rng.choice(10**12, ROWS, replace=False)
    labels = rng.integers(4, size=ROWS)
    path = tmp_path_factory.mktemp("choice") / "c"
    Collection.create(path, codes, ids=ids, attributes={"label": labels}, bits=BITS, shards=3)
    far = rng.integers(2**64, size=(3, 1), dtype=np.uint64)
    return path, codes, ids, labels, np.concatenate([codes[:4], codes[4:6] ^ np.uint64(5), far])


@pytest.fixture(scope="module")
def opened(corpus):
    return {index: Collection.open(corpus[0], index=index) for index in INDEX_CHOICES}


def raw(found):
    """All of an answer except its explanation, as bytes with dtypes and shapes."""
    arrays = {name: value for name, value in found._asdict().items() if isinstance(value, np.ndarray)}
    return {name: (value.dtype.str, value.shape, value.tobytes()) for name, value in arrays.items()}, found.coverage


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.one_of(
        st.builds(lambda k: {"k": k}, st.sampled_from([1, 2, 10, 199, ROWS, ROWS + 7])),
        st.builds(
            lambda radius, limit: {"radius": radius, "limit": limit},
            st.sampled_from([0, 1, 4, 9, 30, BITS]),
            st.sampled_from([None, 1, 5, 300, 5000]),
        ),
    ),
    label=st.sampled_from([None, 0, 3, 17]),
    batch=st.sampled_from([1, 2, 9]),
    threads=st.sampled_from([None, 1, 3]),
)
def test_every_index_gives_the_same_bytes(corpus, opened, wanted, label, batch, threads):
    _, codes, ids, labels, queries = corpus
    asked, where = queries[:batch], None if label is None else f"label == {label}"
    query = Query(**wanted, filter=where, threads=threads)
    answers = {index: collection.answer(asked, query) for index, collection in opened.items()}
    may = np.ones(ROWS, bool) if label is None else labels == label
    expected = answers["auto"]
    if isinstance(expected, RangeResult):
        assert_range(expected, asked, codes[may], ids[may], wanted["radius"], wanted["limit"])
    else:
        assert_search(expected, asked, codes[may], ids[may], wanted["k"])
    for index, found in answers.items():
        assert type(found) is type(expected), index
        assert raw(found) == raw(expected), index


@pytest.mark.parametrize("index", INDEX_CHOICES)
def test_an_explanation_names_the_index(corpus, opened, index):
    queries = corpus[-1]
    for found in (
        opened[index].search(queries, 5, explain=True),
        opened[index].range_search(queries, 3, explain=True),
        opened[index].range_search(queries, 60, 2, explain=True),
    ):
        named = {plan for plans in found.explain.plans for plan in plans.split(" + ")}
        assert named <= PLANS[index]
    assert f"index {index})" in repr(opened[index])


@pytest.mark.parametrize("index", INDEX_CHOICES)
def test_an_append_keeps_the_index(tmp_path, index):
    codes = np.arange(40, dtype=np.uint64)[:, None]
    Collection.create(tmp_path / "c", codes[:30], bits=BITS)
    more = Collection.open(tmp_path / "c", index=index).add(codes[30:])
    assert (more.index, more.search(codes[35:36], 1).ids.tolist()) == (index, [[35]])
    found = more.range_search(codes[35:36], 0, explain=True)
    assert {plan for plans in found.explain.plans for plan in plans.split(" + ")} <= PLANS[index]


@pytest.mark.parametrize("index", INDEX_CHOICES)
def test_an_index_in_memory_answers_like_the_oracle(corpus, index):
    _, codes, ids, _, queries = corpus
    built = build_index(index, codes, ids, bits=BITS)
    assert_search(built.search(queries, 7), queries, codes, ids, 7)
    assert set(built.range_search(queries, 5, explain=True).explain.plans) <= PLANS[index]


def test_a_collection_without_tables_refuses_multi_and_answers_with_the_others(tmp_path):
    codes = np.arange(30, dtype=np.uint64)[:, None]
    Collection.create(tmp_path / "c", codes, bits=BITS, tables=False)
    with pytest.raises(ValueError, match=r'was built without tables, which `index` "multi" needs: open .*"scan"'):
        Collection.open(tmp_path / "c", index="multi")
    for index in set(INDEX_CHOICES) - {"multi"}:
        assert Collection.open(tmp_path / "c", index=index).search(codes[7:8], 1).ids.tolist() == [[7]]


def test_an_unknown_index_is_refused(corpus):
    with pytest.raises(ValueError, match=r"`index` must be one of auto, multi, scan, faiss-flat, .*, got 'best'"):
        Collection.open(corpus[0], index="best")


@pytest.mark.parametrize("index", ["faiss-flat", "faiss-multi-hash"])
def test_without_faiss_the_error_says_what_to_install(corpus, monkeypatch, index):
    def absent(name, *_):
        raise ModuleNotFoundError(name, name=name)

    monkeypatch.setattr("hashlight.engine.extras.importlib.import_module", absent)
    with pytest.raises(MissingDependencyError, match=r"hashlight\[cpu\]"):
        Collection.open(corpus[0], index=index)
    assert len(Collection.open(corpus[0]).search(corpus[-1], 1).ids)
