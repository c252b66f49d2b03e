"""Frames: reading returns what was written, and anything else is refused."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashlight.engine.errors import CorruptDataError, OverloadedError
from hashlight.engine.filters.filter import FilterError
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.query import Query
from hashlight.engine.results import Explanation, RangeResult, SearchResult
from hashlight.engine.service.protocol.wire import (
    PAGE_BYTES,
    Kind,
    Page,
    ProtocolError,
    Request,
    Status,
    decode_codes,
    decode_error,
    decode_features,
    decode_histogram,
    decode_result,
    decode_table,
    encode_codes,
    encode_error,
    encode_features,
    encode_histogram,
    encode_result,
    pages,
)

WORDS = st.integers(0, 2**64 - 1)
NUMBERS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5)


@given(
    kind=st.sampled_from([kind for kind in Kind if kind is not Kind.PING]),  # of which only its id is read
    id_=WORDS,
    rows=st.lists(st.tuples(WORDS, WORDS), max_size=5),
    number=st.integers(0, 2**31),
    limit=st.none() | st.integers(1, 2**31),
    after=st.none() | st.tuples(st.integers(0, 1024), st.integers(0, 2**63 - 1)),
    text=st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    lists=st.none() | st.dictionaries(st.from_regex(r"[A-Za-z_]\w{0,9}", fullmatch=True).filter(str.isascii), NUMBERS),
    explain=st.booleans(),
)
def test_a_request_is_read_as_it_was_written(kind, id_, rows, number, limit, after, text, lists, explain):
    values = np.array(rows, np.uint64).reshape(len(rows), 2)
    query = None
    if kind is Kind.SEARCH:
        query = Query(k=number, filter=text, parameters=Parameters.of(lists), explain=explain)
    elif kind is Kind.RANGE:
        query = Query(radius=number, limit=limit, filter=text, parameters=Parameters.of(lists), explain=explain)
        query = query._replace(after=after)
    elif kind in (Kind.COUNT, Kind.FACETS, Kind.SCAN, Kind.HISTOGRAM, Kind.SAMPLE):
        query = Request.of_items(kind, text, Parameters.of(lists), limit=limit, after=after and after[1]).query
    column = "" if kind is not Kind.FACETS or text is None else text
    frame = Request(kind, id_, 7, 1.5, values, query, column=column).encode()
    read = Request.decode(memoryview(frame))
    assert read[:4] == (kind, id_, 7, 1.5)
    assert (read.query, read.column) == (query, column)
    if query is not None and lists is not None:
        given_lists = {name: sorted(set(values)) for name, values in lists.items()}
        assert {name: values.tolist() for name, values in read.query.parameters.items()} == given_lists
    assert read.values.shape == values.shape
    assert (read.values == values).all()
    identity = f"{id_:032x}"
    again = Request.decode(memoryview(Request.stamp(frame, 2**64 - 1, 0.25, identity)))
    assert again[:4] == (kind, 2**64 - 1, 7, 0.25)
    assert (again.query, again.identity) == (read.query, identity)
    assert (again.values == values).all()


@given(st.binary(max_size=200))
def test_noise_is_refused(noise):
    with pytest.raises(ProtocolError):
        Request.decode(memoryview(noise))
    with pytest.raises(ProtocolError):
        Page.decode(memoryview(noise))


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_a_truncated_request_is_refused(cut):
    frame = Request(Kind.SEARCH, 1, 1, 1.0, np.ones((3, 1), np.uint64), Query(k=5)).encode()
    with pytest.raises(ProtocolError, match="rows"):
        Request.decode(memoryview(frame)[:-cut])


@pytest.mark.parametrize("where", range(0, 40, 3))
def test_damaged_parameters_are_refused_or_other_numbers(where):
    query = Query(k=5, filter="id in :seen", parameters=Parameters({"seen": [1, 2, 3]}))
    frame = bytearray(Request(Kind.SEARCH, 1, 1, 1.0, np.ones((1, 1), np.uint64), query).encode())
    start = len(frame) - 8 - 3 * 8 - len(b'{"seen": 3}') - 4
    frame[start + where] ^= 0xFF
    read = None
    with contextlib.suppress(ProtocolError):
        read = Request.decode(memoryview(frame))
    assert read is None or [len(values) for values in read.query.parameters.values()] == [3]


@pytest.mark.parametrize(("told", "instead"), [(b"seen", b"s en"), (b" 3}", b" 2}"), (b" 3}", b"-3}")])
def test_parameters_that_are_not_as_they_say_are_refused(told, instead):
    query = Query(k=5, filter="id in :seen", parameters=Parameters({"seen": [1, 2, 3]}))
    frame = Request(Kind.SEARCH, 1, 1, 1.0, np.ones((1, 1), np.uint64), query).encode()
    assert told in frame
    with pytest.raises(ProtocolError, match="parameters"):
        Request.decode(memoryview(instead.join(frame.rsplit(told, 1))))


def test_another_protocol_is_refused_by_number():
    frame = bytearray(Request(Kind.SEARCH, 1, 1, 1.0, np.ones((1, 1), np.uint64), Query(k=1)).encode())
    frame[2] = 9
    with pytest.raises(ProtocolError, match="protocol 9"):
        Request.decode(memoryview(frame))


@pytest.mark.parametrize("size", [0, 1, PAGE_BYTES, 2 * PAGE_BYTES + 5])
def test_pages_join_to_the_body(size):
    body = np.random.default_rng(size).bytes(size)
    read = [Page.decode(memoryview(frame)) for frame in pages(Status.OK, 3, 4, body, 0.25)]
    assert b"".join(page.body for page in read) == body
    assert [page.offset for page in read] == list(range(0, max(1, size), PAGE_BYTES))
    assert {(page.total, page.id, page.version, page.seconds) for page in read} == {(size, 3, 4, 0.25)}


@pytest.mark.parametrize("explained", [False, True])
def test_answers_are_read_as_they_were_written(explained):
    rng = np.random.default_rng(0)
    explain = Explanation(("scan", "tables"), np.array([1, 2]), np.array([3, 4]), np.array([0.5, 0.25]))
    explain = explain if explained else None
    nearest = SearchResult(
        rng.integers(9, size=(2, 3), dtype=np.int32), rng.integers(2**62, size=(2, 3)), None, explain
    )
    lims, truncated = np.array([0, 4, 5]), np.array([True, False])
    within = RangeResult(lims, np.arange(5, dtype=np.int32), np.arange(5) + 2**40, truncated, None, explain)
    for result, read in (
        (nearest, decode_result(Query(k=3), memoryview(encode_result(nearest)))),
        (within, decode_result(Query(radius=3), memoryview(encode_result(within)))),
    ):
        for name in {"lims", "distances", "ids", "truncated"} & set(result._fields):
            written, back = getattr(result, name), getattr(read, name)
            assert written.dtype == back.dtype
            assert (written == back).all()
        assert (read.explain is None) == (not explained)
        if explained:
            assert read.explain.plans == explain.plans
            assert (read.explain.candidates == explain.candidates).all()


def test_codes_are_read_as_they_were_written():
    rng = np.random.default_rng(1)
    ids, codes = rng.integers(2**62, size=5), rng.integers(2**63, size=(5, 3), dtype=np.uint64)
    body = encode_codes(ids, codes)
    back_ids, back = decode_codes(memoryview(body))
    assert (back_ids.tolist(), back.tolist(), back.dtype) == (ids.tolist(), codes.tolist(), np.uint64)
    with pytest.raises(ProtocolError, match="expected 120 bytes"):
        decode_codes(memoryview(body[:-1]))


def test_errors_keep_their_class_or_the_nearest_known():
    class DamagedShardError(CorruptDataError):
        pass

    for error, cls in (
        (ValueError("k is 0"), ValueError),
        (FilterError("expected a column", 4), FilterError),
        (OverloadedError("full", retry_after_s=2.5), OverloadedError),
        (DamagedShardError("shard 3"), CorruptDataError),
    ):
        read = decode_error(memoryview(encode_error(error)))
        assert type(read) is cls
        assert str(read) == str(error)
    assert decode_error(memoryview(encode_error(OverloadedError("full", retry_after_s=2.5)))).retry_after_s == 2.5
    assert decode_error(memoryview(encode_error(FilterError("x", 4)))).position == 4


@pytest.mark.parametrize("values", [np.float16, np.float32])
def test_features_come_back_in_their_type(values):
    ids, features = np.array([5, 2**62]), np.array([[0.1, -2, 3], [1e-3, 0, 5]], values)
    read_ids, read = decode_features(memoryview(encode_features(ids, features)))
    assert read_ids.tolist() == ids.tolist()
    assert read.dtype == values
    assert (read == features).all()


def test_histograms_are_read_as_they_were_written():
    counts = np.random.default_rng(2).integers(2**62, size=(3, 65))
    body = encode_histogram(counts)
    back = decode_histogram(memoryview(body))
    assert (back.tolist(), back.dtype) == (counts.tolist(), np.int64)
    with pytest.raises(ProtocolError, match="expected 1560 bytes"):
        decode_histogram(memoryview(body[:-1]))


@pytest.mark.parametrize("kind", [Kind.HISTOGRAM, Kind.SAMPLE])
def test_what_the_protocol_before_does_not_have_is_not_written_in_it(kind):
    request = Request.of_items(kind, None, None, limit=3)
    with pytest.raises(ProtocolError, match=rf"speaks protocol 5, {kind.name} needs 6: replace it"):
        request.encode(5)


@pytest.mark.parametrize("body", [b"", b"x" * 7, b"\xff" * 40, b"[1, 2]", b'{"types": 3}', b'{"message": 1}'])
def test_answers_that_cannot_be_read_are_an_error_of_the_protocol(body):
    body = memoryview(body)
    assert type(decode_error(body)) is ProtocolError
    for read in (decode_features, decode_histogram, decode_table, lambda body: decode_result(Query(k=3), body)):
        with pytest.raises(ProtocolError):
            read(body)
    with pytest.raises(ProtocolError):
        decode_result(Query(radius=3), body)


@given(st.integers(0, 255))
def test_a_page_of_an_unknown_status_is_refused_by_number(status):
    frame = bytearray(next(pages(Status.OK, 1, 1, b"body")))
    frame[3] = status
    if status in list(Status):
        assert Page.decode(memoryview(frame)).status == status
    else:
        with pytest.raises(ProtocolError, match=f"got {status}: use releases that are at most one"):
            Page.decode(memoryview(frame))
