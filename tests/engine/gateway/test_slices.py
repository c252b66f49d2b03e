"""JSON bodies in slices: the same documents are read, the same refused, and no piece is large."""

from __future__ import annotations

import json

import hypothesis
import hypothesis.strategies as st
import pytest

from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.service.api import bodies, schemas, slices
from hashlight.engine.service.api.slices import cut_lists
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.problems import RequestError

KEYS = st.sampled_from(["queries", "images", "parameters", "x", "é", '"', "\\", "a:b"])
TEXTS = st.sampled_from(["", "a", 'q"u', "b\\", '\\\\\\"', "[{,:", "é", "\u2028", "}]"])
VALUES = st.recursive(
    st.none() | st.integers(-9, 99) | TEXTS,
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=30,
)
EDITS = st.none() | st.tuples(st.integers(0, 10**6), st.sampled_from(["", *',"\\}][{:1']))


STAND_INS = {"queries": b'{"id":0}', "images": b'""', "parameters": b""}


def edited(text, edit, drops):
    if edit is None:
        return text
    at = edit[0] % len(text)
    return text[:at] + edit[1] + text[at + drops :]


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(
    document=st.dictionaries(KEYS, VALUES, max_size=5),
    indent=st.sampled_from([None, 1]),
    plain=st.booleans(),
    edit=EDITS,
    drops=st.integers(0, 1),
)
def test_what_is_cut_is_the_same_document_or_no_document(document, indent, plain, edit, drops):
    text = edited(json.dumps(document, indent=indent, ensure_ascii=plain), edit, drops)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"BYTES_AT_ONCE": 60, "VALUES_AT_ONCE": 60, "_CHUNK": 7}.items():
            patched.setattr(slices, name, value)
        try:
            rest, cut = cut_lists(text.encode(), STAND_INS)
            found = put_together(rest, cut)
        except ValueError:
            found = None
        except RequestError as refused:
            hypothesis.assume(refused.status == 400)
            found = None
    try:
        expected = json.loads(text)
    except ValueError:
        expected = None
    assert found == expected


def put_together(rest, cut):
    document = json.loads(rest)
    for one in cut:
        parts = [json.loads(part) for _, part in one.slices]
        starts = [sum(map(len, parts[:number])) for number in range(len(parts))]
        assert [first for first, _ in one.slices] == starts
        assert one.num_items == sum(map(len, parts))
        inner = document if len(one.path) == 1 else document[one.path[0]]
        inner[one.path[-1]] = [item for part in parts for item in part]
    return document


CODE = {"code": "0f0f0f0f0f0f0f0f"}


def read(document):
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return bodies._search_of_json(bytearray(data), body=schemas.SearchBody, bits=64, limits=Limits())


def test_a_body_in_slices_is_read_as_a_whole_one(monkeypatch):
    document = {
        "k": 3, "queries": [{"id": 7}, CODE, {"image": "AAAA"}] * 3000, "filter": "id in :a and id not in :b",
        "parameters": {"a": list(range(-5, 20_000)), "b": [2**63 - 1, -(2**63)]},
    }  # fmt: skip
    asked = read(document)
    assert (asked.options.k, asked.options.filter) == (3, document["filter"])
    assert asked.lists == Parameters(document["parameters"])
    assert asked.queries.ids == dict.fromkeys(range(0, 9000, 3), 7)
    assert [image.field for image in asked.queries.images.values()] == [
        f"queries.{number}.image" for number in range(2, 9000, 3)
    ]
    monkeypatch.setattr(bodies, "BYTES_AT_ONCE", 10**7)
    whole = read(document)
    assert (whole.queries.codes == asked.queries.codes).all()
    assert (whole.lists, whole.queries.ids, whole.queries.images) == (
        asked.lists, asked.queries.ids, asked.queries.images
    )  # fmt: skip


