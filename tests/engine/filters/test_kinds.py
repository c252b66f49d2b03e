"""Values of every type compare as plain Python says: `decimal`, `datetime` and `struct`, not Arrow."""

from __future__ import annotations

import datetime
import operator
import struct
import zoneinfo
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashlight.engine.filters.filter import Filter, FilterError
from hashlight.engine.filters.kinds import kind_of
from tests.engine.filters.evaluated import matching

SIGNS = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip

few = settings(max_examples=20, deadline=None)  # each asks some twenty filters


def kept(values, kind, text):
    batch = pa.record_batch([pa.array(values, kind)], names=["a"])
    return np.flatnonzero(matching(text, [batch])).tolist()


def check(stored, kind, asked, *, values=None):
    """Compare every stored value with every literal, in every way.

    `stored` is what Arrow is given, `values` what it stands for in Python, `asked` has (literal, its value in Python).
    """
    values = stored if values is None else values
    there = [row for row, value in enumerate(values) if value is not None]
    for text, operand in asked:
        for sign, holds in SIGNS.items():
            expected = [row for row in there if holds(values[row], operand)]
            assert kept(stored, kind, f"a {sign} {text}") == expected, (kind, sign, text)
    operands = {operand for _, operand in asked}
    texts = ", ".join(text for text, _ in asked)
    among = [row for row in there if values[row] in operands]
    assert kept(stored, kind, f"a in ({texts})") == among
    assert kept(stored, kind, f"a not in ({texts})") == [row for row in there if row not in among]
    lists = [None if value is None else [value, None] for value in stored]
    text, operand = asked[0]
    assert kept(lists, pa.list_(kind), f"{text} in a") == [row for row in there if values[row] == operand]


NUMBERS = (
    st.integers(-(10**20), 10**20).map(str)
    | st.sampled_from([str(2**power + more) for power in (7, 8, 15, 16, 31, 32, 53, 63, 64) for more in (-1, 0, 1)])
    | st.sampled_from(
        ["1e17", "1E+17", "-0", "0.5", "-.5", "1.5e1", "3.0", "3.00000000000000000000001", "1e-300", "9e300"]
    )
    | st.decimals(-100, 100, places=2).map(str)
)


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(),
                                  pa.uint64()], ids=str)  # fmt: skip
@few
@given(data=st.data())
def test_whole_numbers(kind, data):
    bounds = np.iinfo(kind.to_pandas_dtype())
    near = st.sampled_from([int(bounds.min), int(bounds.min) + 1, int(bounds.max) - 1, int(bounds.max), 0, 3])
    beyond_floats = st.sampled_from([2**53 + 1, 10**17, 10**17 + 1, 2**62 + 1]).filter(
        lambda value: value <= bounds.max
    )
    whole = st.integers(int(bounds.min), int(bounds.max))
    kinds = [st.none(), near, whole] + ([beyond_floats] if bounds.bits == 64 else [])
    stored = data.draw(st.lists(st.one_of(kinds), min_size=1, max_size=6))
    own = st.sampled_from([value for value in stored if value is not None] or [0]).map(str)
    texts = data.draw(st.lists(NUMBERS | own, min_size=1, max_size=2))
    check(stored, kind, [(text, Decimal(text)) for text in texts])


@pytest.mark.parametrize("make", [pa.decimal32, pa.decimal64, pa.decimal128, pa.decimal256])
@few
@given(data=st.data())
def test_decimals(make, data):
    longest = {pa.decimal32: 9, pa.decimal64: 18, pa.decimal128: 38, pa.decimal256: 76}[make]
    precision = data.draw(st.integers(1, longest))
    scale = data.draw(st.integers(0, precision))
    units = data.draw(
        st.lists(st.none() | st.integers(-(10**precision) + 1, 10**precision - 1), min_size=1, max_size=6)
    )
    stored = [None if count is None else Decimal(f"{count}E{-scale}") for count in units]
    own = st.sampled_from([value for value in stored if value is not None] or [Decimal(0)])
    beside = own.map(lambda value: f"{value:f}" + ("1" if value.as_tuple().exponent else ".01"))
    texts = data.draw(st.lists(own.map("{:f}".format) | beside | NUMBERS, min_size=1, max_size=2))
    check(stored, make(precision, scale), [(text, Decimal(text)) for text in texts])


