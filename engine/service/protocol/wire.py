"""The wire protocol of routers and shard servers: frames of a fixed header and raw arrays, little-endian, no pickle.

A router keeps one `DoExchange` stream open to each shard server; every frame is the application metadata of one Flight
message. A request is one frame. An answer is one frame or several pages, told apart by the request's id, so that many
requests share a stream and answers arrive in any order. Measured with four servers on one busy 2-core machine,
medians (`python -m benchmarks.serving --only transports`): querying all four and waiting for the last costs a
caller 0.17 ms of CPU time over open streams and 0.49 ms with four `DoAction` calls; one `DoGet`, which also writes a
schema, costs 0.26 ms by itself.

Each side speaks this protocol and the one before, so that routers and servers can be replaced one by one, in any
order. A router begins with a PING, which is answered whatever its protocol is, and whose layout never changes: the
answer's body names the protocols that the server speaks, a byte each, and the router goes on in the newest that both
know. An answer is in the protocol of its request.

Q queries, W words of a code, M ids, N answers.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.errors import (
    CorruptDataError,
    DeadlineExceededError,
    HashlightError,
    NotReadyError,
    OverloadedError,
)
from hashlight.engine.features import FeatureValues
from hashlight.engine.filters.filter import FilterError
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.filters.tokens import check_unicode
from hashlight.engine.query import Query
from hashlight.engine.results import Explanation, RangeResult, Result, SearchResult

PROTOCOL = 6
PROTOCOLS = (5, 6)  # spoken here, the newest last
COMMAND = b"hashlight"  # command in the exchange's descriptor
PAGE_BYTES = 1 << 20
MAX_ROWS_ASKED = 1 << 20  # queries or ids in one request

_MAGIC = b"HL"
# magic, protocol, kind, id, version, microseconds left, identity of the shards, rows, words, flags, k or radius, limit,
# distance and id that answers come after, bytes of the filter, of its parameters, of the column's name, of the context
_REQUEST = struct.Struct("<2sBBQQQ16sIHHqqqqIIII")
_ID_AT, _STAMP_AT = 4, 20
_PING = struct.Struct("<2sBBQ")  # what a request of any protocol begins with
_U32, _U64, _STAMP = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<Q16s")  # stamp: time left and identity
_NO_SHARDS = bytes(16).hex()
# magic, protocol, status, id, version, bytes of the whole answer, page's place in it, seconds the server took
_PAGE = struct.Struct("<2sBBQQQQd")
_COUNTS = struct.Struct("<QQQ")
_REMEDY = "use releases that are at most one protocol apart"
_NO_LIMIT = -1
_BEFORE_ALL = (-1, -1)
_EXPLAIN = 1
_SAYS_NOTHING = 4  # the newest protocol whose servers do not say what they speak


class ProtocolError(HashlightError):
    """The other side does not use this protocol."""


class VersionNotServedError(HashlightError):
    """The server does not have the requested shards of that version; a newer map says which servers do."""


class OtherServerError(NotReadyError):
    """The address belongs to another server by now."""


class Kind(enum.IntEnum):
    """The kind of a request."""

    SEARCH = 1
    RANGE = 2
    GET = 3
    THUMBNAILS = 4
    FEATURES = 5
    READY = 6
    PING = 7
    CANCEL = 8
    COUNT = 9
    FACETS = 10
    SCAN = 11
    CODES = 12
    HISTOGRAM = 13
    SAMPLE = 14


class Status(enum.IntEnum):
    """The kind of an answer: arrays, an error as JSON, or notice that the server accepts no new requests."""

    OK = 0
    ERROR = 1
    LEAVING = 2


class Request(NamedTuple):
    """One request.

    Attributes
    ----------
    kind : Kind
    id : int
        Chosen by the router, returned with the answer.
    version : int
        Collection version that must answer.
    timeout_s : float
        The caller's remaining time, so that the clocks of two machines need not agree.
    values : ndarray of uint64, shape (Q, W) or (M, 1)
        Codes, or the bits of int64 ids.
    query : Query or None
        For searches; the server chooses its own threads. For COUNT, FACETS, SCAN, HISTOGRAM and SAMPLE a query of
        neither kind, of which the filter and its parameters count, for SCAN and SAMPLE the limit, and for SCAN the id
        that items come after.
    identity : str
        The shards that must answer (`engine.service.protocol.cluster_map.identity_of`). A server that has others
        refuses: versions are numbered anew when a collection is built again, and addresses change hands.
    column : str
        The attribute whose values FACETS counts.
    context : str
        What the server's logs and traces say of where the request comes from.
    protocol : int
        In which it arrived, and in which it is to be answered.
    """

    kind: Kind
    id: int
    version: int
    timeout_s: float
    values: NDArray[np.uint64]
    query: Query | None = None
    identity: str = _NO_SHARDS
    column: str = ""
    context: str = ""
    protocol: int = PROTOCOL

    @classmethod
    def of_items(
        cls,
        kind: Kind,
        filter: str | None,
        parameters: Parameters | None,
        *,
        column: str = "",
        limit: int | None = None,
        after: int | None = None,
        codes_QW: CodeArray | None = None,
    ) -> Request:
        """Return the request for COUNT, FACETS, SCAN, HISTOGRAM or SAMPLE; the router fills in the rest."""
        if filter is not None:
            check_unicode(filter)
        query = Query(filter=filter, parameters=parameters, limit=limit, after=None if after is None else (0, after))
        values = np.zeros((0, 1), np.uint64) if codes_QW is None else as_values(codes_QW)
        return cls(kind, 0, 0, 0.0, values, query, column=column)

    @classmethod
    def of_query(cls, query: Query, codes_QW: CodeArray) -> Request:
        """Return the request for a search of codes (Q, W); the router fills in the rest."""
        kind = Kind.SEARCH if query.kind == "nearest" else Kind.RANGE
        return cls(kind, 0, 0, 0.0, as_values(codes_QW), query)

    @property
    def number(self) -> int:
        """The k or the radius of the query; 0 without a query."""
        if self.query is None or self.kind in _OF_ITEMS:
            return 0
        return cast(int, self.query.radius if self.query.k is None else self.query.k)

    @property
    def ids(self) -> IdArray:
        """The values as ids."""
        return self.values.reshape(-1).view(np.int64)

    def encode(self, protocol: int = PROTOCOL) -> bytes:
        """Return the request as a frame of a protocol.

        Raises
        ------
        ProtocolError
            If that protocol does not have requests of this kind.
        """
        since = _SINCE.get(self.kind, 0)
        if protocol < since:
            raise ProtocolError(
                f"the shard server speaks protocol {protocol}, {self.kind.name} needs {since}: replace it by one of "
                "this release"
            )
        query = self.query
        text = ((query and query.filter) or "").encode()
        lists = b"" if query is None or query.parameters is None else _lists_bytes(query.parameters)
        rows, words = self.values.shape
        column, context = self.column.encode(), self.context.encode()
        head = _REQUEST.pack(
            _MAGIC,
            protocol,
            self.kind,
            self.id,
            self.version,
            _microseconds(self.timeout_s),
            bytes.fromhex(self.identity),
            rows,
            words,
            _EXPLAIN if query is not None and query.explain else 0,
            self.number,
            _NO_LIMIT if query is None or query.limit is None else query.limit,
            *(_BEFORE_ALL if query is None or query.after is None else query.after),
            len(text),
            len(lists),
            len(column),
            len(context),
        )
        return head + text + lists + column + context + self.values.astype("<u8", copy=False).tobytes()

    @staticmethod
    def stamp(frame: bytes, id_: int, timeout_s: float, identity: str) -> bytes:
        """Return a copy of a frame with another id and remaining time, for other shards."""
        stamped = bytearray(frame)
        _U64.pack_into(stamped, _ID_AT, id_)
        _STAMP.pack_into(stamped, _STAMP_AT, _microseconds(timeout_s), bytes.fromhex(identity))
        return bytes(stamped)

    @classmethod
    def decode(cls, frame: memoryview) -> Request:
        """Read a frame.

        Raises
        ------
        ProtocolError
            If it is not a request of this protocol.
        """
        if len(frame) >= _PING.size and bytes(frame[:2]) == _MAGIC and frame[3] == Kind.PING:
            _, protocol, _, id_ = _PING.unpack_from(frame)
            return cls(Kind.PING, id_, 0, 0.0, np.zeros((0, 1), np.uint64), protocol=protocol)
        if len(frame) < _REQUEST.size:
            raise ProtocolError(f"a request must have at least {_REQUEST.size} bytes, got {len(frame)}")
        protocol = _protocol_of(frame)
        head = _REQUEST.unpack_from(frame)
        _, _, kind, id_, version, left_us, identity, rows, words, flags, number, limit = head[:12]
        *after, text_bytes, lists_bytes, column_bytes, context_bytes = head[12:]
        begin = _REQUEST.size
        text_end = begin + text_bytes
        lists_end = text_end + lists_bytes
        column_end = lists_end + column_bytes
        start = column_end + context_bytes
        if rows > MAX_ROWS_ASKED or len(frame) != start + 8 * rows * words or kind not in _KINDS:
            raise ProtocolError(
                f"a request of kind {kind} with {rows} rows of {words} words, {text_bytes} bytes of filter, "
                f"{lists_bytes} of parameters, {column_bytes} of a name and {context_bytes} of context does not have "
                f"{len(frame)} bytes (at most {MAX_ROWS_ASKED} rows): {_REMEDY}"
            )
        # A copy, because the kernels need aligned words, which the frame's buffer does not guarantee.
        values = np.frombuffer(frame[start:], "<u8").astype(np.uint64).reshape(rows, words)
        query = None
        if kind in (Kind.SEARCH, Kind.RANGE, *_OF_ITEMS):
            text = _text(frame[begin:text_end]) or None
            lists = _lists(frame[text_end:lists_end]) if lists_bytes else None
            query = Query(filter=text, parameters=lists, explain=bool(flags & _EXPLAIN))
            if kind == Kind.SEARCH:
                query = query._replace(k=number)
            else:
                query = query._replace(
                    radius=number if kind == Kind.RANGE else None,
                    limit=None if limit == _NO_LIMIT else limit,
                    after=None if tuple(after) == _BEFORE_ALL else (after[0], after[1]),
                )
        column, context = _text(frame[lists_end:column_end]), _text(frame[column_end:start])
        return cls(
            Kind(kind), id_, version, left_us / 1e6, values, query, identity.hex(), column, context, protocol
        )  # fmt: skip


class Page(NamedTuple):
    """A piece of an answer: `body` belongs at byte `offset` of `total`."""

    status: Status
    id: int
    version: int
    total: int
    offset: int
    seconds: float
    body: memoryview

    @classmethod
    def decode(cls, frame: memoryview) -> Page:
        """Read a frame.

        Raises
        ------
        ProtocolError
            If it is not a page of this protocol.
        """
        if len(frame) < _PAGE.size:
            raise ProtocolError(f"a page must have at least {_PAGE.size} bytes, got {len(frame)}")
        _protocol_of(frame)
        _, _, status, id_, version, total, offset, seconds = _PAGE.unpack_from(frame)
        if status not in _STATUSES:
            known = ", ".join(map(str, sorted(_STATUSES)))
            raise ProtocolError(f"expected a page of status {known}, got {status}: {_REMEDY}")
        body = frame[_PAGE.size :]
        if offset + len(body) > total:
            raise ProtocolError(f"a page of {len(body)} bytes at {offset} does not fit an answer of {total} bytes")
        return cls(Status(status), id_, version, total, offset, seconds, body)


def pages(
    status: Status, id_: int, version: int, body: bytes, seconds: float = 0.0, *, protocol: int = PROTOCOL
) -> Iterator[bytes]:
    """Cut an answer into frames of at most `PAGE_BYTES`."""
    view = memoryview(body)
    for offset in range(0, max(1, len(body)), PAGE_BYTES):
        head = _PAGE.pack(_MAGIC, protocol, status, id_, version, len(body), offset, seconds)
        yield head + view[offset : offset + PAGE_BYTES]


def encode_hello() -> bytes:
    """Return the answer to a PING: the protocols that are spoken here."""
    return bytes(PROTOCOLS)


def agree(body: memoryview) -> int:
    """Return the newest protocol that is spoken both here and by the server that answered a PING with `body`.

    Raises
    ------
    ProtocolError
        If there is none.
    """
    known = tuple(body) or (_SAYS_NOTHING,)
    common = set(known) & set(PROTOCOLS)
    if not common:
        raise ProtocolError(
            f"the server speaks protocols {', '.join(map(str, known))}, this router {', '.join(map(str, PROTOCOLS))}: "
            f"{_REMEDY}"
        )
    return max(common)


def encode_result(result: Result) -> bytes:
    """Return the answers to a query as bytes."""
    arrays = [_raw(result.distances, "<i4"), _raw(result.ids, "<i8"), _explain_bytes(result.explain)]
    if isinstance(result, SearchResult):
        return b"".join([_COUNTS.pack(*result.ids.shape, 0), *arrays])
    counts = _COUNTS.pack(len(result.truncated), len(result.ids), 0)
    return b"".join([counts, _raw(result.lims, "<i8"), _raw(result.truncated, "?"), *arrays])


def decode_result(query: Query, body: memoryview) -> Result:
    """Undo `encode_result` of an answer to `query`; ProtocolError if it is something else."""
    queries, columns, rest = _shape(body)
    if query.kind == "nearest":
        distances, rest = _take(rest, "<i4", queries * columns)
        ids, rest = _take(rest, "<i8", queries * columns)
        shape = queries, columns
        return SearchResult(distances.reshape(shape), ids.reshape(shape), explain=_explanation(rest))
    lims, rest = _take(rest, "<i8", queries + 1)
    truncated, rest = _take(rest, "?", queries)
    distances, rest = _take(rest, "<i4", columns)
    ids, rest = _take(rest, "<i8", columns)
    return RangeResult(lims, distances, ids, truncated, explain=_explanation(rest))


def encode_count(count: int) -> bytes:
    """Return a number of items."""
    return _COUNTS.pack(count, 0, 0)


def decode_count(body: memoryview) -> int:
    """Undo `encode_count`; ProtocolError if it is something else."""
    return _shape(body)[0]


def encode_histogram(counts_QD: NDArray[np.int64]) -> bytes:
    """Return the number of codes at each distance from each query."""
    return _COUNTS.pack(*counts_QD.shape, 0) + _raw(counts_QD, "<i8")


def decode_histogram(body: memoryview) -> NDArray[np.int64]:
    """Undo `encode_histogram`; ProtocolError if it is something else."""
    queries, distances, rest = _shape(body)
    counts, _ = _take(rest, "<i8", queries * distances)
    return counts.reshape(queries, distances)


def encode_codes(ids: IdArray, codes_MW: CodeArray) -> bytes:
    """Return the codes of the ids that a server has."""
    return b"".join([_COUNTS.pack(*codes_MW.shape, 0), _raw(ids, "<i8"), _raw(codes_MW, "<u8")])


def decode_codes(body: memoryview) -> tuple[IdArray, CodeArray]:
    """Undo `encode_codes`; ProtocolError if it is something else."""
    rows, words, rest = _shape(body)
    ids, rest = _take(rest, "<i8", rows)
    codes, _ = _take(rest, "<u8", rows * words)
    return ids, codes.astype(np.uint64, copy=False).reshape(rows, words)


def encode_features(ids: IdArray, features_MF: FeatureValues) -> bytes:
    """Return the features of the ids that a server has."""
    is_single = features_MF.dtype == np.float32
    kind = "<f4" if is_single else "<f2"
    return b"".join([_COUNTS.pack(*features_MF.shape, is_single), _raw(ids, "<i8"), _raw(features_MF, kind)])


def decode_features(body: memoryview) -> tuple[IdArray, FeatureValues]:
    """Undo `encode_features`; ProtocolError if it is something else."""
    rows, width, rest = _shape(body)
    _, _, is_single = _COUNTS.unpack_from(body)
    if is_single not in (0, 1):
        raise ProtocolError(f"expected features of float16 (0) or float32 (1), got {is_single}")
    ids, rest = _take(rest, "<i8", rows)
    features, _ = _take(rest, "<f4" if is_single else "<f2", rows * width)
    return ids, features.reshape(rows, width)


def encode_table(table: pa.Table) -> bytes:
    """Return a table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def decode_table(body: memoryview) -> pa.Table:
    """Undo `encode_table`; ProtocolError if it is something else."""
    try:
        return pyarrow.ipc.open_stream(pa.py_buffer(body)).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ProtocolError(f"expected a table as an Arrow stream, got {len(body)} other bytes: {error}") from error


