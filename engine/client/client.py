"""`SearchClient` and `AsyncSearchClient`: query one collection, over HTTP or in this process.

`engine.client.errors` shows the tree of exceptions.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashlight.engine.client.calls import (
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
    check_include,
)
from hashlight.engine.client.http import MAX_RETRIES, AsyncHttpTransport, HttpTransport
from hashlight.engine.client.queries import (
    Code,
    Image,
    QueryInput,
    is_url,
    read_ids,
    read_images,
    read_queries,
    read_texts,
    read_vectors,
)
from hashlight.engine.client.results import Cursor, Items, Page, SearchResponse, ValueCounts
from hashlight.engine.collection.rerank import Order, Rerank, check_order
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.filters.tokens import check_unicode
from hashlight.engine.ids import MAX_ID
from hashlight.engine.query import Query

if TYPE_CHECKING:
    import pyarrow as pa

    from hashlight.engine.features import FeatureValues
    from hashlight.engine.service.asking.encoding import Encoder
    from hashlight.engine.service.asking.searcher import Searcher

TIMEOUT_S = 10.0
BATCH_SIZE = 1000  # queries in a request of `stream_search`: some 10 kB each way, a few milliseconds


class SearchClient:
    """Queries one collection. Thread-safe.

    Parameters
    ----------
    target : str, sequence of str, Path or Searcher
        The URL of a gateway (`http://...` or `https://...`), the folder of a collection, which is opened in this
        process, or an existing searcher. Several URLs, in a sequence or separated by commas, are of gateways before the
        same shard servers: if one does not answer, another is asked.
    api_key : str, optional
        For a gateway.
    timeout_s : float
        For each call, including retries.
    max_retries : int
        If a gateway cannot be reached, is overloaded or is not ready.
    collection : str, optional
        Name of the one to ask, of several in one gateway.
    encoder : ImageEncoder or VectorEncoder, optional
        For images or embeddings, without a gateway to encode them. By default the collection's own encoder is opened
        when needed.
    transport : httpx.BaseTransport, optional
        Replaces the network.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from hashlight.engine.collection.collection import Collection
    >>> folder = tempfile.mkdtemp() + "/c"
    >>> codes = np.array([[0b0000], [0b0001], [0b0111]], np.uint64)
    >>> _ = Collection.create(folder, codes, bits=16, attributes={"label": ["a", "b", "a"]})
    >>> with SearchClient(folder) as client:
    ...     found = client.search(codes[0], k=2, filter='label == "a"', include=["attributes"])
    >>> found[0][1]
    Hit(id=2, distance=3, attributes={'label': 'a'}, code=None)
    """

    def __init__(
        self,
        target: str | Sequence[str] | Path | Searcher,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        max_retries: int = MAX_RETRIES,
        collection: str | None = None,
        encoder: Encoder | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        if gateways := _gateways_of(target):
            self._transport: Any = HttpTransport(
                gateways, api_key=api_key, max_retries=max_retries, collection=collection, transport=transport
            )
        else:
            from hashlight.engine.client.local import LocalTransport

            self._transport = LocalTransport(cast("str | Path | Searcher", target), encoder=encoder)

    def __repr__(self) -> str:
        """Show the target."""
        return f"SearchClient({self._transport!r})"

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the client."""
        self.close()

    def close(self) -> None:
        """Close connections and files."""
        self._transport.close()

    def search(
        self,
        queries: Image | int | Code | Sequence[Any] | None = None,
        k: int = 10,
        *,
        vector: ArrayLike | None = None,
        text: str | Sequence[str] | None = None,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        rerank: Rerank | Order | None = None,
        include: Sequence[str] = (),
        allow_partial: bool = True,
        timeout_s: float | None = None,
    ) -> SearchResponse:
        """Find the k nearest items of each query.

        Parameters
        ----------
        queries : one query, or a sequence of them
            An image (path, bytes, PIL image, uint8 array of shape (H, W), (H, W, 1) or (H, W, 3), or a URL for the
            gateway to fetch), the id of an item (to find more like it), or a code (uint64 array of shape (W,), or
            hexadecimal); codes may be one array (Q, W).
        k : int
        vector : array of float, shape (D,) or (Q, D), optional
            In the place of `queries`: embeddings, where the collection's encoder takes embeddings.
        text : str or sequence of str, optional
            In the place of `queries`: texts, where the network of the encoder embeds texts too.
        filter : str, optional
            Only items whose attributes match, such as `'label == 3 and price < 5.5'`; see `engine.filters.filter`.
        parameters : mapping of str to sequence of int, optional
            Lists of ids that `filter` names, at most 250,000 numbers in all: `filter="id not in :seen"` with
            `parameters={"seen": ids}`.
        rerank : Rerank, "asymmetric" or "hamming", optional
            The order of the answers. `Rerank(pool=100)` orders the nearest codes by fine features; queries must be
            images, embeddings or ids. "asymmetric", the default for images and embeddings, orders them by the queries'
            projections, which tell codes at the same distance apart; of codes and ids the signs alone are known, and
            the order is that of Hamming distances. "hamming" is that for all.
            `order` of the response says which it is.
        include : sequence of {"attributes", "code", "explain"}
            What to return for each hit besides id and distance.
        allow_partial : bool
            Answer from the shards that respond; `coverage` names the others.
        timeout_s : float, optional

        Returns
        -------
        SearchResponse
            One entry for each query, in order, even for a single query.
        """
        query = Query(k=k, filter=filter, parameters=Parameters.of(parameters))
        return self._search(_asked(queries, vector, text), query, include, allow_partial, timeout_s, rerank)

    def range_search(
        self,
        queries: Image | int | Code | Sequence[Any] | None = None,
        radius: int = 4,
        limit: int = 100,
        *,
        vector: ArrayLike | None = None,
        text: str | Sequence[str] | None = None,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        after: Cursor | tuple[int, int] | None = None,
        include: Sequence[str] = (),
        allow_partial: bool = False,
        timeout_s: float | None = None,
    ) -> SearchResponse:
        """Find all items within a Hamming radius of each query.

        Parameters
        ----------
        radius : int
            Inclusive.
        limit : int
            Keep this many nearest items of each query; `truncated` of its hits says whether there were more.
        after : Cursor or (distance, id), optional
            Only items that come after this one; `next` of truncated hits, to read all of a single query. A cursor with
            a version is answered from that version, or refused (VersionGoneError).
        allow_partial : bool
            If not set, a missing shard raises IncompleteError.
        queries, vector, text, filter, parameters, include, timeout_s
            As in `search`.
        """
        query = Query(radius=radius, limit=limit, filter=filter, parameters=Parameters.of(parameters))
        return self._search(_asked(queries, vector, text), query, include, allow_partial, timeout_s, after=after)

    def stream_search(
        self,
        queries: Code | Iterable[Any],
        k: int = 10,
        *,
        batch_size: int = BATCH_SIZE,
        **options: Any,
    ) -> Iterator[SearchResponse]:
        """Find the k nearest items of any number of queries, a batch at a time.

        Parameters
        ----------
        queries : ndarray of uint64, shape (Q, W), or iterable of queries
            An iterable is read lazily.
        k : int
        batch_size : int
            Number of queries in a request.
        **options
            As in `search`.

        Yields
        ------
        SearchResponse
            For each batch, in order.
        """
        for batch in _batches(queries, batch_size):
            yield self.search(batch, k, **options)

    def encode(self, images: Image | Sequence[Image], *, timeout_s: float | None = None) -> NDArray[np.uint64]:
        """Return the codes (N, W) of images: paths, bytes, PIL images or uint8 arrays."""
        codes: NDArray[np.uint64] = self._transport.send(Encode(read_images(images), self._seconds(timeout_s)))
        return codes

    def get(self, ids: int | Sequence[int], *, timeout_s: float | None = None) -> Items:
        """Return stored items in the order requested; IdNotFoundError if one does not exist."""
        items: Items = self._transport.send(Get(read_ids(ids), self._seconds(timeout_s)))
        return items

    def count(
        self,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> int:
        """Return the number of items that satisfy `filter`, or of all; IncompleteError if shards are missing.

        Parameters
        ----------
        filter, parameters, timeout_s
            As in `search`.
        """
        count: int = self._transport.send(Count(_unicode(filter), Parameters.of(parameters), self._seconds(timeout_s)))
        return count

    def facets(
        self,
        column: str,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        limit: int = 100,
        timeout_s: float | None = None,
    ) -> ValueCounts:
        """Count how often each value of an attribute occurs among the items that satisfy `filter`.

        Parameters
        ----------
        column : str
            An attribute of text, numbers, dates or times, true and false, or lists of them.
        filter, parameters, timeout_s
            As in `search`.
        limit : int
            Return this many most frequent values.
        """
        call = Facets(column, _unicode(filter), Parameters.of(parameters), limit, self._seconds(timeout_s))
        found: ValueCounts = self._transport.send(call)
        return found

    def histogram(
        self,
        queries: Image | int | Code | Sequence[Any] | None = None,
        *,
        vector: ArrayLike | None = None,
        text: str | Sequence[str] | None = None,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        allow_partial: bool = False,
        timeout_s: float | None = None,
    ) -> NDArray[np.int64]:
        """Count how many items lie at each Hamming distance of each query, exactly.

        Parameters
        ----------
        queries, vector, text, filter, parameters, timeout_s
            As in `search`.
        allow_partial : bool
            Count in the shards that respond; if not set, a missing shard raises IncompleteError.

        Returns
        -------
        ndarray of int64, shape (Q, bits + 1)
            Items at distance 0, 1, ... and the number of bits.
        """
        asked, lists = _asked(queries, vector, text), Parameters.of(parameters)
        call = Histogram(asked, _unicode(filter), lists, allow_partial, self._seconds(timeout_s))
        counts: NDArray[np.int64] = self._transport.send(call)
        return counts

    def scroll(
        self,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        after: int | None = None,
        limit: int = 100,
        version: int | None = None,
        sequence: int = 0,
        timeout_s: float | None = None,
    ) -> Page:
        """Return a page of the stored items that satisfy `filter`, in ascending order of their ids.

        Parameters
        ----------
        filter, parameters, timeout_s
            As in `search`.
        after : int, optional
            Only ids above this one, `next` of the page before.
        limit : int
            Items of a page.
        version : int, optional
            Version of the collection that must answer; VersionGoneError if it is not served any more.
        sequence : int
            With `version`: that of the page before, whose writes in the server's log are on top of it again.
        """
        lists, seconds = Parameters.of(parameters), self._seconds(timeout_s)
        page: Page = self._transport.send(Scroll(_unicode(filter), lists, after, limit, version, sequence, seconds))
        return page

    def scan(
        self,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        limit: int = 1000,
        timeout_s: float | None = None,
    ) -> Iterator[Page]:
        """Read all stored items that satisfy `filter`, page by page, in ascending order of their ids.

        Items that are there all the while are read once each, also if others come and go.

        Parameters
        ----------
        filter, parameters, limit
            As in `scroll`.
        timeout_s : float, optional
            For each page.

        Yields
        ------
        Page
            Not empty.
        """
        after: int | None = None
        while len(page := self.scroll(filter, parameters, after=after, limit=limit, timeout_s=timeout_s)):
            yield page
            if (after := page.next) is None:
                return

    def add(
        self,
        items: Code | Image | Sequence[Image],
        *,
        ids: ArrayLike,
        attributes: pa.Table | Mapping[str, Any] | None = None,
        features: FeatureValues | None = None,
        thumbnails: Sequence[bytes | None] | pa.Array | None = None,
        visible: bool = False,
        timeout_s: float | None = None,
    ) -> int | None:
        """Add items, none of whose ids may be there; IdExistsError if one is. Otherwise as `upsert`."""
        call = _put(items, ids, (attributes, features, thumbnails), visible, self._seconds(timeout_s), replaces=False)
        return _version(self._transport.send(call))

    def upsert(
        self,
        items: Code | Image | Sequence[Image],
        *,
        ids: ArrayLike,
        attributes: pa.Table | Mapping[str, Any] | None = None,
        features: FeatureValues | None = None,
        thumbnails: Sequence[bytes | None] | pa.Array | None = None,
        visible: bool = False,
        timeout_s: float | None = None,
    ) -> int | None:
        """Store items, in the place of those that have their ids. A gateway takes them in requests of up to 10,000.

        Parameters
        ----------
        items : ndarray of uint64, shape (N, W), or images
            Codes, or images for the collection's encoder, as those of `encode`.
        ids : sequence of int, shape (N,)
            Distinct, 0 or more.
        attributes : pyarrow.Table or mapping of columns, optional
            N rows, in the types of the collection; attributes that are missing are null.
        features : ndarray of float16 or float32, shape (N, F), optional
            Needed with codes if the collection has fine features; of images the encoder makes them.
        thumbnails : sequence of bytes or None, length N, optional
            Small encoded pictures.
        visible : bool
            Have it committed at once, and return when every server has the version; otherwise return when the write
            cannot be lost, and this server shows it if it searches itself.
        timeout_s : float, optional

        Returns
        -------
        int or None
            The first version of the collection that has the items. None: the server has them in its log, and commits
            them soon.

        Raises
        ------
        PermissionDeniedError
            If the server only reads, or the key does.
        ValueError, TypeError
            If an argument is invalid, or does not fit what the collection stores.
        """
        call = _put(items, ids, (attributes, features, thumbnails), visible, self._seconds(timeout_s), replaces=True)
        return _version(self._transport.send(call))

    def update(
        self,
        ids: ArrayLike,
        attributes: pa.Table | Mapping[str, Any],
        *,
        visible: bool = False,
        timeout_s: float | None = None,
    ) -> int | None:
        """Change attributes of items; IdNotFoundError if one is not there. Returns what `upsert` does.

        Parameters
        ----------
        ids : sequence of int, shape (M,)
            Distinct.
        attributes : pyarrow.Table or mapping of columns
            M rows, with the attributes that change.
        visible, timeout_s
            As in `upsert`.
        """
        call = Update(_some_ids(ids), _table(attributes), visible, self._seconds(timeout_s))
        return _version(self._transport.send(call))

    def delete(self, ids: ArrayLike, *, visible: bool = False, timeout_s: float | None = None) -> int | None:
        """Delete items, as far as they are there. Returns what `upsert` does.

        Parameters
        ----------
        ids : sequence of int, shape (M,)
        visible, timeout_s
            As in `upsert`.
        """
        call = Delete(_some_ids(ids), None, None, visible, self._seconds(timeout_s))
        return _version(self._transport.send(call))

    def delete_where(
        self,
        filter: str,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        visible: bool = False,
        timeout_s: float | None = None,
    ) -> int | None:
        """Delete all items that satisfy a filter. Returns what `upsert` does.

        Parameters
        ----------
        filter, parameters
            As in `search`.
        visible, timeout_s
            As in `upsert`.
        """
        lists = Parameters.of(parameters)
        call = Delete(None, _unicode(filter), lists, visible, self._seconds(timeout_s))
        return _version(self._transport.send(call))

    def thumbnail(self, id: int, *, timeout_s: float | None = None) -> bytes | None:
        """Return the thumbnail of an item, None if it has none."""
        picture: bytes | None = self._transport.send(Thumbnail(read_ids(id)[0], self._seconds(timeout_s)))
        return picture

    def describe(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Describe the collection being served: bits, rows, shards, version, encoder, attributes."""
        document: dict[str, Any] = self._transport.send(Describe(self._seconds(timeout_s)))
        return document

    def ready(self, *, timeout_s: float | None = None) -> None:
        """Raise NotReadyError unless searches are answered; in process a test search is made."""
        self._transport.send(Ready(self._seconds(timeout_s)))

    def _search(
        self,
        queries: Any,
        query: Query,
        include: Sequence[str],
        allow_partial: bool,
        timeout_s: float | None,
        rerank: Rerank | Order | None = None,
        after: Cursor | tuple[int, int] | None = None,
    ) -> SearchResponse:
        call = _search_call(queries, query, include, allow_partial, self._seconds(timeout_s), rerank, after)
        response: SearchResponse = self._transport.send(call)
        return response

    def _seconds(self, timeout_s: float | None) -> float:
        return _seconds(self._timeout_s if timeout_s is None else timeout_s)


class AsyncSearchClient:
    """Like `SearchClient`, for asyncio. Belongs to one event loop.

    Examples
    --------
    ::

        async with AsyncSearchClient("http://127.0.0.1:8000") as client:
            found = await client.search("shoe.jpg", k=5)
    """

    def __init__(
        self,
        target: str | Sequence[str] | Path | Searcher,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        max_retries: int = MAX_RETRIES,
        collection: str | None = None,
        encoder: Encoder | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        if gateways := _gateways_of(target):
            self._transport: Any = AsyncHttpTransport(
                gateways, api_key=api_key, max_retries=max_retries, collection=collection, transport=transport
            )
        else:
            from hashlight.engine.client.local import AsyncLocalTransport

            self._transport = AsyncLocalTransport(cast("str | Path | Searcher", target), encoder=encoder)

    def __repr__(self) -> str:
        """Show the target."""
        return f"AsyncSearchClient({self._transport!r})"

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the client."""
        await self.close()

    async def close(self) -> None:
        """Close connections and files."""
        await self._transport.close()

    async def search(
        self,
        queries: Image | int | Code | Sequence[Any] | None = None,
        k: int = 10,
        *,
        vector: ArrayLike | None = None,
        text: str | Sequence[str] | None = None,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        rerank: Rerank | Order | None = None,
        include: Sequence[str] = (),
        allow_partial: bool = True,
        timeout_s: float | None = None,
    ) -> SearchResponse:
        """See `SearchClient.search`."""
        query = Query(k=k, filter=filter, parameters=Parameters.of(parameters))
        return await self._search(_asked(queries, vector, text), query, include, allow_partial, timeout_s, rerank)

    async def range_search(
        self,
        queries: Image | int | Code | Sequence[Any] | None = None,
        radius: int = 4,
        limit: int = 100,
        *,
        vector: ArrayLike | None = None,
        text: str | Sequence[str] | None = None,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        after: Cursor | tuple[int, int] | None = None,
        include: Sequence[str] = (),
        allow_partial: bool = False,
        timeout_s: float | None = None,
    ) -> SearchResponse:
        """See `SearchClient.range_search`."""
        query = Query(radius=radius, limit=limit, filter=filter, parameters=Parameters.of(parameters))
        return await self._search(_asked(queries, vector, text), query, include, allow_partial, timeout_s, after=after)

    async def stream_search(
        self,
        queries: Code | Iterable[Any],
        k: int = 10,
        *,
        batch_size: int = BATCH_SIZE,
        **options: Any,
    ) -> AsyncIterator[SearchResponse]:
        """See `SearchClient.stream_search`."""
        for batch in _batches(queries, batch_size):
            yield await self.search(batch, k, **options)

    async def encode(self, images: Image | Sequence[Image], *, timeout_s: float | None = None) -> NDArray[np.uint64]:
        """See `SearchClient.encode`."""
        codes: NDArray[np.uint64] = await self._transport.send(Encode(read_images(images), self._seconds(timeout_s)))
        return codes

    async def get(self, ids: int | Sequence[int], *, timeout_s: float | None = None) -> Items:
        """See `SearchClient.get`."""
        items: Items = await self._transport.send(Get(read_ids(ids), self._seconds(timeout_s)))
        return items

    async def count(
        self,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> int:
        """See `SearchClient.count`."""
        call = Count(_unicode(filter), Parameters.of(parameters), self._seconds(timeout_s))
        count: int = await self._transport.send(call)
        return count

    async def facets(
        self,
        column: str,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        limit: int = 100,
        timeout_s: float | None = None,
    ) -> ValueCounts:
        """See `SearchClient.facets`."""
        call = Facets(column, _unicode(filter), Parameters.of(parameters), limit, self._seconds(timeout_s))
        found: ValueCounts = await self._transport.send(call)
        return found

    async def histogram(
        self,
        queries: Image | int | Code | Sequence[Any] | None = None,
        *,
        vector: ArrayLike | None = None,
        text: str | Sequence[str] | None = None,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        allow_partial: bool = False,
        timeout_s: float | None = None,
    ) -> NDArray[np.int64]:
        """See `SearchClient.histogram`."""
        asked, lists = _asked(queries, vector, text), Parameters.of(parameters)
        call = Histogram(asked, _unicode(filter), lists, allow_partial, self._seconds(timeout_s))
        counts: NDArray[np.int64] = await self._transport.send(call)
        return counts

    async def scroll(
        self,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        after: int | None = None,
        limit: int = 100,
        version: int | None = None,
        sequence: int = 0,
        timeout_s: float | None = None,
    ) -> Page:
        """See `SearchClient.scroll`."""
        lists, seconds = Parameters.of(parameters), self._seconds(timeout_s)
        call = Scroll(_unicode(filter), lists, after, limit, version, sequence, seconds)
        page: Page = await self._transport.send(call)
        return page

    async def scan(
        self,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        limit: int = 1000,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Page]:
        """See `SearchClient.scan`."""
        after: int | None = None
        while len(page := await self.scroll(filter, parameters, after=after, limit=limit, timeout_s=timeout_s)):
            yield page
            if (after := page.next) is None:
                return

    async def add(
        self,
        items: Code | Image | Sequence[Image],
        *,
        ids: ArrayLike,
        attributes: pa.Table | Mapping[str, Any] | None = None,
        features: FeatureValues | None = None,
        thumbnails: Sequence[bytes | None] | pa.Array | None = None,
        visible: bool = False,
        timeout_s: float | None = None,
    ) -> int | None:
        """See `SearchClient.add`."""
        call = _put(items, ids, (attributes, features, thumbnails), visible, self._seconds(timeout_s), replaces=False)
        return _version(await self._transport.send(call))

    async def upsert(
        self,
        items: Code | Image | Sequence[Image],
        *,
        ids: ArrayLike,
        attributes: pa.Table | Mapping[str, Any] | None = None,
        features: FeatureValues | None = None,
        thumbnails: Sequence[bytes | None] | pa.Array | None = None,
        visible: bool = False,
        timeout_s: float | None = None,
    ) -> int | None:
        """See `SearchClient.upsert`."""
        call = _put(items, ids, (attributes, features, thumbnails), visible, self._seconds(timeout_s), replaces=True)
        return _version(await self._transport.send(call))

    async def update(
        self,
        ids: ArrayLike,
        attributes: pa.Table | Mapping[str, Any],
        *,
        visible: bool = False,
        timeout_s: float | None = None,
    ) -> int | None:
        """See `SearchClient.update`."""
        call = Update(_some_ids(ids), _table(attributes), visible, self._seconds(timeout_s))
        return _version(await self._transport.send(call))

    async def delete(self, ids: ArrayLike, *, visible: bool = False, timeout_s: float | None = None) -> int | None:
        """See `SearchClient.delete`."""
        call = Delete(_some_ids(ids), None, None, visible, self._seconds(timeout_s))
        return _version(await self._transport.send(call))

    async def delete_where(
        self,
        filter: str,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        visible: bool = False,
        timeout_s: float | None = None,
    ) -> int | None:
        """See `SearchClient.delete_where`."""
        lists = Parameters.of(parameters)
        call = Delete(None, _unicode(filter), lists, visible, self._seconds(timeout_s))
        return _version(await self._transport.send(call))

    async def thumbnail(self, id: int, *, timeout_s: float | None = None) -> bytes | None:
        """See `SearchClient.thumbnail`."""
        picture: bytes | None = await self._transport.send(Thumbnail(read_ids(id)[0], self._seconds(timeout_s)))
        return picture

    async def describe(self, *, timeout_s: float | None = None) -> dict[str, Any]:
        """See `SearchClient.describe`."""
        document: dict[str, Any] = await self._transport.send(Describe(self._seconds(timeout_s)))
        return document

    async def ready(self, *, timeout_s: float | None = None) -> None:
        """See `SearchClient.ready`."""
        await self._transport.send(Ready(self._seconds(timeout_s)))

    async def _search(
        self,
        queries: Any,
        query: Query,
        include: Sequence[str],
        allow_partial: bool,
        timeout_s: float | None,
        rerank: Rerank | Order | None = None,
        after: Cursor | tuple[int, int] | None = None,
    ) -> SearchResponse:
        call = _search_call(queries, query, include, allow_partial, self._seconds(timeout_s), rerank, after)
        response: SearchResponse = await self._transport.send(call)
        return response

    def _seconds(self, timeout_s: float | None) -> float:
        return _seconds(self._timeout_s if timeout_s is None else timeout_s)


def _put(
    items: Any, ids: ArrayLike, beside: tuple[Any, Any, Any], visible: bool, timeout_s: float, *, replaces: bool
) -> Put:
    attributes, features, thumbnails = beside
    ids_N = _some_ids(ids)
    is_codes = isinstance(items, np.ndarray) and items.dtype == np.uint64
    read = np.atleast_2d(items) if is_codes else read_images(items)
    if len(read) != len(ids_N) or not len(read):
        raise ValueError(f"`ids` must have one id for each item, at least one, got {len(ids_N)} for {len(read)} items")
    return Put(
        items=read,
        ids=ids_N,
        attributes=None if attributes is None else _table(attributes),
        features=features,
        thumbnails=None if thumbnails is None else _thumbnails(thumbnails),
        replaces=replaces,
        visible=visible,
        timeout_s=timeout_s,
    )


def _version(answered: Any) -> int | None:
    return None if answered is None else int(answered)


def _some_ids(ids: ArrayLike) -> NDArray[np.int64]:
    found = np.atleast_1d(np.asarray(ids))
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise TypeError(f"`ids` must be whole numbers of shape (M,), got {found.dtype} of shape {found.shape}")
    if found.dtype == np.uint64 and found.size and found.max() > MAX_ID:
        raise ValueError(f"`ids` must be at most {MAX_ID}, got {found.max()}")
    return found.astype(np.int64)


def _table(attributes: Any) -> Any:
    import pyarrow as pa

    return attributes if isinstance(attributes, pa.Table) else pa.table(dict(attributes))


def _thumbnails(thumbnails: Any) -> Any:
    import pyarrow as pa

    if isinstance(thumbnails, pa.ChunkedArray):
        thumbnails = thumbnails.combine_chunks()
    return thumbnails if isinstance(thumbnails, pa.Array) else pa.array(list(thumbnails), pa.binary())


def _unicode(filter: str | None) -> str | None:
    """Return a filter, or raise FilterError for half of a surrogate pair, which cannot be sent."""
    if isinstance(filter, str):
        check_unicode(filter)
    return filter


def _gateways_of(target: object) -> list[str]:
    """Return the URLs of the gateways that a target names: one, several separated by commas, or a sequence."""
    if isinstance(target, list | tuple):
        if not target or not all(isinstance(one, str) and is_url(one) for one in target):
            raise ValueError(f"several targets must be URLs of gateways that answer the same, got {target!r}")
        return list(target)
    if not isinstance(target, str):
        return []
    parts = [part.strip() for part in target.split(",")]
    if len(parts) > 1 and is_url(parts[0]):
        return _gateways_of(parts)
    if re.match(r"[\w.-]+:\d+(/|$)", target) and not Path(target).exists():
        raise ValueError(f"`target` must be http://..., https://... or a collection's folder, got {target!r}")
    return [target] if is_url(target) else []


def _seconds(timeout_s: float) -> float:
    if not timeout_s > 0:
        raise ValueError(f"`timeout_s` must be above 0, got {timeout_s}")
    return timeout_s


def _asked(queries: Any, vector: ArrayLike | None, text: str | Sequence[str] | None) -> Code | list[QueryInput]:
    """Return what is searched for."""
    if sum(given is not None for given in (queries, vector, text)) != 1:
        raise TypeError("give one of `queries`, `vector` and `text`")
    if text is not None:
        return read_texts(text)
    return read_queries(queries) if vector is None else read_vectors(vector)


def _search_call(
    asked: Code | list[QueryInput],
    query: Query,
    include: Sequence[str],
    allow_partial: bool,
    timeout_s: float,
    rerank: Rerank | Order | None,
    after: Cursor | tuple[int, int] | None,
) -> Search:
    check_order(rerank)
    if isinstance(query.filter, str):
        check_unicode(query.filter)
    told = check_include(include)
    at = Cursor(0, 0) if after is None else Cursor(*after)
    if after is not None:
        query = query._replace(after=(at.distance, at.id))
        if len(asked) > 1:
            raise ValueError(f"`after` goes with a single query, whose answer it ends, got {len(asked)} queries")
    return Search(
        queries=asked,
        version=at.version,
        sequence=at.sequence,
        query=query._replace(explain="explain" in told),
        rerank=rerank,
        include=told,
        allow_partial=allow_partial,
        timeout_s=timeout_s,
    )


def _batches(queries: Any, size: int) -> Iterator[Any]:
    if size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {size}")
    if isinstance(queries, np.ndarray):
        yield from (queries[start : start + size] for start in range(0, len(queries), size))
        return
    batch: list[Any] = []
    for query in queries:
        batch.append(query)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
