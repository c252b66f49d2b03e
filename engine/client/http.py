"""Calls over HTTP: requests, answers and retries."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import json
import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import numpy as np

from hashlight.engine import tracing
from hashlight.engine.client.calls import (
    Call,
    Count,
    Delete,
    Describe,
    Encode,
    Facets,
    Get,
    Histogram,
    Put,
    Ready,
    Scroll,
    Search,
    Thumbnail,
    Update,
    Write,
)
from hashlight.engine.client.errors import (
    ConnectionFailedError,
    DeadlineExceededError,
    HashlightError,
    IncompleteError,
    NotReadyError,
    OverloadedError,
    ServerError,
    error_of,
)
from hashlight.engine.client.queries import Address, Picture, QueryInput, has_digits, with_codes
from hashlight.engine.client.results import Items, Page, SearchResponse, Thumbnails, ValueCounts, data_uri, words_of
from hashlight.engine.query import Text

MAX_RETRIES = 2
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 8.0  # also caps Retry-After
CONNECT_S = 5.0
_PICTURES_S = 5.0  # for all of one query, while a notebook waits
_GRACE_S = 0.5  # on top of the server's deadline, so that its more specific error arrives first

_ARROW = "application/vnd.apache.arrow.stream"
_JSON_CODES = 4  # more codes than this are sent as Arrow
# httpx and gateways accept URLs of up to 65,536 characters. Encoded, an id of 19 digits and its comma take 22, a
# character of a filter at most 12.
_MAX_IDS = 1000
_MAX_FILTER = 5000

# After these errors a retry may succeed. A write has a key, under which the server makes it once.
_RETRIED = (ConnectionFailedError, OverloadedError, NotReadyError)
# After these as well another gateway may succeed, which may reach what this one does not.
_ELSEWHERE = (*_RETRIED, IncompleteError)


class Gateways:
    """The gateways that may be asked, all of which answer the same, and the one that is asked next. Thread-safe.

    Parameters
    ----------
    urls : sequence of str
    collection : str or None
        The one to ask, of several in each server.
    """

    def __init__(self, urls: Sequence[str], collection: str | None) -> None:
        self.urls = [_of_collection(gateway_url(url), collection) for url in urls]
        self._next = random.randrange(len(self.urls))  # so that clients spread over them

    def __str__(self) -> str:
        return ",".join(self.urls)

    @property
    def next(self) -> str:
        """The URL of the gateway to ask; the same until it fails."""
        return self.urls[self._next]

    def after(self, url: str, call: Call, error: HashlightError) -> str | None:
        """Return another gateway that may be asked what this one did not answer; None if there is none."""
        if len(self.urls) == 1 or not isinstance(error, _ELSEWHERE):
            return None
        # A write may have been made although its connection was lost, and each server knows its own keys.
        if isinstance(call, Write) and isinstance(error, ConnectionFailedError) and not _was_not_sent(error):
            return None
        following = (self.urls.index(url) + 1) % len(self.urls)
        if self.next == url:
            self._next = following
        return self.urls[following]


class _At(NamedTuple):
    """Makes requests to one gateway."""

    client: httpx.Client | httpx.AsyncClient
    url: str

    def build_request(self, method: str, path: str, **more: Any) -> httpx.Request:
        return self.client.build_request(method, f"{self.url}{path}", **more)


class HttpTransport:
    """Executes calls on a gateway. Thread-safe.

    Parameters
    ----------
    urls : sequence of str
        One or several gateways that answer the same, such as `https://search.example.com`.
    api_key : str or None
    max_retries : int
    collection : str or None
        The one to ask, of several in one server.
    transport : httpx.BaseTransport, optional
        Replaces the network.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        api_key: str | None,
        max_retries: int,
        collection: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._gateways = Gateways(urls, collection)
        self._max_retries = max_retries
        self._client = httpx.Client(headers=_headers(api_key), transport=transport)
        self._bits: int | None = None
        self._pictures_elsewhere = _pictures_of(self._gateways.urls, api_key, transport)

    def __repr__(self) -> str:
        return repr(str(self._gateways))

    def send(self, call: Call) -> Any:
        """Execute a call."""
        until_s = time.monotonic() + call.timeout_s
        if isinstance(call, Get):
            return _joined([self._send(part, until_s) for part in _parts(call)])
        if isinstance(call, Search | Histogram) and has_digits(call.queries):
            bits = self._bits
            if bits is None or not _fits(call, bits):
                bits = self._bits = _bits_of(self._send(Describe(call.timeout_s), until_s))
            call = dataclasses.replace(call, queries=with_codes(call.queries, bits))
        return self._send(call, until_s)

    def _send(self, call: Call, until_s: float) -> Any:
        asking = _Asking(self._gateways, call, self._max_retries, until_s)
        while True:
            try:
                return self._try(call, until_s - time.monotonic(), asking.url)
            except _ELSEWHERE as error:
                if wait_s := asking.wait_s(error):
                    time.sleep(wait_s)

    def pictures(self, ids: Sequence[int]) -> list[str | None]:
        """Return thumbnails of items as data URIs, None for those that are unavailable."""
        if self._client.is_closed:
            return self._pictures_elsewhere(ids)
        until_s = time.monotonic() + _PICTURES_S
        return [self._picture(id, until_s) for id in ids]

    def _picture(self, id: int, until_s: float) -> str | None:
        try:
            return data_uri(self._send(Thumbnail(id, _PICTURES_S), until_s))
        except HashlightError:
            return None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _try(self, call: Call, left_s: float, url: str) -> Any:
        request = _request(_At(self._client, url), call, left_s)
        with _span(call, request):
            tracing.inject(request.headers)
            try:
                response = self._client.send(request)
            except httpx.HTTPError as error:
                raise _error_of_transport(error, url, call) from error
            return _read(call, response, self.pictures)