def encode_error(error: BaseException) -> bytes:
    """Return an error as JSON: its classes from the most specific on, its message, and its plain attributes."""
    attributes = {name: value for name, value in vars(error).items() if isinstance(value, int | float | str)}
    types = [cls.__name__ for cls in type(error).__mro__]
    return json.dumps({"types": types, "message": str(error), "attributes": attributes}).encode()


def decode_error(body: memoryview) -> Exception:
    """Undo `encode_error`: an error of the most specific class known here; a ProtocolError if it is none."""
    try:
        told = _json(body)
        cls = next((_ERRORS[name] for name in told["types"] if name in _ERRORS), HashlightError)
        # Bypasses the constructors, because some of them build the message from parts that are not sent.
        error = cls.__new__(cls)
        error.args = (str(told["message"]),)
        vars(error).update(told["attributes"])
    except (ProtocolError, KeyError, TypeError, ValueError) as fault:
        return ProtocolError(f"expected an error as JSON, got {bytes(body[:200])!r} ({fault!r})")
    return error


def as_values(array: CodeArray | IdArray) -> NDArray[np.uint64]:
    """Return codes (Q, W) as they are, and ids (M,) as (M, 1) of the same bits."""
    words = np.ascontiguousarray(array).view(np.uint64)
    return words if words.ndim == 2 else words.reshape(-1, 1)