def test_prices_equal_themselves_and_no_others():
    prices = [Decimal(cents) / 100 for cents in range(3000)]
    for kind in (pa.decimal32(9, 2), pa.decimal64(10, 2), pa.decimal128(10, 2), pa.decimal256(40, 2)):
        for row in range(0, 3000, 61):
            assert kept(prices, kind, f"a == {prices[row]}") == [row]
        assert kept(prices, kind, "a in (1, 2)") == [100, 200]


def test_decimals_whose_unit_is_above_one():
    stored = [Decimal("1.1E+3"), None, Decimal("-2E+2")]
    check(stored, pa.decimal128(5, -2), [(text, Decimal(text)) for text in ("1100", "1150", "-200.5", "1e1000", "0")])


def rounded(text, layout):
    """The nearest number of a precision, as a C compiler rounds a literal."""
    try:
        return struct.unpack(layout, struct.pack(layout, float(text)))[0]
    except OverflowError:
        return None


@pytest.mark.parametrize(
    ("kind", "layout", "width"), [(pa.float16(), "e", 16), (pa.float32(), "f", 32), (pa.float64(), "d", 64)]
)
@few
@given(data=st.data())
def test_floating_point_numbers(kind, layout, width, data):
    number = st.floats(width=width)
    stored = data.draw(
        st.lists(st.none() | number | st.sampled_from([0.0, -0.0, float("inf"), float("nan")]), min_size=1)
    )
    own = st.sampled_from([value for value in stored if value is not None and abs(value) < 1e300] or [0.0]).map(repr)
    short = st.decimals(-1000, 1000, places=2).map(str)
    texts = data.draw(
        st.lists((own | short).filter(lambda text: rounded(text, layout) is not None), min_size=1, max_size=2)
    )
    check(stored, kind, [(text, rounded(text, layout)) for text in texts])


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_a_number_beyond_the_largest_is_between_it_and_infinity(kind):
    largest = float(np.finfo(kind.to_pandas_dtype()).max)
    stored = [largest, float("inf"), float("-inf"), -largest, float("nan"), None]
    for text, signed in (("1e400", 1), ("-1e400", -1)):
        check(stored, kind, [(text, Fraction(text))])
        assert kept(stored, kind, f"a {'<' if signed > 0 else '>'} {text}") == ([0, 2, 3] if signed > 0 else [0, 1, 3])


def test_a_number_is_rounded_once():
    # Just above the middle of two float32, so near that as a float64 it is the middle, which goes to the even one.
    text = "1.00000017881393432617187500001"
    above = 1 + 2 * 2.0**-23
    assert struct.unpack("f", struct.pack("f", float(text)))[0] == above, "an example that rounds alike shows nothing"
    low, high = 1 + 2.0**-23, above
    assert kept([low, high], pa.float32(), f"a == {text}") == [1]
    text = "1.00000005960464477539062500001"  # the same, where the even one is below
    assert struct.unpack("f", struct.pack("f", float(text)))[0] == 1
    assert kept([1.0, 1 + 2.0**-23], pa.float32(), f"a == {text}") == [1]


EPOCH = datetime.datetime(1970, 1, 1)
MOMENTS = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1))
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def counted(moment, unit, start=EPOCH):
    """Whole units since `start`, rounded down."""
    return (moment - start) // datetime.timedelta(microseconds=1) * PER_SECOND[unit] // 10**6


def written(moment, separator):
    return f"'{moment.isoformat(separator)}'"


@pytest.mark.parametrize("unit", PER_SECOND)
@few
@given(st.lists(st.none() | MOMENTS, min_size=1, max_size=3), MOMENTS, st.sampled_from("T "))
def test_timestamps(unit, moments, other, separator):
    counts = [None if moment is None else counted(moment, unit) for moment in moments]
    values = [None if count is None else Decimal(count) / PER_SECOND[unit] for count in counts]
    asked = [*(moment for moment in moments if moment is not None), other]
    literals = [(written(moment, separator), Decimal(counted(moment, "us")) / 10**6) for moment in asked]
    literals += [
        (f"'{moment:%Y-%m-%d}'", Decimal(counted(datetime.datetime(*moment.timetuple()[:3]), "s"))) for moment in asked
    ]
    check(counts, pa.timestamp(unit), literals, values=values)
    utc = [(f"{text[:-1]}Z'" if ":" in text else text, value) for text, value in literals]
    check(counts, pa.timestamp(unit, "UTC"), literals[-1:] + utc, values=values)
    behind = [(f"{text[:-1]}-01:30'", value + 5400) for text, value in literals if ":" in text]
    check(counts, pa.timestamp(unit, "+02:00"), behind, values=values)


