"""Types of Arrow that a collection stores, with values, for hypothesis."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

DAY_MS = 86_400_000
UNITS = ("s", "ms", "us", "ns")
ZONES = st.sampled_from([None, "UTC", "+02:00"])
LEAVES = st.one_of(
    st.sampled_from(
        [
            pa.null(), pa.bool_(), pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(),
            pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.date32(), pa.date64(), pa.time32("s"),
            pa.time32("ms"), pa.time64("us"), pa.time64("ns"), pa.month_day_nano_interval(), pa.string(),
            pa.large_string(), pa.binary(), pa.large_binary(), pa.binary(1), pa.binary(5), pa.decimal128(5, -2),
            pa.decimal256(76, -0), pa.decimal128(20, -10), pa.decimal32(9, 2), pa.decimal64(18, 0),
            pa.decimal128(38, 20), pa.decimal256(50, 7),
        ]
    ),
    st.builds(pa.timestamp, st.sampled_from(UNITS), ZONES),
    st.builds(pa.duration, st.sampled_from(UNITS)),
)  # fmt: skip


def _nested(inner):
    names = st.lists(st.sampled_from("abc"), unique=True, max_size=3)
    structs = names.flatmap(
        lambda keys: st.tuples(*[inner] * len(keys)).map(lambda ks: list(zip(keys, ks, strict=True)))
    )
    return st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        inner.map(pa.list_view),
        inner.map(pa.large_list_view),
        st.builds(pa.list_, inner, st.integers(0, 3)),
        structs.map(pa.struct),
        inner.map(lambda kind: pa.map_(pa.string(), kind)),
    )


KINDS = st.recursive(LEAVES, _nested, max_leaves=3)


def values_of(kind):
    """A strategy of values of a type, or None."""
    return st.none() | _present(kind)


def _present(kind):
    types = pa.types
    if types.is_null(kind):
        return st.none()
    if types.is_boolean(kind):
        return st.booleans()
    if types.is_integer(kind):
        bounds = np.iinfo(kind.to_pandas_dtype())
        return st.integers(int(bounds.min), int(bounds.max))
    if types.is_floating(kind):
        return st.floats(width=kind.bit_width, allow_nan=False)
    if types.is_decimal(kind):
        largest = 10**kind.precision - 1
        return st.integers(-largest, largest).map(lambda units: Decimal(f"{units}E{-kind.scale}"))
    if types.is_temporal(kind):
        return _temporal(kind)
    if types.is_string(kind) or types.is_large_string(kind):
        return st.text(max_size=5)
    if types.is_fixed_size_binary(kind):
        return st.binary(min_size=kind.byte_width, max_size=kind.byte_width)
    if types.is_binary(kind) or types.is_large_binary(kind):
        return st.binary(max_size=5)
    if types.is_struct(kind):
        return st.fixed_dictionaries({field.name: values_of(field.type) for field in kind})
    if types.is_map(kind):
        return st.dictionaries(st.text(max_size=2), values_of(kind.item_type), max_size=2).map(
            lambda d: list(d.items())
        )
    size = kind.list_size if types.is_fixed_size_list(kind) else None
    return st.lists(values_of(kind.value_type), min_size=size or 0, max_size=3 if size is None else size)


def _temporal(kind):
    if pa.types.is_interval(kind):
        small = st.integers(-(2**31), 2**31 - 1)
        return st.tuples(small, small, st.integers(-(2**63), 2**63 - 1))
    if pa.types.is_date32(kind):
        return st.integers(-(2**31), 2**31 - 1)
    if pa.types.is_date64(kind):
        return st.integers(-(10**6), 10**6).map(lambda day: day * DAY_MS)
    if pa.types.is_time(kind):
        return st.integers(0, 86_400 * 1000 ** UNITS.index(kind.unit) - 1)
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return st.integers(-(2**63) // 1000 + 1, 2**63 // 1000 - 1)  # of what Parquet holds
    return st.integers(-(2**63), 2**63 - 1)


@st.composite
def columns(draw, rows):
    """An attribute: an array of `rows` values, of any type."""
    kind = draw(KINDS)
    return pa.array(draw(st.lists(values_of(kind), min_size=rows, max_size=rows)), kind)
