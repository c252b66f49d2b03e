"""Filtered searches, by every plan, against an evaluation of the condition row by row in plain Python."""

from __future__ import annotations

import datetime
import operator
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hashlight.engine.collection.collection import Collection
from hashlight.engine.storage import attributes, scalars, shard
from tests import oracles

BITS, ROWS = 48, 400
SIGNS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
DAY = datetime.date(2024, 2, 28)

# Of each column: its type, its values, and how a value is written.
COLUMNS = {
    "tiny": (pa.int8(), [-3, 0, 1, 7, 127], str),
    "whole": (pa.int64(), [-(2**62), -1, 0, 5, 2**53 + 1], str),
    "natural": (pa.uint64(), [0, 1, 2**63 + 5, 2**64 - 1], str),
    "real": (pa.float64(), [-1.5, 0.0, 2.25, float("nan"), float("inf")], repr),
    "single": (pa.float32(), [-1.5, 0.0, 2.25, 1024.0], repr),
    "half": (pa.float16(), [-1.5, 0.0, 2.25], repr),
    "sold": (pa.bool_(), [True, False], lambda value: str(value).lower()),
    "day": (pa.date32(), [DAY + datetime.timedelta(days) for days in (0, 1, 2, 400)], lambda day: f"'{day}'"),
    "short": (pa.decimal128(12, 2), [Decimal("-0.75"), Decimal("0.00"), Decimal("12.50")], str),
    "long": (pa.decimal128(30, 2), [Decimal("-0.75"), Decimal("0.00"), Decimal("12.50")], str),
    "word": (pa.string(), ["", "bag", "Bag", "shoe", "é"], lambda word: f"'{word}'"),
    "text": (pa.large_string(), None, lambda word: f"'{word}'"),  # as many values as rows
}
SEED_SHARES = [0.0, 0.2, 0.97, 1.0]  # of nulls in a column


def value_of(name, rng, row):
    _, values, _ = COLUMNS[name]
    return f"row {row % 500}" if values is None else values[int(rng.integers(len(values)))]