def test_nanoseconds_are_exact():
    stored = [1704153599_999999999, 1704153600_000000000, 1704153600_000000001]
    kind = pa.timestamp("ns", "UTC")
    assert kept(stored, kind, "a == '2024-01-02T00:00:00.000000001'") == [2]
    assert kept(stored, kind, "a < '2024-01-02'") == [0]
    assert kept(stored, kind, "a > '2024-01-02T00:00:00.0000000005Z'") == [2]
    assert kept(
        stored, kind, "a in ('2024-01-02', '2024-01-01T23:59:59.999999999', '2024-01-02T00:00:00.0000000005')"
    ) == [0, 1]


@few
@given(st.lists(MOMENTS, min_size=1, max_size=2))
def test_local_times_of_a_region(moments):
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    local = [moment.replace(tzinfo=datetime.UTC).astimezone(berlin).replace(tzinfo=None) for moment in moments]
    clear = [
        (moment, wall)
        for moment, wall in zip(moments, local, strict=True)
        if wall.replace(tzinfo=berlin, fold=0).utcoffset() == wall.replace(tzinfo=berlin, fold=1).utcoffset()
    ]
    counts = [counted(moment, "us") for moment in moments]
    literals = [(written(wall, "T"), counted(moment, "us")) for moment, wall in clear]
    if literals:
        check(counts, pa.timestamp("us", "Europe/Berlin"), literals)


@few
@given(st.lists(st.none() | st.dates(), min_size=1, max_size=5), st.lists(st.datetimes(), min_size=1, max_size=2))
def test_dates(days, moments):
    midnights = [None if day is None else datetime.datetime(day.year, day.month, day.day) for day in days]
    literals = [(written(moment, "T"), moment) for moment in moments]
    literals += [
        (f"'{day.isoformat()}'", datetime.datetime(day.year, day.month, day.day)) for day in days if day is not None
    ]
    check(days, pa.date32(), literals, values=midnights)
    check(days, pa.date64(), literals, values=midnights)


@pytest.mark.parametrize("unit", PER_SECOND)
@few
@given(st.lists(st.none() | st.times(), min_size=1, max_size=3), st.times())
def test_times_of_day(unit, times, other):
    def seconds(time):
        return Decimal(3600 * time.hour + 60 * time.minute + time.second) + Decimal(time.microsecond) / 10**6

    counts = [None if time is None else int(seconds(time) * PER_SECOND[unit]) for time in times]
    values = [None if count is None else Decimal(count) / PER_SECOND[unit] for count in counts]
    asked = [other, *(time for time in times if time is not None)]
    literals = [(f"'{time.isoformat()}'", seconds(time)) for time in asked]
    literals += [(f"'{time:%H:%M}'", seconds(time.replace(second=0, microsecond=0))) for time in asked]
    check(counts, (pa.time32 if unit in ("s", "ms") else pa.time64)(unit), literals, values=values)


@pytest.mark.parametrize("unit", PER_SECOND)
@few
@given(counts=st.lists(st.none() | st.integers(-(10**18), 10**18), min_size=1, max_size=5))
def test_durations(unit, counts):
    values = [None if count is None else Decimal(count) / PER_SECOND[unit] for count in counts]
    literals = [
        ("'P1D'", Decimal(86400)),
        ("'-PT1.5S'", Decimal("-1.5")),
        ("'P2DT3H4M5.000000001S'", Decimal("183845.000000001")),
    ]
    literals += [(f"'{'-' * (value < 0)}PT{abs(value):f}S'", value) for value in values if value is not None]
    check(counts, pa.duration(unit), literals, values=values)


