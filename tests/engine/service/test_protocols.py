"""Routers and servers one protocol apart understand each other; frames of the one before were recorded from it."""

import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pyarrow.ipc
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import IncompleteError
from hashlight.engine.query import Query
from hashlight.engine.service.protocol import wire
from hashlight.engine.service.protocol.wire import Kind, ProtocolError, Request
from hashlight.engine.service.routing.router import ClusterRouter
from hashlight.engine.service.shards import server as server_module
from tests.engine.service.conftest import serving
from tests.oracles import knn, within_radius

RECORDED = json.loads((Path(__file__).parents[2] / "data" / "protocol_5.json").read_text())
PAGE = struct.Struct("<2sBBQQQQd")
CODES = np.array([[5, 0], [4, 0], [2**63 + 9, 255], [7, 1], [2**63 + 8, 255], [5, 3], [0, 0], [5, 0]], np.uint64)
IDS, LABELS = np.arange(8), np.array([0, 1, 2, 0, 1, 2, 0, 1])
QUERIES = np.array([[5, 0], [2**63 + 9, 255]], np.uint64)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protocols") / "c"
    return Collection.create(folder, CODES, ids=IDS, attributes={"label": LABELS}, bits=128)


def stamped(name, identity):
    """A recorded frame for these shards: 16 bytes at byte 28."""
    frame = bytearray(bytes.fromhex(RECORDED[name]))
    frame[28:44] = bytes.fromhex(identity)
    return bytes(frame)


@contextlib.contextmanager
def exchanging(address):
    """A stream to a server; yields a function that sends a frame and returns the page that comes back."""
    client = flight.FlightClient(address)
    writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b"hashlight"))

    def exchange(frame):
        writer.write_metadata(pa.py_buffer(frame))
        page = bytes(reader.read_chunk().app_metadata)
        magic, protocol, status, id_, version, total, offset, _ = PAGE.unpack_from(page)
        assert (magic, offset, total) == (b"HL", 0, len(page) - PAGE.size)
        return protocol, status, id_, version, page[PAGE.size :]

    try:
        yield exchange
    finally:
        writer.done_writing()
        client.close()


def test_a_router_of_the_protocol_before_is_answered_in_it(collection):
    with serving(collection.path, groups=1) as (_, cluster):
        (group,) = cluster.groups
        with exchanging(group.replicas[0]) as exchange:
            assert exchange(stamped("ping", group.identity))[:4] == (5, 0, 0, 0)

            protocol, status, id_, version, body = exchange(stamped("search", group.identity))
            assert (protocol, status, id_, version) == (5, 0, 1, 1)
            kept = ~np.isin(IDS, [3, 7])
            distances, ids = knn(QUERIES, CODES[kept], IDS[kept], 4)
            assert struct.unpack_from("<QQQ", body) == (2, 4, 0)
            assert np.frombuffer(body[24:56], "<i4").reshape(2, 4).tolist() == distances.tolist()
            assert np.frombuffer(body[56:120], "<i8").reshape(2, 4).tolist() == ids.tolist()

            protocol, status, id_, version, body = exchange(stamped("range", group.identity))
            assert (protocol, status, id_) == (5, 0, 2)
            pairs, _ = within_radius(QUERIES, CODES, IDS, 3)
            expected = [[pair for pair in row if pair > (1, 2)][:5] for row in pairs]
            queries, found, _ = struct.unpack_from("<QQQ", body)
            assert (queries, found) == (2, sum(map(len, expected)))
            distances = np.frombuffer(body[24 + 24 + 2 :][: 4 * found], "<i4")
            ids = np.frombuffer(body[24 + 24 + 2 + 4 * found :][: 8 * found], "<i8")
            found_pairs = list(zip(distances.tolist(), ids.tolist(), strict=True))
            assert found_pairs == [pair for row in expected for pair in row]
            assert json.loads(body[24 + 24 + 2 + 12 * found :])["plans"]

            protocol, status, id_, _, body = exchange(stamped("facets", group.identity))
            assert (protocol, status, id_) == (5, 0, 3)
            counts = pyarrow.ipc.open_stream(body).read_all().to_pylist()
            assert {one["label" if "label" in one else "value"]: one["count"] for one in counts} == {0: 3, 1: 3}

            protocol, status, id_, _, body = exchange(stamped("get", group.identity))
            assert (protocol, status, id_) == (5, 0, 4)
            assert pyarrow.ipc.open_stream(body).read_all()["id"].to_pylist() == [1, 6]

            assert exchange(stamped("search", "0" * 32))[:3] == (5, 1, 1)  # refused in the same protocol


