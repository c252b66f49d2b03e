"""The gateway: a collection over HTTP, for people, browsers and programs.

::

    POST /v1/search             the nearest items of images, codes or items
    POST /v1/range_search       all items within a radius
    POST /v1/encode             codes of images
    GET  /v1/items?ids=1,2      what is stored of items
    GET  /v1/items/{id}         of one
    GET  /v1/items/{id}/thumbnail
    GET  /v1/collection         what is served
    PUT  /v1/replicas           more or fewer shard servers
    GET  /health/live, /health/ready, /metrics, /openapi.json

A gateway keeps no state; any number may stand side by side. The event loop reads and writes, threads search: a search
holds one thread until it ends, also when its client has given up, and no more than `Limits.in_flight` are at work.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import pyarrow as pa
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Match, Mount
from starlette.types import Scope

from engine.codes import CodeArray, num_words
from engine.errors import DeadlineExceededError, HashlightError, IdNotFoundError, OverloadedError
from engine.indexes.threads import usable_cores
from engine.rerank import Rerank
from engine.service import bodies, schemas
from engine.service.batching import MicroBatcher
from engine.service.encoding import Encoded, ImageEncoder, ImageRefusedError
from engine.service.fetch import ImageFetcher
from engine.service.guard import API_PATHS, REPLICAS_PATH, Guard
from engine.service.keys import Keys
from engine.service.limits import Limits
from engine.service.metrics import CONTENT_TYPE, Metrics
from engine.service.openapi import describe_api, search_body
from engine.service.problems import RequestError, invalid, refusal_of
from engine.service.rendering import hex_codes, items_document, json_bytes, search_document, search_stream, table_stream
from engine.service.retrieval import Answer, Ask, answer, join, split, stored_items
from engine.service.searcher import Searcher

PAGE = Path(__file__).parent / "page"

T = TypeVar("T")
ItemId = Annotated[int, InPath(ge=0, le=schemas.MAX_ID, description="Id of an item.")]

_PICTURES = (
    (b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG", "image/png"), (b"GIF8", "image/gif"), (b"RIFF", "image/webp")
)  # fmt: skip

# Searches of one query that ask alike go out together: up to so many. A radius query of ten million codes takes a
# millisecond or two with all that is around it; what takes longer than the patience is slow by itself.
_TOGETHER = 64
_PATIENCE_S = 0.02
_MOST_KINDS = 256


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """A search that waits for a thread."""

    ask: Ask
    arrow: bool
    timing_ms: dict[str, float]
    submitted_s: float


class Gateway:
    """What answers requests, apart from the routes that lead here. Belongs to one event loop.

    Parameters
    ----------
    searcher : Searcher
        Not closed here.
    encoder : ImageEncoder or None
        Without one, queries are codes or ids.
    limits : Limits
    fetcher : ImageFetcher or None
        Without one, no image is fetched from an address.
    metrics : Metrics
    scale : callable or None
        Gives every group so many shard servers; returns when they answer.
    """

    def __init__(
        self,
        searcher: Searcher,
        *,
        encoder: ImageEncoder | None,
        limits: Limits,
        fetcher: ImageFetcher | None,
        metrics: Metrics,
        scale: Callable[[int], None] | None,
    ) -> None:
        self.searcher = searcher
        self.encoder = encoder
        self.limits = limits
        self.metrics = metrics
        self._fetcher = fetcher
        self._scale = scale
        self._searching = ThreadPoolExecutor(limits.in_flight, "hashlight-search")
        self._decoding = ThreadPoolExecutor(usable_cores(), "hashlight-decode")
        self._encoding = ThreadPoolExecutor(1, "hashlight-encode")
        self._images: MicroBatcher[Any, tuple[NDArray[np.uint64], NDArray[np.float32]]] | None = (
            MicroBatcher(self._encode_batch, batch_size=encoder.batch_size) if encoder is not None else None
        )
        self._searches: dict[Hashable, MicroBatcher[_Job, bytes]] = {}
        self._requests = 0
        self._jobs = 0
        self._lock = threading.Lock()
        self._proving = asyncio.Lock()
        self._scaling = asyncio.Lock()

    async def close(self) -> None:
        """Let go of threads and connections."""
        for pool in (self._searching, self._decoding, self._encoding):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._fetcher is not None:
            await self._fetcher.close()

    async def search(self, request: Request, body: type[Any], options: type[Any]) -> Response:
        """Answer a search of either kind; `body` and `options` are its models."""
        arrived_s = asyncio.get_running_loop().time()
        timing_ms: dict[str, float] = {}
        with self.metrics.stage("read", timing_ms):
            asked = await bodies.read_search(request, body, options, bits=self.searcher.bits, limits=self.limits)
        count = len(asked.queries) if asked.codes is None else len(asked.codes)
        self._check(asked.options, count)
        timeout_s = self._timeout_s(asked.options.timeout_ms)
        async with self._within(arrived_s + timeout_s):
            ask = await self._resolve(asked, arrived_s + timeout_s, timing_ms)
            job = _Job(ask, asked.arrow, timing_ms, time.perf_counter())
            if count == 1 and ask.rerank is None:
                data = await self._alike(ask, timeout_s).submit(job)
            else:
                [data] = await self._answer_batch([job])
        return Response(data, media_type=bodies.ARROW if asked.arrow else bodies.JSON)

    async def encode(self, request: Request) -> Response:
        """Encode images."""
        arrived_s = asyncio.get_running_loop().time()
        timing_ms: dict[str, float] = {}
        encoder = self._encoder("images")
        with self.metrics.stage("read", timing_ms):
            images = await bodies.read_images(request, schemas.EncodeBody, self.limits)
        fields = [f"images.{position}" for position in range(len(images))]
        async with self._within(arrived_s + self.limits.timeout_s):
            encoded = await self._encode(images, fields, timing_ms)
        document = {
            "codes": hex_codes(encoded.codes, bits=encoder.bits),
            "bits": encoder.bits,
            "fingerprint": encoder.fingerprint,
            "timing_ms": timing_ms,
        }
        return json_response(document)

    async def items(self, ids: Sequence[int]) -> pa.Table:
        """Return what is stored of items, as `stored_items`."""
        deadline_s = asyncio.get_running_loop().time() + self.limits.timeout_s
        async with self._within(deadline_s):
            return await self._run(lambda: stored_items(self.searcher, ids, timeout_s=self.limits.timeout_s))

    async def thumbnail(self, id: int) -> Response:
        """Return the picture of an item of the collection."""
        deadline_s = asyncio.get_running_loop().time() + self.limits.timeout_s
        async with self._within(deadline_s):
            data = await self._run(lambda: self.searcher.thumbnail(id, timeout_s=self.limits.timeout_s))
        if data is None:
            raise RequestError(404, "not_found", f"item {id} has no thumbnail", field="id")
        kind = next((name for magic, name in _PICTURES if data.startswith(magic)), "application/octet-stream")
        return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    async def describe(self) -> dict[str, Any]:
        """Return what is served."""
        limits = self.limits
        told = ("body_bytes", "pixels", "queries", "images", "results", "k", "longest_timeout_s")
        return {
            **await asyncio.to_thread(self.searcher.describe),
            "encodes_images": self.encoder is not None,
            "limits": {name: getattr(limits, name) for name in told},
        }

    async def scale(self, replicas: int) -> None:
        """Have so many shard servers in every group; return when they answer."""
        if self._scale is None:
            raise RequestError(409, "conflict", "the collection is served without shard servers: there are no replicas")
        async with self._scaling:
            try:
                await asyncio.to_thread(self._scale, replicas)
            except ValueError as error:
                raise _named(error) from error

    async def prove_ready(self) -> None:
        """Make one real search; NotReadyError if it fails. However many ask at once, one search runs."""
        async with self._proving:
            await asyncio.to_thread(self.searcher.ready)

    def _alike(self, ask: Ask, timeout_s: float) -> MicroBatcher[_Job, bytes]:
        """Return what gathers the searches that differ from this one in nothing but their code."""
        kind = (ask.k, ask.radius, ask.limit, ask.filter, ask.allow_partial, ask.include, timeout_s)
        batcher = self._searches.get(kind)
        if batcher is None:
            if len(self._searches) >= _MOST_KINDS:
                self._searches = {known: gathers for known, gathers in self._searches.items() if not gathers.idle}
            batcher = MicroBatcher(self._answer_batch, batch_size=_TOGETHER, patience_s=_PATIENCE_S)
            self._searches[kind] = batcher
        return batcher

    async def _answer_batch(self, jobs: Sequence[_Job]) -> list[bytes]:
        self.metrics.search_batch.observe(len(jobs))
        return await self._run(functools.partial(self._answer, jobs))

    def _answer(self, jobs: Sequence[_Job]) -> list[bytes]:
        """Search for all at once and render for each, in a thread."""
        begun_s = time.perf_counter()
        try:
            found = answer(self.searcher, join([job.ask for job in jobs]))
        except ValueError as error:
            raise _named(error) from error
        return [
            self._finish(job, part, begun_s)
            for job, part in zip(jobs, [found] if len(jobs) == 1 else split(found), strict=True)
        ]

    def _finish(self, job: _Job, found: Answer, begun_s: float) -> bytes:
        self._observe("wait", begun_s - job.submitted_s, job.timing_ms)
        for stage, seconds in found.seconds.items():
            self._observe(stage, seconds, job.timing_ms)
        if not found.coverage.complete:
            self.metrics.partial.inc()
        start = time.perf_counter()
        data = self._render(found, job.arrow, job.timing_ms)
        self.metrics.observe("render", time.perf_counter() - start)
        return data

    def _render(self, found: Answer, arrow: bool, timing_ms: dict[str, float]) -> bytes:
        if arrow:
            return search_stream(found, timing_ms=timing_ms)
        return json_bytes(search_document(found, timing_ms=timing_ms))

    def _observe(self, stage: str, seconds: float, timing_ms: dict[str, float]) -> None:
        timing_ms[stage] = round(1000 * seconds, 3)
        self.metrics.observe(stage, seconds)

    def _check(self, options: Any, count: int) -> None:
        """Refuse what is beyond the collection or the limits."""
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
        elif options.rerank is not None:
            self._check_rerank(options.rerank.pool, count)

    def _check_rerank(self, pool: int, count: int) -> None:
        if pool > self.limits.k or pool * count > self.limits.results:
            most = min(self.limits.k, self.limits.results // count)
            raise invalid(f"`rerank.pool` must be 1 to {most} for {count} queries, got {pool}", "rerank.pool")
        if not self.searcher.describe()["features"]:
            raise invalid("the collection has no fine features to re-rank by: encode it with `--features`", "rerank")

    def _timeout_s(self, timeout_ms: int | None) -> float:
        if timeout_ms is None:
            return self.limits.timeout_s
        longest_ms = 1000 * self.limits.longest_timeout_s
        if timeout_ms > longest_ms:
            raise invalid(f"`timeout_ms` must be 1 to {longest_ms:.0f}, got {timeout_ms}", "timeout_ms")
        return timeout_ms / 1000

    async def _resolve(self, asked: bodies.Asked, deadline_s: float, timing_ms: dict[str, float]) -> Ask:
        """Turn queries into codes, and into features where those are needed."""
        options, features = asked.options, None
        rerank = getattr(options, "rerank", None)
        if asked.codes is not None:
            if rerank is not None:
                raise invalid("a code has no features to re-rank by: ask with images or ids", "rerank")
            codes = asked.codes
        else:
            codes, features = await self._codes_of(asked.queries, rerank is not None, timing_ms)
        return Ask(
            codes=codes,
            features=features,
            k=getattr(options, "k", None),
            radius=getattr(options, "radius", None),
            limit=getattr(options, "limit", None),
            filter=options.filter,
            rerank=None if rerank is None else Rerank(pool=rerank.pool, metric=rerank.metric),
            timeout_s=deadline_s - asyncio.get_running_loop().time(),
            allow_partial=options.allow_partial,
            include=frozenset(options.include),
        )

    async def _codes_of(
        self, queries: Sequence[schemas.Query | bytes], reranks: bool, timing_ms: dict[str, float]
    ) -> tuple[CodeArray, NDArray[np.float32] | None]:
        """Return codes (Q, W) of queries, and features (Q, F) where answers are re-ranked."""
        bits = self.searcher.bits
        row_QB = np.zeros((len(queries), 8 * num_words(bits)), np.uint8)
        ids: dict[int, int] = {}
        pictures: dict[int, bytes | schemas.Query] = {}
        for number, query in enumerate(queries):
            if isinstance(query, bytes) or query.image is not None or query.url is not None:
                pictures[number] = query
            elif query.id is not None:
                ids[number] = query.id
            elif reranks:
                raise invalid("a code has no features to re-rank by: ask with images or ids", f"queries.{number}.code")
            else:
                code = bodies.code_of_text(query.code or "", f"queries.{number}.code", bits=bits)
                row_QB[number] = np.frombuffer(code, np.uint8)
        codes = bodies.words_of_bytes(row_QB, bits=bits, field="queries")
        found: list[tuple[list[int], Encoded]] = []
        if ids:
            found.append((list(ids), await self._stored(ids, reranks)))
        if pictures:
            found.append((list(pictures), await self._encode_queries(pictures, timing_ms)))
        for numbers, encoded in found:
            codes[numbers] = encoded.codes
        if not reranks:
            return codes, None
        features_QF = np.zeros((len(queries), found[0][1].features.shape[1]), np.float32)
        for numbers, encoded in found:
            features_QF[numbers] = encoded.features
        return codes, features_QF

    async def _stored(self, ids: dict[int, int], reranks: bool) -> Encoded:
        """Return codes and features of items, in the order of `ids` (query number -> id)."""
        wanted, timeout_s = np.array(list(ids.values()), np.int64), self.limits.timeout_s

        def read() -> Encoded:
            codes = self.searcher.get(wanted, timeout_s=timeout_s)["code"].to_pylist()
            words = np.frombuffer(b"".join(codes), "<u8").reshape(len(wanted), -1).astype(np.uint64)
            if not reranks:
                return Encoded(words, np.zeros((len(wanted), 0), np.float32))
            return Encoded(words, self.searcher.features_of(wanted, timeout_s=timeout_s).astype(np.float32))

        try:
            return await self._run(read)
        except IdNotFoundError as error:
            field = f"queries.{next(iter(ids))}.id" if len(ids) == 1 else "queries"
            raise RequestError(404, "id_not_found", str(error), field=field) from error

    async def _encode_queries(self, pictures: dict[int, bytes | schemas.Query], timing_ms: dict[str, float]) -> Encoded:
        self._encoder("queries")
        if len(pictures) > self.limits.images:
            raise invalid(f"at most {self.limits.images} queries may be images, got {len(pictures)}", "queries")
        fields, images = [], []
        for number, query in pictures.items():
            kind = "image" if isinstance(query, bytes) or query.image is not None else "url"
            fields.append("image" if isinstance(query, bytes) else f"queries.{number}.{kind}")
            images.append(await self._bytes_of(query, fields[-1]))
        return await self._encode(images, fields, timing_ms)

    async def _bytes_of(self, query: bytes | schemas.Query, field: str) -> bytes:
        if isinstance(query, bytes):
            return query
        if query.image is not None:
            return bodies.bytes_of_base64(query.image, field)
        if self._fetcher is None:
            raise invalid("this server fetches no images: send the image itself", field)
        return await self._fetcher.fetch(query.url or "", field)

    async def _encode(self, images: Sequence[bytes], fields: Sequence[str], timing_ms: dict[str, float]) -> Encoded:
        """Decode images, each in a thread, and encode them beside those of other requests."""
        encoder, batcher, loop = self._encoder(fields[0]), self._images, asyncio.get_running_loop()
        assert batcher is not None, "an encoder has a batcher"

        def decode(data: bytes, field: str) -> Any:
            try:
                return encoder.decode(data, self.limits.pixels)
            except ImageRefusedError as error:
                raise invalid(f"`{field}` cannot be decoded: {error}", field) from error

        with self.metrics.stage("decode", timing_ms):
            jobs = [
                loop.run_in_executor(self._decoding, decode, data, field)
                for data, field in zip(images, fields, strict=True)
            ]
            decoded = await asyncio.gather(*jobs)
        with self.metrics.stage("encode", timing_ms):
            rows = await asyncio.gather(*map(batcher.submit, decoded))
        return Encoded(np.stack([code for code, _ in rows]), np.stack([features for _, features in rows]))

    async def _encode_batch(self, images: Sequence[Any]) -> list[tuple[NDArray[np.uint64], NDArray[np.float32]]]:
        assert self.encoder is not None, "only an encoder has images to encode"
        self.metrics.encode_batch.observe(len(images))
        work = functools.partial(self.encoder.encode, images)
        encoded = await asyncio.get_running_loop().run_in_executor(self._encoding, work)
        return list(zip(encoded.codes, encoded.features, strict=True))

    def _encoder(self, field: str) -> ImageEncoder:
        """Return the encoder, if there is one and it is the one that made the codes."""
        if self.encoder is None:
            raise RequestError(422, "no_encoder", "this server encodes no images: ask with codes or ids", field=field)
        served = self.searcher.fingerprint
        if self.encoder.bits != self.searcher.bits or served not in (None, self.encoder.fingerprint):
            raise RequestError(
                503,
                "not_ready",
                f"the collection's codes are of encoder {served}, this gateway has {self.encoder.fingerprint}: "
                "start it with the collection's encoder",
            )
        return self.encoder

    def refuse_overload(self) -> None:
        """Raise OverloadedError if too many requests are at work."""
        if max(self._requests, self._jobs) >= self.limits.in_flight:
            raise OverloadedError(f"{self.limits.in_flight} requests are at work: try again", retry_after_s=1)

    @contextlib.asynccontextmanager
    async def _within(self, deadline_s: float) -> AsyncIterator[None]:
        """Count a request as at work, until `deadline_s` of the event loop's clock at most."""
        self.refuse_overload()
        self._requests += 1
        try:
            async with asyncio.timeout_at(deadline_s):
                yield
        except TimeoutError as error:
            if isinstance(error, DeadlineExceededError):
                raise
            raise DeadlineExceededError(
                "no answer within the time given: give more (`timeout_ms`), or ask for less"
            ) from error
        finally:
            self._requests -= 1

    async def _run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread, which stays taken until it ends, also if nobody waits for it any more."""
        self._count_jobs(1)
        try:
            future = self._searching.submit(work)
        except BaseException:
            self._count_jobs(-1)
            raise
        future.add_done_callback(self._job_ended)
        return await asyncio.wrap_future(future)

    def _job_ended(self, _: Future[Any]) -> None:
        self._count_jobs(-1)

    def _count_jobs(self, change: int) -> None:
        with self._lock:
            self._jobs += change
            self.metrics.in_flight.set(self._jobs)


def create_app(
    searcher: Searcher,
    *,
    encoder: ImageEncoder | None = None,
    keys: Keys | None = None,
    limits: Limits | None = None,
    fetcher: ImageFetcher | None = None,
    metrics: Metrics | None = None,
    allowed_hosts: Sequence[str] | None = None,
    scale: Callable[[int], None] | None = None,
    page: Path = PAGE,
) -> FastAPI:
    """Return the gateway as an ASGI application.

    Parameters
    ----------
    searcher : Searcher
        Its owner closes it, after the application has ended.
    encoder : ImageEncoder, optional
        The one that made the collection's codes; without it queries are codes or ids.
    keys : Keys, optional
        Without any, whoever reaches the server may ask anything.
    limits : Limits, optional
    fetcher : ImageFetcher, optional
        For queries that name the address of an image; without it they are refused.
    metrics : Metrics, optional
    allowed_hosts : sequence of str, optional
        Names by which the server may be called. A server without keys on a loopback address needs them, or any web
        page could reach it through a name that it makes point there.
    scale : callable, optional
        Gives every group of shard servers so many replicas; without it there are none to change.
    page : Path
        Folder of static files for `/`, if it is there.
    """
    limits, metrics = limits or Limits(), metrics or Metrics()
    gateway = Gateway(searcher, encoder=encoder, limits=limits, fetcher=fetcher, metrics=metrics, scale=scale)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await gateway.close()

    app = FastAPI(title="Hashlight", docs_url=None, redoc_url=None, lifespan=lifespan)
    for kind in (RequestError, HashlightError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _refuse)
    _add_routes(app, gateway, keys or Keys())
    describe_api(app, secured=bool(keys))
    if page.is_dir():
        app.router.routes.append(_Page("/", StaticFiles(directory=page, html=True)))
    if allowed_hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False)
    app.add_middleware(Guard, limits=limits, metrics=metrics, admit=gateway.refuse_overload, refuse=_answer_of)
    return app


class _Page(Mount):
    """Static files below the API: a wrong method there is a wrong method, not a file that is missing."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match nothing that is the API's."""
        return (Match.NONE, {}) if scope["path"].startswith(API_PATHS) else super().matches(scope)


