"""Filters compared with a row-by-row evaluation in Python."""

from __future__ import annotations

import datetime
import fnmatch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashlight.engine.collection.collection import Collection
from hashlight.engine.filters.filter import Filter, FilterError
from tests import oracles
from tests.engine.filters.evaluated import matching

ROWS = [
    {
        "label": label,
        "price": price,
        "kind": kind,
        "uri": f"/{year}/{label}.jpg",
        "sold": sold,
        "tags": tags,
        "day": day,
    }
    for label, price, kind, year, sold, tags, day in [
        (3, 1.5, "shoe", 2023, True, ["new", "red"], datetime.date(2024, 1, 1)),
        (3, 5.5, "bag", 2024, False, [], datetime.date(2025, 6, 1)),
        (7, None, "it's", 2024, None, None, None),
        (None, -2.0, None, 2025, True, ["red", None], datetime.date(2024, 1, 1)),
        (2**53 + 1, 1e10, "shoe", 2024, False, ["x"], datetime.date(1999, 12, 31)),
    ]
]
SCHEMA = pa.schema(
    {
        "label": pa.int64(), "price": pa.float32(), "kind": pa.large_string(), "uri": pa.string(),
        "sold": pa.bool_(), "tags": pa.list_(pa.string()), "day": pa.date32(),
    }
)  # fmt: skip
BATCHES = pa.Table.from_pylist(ROWS, SCHEMA).to_batches(max_chunksize=2)


def rows_of(text):
    return np.flatnonzero(matching(text, BATCHES)).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("label == 3", [0, 1]),
        ("label = 3 and price < 5.5", [0]),
        ("label != 3", [2, 4]),
        ("label <> 3 or price < 0", [2, 3, 4]),
        ("not label == 3", [2, 4]),
        ("label > 3.5", [2, 4]),
        (f"label == {2**53 + 1}", [4]),
        (f"label == {2**53}", []),
        ("label < 1e300", [0, 1, 2, 4]),
        ("label < 99999999999999999999 and label > -1e999999999999999999999", [0, 1, 2, 4]),
        ("label == 99999999999999999999 or label in (1e400, 3)", [0, 1]),
        ("price <= -2", [3]),
        ("kind in ('shoe', \"bag\")", [0, 1, 4]),
        ("kind not in ('shoe')", [1, 2]),
        ("kind = 'it''s'", [2]),
        ("KIND_ is null or kind is null".replace("KIND_", "tags"), [2, 3]),
        ("label in (3, 7.0, 8)", [0, 1, 2]),
        ('uri like "%/2024/%"', [1, 2, 4]),
        ("uri not like '/202_/3.jpg'", [2, 3, 4]),
        ("sold == true", [0, 3]),
        ("sold != TRUE", [1, 4]),
        ("'red' in tags", [0, 3]),
        ("'red' not in tags", [1, 4]),
        ("day < '2024-06-01' AND NOT day = '1999-12-31'", [0, 3]),
        ("price is not null and (label == 7 or (label == 3 and not sold = true))", [1]),
        ("label == 7 or price < 2 and label is null", [2, 3]),
        ("(label == 7 or price < 2) and label is null", [3]),
        ("`label`==3 and price<2", [0]),
        ("not not label == 7", [2]),
    ],
)
def test_rows_that_match(text, expected):
    assert rows_of(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at character 0: expected an attribute, `id`, `not` or `(`, got the end"),
        ("label", "at character 5: expected a comparison, `in`, `like` or `is [not] null`, got the end"),
        ("label ==", "at character 8: expected a value"),
        ("label == 3 kind == 'x'", "at character 11: expected `and`, `or` or the end, got `kind`"),
        ("(label == 3", "at character 11: expected `)`, got the end"),
        ("colour == 3", "at character 0: `colour` is not an attribute; there are: id, label, price, kind"),
        ("kind == 'shoe", "at character 8: expected a closing quote"),
        ("label == 'shoe'", "at character 9: `label` is int64: expected a number, got `'shoe'`"),
        ("kind == 3", "`kind` is large_string: expected a string in quotes, got `3`"),
        ("label like '3%'", "`like` needs a text attribute, `label` is int64"),
        ("label in ()", "at character 10: expected a value"),
        ("label in 3", "at character 9: expected `(`"),
        ("tags == 'red'", "`tags` is list<item: string>: write `value in tags`, got `'red'`"),
        ("3 in label", "`label` is int64, not a list: write `label == value`"),
        ("3 == label", "at character 2: expected `in`, got `==`"),
        (
            "day > 'soon'",
            'an ISO 8601 date or time, such as "2024-01-31" or "2024-01-31T08:30", in quotes, got `\'soon\'`',
        ),
        ("label == 3; drop", "at character 10: expected a name, a value or an operator, got `; drop`"),
        ("__import__('os')", "at character 0: `__import__` is not an attribute"),
        ("label == 3kind", "got `3kind`"),
        ("(" * 60 + "label == 3", "at character 50: expected at most 50 nested parentheses"),
        ("label == 3" + " or label == 3" * 150, "at most 100 comparisons"),
        ("label == " + "3" * 20_000, "at most 10000 characters, got 20009"),
        ("kind == '\ud800'", "at character 9: expected text, got U+D800, half of a surrogate pair"),
        ("`a\udc00` == 3", "at character 2: expected text, got U+DC00"),
    ],
)
def test_errors_say_what_is_wrong_and_where(text, message):
    with pytest.raises(FilterError) as caught:
        Filter(text, SCHEMA)
    assert message in str(caught.value)