_KINDS = frozenset(Kind)
_OF_ITEMS = frozenset({Kind.COUNT, Kind.FACETS, Kind.SCAN, Kind.HISTOGRAM, Kind.SAMPLE})
_SINCE = {Kind.HISTOGRAM: 6, Kind.SAMPLE: 6}  # the first protocol with a kind; others are in all that are spoken
_STATUSES = frozenset(Status)
_ERRORS: Mapping[str, type[Exception]] = {
    cls.__name__: cls
    for cls in (
        TypeError,
        ValueError,
        FilterError,
        OverloadedError,
        DeadlineExceededError,
        NotReadyError,
        CorruptDataError,
        OtherServerError,
        VersionNotServedError,
    )
}


def _microseconds(seconds: float) -> int:
    return max(0, int(seconds * 1e6))


def _protocol_of(frame: memoryview) -> int:
    """Return the protocol of a frame; refuse one that is not spoken here, whose frames may be laid out differently."""
    magic, protocol = bytes(frame[:2]), frame[2]
    if magic != _MAGIC or protocol not in PROTOCOLS:
        raise ProtocolError(
            f"expected frames of protocol {' or '.join(map(str, PROTOCOLS))}, got {magic!r} of protocol {protocol}: "
            f"{_REMEDY}"
        )
    return protocol


