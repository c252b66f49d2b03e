"""Bodies by size and by breadth: refused or answered, with little memory and without holding up the event loop.

What runs on the loop and what holds the interpreter's lock is bounded by counts, not by a clock: a large body is read
in a thread, and what is parsed in one go has few bytes and few values.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys

import httpx
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from pydantic import BaseModel

from hashlight.engine.service.api import bodies, schemas
from hashlight.engine.service.api.json_body import take_pictures
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.problems import RequestError

MIB = 2**20
LIMITS = Limits()
JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"


def picture(size, seed=0):
    return np.random.default_rng(seed).bytes(size)


def b64(data):
    return base64.b64encode(data).decode()


def parse(text, body=schemas.SearchBody):
    return bodies._search_of_json(bytearray(text), body=body, bits=64, limits=LIMITS)


def many(start, item, size, end=b""):
    """A JSON body of `size` bytes: `start`, then `item` with commas, then `end`."""
    count = (size - len(start) - len(end)) // (len(item) + 1)
    return start + b",".join([item] * count) + end


CODE = b'{"code":"0f0f0f0f0f0f0f0f"}'
BROAD = {
    "ones": (b'{"queries":[', b"1", b"]}"),
    "empty lists": (b'{"queries":[', b"[]", b"]}"),
    "empty objects": (b'{"queries":[', b"{}", b"]}"),
    "ids": (b'{"queries":[', b'{"id":1}', b"]}"),
    "codes": (b'{"queries":[', CODE, b"]}"),
    "strings": (b'{"queries":[', b'""', b"]}"),
    "includes": (b'{"queries":[{"id":1}],"include":[', b'"x"', b"]}"),
    "ones in an object": (b'{"queries":{"a":[', b"1", b"]}}"),
    "seen": (b'{"queries":[{"id":1}],"filter":"id in :a","parameters":{"a":[', b"7", b"]}}"),
    "images": (b'{"images":[', b'"AAAA"', b"]}"),
    "no images": (b'{"images":[', b"1", b"]}"),
    "long numbers": (b'{"queries":[', b"9" * 4000, b"]}"),
    "long ids": (b'{"queries":[', b'{"id":' + b"9" * 4000 + b"}", b"]}"),
    "wrong base64": (b'{"queries":[', b'{"image":"' + b"A" * 20_000 + b'!"}', b"]}"),
}


def keys(size, start=b'{"queries":[{"id":1', end=b"}]}"):
    names = b"".join(b',"k%d":1' % number for number in range(size // 10))
    return start + names[: size - len(start) - len(end)].rpartition(b",")[0] + end


def bodies_of(size):
    """Yield a name and a body of about `size` bytes."""
    for name, (start, item, end) in BROAD.items():
        yield name, many(start, item, size, end)
    yield "keys", keys(size)
    yield "keys of the body", keys(size, b'{"queries":[{"id":1}]', b"}")
    yield "nothing but space", b'{"queries":[{"id":1}]' + b" " * size + b"}"
    yield "a long code", b'{"queries":[{"code":"' + b"!" * size + b'"}]}'
    yield "escapes", b'{"queries":[{"image":"' + b"\\n" * (size // 2) + b'"}]}'
    yield "escaped letters", b'{"queries":[{"image":"' + b"\\u0041" * (size // 6) + b'"}]}'
    yield "a long name", b'{"' + b"a-" * (size // 2) + b'":1}'
    yield "one picture", b'{"queries":[{"image":"' + b"A" * (size // 4 * 4) + b'"}]}'
    yield "no end", b'{"queries":[{"image":"' + b"A" * size
    yield "quotes", b'"' * size
    yield "deep", b"[" * size


MODELS = [
    schemas.SearchBody, schemas.RangeBody, schemas.EncodeBody, schemas.ReplicasModel, schemas.CountBody,
    schemas.FacetsBody, schemas.PutBody, schemas.PatchBody, schemas.DeleteBody,
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_every_list_that_is_sent_has_a_length_and_ends_at_the_first_wrong_item(model):
    def check(schema):
        if isinstance(schema, dict):
            if schema.get("type") == "list":
                assert schema["max_length"] <= 250_000
                assert schema["fail_fast"]
            for part in schema.values():
                check(part)
        elif isinstance(schema, list | tuple):
            for part in schema:
                check(part)

    assert issubclass(model, BaseModel)
    check(model.__pydantic_core_schema__)
    for known in [*bodies._LISTS.values(), *bodies._ITEMS.values()]:  # of lists in slices, whose length is known before
        assert known.adapter.core_schema["fail_fast"]
        assert known.most <= 250_000


def outcome(model, body):
    """The status of the refusal of a body; 200 if it is fine."""
    try:
        bodies.parse_json(model, bytearray(body), LIMITS)
    except RequestError as refused:
        return refused.status
    return 200


@pytest.mark.parametrize("size", [100_000, MIB, pytest.param(32 * MIB, marks=pytest.mark.slow)])
def test_what_is_parsed_at_once_is_small(size, monkeypatch):
    """Bounds on bytes, values and errors stand for bounds on time: each of them costs at most so much."""
    counts, texts, parsed = [], [], []
    tell, take, validated = bodies._refusal, take_pictures, bodies._validated
    monkeypatch.setattr(
        bodies, "_refusal", lambda error, *where: counts.append(error.error_count()) or tell(error, *where)
    )
    monkeypatch.setattr(
        bodies, "_validated", lambda parse, text, *where: parsed.append(text) or validated(parse, text, *where)
    )
    monkeypatch.setattr(bodies, "take_pictures", lambda *args, **more: texts.append(take(*args, **more)) or texts[-1])
    statuses = [
        outcome(model, body) for _, body in bodies_of(size) for model in (schemas.SearchBody, schemas.EncodeBody)
    ]
    assert len(statuses) == 50
    assert set(statuses) <= {200, 400, 413, 422}
    assert statuses.count(413) >= {100_000: 0, MIB: 8, 32 * MIB: 40}[size]
    for text, _ in texts:
        assert len(text) <= 6 * MIB
        assert text.count(b",") + text.count(b"[") + text.count(b"{") <= 300_000
        assert text.count(b":") <= 40_000
    assert max(counts, default=0) <= 40_000  # none where all that is large is refused before it is parsed
    assert counts or size > MIB
    assert len(parsed) >= (10 if size <= MIB else 2)  # large texts are refused before they are parsed
    for text in parsed:
        assert len(text) <= 65_536 or sum(map(text.count, (b",", b"[", b"{"))) <= 4_000


@pytest.mark.parametrize(
    ("content", "status", "expected"),
    [
        (many(b'{"queries":[', b"1", MIB, b"]}"), 413, "at most 300000 values"),
        (many(b'{"queries":[', b"1", 15_000, b"]}"), 422, "`queries.0`: Input should be"),
        (many(b'{"queries":[', b"{}", 25_000, b"]}"), 422, "`queries.0`: give exactly one of"),
        (many(b'{"queries":[', b"1", 200_000, b"]}"), 422, "`queries`: List should have at most 10000 items, got"),
        (many(b'{"queries":[', b'{"id":1}', 300_000, b"]}"), 422, "`queries`: List should have at most 10000 items"),
        (keys(50_000), 422, "the body has 4"),
        (keys(300_000), 413, "at most 4000 values in `queries.0`"),
        (keys(MIB), 413, "and 40000 keys"),
        (many(b'{"queries":[', b"9" * 4000, MIB, b"]}"), 413, "numbers of at most 400 digits"),
        (b'{"queries":[{"id":' + b"9" * 799 + b"}]}", 413, "numbers of at most 400 digits"),
        (b'{"queries":[{"id":1}]' + b" " * 7 * MIB + b"}", 413, "at most 6291456 bytes besides pictures"),
        (b'{"queries":[{"code":"' + b"a" * 5000 + b'"}]}', 422, "at most 4096 characters"),
    ],
)
def test_broad_bodies_are_refused_by_name(content, status, expected):
    with pytest.raises(RequestError, match=expected) as refused:
        parse(content)
    assert refused.value.status == status


@pytest.mark.parametrize("offset", [0, 1, 200, 399])
def test_a_code_of_zeros_is_not_taken_for_a_long_number(offset):
    text = b" " * offset + b'{"queries":[{"code":"' + b"0" * 256 + b'"}]}'
    assert take_pictures(text, max_text_bytes=MIB) == (text, {})


def test_ten_thousand_queries_are_read():
    asked = parse(json.dumps({"queries": [{"code": f"{number:016x}"} for number in range(10_000)]}).encode())
    assert asked.queries.codes.shape == (10_000, 1)
    assert asked.queries.codes.byteswap()[:, 0].tolist() == list(range(10_000))


@pytest.mark.parametrize("sizes", [[12_285], [12_288, 12_289], [100_000, 5, 3 * 2**20 + 1], [24 * MIB - 99]])
@pytest.mark.parametrize("indent", [None, 2])
def test_pictures_come_out_as_they_were_sent(sizes, indent):
    pictures = [picture(size, size) for size in sizes]
    document = {"queries": [{"image": b64(data)} for data in pictures] + [{"id": 7}], "k": 3}
    asked = parse(json.dumps(document, indent=indent).encode())
    assert [(image.field, image.data) for image in asked.queries.images.values()] == [
        (f"queries.{number}.image", data) for number, data in enumerate(pictures)
    ]
    assert (asked.queries.ids, asked.options.k) == ({len(sizes): 7}, 3)


LONG = b64(picture(30_000))
STRINGS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [LONG, LONG[:16_384], LONG + "!", "=" + LONG, '"' + LONG, LONG + '"', "\\" + LONG, LONG + "\\", LONG[:-2]]
    ),
)
DOCUMENTS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), STRINGS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(STRINGS, inner, max_size=4)),
    max_leaves=12,
)


@hypothesis.settings(deadline=None, max_examples=50, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(document=DOCUMENTS, spaced=st.booleans())
def test_a_body_without_its_pictures_is_the_same_document(document, spaced):
    """Put back in, the pictures give the body that was sent."""
    sent = json.dumps(document, indent=1 if spaced else None).encode()
    text, pictures = take_pictures(sent, max_text_bytes=MIB)
    json.loads(text)  # is still valid
    for name, data in pictures.items():
        assert len(data) >= 12_288
        assert text.count(name.encode() + b'"') == 1
        text = text.replace(name.encode() + b'"', base64.b64encode(data) + b'"')
    assert text == sent


@pytest.mark.parametrize("wrong", ["!", "=AAA", "A", "AAA=", "\\n", " "])
def test_wrong_base64_of_a_large_picture_names_its_field(wrong):
    text = b64(picture(60_000)) + wrong
    if wrong in ("AAA=",):
        assert len(parse(b'{"queries":[{"image":"%s"}]}' % text.encode()).queries.images) == 1
        return
    with pytest.raises(RequestError, match=r"`queries\.0\.image` is not valid base64"):
        parse(b'{"queries":[{"image":"%s"}]}' % text.encode())


def arrow(batches, rows, width=8):
    batch = pa.record_batch({"code": pa.array([b"\1" * width] * rows, pa.binary(width))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        for _ in range(batches):
            writer.write_batch(batch)
    return bytearray(sink.getvalue())


@pytest.mark.parametrize(
    ("data", "status", "expected"),
    [
        (arrow(10_001, 0), 400, "at most 10000 record batches"),
        (arrow(1, 10_001), 422, "expected 1 to 10000 rows"),
        (arrow(1, 7 * MIB // 8), 413, "at most 6291456 bytes"),
    ],
)
def test_broad_arrow_bodies_are_refused(data, status, expected):
    with pytest.raises(RequestError, match=expected) as refused:
        bodies.codes_of_arrow(data, bits=64, limits=LIMITS)
    assert refused.value.status == status


def test_a_column_of_arrow_whose_name_is_not_utf_8_is_malformed():
    data = arrow(1, 1).replace(b"code", b"c\xffde")
    with pytest.raises(RequestError, match="is not an Arrow IPC stream: 'utf-8' codec can't decode") as refused:
        bodies.codes_of_arrow(data, bits=64, limits=LIMITS)
    assert refused.value.status == 400


# A gateway in a process of its own, which serves a collection without codes: nothing here gets as far as a search.
CHILD = """
import sys, threading
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.service.api import bodies
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.door.http_server import Address, HttpServer
from hashlight.engine.service.asking.searcher import Searcher
from hashlight.engine.service.problems import RequestError

