"""The gateway: answers requests over HTTP; the routes are in `engine.service.api.app`.

A gateway is stateless, so any number can run side by side. The event loop does I/O, threads search. A search occupies
one thread until it ends, even after its client has given up; at most `Limits.in_flight` run at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.errors import (
    DeadlineExceededError,
    IdNotFoundError,
    IncompleteError,
    NotReadyError,
    OverloadedError,
)
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.query import Query
from hashlight.engine.results import Coverage
from hashlight.engine.service.api import bodies, schemas
from hashlight.engine.service.api.searching import Body, SearchThreads, begin_body
from hashlight.engine.service.asking.beside import Beside
from hashlight.engine.service.asking.budget import Account, Budget
from hashlight.engine.service.asking.encoding import (
    Encoded,
    Encoder,
    EncodingThreads,
    VectorRefusedError,
    encode_vectors,
    is_encoder_of,
    takes_images,
    takes_texts,
    takes_vectors,
)
from hashlight.engine.service.asking.following import Pending
from hashlight.engine.service.asking.rendering import (
    facets_pieces,
    hex_codes,
    item_pieces,
    items_pieces,
    json_bytes,
    page_frame,
    table_pieces,
    with_frame,
)
from hashlight.engine.service.asking.resolving import Sorted, stored_codes
from hashlight.engine.service.asking.retrieval import Ask, stored_items, stored_page, time_left
from hashlight.engine.service.asking.searcher import Searcher
from hashlight.engine.service.door.fetch import ImageFetcher
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.problems import RequestError, invalid, named
from hashlight.engine.service.telemetry.cluster import RouterCollector
from hashlight.engine.service.telemetry.metrics import Metrics
from hashlight.engine.service.telemetry.requests import current, note
from hashlight.engine.writing.committing import State

T = TypeVar("T")

logger = logging.getLogger(__name__)

_PICTURES = (
    (b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG", "image/png"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp")
)  # fmt: skip


class Page(NamedTuple):
    """A page of items; see `engine.service.asking.retrieval.stored_page`."""

    filter: str | None
    parameters: Parameters | None
    after: int | None
    limit: int
    version: int | None
    sequence: int


class Gateway:
    """Answers requests for one collection. Belongs to one event loop.

    Parameters
    ----------
    searcher : Searcher
        Not closed here.
    encoder : ImageEncoder, VectorEncoder or None
        Without one, queries must be codes or ids.
    limits : Limits
    fetcher : ImageFetcher or None
        Without one, queries by URL are refused.
    metrics : Metrics
    scale : callable or None
        Sets the number of replicas of every group; returns when they are ready.
    pending : callable or None
        Returns the live version while it cannot be served.
    written : callable or None
        Returns what is in the write log; None if writes are not accepted.
    beside : Beside
    """

    def __init__(
        self,
        searcher: Searcher,
        *,
        encoder: Encoder | None,
        limits: Limits,
        fetcher: ImageFetcher | None,
        metrics: Metrics,
        scale: Callable[[int], None] | None,
        pending: Callable[[], Pending | None] | None,
        written: Callable[[], State] | None,
        beside: Beside,
    ) -> None:
        self.searcher = searcher
        self.beside = beside
        self.limits = limits
        self.metrics = metrics
        self._fetcher = fetcher
        self._scale = scale
        self._written = written
        self._pending = pending or (lambda: None)
        self._missing: frozenset[str] = frozenset()
        self._searches = SearchThreads(searcher, threads=limits.in_flight, metrics=metrics)
        self._vectors = encoder if encoder is not None and takes_vectors(encoder) else None
        self._images: EncodingThreads | None = None
        if encoder is not None and takes_images(encoder):
            self._images = EncodingThreads(encoder, max_pixels=limits.pixels, metrics=metrics)
        self._budget = Budget(each_bytes=limits.answer_bytes, total_bytes=limits.answers_bytes)
        self._requests = 0
        self._proof: asyncio.Task[Coverage] | None = None
        self._scaling = asyncio.Lock()
        metrics.refresh_by(self.note_state)
        metrics.registry.register(RouterCollector(searcher.stats))

    @property
    def pending(self) -> Pending | None:
        """The live version, while it cannot be served."""
        return self._pending()

    @property
    def written(self) -> State | None:
        """What is in the write log; None if writes are not accepted."""
        return None if self._written is None else self._written()

    async def close(self) -> None:
        """Release threads and connections."""
        self._searches.close()
        if self._images is not None:
            self._images.close()
        if self._fetcher is not None:
            await self._fetcher.close()

    async def search(self, request: Request, body_model: type[Any], options_model: type[Any]) -> Response:
        """Answer a search of either kind, given the models of its body and of its options."""
        arrived_s = time.monotonic()
        timing_ms: dict[str, float] = {}
        with self.metrics.stage("read", timing_ms):
            asked = await bodies.read_search(
                request, body_model, options_model, bits=self.searcher.bits, limits=self.limits
            )
        self._check(asked.options, len(asked.queries.codes))
        deadline_s = arrived_s + self.timeout_s(asked.options.timeout_ms)
        async with self.within(request, deadline_s) as account:
            ask = await self._resolve(asked, deadline_s, timing_ms)
            body = await self._searches.search(
                ask,
                deadline_s=deadline_s,
                arrow=asked.arrow,
                timing_ms=timing_ms,
                hold=account.hold,
                shows_explain="explain" in asked.options.include,
            )
        return self._response(body, arrow=asked.arrow)

    async def encode(self, request: Request) -> Response:
        """Return the codes of images, or of queries of any kind."""
        arrived_s = time.monotonic()
        timing_ms: dict[str, float] = {}
        bits = self.searcher.bits
        with self.metrics.stage("read", timing_ms):
            queries, timeout_ms = await bodies.read_to_encode(request, bits=bits, limits=self.limits)
        deadline_s = arrived_s + self.timeout_s(timeout_ms)
        async with self.within(request, deadline_s):
            found = await self._look_up(queries, None, deadline_s, timing_ms)
        codes = queries.resolve(found, None, is_asked=False).codes
        document = {
            "codes": hex_codes(codes, bits=bits),
            "bits": bits,
            "fingerprint": self.searcher.fingerprint,
            "timing_ms": timing_ms,
        }
        return json_response(document)

    async def count(self, request: Request) -> Response:
        """Count items."""
        arrived_s = time.monotonic()
        asked = await bodies.read_document(request, schemas.CountBody, self.limits)
        lists, deadline_s = bodies.lists_of(asked), arrived_s + self.timeout_s(asked.timeout_ms)
        async with self.within(request, deadline_s):
            count, coverage = await self._searches.run_named(
                lambda: self.searcher.count(asked.filter, lists, timeout_s=time_left(deadline_s))
            )
        note(version=coverage.version, coverage=coverage.share)
        return json_response({"count": count, "version": coverage.version})

    async def facets(self, request: Request) -> Response:
        """Count the values of an attribute."""
        arrived_s = time.monotonic()
        asked = await bodies.read_document(request, schemas.FacetsBody, self.limits)
        if asked.limit > self.limits.k:
            raise invalid(f"`limit` must be 1 to {self.limits.k}, got {asked.limit}", "limit")
        lists, deadline_s = bodies.lists_of(asked), arrived_s + self.timeout_s(asked.timeout_ms)
        arrow = bodies.wants_arrow(request)
        async with self.within(request, deadline_s) as account:

            def read() -> Body:
                table, coverage = self.searcher.facets(
                    asked.column, asked.filter, lists, limit=asked.limit, timeout_s=time_left(deadline_s)
                )
                account.hold(table.nbytes)
                note(version=coverage.version, coverage=coverage.share)
                frame = {"column": asked.column, "version": coverage.version}
                return begin_body(table_pieces(with_frame(table, frame)) if arrow else facets_pieces(table, frame))

            return self._response(await self._searches.run_named(read), arrow=arrow)

    async def scroll(self, request: Request) -> Response:
        """Return a page of stored items, as the body asks."""
        arrived_s = time.monotonic()
        asked = await bodies.read_document(request, schemas.ScrollBody, self.limits)
        page = Page(asked.filter, bodies.lists_of(asked), asked.after, asked.limit, asked.version, asked.sequence)
        return await self._page(request, page, arrived_s + self.timeout_s(asked.timeout_ms))

    async def page(self, request: Request, asked: Page, timeout_ms: int | None) -> Response:
        """Return a page of stored items."""
        return await self._page(request, asked, time.monotonic() + self.timeout_s(timeout_ms))

    async def _page(self, request: Request, asked: Page, deadline_s: float) -> Response:
        if asked.limit > self.limits.queries:
            raise invalid(f"`limit` must be 1 to {self.limits.queries}, got {asked.limit}", "limit")
        arrow = bodies.wants_arrow(request)
        async with self.within(request, deadline_s) as account:

            def read() -> Body:
                timeout_s = time_left(deadline_s)
                table, coverage = stored_page(self.searcher, **asked._asdict(), timeout_s=timeout_s, hold=account.hold)
                note(version=coverage.version, coverage=coverage.share)
                frame = page_frame(table, coverage, limit=asked.limit)
                return begin_body(table_pieces(with_frame(table, frame)) if arrow else items_pieces(table, frame))

            return self._response(await self._searches.run_named(read), arrow=arrow)

    async def items(self, request: Request, ids: Sequence[int], timeout_ms: int | None) -> Response:
        """Return stored items."""
        arrow, timeout_s = bodies.wants_arrow(request), self.timeout_s(timeout_ms)
        async with self.within(request, time.monotonic() + timeout_s) as account:

            def read() -> Body:
                table = stored_items(self.searcher, ids, timeout_s=timeout_s, hold=account.hold)
                return begin_body(table_pieces(table) if arrow else items_pieces(table))

            return self._response(await self._searches.run(read), arrow=arrow)

    async def item(self, request: Request, id: int, timeout_ms: int | None) -> Response:
        """Return one stored item."""
        timeout_s = self.timeout_s(timeout_ms)
        async with self.within(request, time.monotonic() + timeout_s) as account:

            def read() -> Body:
                table = stored_items(self.searcher, [id], timeout_s=timeout_s, hold=account.hold)
                return begin_body(item_pieces(table))

            return self._response(await self._searches.run(read), arrow=False)

    async def thumbnail(self, request: Request, id: int, timeout_ms: int | None) -> Response:
        """Return the thumbnail of an item."""
        timeout_s = self.timeout_s(timeout_ms)
        async with self.within(request, time.monotonic() + timeout_s):
            data = await self._searches.run(lambda: self.searcher.thumbnail(id, timeout_s=timeout_s))
        if data is None:
            raise RequestError(404, "not_found", f"item {id} has no thumbnail", field="id")
        kind = next((name for magic, name in _PICTURES if data.startswith(magic)), "application/octet-stream")
        return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    async def describe(self) -> dict[str, Any]:
        """Describe the collection and the limits."""
        limits = self.limits
        told = (
            "body_bytes",
            "text_bytes",
            "answer_bytes",
            "pixels",
            "queries",
            "images",
            "results",
            "k",
            "longest_timeout_s",
        )
        return {
            **await asyncio.to_thread(self.searcher.describe),
            "encodes_images": self._images is not None,
            "encodes_vectors": None if self._vectors is None else self._vectors.dims,
            "encodes_texts": self._images is not None and takes_texts(self._images.encoder),
            "writable": self._written is not None,
            "duplicates": self.beside.duplicates is not None,
            "limits": {name: getattr(limits, name) for name in told},
        }

    async def scale(self, request: Request) -> Response:
        """Set the number of replicas of every group; returns when they are ready."""
        if self._scale is None:
            raise RequestError(409, "conflict", "no shard servers are in use, so there are no replicas")
        asked = await bodies.read_document(request, schemas.ReplicasModel, self.limits)
        # Shielded, because servers that are being started are not taken back when the client goes away.
        await asyncio.shield(asyncio.create_task(self._scale_to(asked.replicas, self._scale)))
        return json_response(asked.model_dump())

    async def _scale_to(self, replicas: int, scale: Callable[[int], None]) -> None:
        async with self._scaling:
            try:
                await asyncio.to_thread(scale, replicas)
            except ValueError as error:
                raise named(error) from error

    def ready(self) -> dict[str, Any]:
        """Describe what can be answered, as far as is known; NotReadyError if nothing can."""
        found = self.searcher.reachable()
        self._note_missing(found)
        return self._state("ready", found)

    async def prove_complete(self) -> dict[str, Any]:
        """Make a test search in every shard, and describe what is served.

        Concurrent callers share one search.

        Raises
        ------
        NotReadyError
            If nothing can be answered.
        IncompleteError
            If a shard was not found by the search; it names them, without reasons.
        """
        if self._proof is None or self._proof.done():
            self._proof = asyncio.create_task(asyncio.to_thread(self.searcher.ready))
        # Shielded, because one caller may give up while others still wait.
        found = await asyncio.shield(self._proof)
        self._note_missing(found)
        if found.degraded:
            missing = dict.fromkeys(sorted(found.degraded), "not searched")
            message = f"{len(missing)} of {found.shards} shards of version {found.version} cannot be searched"
            raise IncompleteError(message, missing=missing)
        return self._state("complete", found)

    def _state(self, status: str, found: Coverage) -> dict[str, Any]:
        pending = self._pending()
        told = None
        if pending is not None:
            told = {"version": pending.version, "attempts": pending.attempts, "retry_s": round(pending.retry_s, 1)}
        # Names without reasons, which have addresses: no key is asked here.
        return {
            "status": status,
            "version": found.version,
            "shards": found.shards,
            "missing": sorted(found.degraded),
            "pending": told,
        }

    def note_state(self) -> None:
        """Update the metrics of what is served, of the version that cannot be, and of the write log."""
        pending, version = self._pending(), 0
        try:
            version = self.searcher.version
            self._note_missing(self.searcher.reachable())
        except NotReadyError:
            self.metrics.coverage.set(0.0)
        self.metrics.version.set(version)
        self.metrics.published.set(version if pending is None or pending.version is None else pending.version)
        self.metrics.pending.set(0 if pending is None else pending.attempts)
        if self._written is not None:
            state = self._written()
            self.metrics.note_log(
                state.writes, state.num_bytes, state.oldest_s, flushes=state.flushes, failures=state.failures
            )

    def _note_missing(self, found: Coverage) -> None:
        """Log the reasons when other shards are missing than before."""
        self.metrics.missing.set(len(found.degraded))
        self.metrics.coverage.set(found.share)
        missing = frozenset(found.degraded)
        if missing - self._missing:
            logger.warning("%d of %d shards are missing: %s", len(missing), found.shards, found.degraded)
        self._missing = missing

    def _check(self, options: Any, count: int) -> None:
        """Refuse what exceeds the limits or the collection."""
        bits, limits = self.searcher.bits, self.limits
        name = "k" if isinstance(options, schemas.SearchOptions) else "limit"
        wanted = getattr(options, name)
        if wanted > limits.k:
            raise invalid(f"`{name}` must be 1 to {limits.k}, got {wanted}", name)
        if wanted * count > limits.results:
            raise invalid(
                f"{count} queries of up to {wanted} answers are more than {limits.results}: ask for fewer at a time",
                name,
            )
        if isinstance(options, schemas.RangeOptions):
            if options.radius > bits:
                raise invalid(
                    f"`radius` must be 0 to {bits} (the codes have {bits} bits), got {options.radius}", "radius"
                )
            if options.after is not None and count > 1:
                raise invalid(f"`after` goes with a single query, whose answer it ends, got {count} queries", "after")
        elif isinstance(rerank := bodies.asked_order(options), Rerank):
            self._check_rerank(rerank, options.k, count)

    def _check_rerank(self, rerank: Rerank, k: int, count: int) -> None:
        pool = rerank.pool or k
        if pool < k:
            raise invalid(f"`rerank.pool` must be at least `k`, {k}, got {pool}", "rerank.pool")
        if pool > (max_pool := self._max_pool(count)):
            raise invalid(f"`rerank.pool` must be 1 to {max_pool} for {count} queries, got {pool}", "rerank.pool")
        if rerank.by_features and not self.searcher.describe()["features"]:
            raise invalid("the collection has no fine features to re-rank by: encode it with `--features`", "rerank")

    def _max_pool(self, num_queries: int) -> int:
        return min(self.limits.k, self.limits.results // num_queries)

    def timeout_s(self, timeout_ms: int | None) -> float:
        """Return the seconds that a request may take; 422 if it asks for too many."""
        if timeout_ms is None:
            return self.limits.timeout_s
        longest_ms = 1000 * self.limits.longest_timeout_s
        if timeout_ms > longest_ms:
            raise invalid(f"`timeout_ms` must be 1 to {longest_ms:.0f}, got {timeout_ms}", "timeout_ms")
        return timeout_ms / 1000

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread; an argument that the searcher refuses is an error of the request, by its name."""
        return await self._searches.run_named(work)

    async def codes_of(
        self, queries: Sorted[bodies.Image], deadline_s: float, timing_ms: dict[str, float]
    ) -> CodeArray:
        """Return the codes (Q, W) of queries of any kind."""
        found = await self._look_up(queries, None, deadline_s, timing_ms)
        return queries.resolve(found, None, is_asked=False).codes

    async def _resolve(self, asked: bodies.Asked, deadline_s: float, timing_ms: dict[str, float]) -> Ask:
        """Turn queries into codes, and into features or projections if they are needed."""
        options, queries, version, sequence = asked.options, asked.queries, None, 0
        explain = "explain" in options.include or any(one.wants_explain for one in current())
        more = {"filter": options.filter, "parameters": asked.lists, "explain": explain}
        if isinstance(options, schemas.SearchOptions):
            query = Query(k=options.k, **more)
        else:
            after = options.after
            query = Query(radius=options.radius, limit=options.limit, **more)
            if after is not None:
                query, version = query._replace(after=(after.distance, after.id)), after.version
                sequence = after.sequence
        wished = bodies.asked_order(options)
        rerank = queries.order(wished, query.k, most=self._max_pool(max(1, len(queries.codes))))
        found = await self._look_up(queries, rerank, deadline_s, timing_ms)
        try:
            resolved = queries.resolve(found, rerank, is_asked=wished is not None)
        except ValueError as error:
            raise invalid(str(error), "rerank") from error
        return Ask(
            codes=resolved.codes,
            query=query,
            features=resolved.features,
            rerank=resolved.rerank,
            allow_partial=options.allow_partial,
            include=frozenset(options.include) - {"explain"},
            version=version,
            sequence=sequence,
        )

    async def _look_up(
        self, queries: Sorted[bodies.Image], rerank: Rerank | None, deadline_s: float, timing_ms: dict[str, float]
    ) -> list[tuple[Iterable[int], Encoded]]:
        """Return what is stored of the items, and what the encoder makes of the images, each with their queries."""
        found: list[tuple[Iterable[int], Encoded]] = []
        if queries.ids:
            with_features = rerank is not None and rerank.by_features
            found.append((queries.ids, await self._stored(queries.ids, with_features, deadline_s)))
        if queries.images:
            found.append(
                (queries.images, await self._encode_queries(list(queries.images.values()), deadline_s, timing_ms))
            )
        if queries.vectors:
            with self.metrics.stage("encode", timing_ms):
                found.append((queries.vectors, await self._encode_vectors(queries.vectors)))
        if queries.texts:
            with self.metrics.stage("encode", timing_ms):
                found.append((queries.texts, await self._encode_texts(queries.texts)))
        return found

    async def _encode_texts(self, texts: dict[int, str]) -> Encoded:
        """Return codes and features of texts (query number -> text)."""
        encoder = None if self._images is None else self._images.encoder
        if encoder is not None:
            self._check_encoder(encoder)
        if encoder is None or not takes_texts(encoder):
            field = f"queries.{next(iter(texts))}.text"
            message = "the encoder here takes no texts: query by code or id, or what `GET /v1/collection` says it takes"
            raise RequestError(422, "no_encoder", message, field=field)
        return await self._searches.run(lambda: encoder.encode_texts(list(texts.values())))

    async def _encode_vectors(self, vectors: dict[int, NDArray[np.float32]]) -> Encoded:
        """Return codes and features of embeddings (query number -> embedding)."""
        numbers, encoder = list(vectors), self._vectors
        if encoder is None:
            takes = "takes images" if self._images is not None else "encodes nothing"
            raise RequestError(
                422,
                "no_encoder",
                f"this server {takes}, and no embeddings: query by {'image, ' if self._images else ''}code or id",
                field=f"queries.{numbers[0]}.vector",
            )
        self._check_encoder(encoder)
        try:
            return await self._searches.run(lambda: encode_vectors(encoder, list(vectors.values())))
        except VectorRefusedError as error:
            field = f"queries.{numbers[error.number]}.vector"
            raise invalid(f"`{field}` has {error.reason}", field) from error

    async def _stored(self, ids: dict[int, int], with_features: bool, deadline_s: float) -> Encoded:
        """Return codes and features of items, in the order of `ids` (query number -> id)."""
        wanted = list(ids.values())
        try:
            return await self._searches.run(
                lambda: stored_codes(self.searcher, wanted, with_features=with_features, deadline_s=deadline_s)
            )
        except IdNotFoundError as error:
            field = f"queries.{next(iter(ids))}.id" if len(ids) == 1 else "queries"
            raise RequestError(404, "id_not_found", str(error), field=field) from error

    async def _encode_queries(
        self, images: Sequence[bodies.Image], deadline_s: float, timing_ms: dict[str, float]
    ) -> Encoded:
        field = "images" if images[0].field.startswith("images.") else "queries"
        encoding = self._encoding(field)
        if len(images) > self.limits.images:
            raise invalid(f"at most {self.limits.images} {field} may be images, got {len(images)}", field)
        fetched = await self._fetch({image.field: image.url for image in images if image.url is not None})
        return await encoding.encode(
            [fetched.get(image.field, image.data) for image in images],
            [image.field for image in images],
            timing_ms,
            deadline_s=deadline_s,
        )

    async def encode_items(self, images: Sequence[bodies.Image], deadline_s: float) -> tuple[Encoded, str]:
        """Return codes and features of the images of items, and the fingerprint of the encoder that made them."""
        encoding = self._encoding("items")
        if len(images) > self.limits.images:
            raise invalid(f"at most {self.limits.images} items may be images, got {len(images)}", "items")
        encoded = await encoding.encode(
            [image.data for image in images], [image.field for image in images], {}, deadline_s=deadline_s
        )
        return encoded, encoding.encoder.fingerprint

    async def _fetch(self, urls: dict[str, str]) -> dict[str, bytes]:
        """Return the images at URLs, by the field that gave them."""
        if not urls:
            return {}
        if self._fetcher is None:
            raise invalid("this server does not fetch images: send the image itself", next(iter(urls)))
        return await self._fetcher.fetch_all(urls, max_bytes=self.limits.body_bytes)

    def _encoding(self, field: str) -> EncodingThreads:
        """Return the encoding threads, if there is an encoder and it made the codes."""
        if self._images is None:
            takes = "query by code or id"
            if self._vectors is not None:
                takes = f"its encoder takes embeddings of {self._vectors.dims} numbers; query by vector, code or id"
            raise RequestError(422, "no_encoder", f"this server does not encode images: {takes}", field=field)
        self._check_encoder(self._images.encoder)
        return self._images

    def _check_encoder(self, encoder: Encoder) -> None:
        """Refuse to encode if the encoder is not the one that made the codes."""
        served = self.searcher.fingerprint
        if not is_encoder_of(encoder, bits=self.searcher.bits, fingerprint=served):
            raise RequestError(
                503,
                "not_ready",
                f"the collection's codes were made by encoder {served}, this gateway has {encoder.fingerprint}: "
                "start it with the collection's encoder",
            )

    def refuse_overload(self) -> None:
        """Raise OverloadedError if too many requests are in progress."""
        if max(self._requests, self._searches.at_work) >= self.limits.in_flight:
            raise OverloadedError(f"{self.limits.in_flight} requests are in progress: try again", retry_after_s=1)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a request as in progress."""
        self._requests += 1
        self.metrics.in_flight.inc()
        try:
            yield
        finally:
            self._requests -= 1
            self.metrics.in_flight.dec()

    @contextlib.asynccontextmanager
    async def within(self, request: Request, deadline_s: float) -> AsyncIterator[Account]:
        """Work for a request until `deadline_s` of `time.monotonic`; it counts as in progress until it is sent."""
        self.refuse_overload()
        until_sent: contextlib.ExitStack = request.state.until_sent
        until_sent.enter_context(self._counted())
        account = until_sent.enter_context(self._budget.account())
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                yield account
        except TimeoutError as error:
            if isinstance(error, DeadlineExceededError):
                raise
            raise DeadlineExceededError(
                "no answer within the time given: allow more (`timeout_ms`) or ask for less"
            ) from error

    def _response(self, body: Body, *, arrow: bool) -> Response:
        """Return a whole body as it is, and stream what is only begun: a piece is made when the last one is out."""
        kind = bodies.ARROW if arrow else bodies.JSON
        if body.rest is None:
            return Response(body.first, media_type=kind)
        return StreamingResponse(self._stream(body.first, body.rest), media_type=kind)

    async def _stream(self, first: bytes, rest: Iterator[bytes]) -> AsyncIterator[bytes]:
        yield first
        while (piece := await self._searches.run(lambda: next(rest, None))) is not None:
            yield piece


def json_response(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `document` as a JSON answer."""
    return Response(json_bytes(document), status, headers, bodies.JSON)