def _lists_bytes(parameters: Parameters) -> bytes:
    """Return lists as their names and lengths in JSON, and their numbers."""
    lengths = json.dumps({name: len(values) for name, values in parameters.items()}).encode()
    return b"".join([_U32.pack(len(lengths)), lengths, *(_raw(values, "<i8") for values in parameters.values())])


def _lists(body: memoryview) -> Parameters:
    try:
        (size,) = _U32.unpack_from(body)
        lengths, rest = json.loads(bytes(body[_U32.size : _U32.size + size])), body[_U32.size + size :]
        lists = {}
        for name, length in lengths.items():
            lists[name], rest = _take(rest, "<i8", length)
        if len(rest):
            raise ProtocolError(f"the parameters of a request have {len(rest)} bytes more than they say")
        return Parameters(lists)
    except (struct.error, ValueError, TypeError, AttributeError) as error:
        raise ProtocolError(f"the parameters of a request cannot be read: {error}") from error


def _text(data: memoryview) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"expected text as UTF-8, got {bytes(data[:200])!r}") from error


def _json(data: memoryview) -> Any:
    try:
        return json.loads(_text(data))
    except ValueError as error:
        raise ProtocolError(f"expected JSON, got {bytes(data[:200])!r} ({error})") from error


def _shape(body: memoryview) -> tuple[int, int, memoryview]:
    """Return the two counts that an answer begins with, and the rest."""
    if len(body) < _COUNTS.size:
        raise ProtocolError(f"expected an answer of at least {_COUNTS.size} bytes, got {len(body)}")
    rows, columns, _ = _COUNTS.unpack_from(body)
    return rows, columns, body[_COUNTS.size :]


def _raw(array: NDArray[Any], dtype: str) -> bytes:
    return array.astype(dtype, copy=False).tobytes()


def _take(body: memoryview, dtype: str, count: int) -> tuple[NDArray[Any], memoryview]:
    size = np.dtype(dtype).itemsize * count
    if len(body) < size:
        raise ProtocolError(f"expected {size} bytes of {count} values, got {len(body)}")
    return np.frombuffer(body[:size], dtype), body[size:]


def _explain_bytes(explain: Explanation | None) -> bytes:
    if explain is None:
        return b""
    arrays = {name: getattr(explain, name).tolist() for name in ("probes", "candidates", "seconds")}
    return json.dumps({"plans": explain.plans, **arrays}).encode()


def _explanation(body: memoryview) -> Explanation | None:
    if not len(body):
        return None
    told = _json(body)
    try:
        return Explanation(
            tuple(told["plans"]),
            np.array(told["probes"], np.int64),
            np.array(told["candidates"], np.int64),
            np.array(told["seconds"], np.float64),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"expected an explanation as JSON, got {bytes(body[:200])!r} ({error!r})") from error