class AsyncHttpTransport:
    """Like `HttpTransport`, for asyncio. Belongs to one event loop."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        api_key: str | None,
        max_retries: int,
        collection: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._gateways = Gateways(urls, collection)
        self._max_retries = max_retries
        self._client = httpx.AsyncClient(headers=_headers(api_key), transport=transport)
        self._bits: int | None = None
        self._pictures = _pictures_of(self._gateways.urls, api_key, transport)

    def __repr__(self) -> str:
        return repr(str(self._gateways))

    async def send(self, call: Call) -> Any:
        """Execute a call."""
        until_s = time.monotonic() + call.timeout_s
        if isinstance(call, Get):
            return _joined([await self._send(part, until_s) for part in _parts(call)])
        if isinstance(call, Search | Histogram) and has_digits(call.queries):
            bits = self._bits
            if bits is None or not _fits(call, bits):
                bits = self._bits = _bits_of(await self._send(Describe(call.timeout_s), until_s))
            call = dataclasses.replace(call, queries=with_codes(call.queries, bits))
        return await self._send(call, until_s)

    async def _send(self, call: Call, until_s: float) -> Any:
        asking = _Asking(self._gateways, call, self._max_retries, until_s)
        while True:
            try:
                return await self._try(call, until_s - time.monotonic(), asking.url)
            except _ELSEWHERE as error:
                if wait_s := asking.wait_s(error):
                    await asyncio.sleep(wait_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _try(self, call: Call, left_s: float, url: str) -> Any:
        request = _request(_At(self._client, url), call, left_s)
        with _span(call, request):
            tracing.inject(request.headers)
            try:
                response = await self._client.send(request)
            except httpx.HTTPError as error:
                raise _error_of_transport(error, url, call) from error
            return _read(call, response, self._pictures)


def _span(call: Call, request: httpx.Request) -> AbstractContextManager[object]:
    """Return a span for one try of a call."""
    about = {"http.request.method": request.method, "server.address": request.url.host}
    return tracing.span(f"hashlight.{type(call).__name__.lower()}", about, kind="CLIENT")


def _fits(call: Search | Histogram, bits: int) -> bool:
    """Return whether all hexadecimal digits are codes of `bits` bits, as the collection had when it was last asked."""
    try:
        with_codes(call.queries, bits)
    except FileNotFoundError:
        return False
    return True


def _bits_of(about: Any) -> int:
    bits = about.get("bits") if isinstance(about, dict) else None
    if not isinstance(bits, int):
        raise ServerError("the server's answer does not tell the bits of its codes: is it a Hashlight gateway?")
    return bits


def _headers(api_key: str | None) -> dict[str, str]:
    return {"User-Agent": "hashlight"} | ({} if api_key is None else {"Authorization": f"Bearer {api_key}"})


class _Asking:
    """A call on its way: which gateway is asked, and how often all of them were."""

    def __init__(self, gateways: Gateways, call: Call, max_retries: int, until_s: float) -> None:
        self.url = gateways.next
        self._gateways, self._call, self._max_retries, self._until_s = gateways, call, max_retries, until_s
        self._asked = 1  # since the last pause
        self._round = 0

    def wait_s(self, error: HashlightError) -> float:
        """Return how long to wait before `url` is asked, which may have changed; raises `error` if it is no use."""
        other = self._gateways.after(self.url, self._call, error)
        if other is not None and self._asked < len(self._gateways.urls):
            self.url = other
            self._asked += 1
            return 0.0
        if not isinstance(error, _RETRIED):
            raise error
        wait_s = _wait_s(error, self._round, self._max_retries, self._until_s - time.monotonic())
        self.url = other or self.url
        self._asked = 1
        self._round += 1
        return wait_s


def _was_not_sent(error: ConnectionFailedError) -> bool:
    return isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout)


def _wait_s(error: HashlightError, attempt: int, max_retries: int, left_s: float) -> float:
    """Return how long to wait before the next try; raises `error` if no retry, or no time for one, is left."""
    wait_s: float = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt) * random.uniform(0.5, 1.0)
    if isinstance(error, OverloadedError):
        wait_s = max(wait_s, min(LONGEST_WAIT_S, error.retry_after_s))
    if attempt == max_retries or wait_s >= left_s:
        raise error
    return wait_s


def _pictures_of(urls: Sequence[str], api_key: str | None, transport: object | None) -> Thumbnails:
    """Return a function that fetches thumbnails over connections of its own.

    A notebook shows answers even after their client was closed, and cannot wait for an event loop.
    """
    if transport is not None:
        return lambda ids: [None] * len(ids)
    return functools.partial(_fetch_pictures, urls, api_key)


def _fetch_pictures(urls: Sequence[str], api_key: str | None, ids: Sequence[int]) -> list[str | None]:
    with contextlib.closing(HttpTransport(urls, api_key=api_key, max_retries=0)) as transport:
        return transport.pictures(ids)


def gateway_url(url: str) -> str:
    """Return the URL of a gateway, to which the paths of its interface are added; `/v1` may stand there already.

    Raises
    ------
    ValueError
        If it is not a URL, or has a query or a fragment.
    """
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"`target` must be the URL of a gateway or a collection's folder: {error}") from error
    if parts.query or parts.fragment:
        bare = str(parts.copy_with(query=None, fragment=None))
        raise ValueError(
            f"`target` must be the URL of a gateway without a query or fragment, got {url!r}: give {bare!r}"
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _of_collection(url: str, collection: str | None) -> str:
    """Return the address under which a server has all that concerns one of its collections."""
    return url if collection is None else f"{url}/collections/{quote(collection, safe='')}"


def _parts(call: Get) -> list[Get]:
    """Split a call into calls whose ids fit into a URL."""
    return [
        dataclasses.replace(call, ids=call.ids[first : first + _MAX_IDS]) for first in range(0, len(call.ids), _MAX_IDS)
    ]


def _joined(parts: list[Items]) -> Items:
    import pyarrow as pa

    if not parts:
        return Items(pa.table({"id": pa.array([], pa.int64()), "code": pa.array([], pa.binary())}))
    try:
        return Items(pa.concat_tables([part.to_arrow() for part in parts]))
    except pa.ArrowInvalid as error:
        raise NotReadyError("the collection changed while `ids` were read in parts: try again") from error


def _request(client: _At, call: Call, left_s: float) -> httpx.Request:
    """Return the request of a call that may take `left_s` more seconds."""
    if left_s <= 0:
        raise DeadlineExceededError(f"no answer within {call.timeout_s:g} s")
    timeout = httpx.Timeout(left_s + _GRACE_S, connect=min(CONNECT_S, left_s + _GRACE_S))
    timeout_ms = max(1, round(1000 * left_s))
    match call:
        case Search():
            return _search_request(client, call, timeout, timeout_ms)
        case Encode():
            images = [base64.b64encode(image.data).decode() for image in call.images]
            document = {"images": images, "timeout_ms": timeout_ms}
            return client.build_request("POST", "/v1/encode", json=document, timeout=timeout)
        case Get():
            params = {"ids": ",".join(map(str, call.ids)), "timeout_ms": str(timeout_ms)}
            return client.build_request("GET", "/v1/items", params=params, headers={"Accept": _ARROW}, timeout=timeout)
        case Count():
            document = {**call.options(), "timeout_ms": timeout_ms}
            return client.build_request("POST", "/v1/count", json=document, timeout=timeout)
        case Histogram():
            document = {"queries": [_as_json(query) for query in call.queries], **call.options()}
            document["timeout_ms"] = timeout_ms
            return client.build_request("POST", "/v1/histogram", json=document, timeout=timeout)
        case Facets() | Scroll():
            path = "/v1/facets" if isinstance(call, Facets) else "/v1/scroll"
            document = {**call.options(), "timeout_ms": timeout_ms}
            return client.build_request("POST", path, json=document, headers={"Accept": _ARROW}, timeout=timeout)
        case Put() | Update() | Delete():
            return _write_request(client, call, timeout, timeout_ms)
        case Thumbnail():
            path = f"/v1/items/{quote(str(call.id))}/thumbnail"
            return client.build_request("GET", path, params={"timeout_ms": timeout_ms}, timeout=timeout)
        case Describe():
            return client.build_request("GET", "/v1/collection", timeout=timeout)
        case Ready():
            return client.build_request("GET", "/health/ready", timeout=timeout)


def _search_request(client: _At, call: Search, timeout: httpx.Timeout, timeout_ms: int) -> httpx.Request:
    path = "/v1/search" if call.query.kind == "nearest" else "/v1/range_search"
    options = {**call.options(), "timeout_ms": timeout_ms}
    headers = {"Accept": _ARROW}
    short = not options.keys() & {"after", "rerank", "parameters"} and len(options.get("filter", "")) <= _MAX_FILTER
    if isinstance(call.queries, np.ndarray) and len(call.queries) > _JSON_CODES and short:
        params = {name: _as_text(value) for name, value in options.items()}
        headers["Content-Type"] = _ARROW
        return client.build_request(
            "POST", path, params=params, content=_codes_stream(call.queries), headers=headers, timeout=timeout
        )
    document = {"queries": [_as_json(query) for query in call.queries], **options}
    return client.build_request("POST", path, json=document, headers=headers, timeout=timeout)


def _write_request(client: _At, call: Write, timeout: httpx.Timeout, timeout_ms: int) -> httpx.Request:
    params = {"timeout_ms": str(timeout_ms)} | ({"wait": "visible"} if call.visible else {})
    headers = {"Idempotency-Key": call.key}
    if isinstance(call, Delete):
        return client.build_request(
            "DELETE", "/v1/items", params=params, json=call.options(), headers=headers, timeout=timeout
        )
    method = "PATCH"
    if isinstance(call, Put):
        method, params["on_conflict"] = "POST", "replace" if call.replaces else "refuse"
    return client.build_request(
        method,
        "/v1/items",
        params=params,
        content=_items_stream(call),
        headers={**headers, "Content-Type": _ARROW},
        timeout=timeout,
    )


def _items_stream(call: Put | Update) -> bytes:
    import pyarrow as pa

    table = pa.table({"id": call.ids})
    if isinstance(call, Put):
        if isinstance(call.items, np.ndarray):
            table = table.append_column("code", _code_column(call.items))
        else:
            table = table.append_column("image", pa.array([image.data for image in call.items], pa.binary()))
        if call.features is not None:
            values = pa.array(call.features.reshape(-1))
            table = table.append_column("features", pa.FixedSizeListArray.from_arrays(values, call.features.shape[1]))
        if call.thumbnails is not None:
            table = table.append_column("thumbnail", call.thumbnails)
    if call.attributes is not None:
        for name, column in zip(call.attributes.column_names, call.attributes.columns, strict=True):
            if name in table.column_names:
                raise ValueError(f"attribute `{name}` has the name of what is sent beside attributes: rename it")
            table = table.append_column(name, column)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, list) else str(value)


def _as_json(query: QueryInput) -> dict[str, Any]:
    if isinstance(query, Picture):
        return {"image": base64.b64encode(query.data).decode()}
    if isinstance(query, Address):
        return {"url": query.url}
    if isinstance(query, Text):
        return {"text": query.words}
    if isinstance(query, np.ndarray) and query.dtype == np.float32:
        return {"vector": query.tolist()}
    if isinstance(query, np.ndarray):
        return {"code": query.astype("<u8").tobytes().hex()}
    assert isinstance(query, int), "digits have become codes"
    return {"id": query}


def _codes_stream(codes: np.ndarray) -> bytes:
    import pyarrow as pa

    batch = pa.record_batch({"code": _code_column(codes)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _code_column(codes: np.ndarray) -> Any:
    import pyarrow as pa

    data = pa.py_buffer(codes.astype("<u8").tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(8 * codes.shape[1]), len(codes), [None, data])


def _error_of_transport(error: httpx.HTTPError, url: str, call: Call) -> HashlightError:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return DeadlineExceededError(f"{url} did not answer within {call.timeout_s:g} s")
    return ConnectionFailedError(f"{url} cannot be reached: {error or type(error).__name__}")


def _read(call: Call, response: httpx.Response, pictures: Thumbnails) -> Any:
    """Return the parsed answer, or raise the error that it reports."""
    if isinstance(call, Thumbnail) and response.status_code == 404 and _type_of(response) == "not_found":
        return None
    if response.status_code != 200:
        error = error_of(response.status_code, document_of(response), response.headers)
        error.request_id = response.headers.get("x-request-id")
        raise error
    try:
        return _parse(call, response, pictures)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ServerError(f"the server's answer cannot be read ({error!r}): is it a Hashlight gateway?") from error


def _parse(call: Call, response: httpx.Response, pictures: Thumbnails) -> Any:
    match call:
        case Search():
            table = _table(response)
            return SearchResponse(table.replace_schema_metadata(None), _frame(table), pictures)
        case Get():
            return Items(_table(response))
        case Count():
            return int(response.json()["count"])
        case Histogram():
            return np.array([result["counts"] for result in response.json()["results"]], np.int64)
        case Facets():
            table = _table(response)
            return ValueCounts(table.replace_schema_metadata(None), _frame(table))
        case Scroll():
            table = _table(response)
            return Page(table.replace_schema_metadata(None), _frame(table))
        case Encode():
            codes = [words_of(bytes.fromhex(code)) for code in response.json()["codes"]]
            return np.stack(codes)
        case Put() | Update() | Delete():
            answered = response.json()["version"]
            return None if answered is None else int(answered)
        case Thumbnail():
            return response.content
        case Describe():
            return response.json()
        case Ready():
            return None


def _table(response: httpx.Response) -> Any:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(response.content)) as reader:
        return reader.read_all()


def _frame(table: Any) -> Any:
    return json.loads(table.schema.metadata[b"hashlight"])


def document_of(response: httpx.Response) -> Any:
    """Return the body of an answer if it is JSON, otherwise None."""
    try:
        return response.json()
    except ValueError:
        return None


def _type_of(response: httpx.Response) -> str | None:
    document = document_of(response)
    return document["error"].get("type") if isinstance(document, dict) and "error" in document else None
