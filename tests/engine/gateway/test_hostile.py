"""Hostile requests: each is refused with the right status, and the server keeps running."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import time
import zlib
from urllib.parse import urlsplit

import httpx
import numpy as np
import pyarrow as pa
import pytest

from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.limits import Limits
from tests import serving

JSON = {"content-type": "application/json"}
ARROW = {"content-type": "application/vnd.apache.arrow.stream"}
GOOD = {"queries": [{"code": "0f" * 8}], "k": 1}
LIMITS = Limits(body_bytes=200_000, buffered_bytes=400_000, body_s=1.0, pixels=10**6)


@pytest.fixture(scope="module")
def url(searcher):
    with serving.running(create_app(searcher, encoder=serving.AverageHash(), limits=LIMITS)) as url:
        yield url


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
        assert client.post("/v1/search", json=GOOD).status_code == 200, "the server must keep running"


def stream(table, **options):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def codes(rows=3, width=8, byte=b"\x01"):
    return pa.table({"code": pa.array([byte.ljust(width, b"\0")] * rows, pa.binary(width))})


def claims_to_be_large():
    """A PNG of a few bytes whose header claims 60,000 x 60,000 pixels."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def with_lying_length(data):
    """The stream with an enormous row count in its record batch."""
    rows = struct.pack("<q", 3)
    assert data.count(rows) > 0
    place = data.rindex(rows, 0, data.rindex(b"\x01" + b"\0" * 7))
    return data[:place] + struct.pack("<q", 2**40) + data[place + 8 :]