class Nothing(Searcher):
    bits, fingerprint, version, manifest = 64, None, 1, "m"
    def describe(self): return {"bits": 64, "rows": 0, "shards": 0, "version": 1, "encoder": None, "attributes": {},
                                "features": False}
    def answer(self, *args, **kwargs): raise RequestError(404, "reached", "the search was reached")
    get = thumbnail = features_of = count = facets = histogram = sample = scan = answer
    def reachable(self): pass
    def ready(self): pass
    def close(self): pass

loop, on_loop = threading.get_ident(), []
for name in ("_search_of_json", "_images_of_json", "codes_of_arrow"):
    def spy(data, *, read=getattr(bodies, name), **more):
        if threading.get_ident() == loop:
            on_loop.append(len(data))
        return read(data, **more)
    setattr(bodies, name, spy)

make = Parameters.__init__
def spy_on_lists(self, lists):
    if threading.get_ident() == loop:
        on_loop.append(sum(map(len, lists.values())))
    make(self, lists)
Parameters.__init__ = spy_on_lists

server = HttpServer(create_app(Nothing()), Address(port=0))
print(server.url, flush=True)
sys.stdin.readline()
threading.Thread(target=lambda: (sys.stdin.readline(), server.stop()), daemon=True).start()
server.run()
print(max(on_loop, default=0), len(on_loop), flush=True)
"""


class Gateway:
    """The child process, its memory and its answers."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = self.process.stdout.readline().strip()
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def rss(self, name="VmHWM"):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

    def growth(self, send):
        """The peak of memory above what it was before, in bytes."""
        with open(f"/proc/{self.process.pid}/clear_refs", "w") as refs:
            refs.write("5")
        before = self.rss("VmRSS")
        send()
        return self.rss() - before

    def close(self):
        """Stop it; return the most bytes that were read on its loop, and how often any were."""
        told, _ = self.process.communicate("\n", timeout=60)
        return [int(number) for number in told.split()]