def note_protocols(monkeypatch):
    """Return a list that fills with the protocol and the kind of each request that a server reads."""
    asked, decode = [], Request.decode

    def note(frame):
        asked.append((frame[2], frame[3]))
        return decode(frame)

    monkeypatch.setattr(server_module.Request, "decode", note)
    return asked


def test_a_server_of_the_protocol_before_is_asked_in_it(collection, monkeypatch):
    monkeypatch.setattr(server_module, "encode_hello", lambda: bytes([4, 5]))  # as servers of protocol 5 answer
    asked = note_protocols(monkeypatch)
    with serving(collection.path, groups=1) as (_, cluster), contextlib.closing(ClusterRouter(cluster)) as router:
        found = router.search(QUERIES, 3, allow_partial=False)
        assert (found.ids == knn(QUERIES, CODES, IDS, 3)[1]).all()
        for ask in (lambda: router.histogram(QUERIES), lambda: router.sample(3)):
            with pytest.raises(IncompleteError, match=r"speaks protocol 5, [A-Z]+ needs 6: replace it"):
                ask()
        assert (router.search(QUERIES, 3, allow_partial=False).ids == found.ids).all(), "the stream goes on"
    assert (5, Kind.SEARCH) in asked
    assert {protocol for protocol, _ in asked} == {5}


def test_a_server_of_this_protocol_is_asked_in_it(collection, monkeypatch):
    asked = note_protocols(monkeypatch)
    with serving(collection.path, groups=1) as (_, cluster), contextlib.closing(ClusterRouter(cluster)) as router:
        router.search(QUERIES, 3, allow_partial=False)
    assert (6, Kind.SEARCH) in asked


def test_the_newest_common_protocol_is_spoken(monkeypatch):
    monkeypatch.setattr(wire, "PROTOCOLS", (7, 8))
    assert wire.agree(memoryview(bytes([8, 9]))) == 8
    assert wire.agree(memoryview(bytes([6, 7]))) == 7
    assert wire.agree(memoryview(bytes([7, 8]))) == 8
    with pytest.raises(ProtocolError, match="the server speaks protocols 9, 10, this router 7, 8"):
        wire.agree(memoryview(bytes([9, 10])))
    with pytest.raises(ProtocolError, match="the server speaks protocols 4, this router"):
        wire.agree(memoryview(b""))


def test_a_ping_of_any_protocol_is_understood():
    frame = bytearray(Request(Kind.PING, 7, 0, 0.0, np.zeros((0, 1), np.uint64)).encode())
    frame[2] = 99
    read = Request.decode(memoryview(frame + b"whatever follows"))
    assert (read.kind, read.id, read.protocol) == (Kind.PING, 7, 99)


@pytest.mark.parametrize("context", ["", "id-1", '{"traceparent": "00-ab"} ü'])
@pytest.mark.parametrize("protocol", wire.PROTOCOLS)
def test_the_context_travels_in_every_protocol(context, protocol):
    request = Request(Kind.SEARCH, 1, 1, 1.0, QUERIES, Query(k=2, filter="a == 1"), context=context)
    read = Request.decode(memoryview(request.encode(protocol)))
    assert (read.context, read.protocol, read.query.filter) == (context, protocol, "a == 1")
    assert (read.values == QUERIES).all()