def make_table(seed):
    """Columns of every type, with nulls; in some of them, values stand together, so that blocks are all alike."""
    rng = np.random.default_rng(seed)
    table = {}
    for name, (kind, _, _) in COLUMNS.items():
        nulls, alike = rng.choice(SEED_SHARES), int(rng.choice([1, 1, 40]))
        column = [value_of(name, rng, row) for row in range(ROWS)]
        column = [column[row // alike * alike] for row in range(ROWS)]
        table[name] = pa.array([None if rng.random() < nulls else value for value in column], kind)
    return pa.table(table)


def compared(name):
    """Return a comparison: its text, and what it is for a row in plain Python."""
    _, values, written = COLUMNS[name]
    literal = st.sampled_from(["row 7", "row 250", "row 9"] if values is None else values).filter(written_exactly)
    sign = st.sampled_from(sorted(SIGNS))

    def one(sign, value):
        text, holds = f"{name} {sign} {written(value)}", SIGNS[sign]
        return text, lambda row: None if row[name] is None else holds(row[name], value)

    def among(given):
        text = f"{name} in ({', '.join(map(written, given))})"
        return text, lambda row: None if row[name] is None else row[name] in given

    def null(negated):
        return f"{name} is {'not ' * negated}null", lambda row: (row[name] is None) != negated

    return st.one_of(
        st.builds(one, sign, literal),
        st.builds(among, st.lists(literal, min_size=1, max_size=3)),
        st.builds(null, st.booleans()),
    )


def written_exactly(value):
    return not isinstance(value, float) or abs(value) < 1e9


def of_id(low):
    return f"id < {low}", lambda row: row["id"] < low


PREDICATES = st.one_of(st.sampled_from(sorted(COLUMNS)).flatmap(compared), st.builds(of_id, st.integers(0, 3 * ROWS)))


def joined(word, one, other):
    def conjunction(row):
        known = one[1](row), other[1](row)
        return False if False in known else None if None in known else True

    def disjunction(row):
        known = one[1](row), other[1](row)
        return True if True in known else None if None in known else False

    return f"({one[0]}) {word} ({other[0]})", conjunction if word == "and" else disjunction


def negated(one):
    return f"not ({one[0]})", lambda row: None if one[1](row) is None else not one[1](row)


CONDITIONS = st.recursive(
    PREDICATES,
    lambda inner: st.builds(joined, st.sampled_from(["and", "or"]), inner, inner) | st.builds(negated, inner),
    max_leaves=4,
)


@pytest.fixture(scope="module", autouse=True)
def _small_blocks():
    """Several blocks, and several batches in each, among a few hundred rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attributes, "BATCH_ROWS", 16)
        patch.setattr(scalars, "BLOCK_ROWS", 64)
        patch.setattr(scalars, "MIN_ROWS", 1)
        yield


class Case:
    def __init__(self, seed, folder):
        rng = np.random.default_rng(seed)
        self.codes, self.ids = oracles.clustered_codes(rng, ROWS, BITS), rng.permutation(3 * ROWS)[:ROWS]
        table = make_table(seed)
        self.rows = [{**row, "id": int(id_)} for row, id_ in zip(table.to_pylist(), self.ids, strict=True)]
        self.collection = Collection.create(
            folder / str(seed), self.codes, ids=self.ids, attributes=table, bits=BITS, shards=1 + seed % 2
        )


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return [Case(seed, tmp_path_factory.mktemp("filtered")) for seed in range(6)]


def test_text_of_few_values_and_scalars_are_stored_as_plain_arrays(cases):
    for case in cases:
        for part in case.collection.shards:
            assert {"real", "short", "sold", "word"} <= set(part._scalars.schema.names) <= set(COLUMNS) - {"long"}


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), condition=CONDITIONS)
def test_every_plan_answers_as_the_oracle_does(cases, data, condition):
    case = data.draw(st.sampled_from(cases), label="case")
    text, holds = condition
    allowed = np.array([holds(row) is True for row in case.rows])
    codes, ids = case.codes[allowed], case.ids[allowed]
    queries = case.codes[:3] ^ np.uint64(data.draw(st.sampled_from([0, 1, 0b1011])))
    queries = queries[: data.draw(st.sampled_from([1, 3]))]
    k, radius = data.draw(st.sampled_from([1, 4, ROWS])), data.draw(st.sampled_from([0, 3, 9, BITS]))
    limit = data.draw(st.sampled_from([None, 1, 5]))
    for plan in ("auto", "scan", "tables", "gather"):
        for part in case.collection.shards:
            part.index.plan = plan
        nearest = case.collection.search(queries, k, filter=text)
        expected = oracles.knn(queries, codes, ids, k) if len(ids) else (2**31 - 1, -1)
        np.testing.assert_array_equal(nearest.distances, np.broadcast_to(expected[0], nearest.distances.shape))
        np.testing.assert_array_equal(nearest.ids, np.broadcast_to(expected[1], nearest.ids.shape))
        within = case.collection.range_search(queries, radius, limit, filter=text)
        answers, cut = oracles.within_radius(queries, codes, ids, radius, limit) if len(ids) else ([], within.truncated)
        pairs = [pair for answer in answers for pair in answer]
        assert list(zip(within.distances.tolist(), within.ids.tolist(), strict=True)) == pairs
        assert list(within.truncated) == list(cut)


def test_an_explanation_names_the_plan_and_counts_only_allowed_rows(cases):
    case = cases[0]
    explained = case.collection.search(case.codes[:2], 1, filter="id < 12", explain=True).explain
    assert set(explained.plans) == {"gather"}
    assert explained.candidates.tolist() == [int((case.ids < 12).sum())] * 2


def test_blocks_that_statistics_decide_are_not_read(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    codes = np.sort(rng.integers(2**BITS, size=(640, 1), dtype=np.uint64), axis=0)
    table = pa.table({"place": np.arange(640), "seven": np.full(640, 7)})
    collection = Collection.create(tmp_path / "c", codes, ids=np.arange(640), attributes=table, bits=BITS)
    read = []
    real = scalars.ShardColumns.read
    [only] = collection.shards

    def noted(self, number, names):
        read.append(number)
        return real(self, number, names)

    monkeypatch.setattr(scalars.ShardColumns, "read", noted)

    def asked(text):
        read.clear()
        return only.mask_of(text).bools(), read

    for text, expected, blocks in [
        ("place < 100", np.arange(640) < 100, [1]),
        ("place >= 128 and place < 192", (np.arange(640) >= 128) & (np.arange(640) < 192), []),
        ("place in (3, 70)", np.isin(np.arange(640), [3, 70]), [0, 1]),
        ("not place != 600", np.arange(640) == 600, [9]),
        ("seven == 7", np.ones(640, bool), []),
        ("seven is null or seven > 7", np.zeros(640, bool), []),
        ("place < 64 or seven == 8", np.arange(640) < 64, []),
        ("id == 5", np.arange(640) == 5, []),
    ]:  # fmt: skip
        found, blocks_read = asked(text)
        assert found.tolist() == expected.tolist(), text
        assert blocks_read == blocks, text


def test_a_shard_without_plain_arrays_answers_from_the_attributes(cases, monkeypatch, tmp_path):
    case = cases[1]
    monkeypatch.setattr(shard, "write_scalars", lambda folder, rows: None)
    earlier = Collection.create(tmp_path / "c", case.codes, ids=case.ids, attributes=make_table(1), bits=BITS)
    assert list(tmp_path.rglob("attributes.arrow"))
    assert not list(tmp_path.rglob("scalars.arrow"))
    for text in ("whole < 5 or not word == 'bag'", "day > '2024-02-28' or short in (12.5, 1)", "text < 'row 3'"):
        got, expected = (each.search(case.codes[:5], ROWS, filter=text) for each in (earlier, case.collection))
        np.testing.assert_array_equal(got.ids, expected.ids)
        assert (got.ids >= 0).sum() > 10