def test_true_and_false():
    check([True, None, False], pa.bool_(), [("true", True), ("FALSE", False)])
    check([True, None, False], pa.bool_(), [("true", True)])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
@few
@given(texts=st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5))
def test_text_is_ordered_by_code_points(kind, texts):
    quoted = [('"' + (text or "x").replace('"', '""') + '"', text or "x") for text in texts]
    check(texts, kind, quoted)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (pa.timestamp("us"), "'2024-01-02T03:04:05Z'", "the attribute has no time zone: leave out `Z`"),
        (pa.timestamp("us"), "'2024-02-30'", "expected an ISO 8601 date or time"),
        (pa.timestamp("us"), "20240102", "expected an ISO 8601 date or time"),
        (pa.timestamp("us", "Europe/Berlin"), "'2024-10-27T02:30'", "clocks change in Europe/Berlin then"),
        (pa.timestamp("us", "Europe/Berlin"), "'2024-03-31T02:30'", "clocks change in Europe/Berlin then"),
        (pa.timestamp("us", "Mars/Base"), "'2024-03-31'", "the time zone `Mars/Base` is not known"),
        (pa.date32(), "'24-1-1'", "expected an ISO 8601 date or time"),
        (pa.date32(), "'2024-01-01T25:00'", "hour must be in 0..23"),
        (pa.time64("us"), "'2024-01-01'", "expected an ISO 8601 time"),
        (pa.time32("s"), "'10:30Z'", "expected an ISO 8601 time"),
        (pa.duration("s"), "'P1M'", "expected an ISO 8601 duration"),
        (pa.duration("s"), "'P'", "expected an ISO 8601 duration"),
        (pa.duration("s"), "'PT'", "expected an ISO 8601 duration"),
        (pa.duration("s"), "3", "expected an ISO 8601 duration"),
        (pa.decimal128(9, 2), "'1.10'", "expected a number"),
        (pa.float32(), "true", "expected a number"),
        (pa.bool_(), "1", "expected true or false"),
        (pa.binary(), "'x'", "write `a is [not] null`"),
        (pa.struct({"b": pa.int8()}), "3", "write `a is [not] null`"),
        (pa.list_(pa.int8()), "3", "write `value in a`"),
        (pa.null(), "3", "write `a is [not] null`"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused_with_what_would(kind, value, message):
    with pytest.raises(FilterError) as caught:
        Filter(f"a == {value}", pa.schema({"a": kind}))
    assert f"`a` is {kind}" in str(caught.value)
    assert message in str(caught.value)
    with pytest.raises(FilterError):
        Filter(f"a in ({value})", pa.schema({"a": kind}))
    assert kept([None], kind, "a is null") == [0]


def test_every_type_of_arrow_compares_or_is_known_not_to():
    """A type that a later Arrow brings is put on one side or the other."""
    only_null = {
        "NA", "BINARY", "LARGE_BINARY", "FIXED_SIZE_BINARY", "INTERVAL_MONTHS", "INTERVAL_DAY_TIME",
        "INTERVAL_MONTH_DAY_NANO", "STRUCT", "MAP", "SPARSE_UNION", "DENSE_UNION", "EXTENSION",
    }  # fmt: skip
    in_lists = {"LIST", "LARGE_LIST", "FIXED_SIZE_LIST", "LIST_VIEW", "LARGE_LIST_VIEW"}
    not_stored = {"DICTIONARY", "STRING_VIEW", "BINARY_VIEW", "RUN_END_ENCODED"}
    compared = [
        pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
        pa.float16(), pa.float32(), pa.float64(), pa.decimal32(5), pa.decimal64(5), pa.decimal128(5), pa.decimal256(5),
        pa.string(), pa.large_string(), pa.date32(), pa.date64(), pa.time32("s"), pa.time64("us"), pa.timestamp("s"),
        pa.duration("s"),
    ]  # fmt: skip
    assert all(kind_of(kind) is not None for kind in compared)
    known = {getattr(pa.lib, f"Type_{name}", None) for name in only_null | in_lists | not_stored}
    every = {getattr(pa.lib, name) for name in dir(pa.lib) if name.startswith("Type_")}
    assert every == known - {None} | {kind.id for kind in compared}