def test_the_limits_are_exact():
    assert rows_of(" or ".join(["label == 3"] * 100)) == [0, 1]
    with pytest.raises(FilterError, match="at most 100 comparisons"):
        rows_of(" or ".join(["label == 3"] * 101))
    assert rows_of("(" * 49 + "label == 3" + ")" * 49) == [0, 1]
    with pytest.raises(FilterError, match="at most 50 "):
        rows_of("(" * 50 + "label == 3" + ")" * 50)
    assert rows_of("label == 3".ljust(10_000)) == [0, 1]
    with pytest.raises(FilterError, match="at most 10000 characters, got 10001"):
        rows_of("label == 3".ljust(10_001))


def test_only_text_is_parsed():
    with pytest.raises(TypeError, match="must be a string, got int"):
        Filter(3, SCHEMA)


NUMBERS = [pa.int8(), pa.uint8(), pa.int32(), pa.uint64(), pa.int64(), pa.float16(), pa.float32(), pa.float64(),
           pa.decimal128(9, 2)]  # fmt: skip
TEXTS = [pa.string(), pa.large_string()]
TIMES = [pa.date32(), pa.date64(), pa.timestamp("us"), pa.timestamp("ns")]


def kept(values, kind, text):
    if kind == pa.float16():  # old releases of pyarrow take no other numbers
        values = [None if value is None else np.float16(value) for value in values]
    batch = pa.record_batch([pa.array(values, kind)], names=["a"])
    return np.flatnonzero(matching(text, [batch])).tolist()


@pytest.mark.parametrize("kind", NUMBERS, ids=str)
def test_numbers_of_every_type_compare_alike(kind):
    values = [1, None, 5, 3]
    compared = {"==": [3], "!=": [0, 2], "<": [0], "<=": [0, 3], ">": [2], ">=": [2, 3]}
    for sign, rows in compared.items():
        assert kept(values, kind, f"a {sign} 3") == rows
        assert kept(values, kind, f"a {sign} 3.0") == rows
        assert kept(values, kind, f"not a {sign} 3") == [row for row in (0, 2, 3) if row not in rows]
    assert kept(values, kind, "a > 2.5 and a < 3.5") == [3]
    assert kept(values, kind, "a in (3, 1.0, 99)") == [0, 3]
    assert kept(values, kind, "a not in (3, 4.5)") == [0, 2]
    if not pa.types.is_floating(kind):
        # Beyond the range of the type.
        assert kept(values, kind, "a < 1000") == [0, 2, 3]
        assert kept(values, kind, "a > 1e12 or a in (70000, 5)") == [2]
    if kind != pa.uint64():
        assert kept(values, kind, "a > -1") == [0, 2, 3]


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_texts_of_every_type_compare_alike(kind):
    values = ["b", None, "abc", "it's"]
    assert kept(values, kind, "a == 'b'") == [0]
    assert kept(values, kind, "a != 'b'") == [2, 3]
    assert kept(values, kind, "a < 'b'") == [2]
    assert kept(values, kind, "a >= 'b'") == [0, 3]
    assert kept(values, kind, "a in ('abc', 'it''s', 'x')") == [2, 3]
    assert kept(values, kind, "a not in ('abc')") == [0, 3]
    assert kept(values, kind, "a like '_b%'") == [2]
    assert kept(values, kind, "a is null") == [1]