DEEP = b'{"queries": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
LARGE_FILTER = json.dumps({**GOOD, "filter": "(" * 9_000 + "label == 1"}).encode()
MANY_NOTS = json.dumps({**GOOD, "filter": "not " * 2_400 + "label == 1"}).encode()


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        pytest.param(b"", JSON, 400, id="nothing"),
        pytest.param(b"{", JSON, 400, id="half an object"),
        pytest.param(b"\xff\xfe\x00", JSON, 400, id="no UTF-8"),
        pytest.param(b"\x00" * 1000, JSON, 400, id="zeros"),
        pytest.param(DEEP, JSON, 400, id="10,000 deep"),
        pytest.param(b'{"queries": [{"code": "\\ud800"}]}', JSON, 422, id="half a character"),
        pytest.param(b"null", JSON, 422, id="null"),
        pytest.param(b"[]", JSON, 422, id="a list"),
        pytest.param(b'{"queries": [{"id": 1e400}]}', JSON, 422, id="an infinite id"),
        pytest.param(b'{"queries": [{"id": NaN}]}', JSON, 422, id="NaN"),
        pytest.param(b'{"queries": [{"id": ' + b"9" * 5000 + b"}]}", JSON, 413, id="a number of 5,000 digits"),
        pytest.param(b'{"queries": [{"id": 1}], "k": -' + b"9" * 100 + b"}", JSON, 422, id="a very small k"),
        pytest.param(b'{"queries": {"__proto__": 1}}', JSON, 422, id="an object for a list"),
        pytest.param(LARGE_FILTER, JSON, 422, id="a filter of brackets"),
        pytest.param(MANY_NOTS, JSON, 422, id="a filter of nots"),
        pytest.param(b" " * 300_000, JSON, 413, id="oversized"),
        pytest.param(json.dumps(GOOD).encode(), {}, 415, id="no content type"),
        pytest.param(json.dumps(GOOD).encode(), {"content-type": "text/plain"}, 415, id="text"),
        pytest.param(json.dumps(GOOD).encode(), {"content-type": "application/json5"}, 415, id="another JSON"),
        pytest.param(b"\x80\x04K\x01.", {"content-type": "application/x-python-pickle"}, 415, id="pickle"),
        pytest.param(b"x=1", {"content-type": "application/x-www-form-urlencoded"}, 415, id="a plain form"),
        pytest.param(b"x", {"content-type": "multipart/form-data"}, 400, id="a form without boundary"),
        pytest.param(b"--b\r\n", {"content-type": "multipart/form-data; boundary=b"}, 422, id="a form cut short"),
        pytest.param(b"garbage", {"content-type": "multipart/form-data; boundary=b"}, 400, id="no form"),
        pytest.param(b"", ARROW, 400, id="an empty stream"),
        pytest.param(b"ARROW1\0\0" * 9, ARROW, 400, id="no stream"),
        pytest.param(b"\xff\xff\xff\xff\xff\xff\xff\x7f", ARROW, 400, id="a message of 2 GiB"),
        pytest.param(stream(codes())[:-60], ARROW, 400, id="a stream cut short"),
        pytest.param(with_lying_length(stream(codes())), ARROW, 400, id="rows that are not there"),
        pytest.param(stream(codes(50_000), compression="zstd"), ARROW, 400, id="a compressed bomb"),
        pytest.param(stream(codes(), compression="lz4"), ARROW, 400, id="compressed"),
        pytest.param(stream(codes(width=9)), ARROW, 422, id="codes of another length"),
        pytest.param(stream(codes(byte=b"\xff" * 8)), ARROW, 422, id="bits past the last"),
        pytest.param(stream(codes(rows=0)), ARROW, 422, id="no rows"),
        pytest.param(stream(codes(rows=10_001)), ARROW, 422, id="too many rows"),
        pytest.param(stream(pa.table({"x": [1]})), ARROW, 422, id="another column"),
        pytest.param(stream(codes().append_column("y", pa.array([1, 2, 3]))), ARROW, 422, id="two columns"),
        pytest.param(
            stream(pa.table({"code": pa.array([None], pa.binary(8))})), ARROW, 422, id="null"
        ),
        pytest.param(
            stream(pa.table({"code": pa.array(["a"]).dictionary_encode()})), ARROW, 400, id="a dictionary"
        ),
    ],
)  # fmt: skip
def test_hostile_bodies(http, content, headers, status):
    answer = http.post("/v1/search", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert "Traceback" not in answer.text


def test_flipped_bytes_of_an_arrow_stream_never_crash_the_server(http):
    data = stream(codes())
    rng = np.random.default_rng(0)
    seen = set()
    for position in rng.choice(len(data), 150, replace=False):
        broken = (
            bytes(data[:position]) + bytes([data[position] ^ (1 << int(rng.integers(8)))]) + bytes(data[position + 1 :])
        )
        answer = http.post("/v1/search", content=broken, headers=ARROW)
        seen.add(answer.status_code)
        assert answer.status_code in (200, 400, 422), answer.text
    assert {200, 400} <= seen


@pytest.mark.parametrize(
    "image",
    [b"", b"\x89PNG\r\n\x1a\n", claims_to_be_large(), b"GIF89a" + b"\xff" * 500, b"<svg onload=alert(1)>", b"%PDF-1.4"],
)
def test_hostile_images(http, image):
    encoded = base64.b64encode(image).decode()
    for answer in (
        http.post("/v1/search", json={"queries": [{"image": encoded}]}),
        http.post("/v1/encode", json={"images": [encoded]}),
        http.post("/v1/encode", files={"image": ("../../etc/passwd", image)}),
    ):
        assert answer.status_code == 422
        assert answer.json()["error"]["field"] in ("queries.0.image", "images.0", "image")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/items/..%2f..%2fetc%2fpasswd", "/v1/items/../../etc/passwd", "/v1/items/1%00", "/v1/items/1;drop",
        "/v1/items/-1", "/v1/items/9223372036854775808", "/v1/items/1e3", "/v1/items/%F0%9F%98%80",
        "/v1/items/1/thumbnail/..", "/v1/items/" + "9" * 5000, "/v1/items/..%5c..%5c/thumbnail",
        "/static/../../engine/errors.py", "//etc/passwd",
    ],
)  # fmt: skip
def test_hostile_paths(http, path):
    answer = http.get(path)
    assert answer.status_code in (404, 405, 422), answer.text
    assert "root:" not in answer.text


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://127.0.0.1/",
        "file:///etc/passwd",
        "https://[::1]/",
        "gopher://x",
    ],
)
def test_image_urls_are_disabled(http, address):
    answer = http.post("/v1/search", json={"queries": [{"url": address}]})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "queries.0.url")