@pytest.mark.parametrize(
    ("document", "status", "field", "message"),
    [
        ({"queries": [CODE] * 5000 + [{"code": 3}, CODE]}, 422, "queries.5000.code", "valid string, got 3"),
        ({"queries": [CODE] * 5000 + [{}]}, 422, "queries.5000", "give exactly one of"),
        ({"queries": [CODE] * 10_001}, 422, "queries", "at most 10000 items, got 10001"),
        ({"queries": [CODE], "parameters": {"a": [1] * 50_000 + ["2"]}}, 422, "parameters.a.50000", 'got "2"'),
        ({"queries": [CODE], "parameters": {"a": [1] * 50_000 + [2**63]}}, 422, "parameters.a.50000", "less than or"),
        ({"queries": [CODE], "k": 0}, 422, "k", "greater than or equal to 1, got 0"),
        ({"queries": [CODE], "k": {"a": 1}}, 422, "k", "valid integer, got an object"),
        ({"queries": [CODE], "filter": [1, 2]}, 422, "filter", "valid string, got a list of 2 items"),
        ({"queries": [CODE], "k": "A" * 16_392}, 422, "k", "valid integer, got an image"),
        ({"queries": [CODE], "k": "x" * 99}, 422, "k", f"got \"{'x' * 59}… (101 characters)"),
        ({}, 422, "queries", "`queries`: it is missing"),
        ({"queries": [CODE], "parameters": {"a": [1] * 250_001}}, 422, "parameters.a", "at most 250000 items"),
        ({"queries": [CODE], "parameters": {"a b": [1] * 50_000}}, 422, "parameters.a b.[key]", "match pattern"),
        ({"queries": [CODE], "k": [1] * 50_000}, 413, None, "at most 4000 values and 262144 bytes besides `queries`"),
        ({"queries": [CODE], "filter": "x " * 150_000}, 413, None, "262144 bytes besides `queries`"),
        ({"queries": [CODE] * 5000, "images": [CODE]}, 422, "images", "there is no such field"),
        ({"queries": [[1] * 50_000]}, 413, None, "at most 4000 values in `queries.0`"),
        (b'{"parameters":{%s},"queries":[]}' % b",".join([b'"a":[1]'] * 9000), 413, None, "at most 100 lists"),
        (json.dumps({"queries": [CODE] * 5000}).encode()[:-2] + b",]}", 400, None, "`queries.5000` is empty"),
        (json.dumps({"queries": [CODE] * 5000}).encode()[:-1], 400, None, "brackets or quotes do not match"),
        (json.dumps({"queries": [CODE] * 5000}).encode()[:-2] + b"}}", 400, None, "not valid JSON"),
        (b"[" * 100_000, 400, None, "brackets or quotes do not match"),
        (b"[" * 100_000 + b"]" * 100_000, 413, None, "at most 4000 values"),
    ],
)  # fmt: skip
def test_the_field_at_fault_is_named_in_slices_too(document, status, field, message):
    with pytest.raises(RequestError) as refused:
        read(document)
    assert (refused.value.status, refused.value.field) == (status, field)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"queries":[{"code":"ab\\ud800"}]}', "queries.0.code"),
        (b'{"queries":[{"id":1},{"url":"https://\\udfff"}]}', "queries.1.url"),
        (b'{"queries":[{"id":1}],\n"filter":"\\\\\\ud83d\\ude00 \\ud800\\u0041"}', "filter"),
        (b'{"queries":[{"id":1}],"include":["attributes","\\udc00"]}', "include.1"),
        (b'{"queries":[{"id":1}],"parameters":{"a\\ud800":[1]}}', "parameters"),
        (b'{"k":0,"\\ud800":1}', None),
        (b'{"queries":[{"id":1},{"url":"\xed\xa0\x80"}]}', "queries.1.url"),
        (b'{"queries":[{"id":1}],"filter":"\xff"}', "filter"),
        (b'{"queries":[{"code":"\\n"},{"url":"\\u0041 \xc3("}]}', "queries.1.url"),
        (b'{"queries":[%s{"code":"\\ud800"}]}' % (b'{"id":1},' * 9000), "queries.9000.code"),
        (b'{"queries":[%s{"id":1}],"filter":"\\ud800"}' % (b'{"id":1},' * 9000), "filter"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_by_the_name_of_its_field(body, field):
    with pytest.raises(RequestError, match="has text that is not Unicode: half of a surrogate pair") as refused:
        read(body)
    assert (refused.value.status, refused.value.field) == (422, field)


@pytest.mark.parametrize("name", ["rerank", "parameters"])
@pytest.mark.parametrize("text", ['"\\ud800"', '{"pool": "\\ud800"}', '{"\\ud800": [1]}'])
def test_half_of_a_surrogate_pair_in_a_form_is_refused_by_the_name_of_its_field(name, text):
    with pytest.raises(RequestError) as refused:
        bodies.parse_fields(schemas.SearchOptions, {name: text})
    assert (refused.value.status, refused.value.field.split(".")[0]) == (422, name)