@pytest.mark.parametrize("kind", TIMES, ids=str)
def test_times_of_every_type_compare_with_iso_text(kind):
    values = [datetime.datetime(2024, 1, 1), None, datetime.datetime(1999, 12, 31)]
    assert kept(values, kind, "a > '2000-01-01'") == [0]
    assert kept(values, kind, "a == '1999-12-31'") == [2]
    assert kept(values, kind, "a in ('1999-12-31', '2024-01-01')") == [0, 2]


@pytest.mark.parametrize("values", [pa.string(), pa.large_string()], ids=str)
@pytest.mark.parametrize("made", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 2)], ids=["list", "large", "2"])
def test_lists_of_every_type_are_searched_alike(values, made):
    lists = [["red", "new"], None, [None, "red"], ["x", "new"]]
    kind = made(values)
    assert kept(lists, kind, "'red' in a") == [0, 2]
    assert kept(lists, kind, "'red' not in a") == [3]
    assert kept(lists, kind, "not ('new' in a)") == [2]
    assert kept(lists, kind, "a is null") == [1]


def test_a_sliced_batch_is_evaluated_from_its_own_rows():
    batch = pa.record_batch({"a": pa.array([["x"], ["y"], None, ["x", "y"]])}).slice(1)
    assert matching("'x' in a", [batch]).tolist() == [False, False, True]


@given(st.text(alphabet="label == 3 andornotin()'\"`,<>.%e", max_size=60))
def test_any_text_is_a_filter_or_a_filter_error(text):
    position = 0
    try:
        assert matching(text, BATCHES).shape == (5,)
    except FilterError as error:
        position = error.position
    assert 0 <= position <= len(text)


@given(st.sampled_from(["_", "%"]).flatmap(lambda wild: st.text(alphabet=f"/024.jpg{wild}", max_size=12)))
def test_like_is_a_wildcard_match(pattern):
    shell = pattern.replace("%", "*").replace("_", "?")
    assert rows_of(f"uri like '{pattern}'") == [
        number for number, row in enumerate(ROWS) if fnmatch.fnmatchcase(row["uri"], shell)
    ]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tables", [True, False])
def test_a_collection_searches_only_the_rows_of_a_filter(tmp_path, shards, tables):
    rng = np.random.default_rng(4)
    codes, ids = oracles.clustered_codes(rng, 3000, 48), rng.permutation(9000)[:3000]
    label, price = rng.integers(10, size=3000), rng.random(3000)
    attributes = {"label": label, "price": price}
    options = {"bits": 48, "shards": shards, "tables": tables}
    collection = Collection.create(tmp_path / "c", codes, ids=ids, attributes=attributes, **options)
    queries, kept = codes[:40], (label == 3) & (price < 0.5)
    text = "label == 3 and price < 0.5"
    for _ in range(2):  # the second time from the cache
        nearest = collection.search(queries, 7, filter=text)
        expected_distances, expected_ids = oracles.knn(queries, codes[kept], ids[kept], 7)
        np.testing.assert_array_equal(nearest.ids, expected_ids)
        np.testing.assert_array_equal(nearest.distances, expected_distances)
        within = collection.range_search(queries, 3, filter=text)
        answers, _ = oracles.within_radius(queries, codes[kept], ids[kept], 3)
        expected = [pair for pairs in answers for pair in pairs]
        assert list(zip(within.distances.tolist(), within.ids.tolist(), strict=True)) == expected
    assert len(within.ids) > 100
    assert (collection.search(queries[:1], 3, filter="label == 99").ids == -1).all()
    with pytest.raises(FilterError, match="`kind` is not an attribute; there are: id, label, price"):
        collection.search(queries, filter="kind is null")


def test_a_filter_on_a_collection_without_attributes_is_refused(tmp_path):
    collection = Collection.create(tmp_path / "c", np.array([[1]], np.uint64), bits=16)
    with pytest.raises(FilterError, match="`label` is not an attribute; there are: id"):
        collection.range_search(np.array([[1]], np.uint64), 1, filter="label == 3")