def talk(url, data, *, more=None):
    """Send raw bytes and return everything received until the server closes or is silent."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
        connection.sendall(data)
        try:
            while more is not None:
                connection.sendall(more)
        except OSError:
            more = None
        received = b""
        try:
            while chunk := connection.recv(65_536):
                received += chunk
        except OSError:
            return received
        return received


HEAD = b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def test_an_endless_chunked_body_is_cut_off(url, http):
    chunk = b"2000\r\n" + b" " * 0x2000 + b"\r\n"
    answer = talk(url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", more=chunk)
    # If the reset overtakes the response, nothing is received; the connection is closed in either case.
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")


def test_a_body_with_too_large_a_content_length_is_refused_at_once(url, http):
    answer = talk(url, HEAD + b"Content-Length: 99999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()


def test_a_body_that_does_not_arrive_times_out(url, http):
    answer = talk(url, HEAD + b"Content-Length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,
        b"GET / HTTP/9.9\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZZZ\r\n",
    ],
)
def test_bytes_that_are_not_http_are_refused_or_the_connection_closed(url, http, data):
    answer = talk(url, data)
    assert b"Traceback" not in answer
    assert not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 500"))


@pytest.mark.parametrize("more", [b"X: y\r\n" * 10_000, b"y" * 60_000])
def test_an_endless_head_is_cut_off(url, http, more):
    answer = talk(url, b"GET /v1/collection HTTP/1.1\r\nHost: 127.0.0.1\r\nX: y", more=more)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


@pytest.fixture(scope="module")
def impatient(searcher):
    """A gateway with a key; connections time out after two seconds without a request, and encoding takes three."""

    class Slow(serving.AverageHash):
        def encode(self, images):
            time.sleep(3)
            return super().encode(images)

    keys = Keys.load(None, {"HASHLIGHT_API_KEYS": "page search searching-is-all-0001"})
    with serving.running(create_app(searcher, encoder=Slow(), keys=keys), head_s=2) as url:
        yield url


def connect(url):
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def is_closed_under(connection, drop):
    """Send `drop` again and again for at most two minutes; tell whether the server closed the connection."""
    for _ in range(1200):
        try:
            connection.sendall(drop)
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_a_silent_connection_is_closed(impatient):
    with connect(impatient) as connection:
        assert connection.recv(1) == b""
    with connect(impatient) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_slow_head_times_out(impatient):
    with connect(impatient) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nX: ")
        assert is_closed_under(connection, b"y")
    with connect(impatient) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert is_closed_under(connection, b"G")


def test_a_slow_body_after_its_answer_times_out(impatient):
    with connect(impatient) as connection:
        connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401")
        assert is_closed_under(connection, b" ")


def test_a_request_in_progress_does_not_time_out(impatient):
    body = json.dumps({"images": [base64.b64encode(serving.png(serving.make_pictures(1)[0])).decode()]}).encode()
    head = HEAD.replace(b"search HTTP", b"encode HTTP") + b"X-API-Key: searching-is-all-0001\r\n"
    with connect(impatient) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        for part in (body[:10], body[10:]):
            time.sleep(1.5)
            connection.sendall(part)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_many_concurrent_bodies_do_not_fill_the_memory(url, http):
    parts = urlsplit(url)
    held = []
    try:
        for _ in range(6):  # 150,000 bytes each, of 400,000 in all
            connection = socket.create_connection((parts.hostname, parts.port), timeout=60)
            connection.sendall(HEAD + b"Content-Length: 190000\r\n\r\n" + b" " * 150_000)
            held.append(connection)
        statuses = [connection.recv(4096)[:12] for connection in held]
    finally:
        for connection in held:
            connection.close()
    assert set(statuses) <= {b"HTTP/1.1 429", b"HTTP/1.1 408"}
    assert statuses.count(b"HTTP/1.1 429") >= 3


def test_a_form_of_many_fields_is_refused(http):
    body = io.BytesIO()
    for number in range(100):
        body.write(f'--b\r\nContent-Disposition: form-data; name="f{number}"\r\n\r\n1\r\n'.encode())
    body.write(b"--b--\r\n")
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert http.post("/v1/search", content=body.getvalue(), headers=headers).status_code == 400


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"seen": ["x"] * 10_000}, "valid integer"),
        ({"seen": [1.5]}, "valid integer"),
        ({"seen": [2**63]}, "less than or equal to"),
        ({"a b": [1]}, "should match pattern"),
        ({f"n{n}": [] for n in range(17)}, "at most 16"),
        ([1, 2], "should be an object"),
        ({"other": [1]}, "`:seen` has no values"),
        ({"seen": [1], "other": [2]}, "`parameters` has other, which `filter` does not name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lists_of_ids_that_do_not_fit_are_refused_by_name(http, parameters, told):
    answer = http.post("/v1/search", json={**GOOD, "filter": "id not in :seen", "parameters": parameters})
    assert answer.status_code == 422, answer.text
    assert told in answer.json()["error"]["message"]
    assert answer.json()["error"]["field"].split(".")[0] in ("parameters", "filter")


def test_an_image_can_be_asked_for_among_some_ids(http):
    fields = {"filter": "id in :mine", "parameters": '{"mine": [1, 2]}', "k": "3"}
    files = {"image": serving.png(serving.make_pictures(1)[0])}
    assert http.post("/v1/search", data=fields, files=files).status_code == 200
    for wrong in ("[1", "{}"):
        answer = http.post("/v1/search", data={**fields, "parameters": wrong}, files=files)
        assert (answer.status_code, answer.json()["error"]["field"]) in ((422, "parameters"), (422, "filter"))