def _add_routes(app: FastAPI, gateway: Gateway, keys: Keys) -> None:
    may_search, may_administer = ([Depends(_requires(keys, scope))] for scope in ("search", "admin"))

    @app.post("/v1/search", dependencies=may_search, **search_body(schemas.SearchBody, schemas.SearchOptions))
    async def search(request: Request) -> Response:
        """Find the nearest items of each query."""
        return await gateway.search(request, schemas.SearchBody, schemas.SearchOptions)

    @app.post("/v1/range_search", dependencies=may_search, **search_body(schemas.RangeBody, schemas.RangeOptions))
    async def range_search(request: Request) -> Response:
        """Find all items within a Hamming radius of each query."""
        return await gateway.search(request, schemas.RangeBody, schemas.RangeOptions)

    @app.post("/v1/encode", dependencies=may_search, **search_body(schemas.EncodeBody, None))
    async def encode(request: Request) -> Response:
        """Encode images to codes."""
        return await gateway.encode(request)

    @app.get("/v1/items", dependencies=may_search, response_model=schemas.ItemsModel)
    async def items(
        request: Request,
        ids: Annotated[str, Query(description="Ids, joined by commas.", pattern=r"^[0-9]{1,19}(,[0-9]{1,19})*$")],
    ) -> Response:
        """Return what is stored of some items."""
        table = await gateway.items(_ids(ids, gateway.limits.queries))
        if bodies.wants_arrow(request):
            return Response(table_stream(table), media_type=bodies.ARROW)
        return json_response(items_document(table))

    @app.get("/v1/items/{id}", dependencies=may_search, response_model=schemas.ItemModel)
    async def item(id: ItemId) -> Response:
        """Return what is stored of one item."""
        return json_response(items_document(await gateway.items([id]))["items"][0])

    @app.get("/v1/items/{id}/thumbnail", dependencies=may_search, response_class=Response)
    async def thumbnail(id: ItemId) -> Response:
        """Return the picture of one item."""
        return await gateway.thumbnail(id)

    @app.get("/v1/collection", dependencies=may_search, response_model=schemas.CollectionModel)
    async def collection() -> Response:
        """Describe what is served."""
        return json_response(await gateway.describe())

    @app.put(REPLICAS_PATH, dependencies=may_administer, response_model=schemas.ReplicasModel)
    async def replicas(asked: schemas.ReplicasModel) -> Response:
        """Have so many shard servers in every group; answers when they are ready."""
        await gateway.scale(asked.replicas)
        return json_response(asked.model_dump())

    @app.get("/health/live", response_model=schemas.HealthModel)
    async def live() -> Response:
        """Say that the process runs."""
        return json_response({"status": "live"})

    @app.get("/health/ready", response_model=schemas.HealthModel)
    async def ready() -> Response:
        """Say that a real search was answered just now."""
        await gateway.prove_ready()
        return json_response({"status": "ready"})

    @app.get("/metrics", dependencies=may_administer, response_class=Response)
    async def metrics() -> Response:
        """Return metrics for Prometheus."""
        gateway.metrics.version.set(gateway.searcher.version)
        return Response(gateway.metrics.render(), media_type=CONTENT_TYPE)