@pytest.fixture
def gateway():
    one = Gateway()
    yield one
    if one.process.poll() is None:
        one.process.kill()
        one.process.communicate()


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak of memory is Linux's")
@pytest.mark.parametrize("sizes", [(10_000, 300_000), pytest.param((MIB, 5 * MIB, 31 * MIB), marks=pytest.mark.slow)])
def test_no_body_takes_much_memory_or_is_read_on_the_loop(gateway, sizes):
    statuses = set()
    with httpx.Client(base_url=gateway.url, timeout=120) as http:
        http.post("/v1/search", json={"queries": [{"id": 1}]})  # loads what is loaded once
        for size in sizes:
            sent = [(name, JSON, body) for name, body in bodies_of(size)]
            sent.append(("batches", ARROW, bytes(arrow(size // 200, 0))))
            sent.append(("rows", ARROW, bytes(arrow(1, size // 8))))
            form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + b"x" * size
            sent.append(("a form", "multipart/form-data; boundary=b", form + b"\r\n--b--\r\n"))
            part = b'--b\r\nContent-Disposition: form-data; name="k"\r\n\r\n1\r\n'
            sent.append(("fields", "multipart/form-data; boundary=b", part * (size // len(part))))
            for name, kind, body in sent:
                path = "/v1/encode" if name == "images" else "/v1/search"

                def post(path=path, kind=kind, body=body):
                    statuses.add(http.post(path, content=body, headers={"content-type": kind}).status_code)

                assert gateway.growth(post) <= 64 * MIB, (name, size)
        assert http.get("/health/live").status_code == 200
    assert statuses <= {400, 404, 413, 422}
    assert 422 in statuses
    largest, times = gateway.close()
    assert times > 0
    assert largest <= 16_384


def test_the_limits_of_text_fit_what_they_are_for():
    for count in (10_000, 250_000):
        ids = b"[" + b",".join([b"9223372036854775807"] * count) + b"]"
        assert take_pictures(ids, max_text_bytes=LIMITS.text_bytes) == (ids, {})
    codes = json.dumps([{"code": "0" * 256}] * LIMITS.queries).encode()
    assert take_pictures(codes, max_text_bytes=LIMITS.text_bytes) == (codes, {})