def _requires(keys: Keys, scope: str) -> Callable[[Request], Awaitable[None]]:
    async def check(request: Request) -> None:
        if not keys:
            return
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        secret = bearer.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key", "")
        key = keys.find(secret)
        if key is None:
            message = "expected a key as `Authorization: Bearer KEY`, got " + ("an unknown one" if secret else "none")
            raise RequestError(401, "unauthenticated", message, headers={"WWW-Authenticate": "Bearer"})
        if scope not in key.scopes:
            raise RequestError(403, "forbidden", f"key {key.name} may not {scope}: its scopes do not say so")

    return check


def _ids(text: str, most: int) -> list[int]:
    ids = [int(part) for part in text.split(",")]
    if len(ids) > most or max(ids) > schemas.MAX_ID:
        raise invalid(f"`ids` must be 1 to {most} ids of at most {schemas.MAX_ID}", "ids")
    return ids


def _named(error: ValueError) -> ValueError | RequestError:
    """Return the refusal of the argument that the searcher's message begins with, in our own words for it."""
    field = re.match(r"`(\w+)", str(error))
    return invalid(str(error), field[1] if field else None)


def json_response(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `document` as a JSON answer."""
    return Response(json_bytes(document), status, headers, bodies.JSON)


async def _refuse(_: Request, error: Exception) -> Response:
    return _answer_of(error)


def _answer_of(error: Exception) -> Response:
    """Answer what went wrong, in one form."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        error = invalid(f"`{field}`: {first['msg']}", field)
    elif isinstance(error, HTTPException):
        kinds = {404: "not_found", 405: "method_not_allowed"}
        error = RequestError(
            error.status_code, kinds.get(error.status_code, "malformed"), str(error.detail), headers=error.headers
        )
    refusal = refusal_of(error)
    return json_response(refusal.document(), refusal.status, refusal.headers)
