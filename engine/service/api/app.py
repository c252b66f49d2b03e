"""The gateway's HTTP interface.

::

    POST /v1/search             the nearest items of images, codes or items
    POST /v1/range_search       all items within a radius
    GET  /v1/representatives    items that stand for the collection
    GET  /v1/duplicates         groups of near-duplicates
    POST /v1/encode             codes of images or queries
    POST /v1/count              how many items match
    POST /v1/facets             how often each value of an attribute occurs
    POST /v1/histogram          how many items lie at each distance from a query
    GET  /v1/items?ids=1,2      stored items
    GET  /v1/items?after=&limit=  all that match, page by page
    POST /v1/scroll             the same, with lists of ids that the filter names
    POST, PATCH, DELETE /v1/items  store, change, delete
    GET  /v1/items/{id}         one stored item
    GET  /v1/items/{id}/thumbnail
    GET  /v1/collection         the collection being served
    PUT  /v1/replicas           change the number of shard servers
    GET  /v1/admin/...          versions, servers, slow queries, rejects
    POST /v1/admin/rollback     go back to an earlier version
    GET  /health/live, /health/ready, /health/complete, /metrics, /openapi.json
    GET  /, /admin              the web pages
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount
from starlette.types import Scope

from hashlight.engine.errors import HashlightError, NotReadyError
from hashlight.engine.service.api import schemas
from hashlight.engine.service.api.administration import routes as administration
from hashlight.engine.service.api.bodies import what_is_wrong
from hashlight.engine.service.api.exploring import routes as exploring
from hashlight.engine.service.api.gateway import Gateway, Page, json_response
from hashlight.engine.service.api.openapi import describe_api, encode_body, json_body, search_body, write_body
from hashlight.engine.service.api.writing import ItemWriter
from hashlight.engine.service.asking.beside import Beside
from hashlight.engine.service.asking.encoding import Encoder
from hashlight.engine.service.asking.following import Pending
from hashlight.engine.service.asking.searcher import Searcher
from hashlight.engine.service.door.access import ITEMS_PATH, METRICS_PATH, REPLICAS_PATH, Access
from hashlight.engine.service.door.draining import DRAINING
from hashlight.engine.service.door.fetch import ImageFetcher
from hashlight.engine.service.door.guard import API_PATHS, Guard
from hashlight.engine.service.door.hosts import KnownHosts
from hashlight.engine.service.door.key_metrics import KeyMetrics
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.limits import Limits
from hashlight.engine.service.page.files import PageFiles
from hashlight.engine.service.problems import RequestError, invalid, refusal_of
from hashlight.engine.service.telemetry.metrics import CONTENT_TYPE, Metrics, render
from hashlight.engine.writing.committing import Committer

PAGE = Path(__file__).parent.parent / "page"

_PUT_COLUMNS = (
    "An Arrow IPC stream: `id` (int64), `code` (fixed_size_binary of ceil(bits / 8)) or `image` (binary), perhaps "
    "`features` (lists of numbers) and `thumbnail` (binary), and attributes."
)
_PATCH_COLUMNS = "An Arrow IPC stream: `id` (int64) and the attributes that change."

Timeout = Annotated[int | None, Query(ge=1, description=schemas.GIVE_UP)]
ItemId = Annotated[int, InPath(ge=0, le=schemas.MAX_ID, description="Id of an item.")]


def create_app(
    searcher: Searcher,
    *,
    encoder: Encoder | None = None,
    keys: Keys | None = None,
    limits: Limits | None = None,
    fetcher: ImageFetcher | None = None,
    metrics: Metrics | None = None,
    allowed_hosts: Sequence[str] | None = None,
    scale: Callable[[int], None] | None = None,
    pending: Callable[[], Pending | None] | None = None,
    committer: Committer | None = None,
    beside: Beside | None = None,
    page: Path = PAGE,
) -> FastAPI:
    """Return the gateway as an ASGI application.

    Parameters
    ----------
    searcher : Searcher
        The caller closes it after the application has ended.
    encoder : ImageEncoder or VectorEncoder, optional
        The encoder that made the collection's codes; without it, queries must be codes or ids.
    keys : Keys, optional
        Without keys, anyone who reaches the server may do anything.
    limits, metrics : Limits, Metrics, optional
    fetcher : ImageFetcher, optional
        For queries that give the URL of an image; without it they are refused.
    allowed_hosts : sequence of str, optional
        Accepted Host headers. A server without keys on a loopback address needs them; otherwise any web page could
        reach it through a name that resolves to the loopback address (DNS rebinding).
    scale : callable, optional
        Sets the number of replicas of every group of shard servers; None if there are no shard servers.
    pending : callable, optional
        Returns the live version while it cannot be served, else None; reported by `/health/ready` and `/metrics`.
    committer : Committer, optional
        Makes writes, and ends with the application; without it they are refused.
    beside : Beside, optional
    page : Path
        Folder of static files for `/`; skipped if it does not exist.
    """
    keys, limits, metrics = Keys() if keys is None else keys, limits or Limits(), metrics or Metrics()
    metrics.registry.register(KeyMetrics(keys))
    gateway = Gateway(
        searcher, encoder=encoder, limits=limits, fetcher=fetcher, metrics=metrics, scale=scale, pending=pending,
        written=None if committer is None else committer.store.state, beside=beside or Beside(),
    )  # fmt: skip
    writer = ItemWriter(gateway, committer)
    app = FastAPI(title="Hashlight", docs_url=None, redoc_url=None, lifespan=_lifespan(gateway, writer))
    app.state.gateway = gateway
    _add_routes(app, gateway, writer)
    describe_api(app, secured=bool(keys), models=(*exploring.BODIES, *administration.BODIES))
    if page.is_dir():
        app.router.routes.append(_Page("/", PageFiles(page)))
    if allowed_hosts is not None:
        app.add_middleware(KnownHosts, allowed_hosts=list(allowed_hosts))
    app.add_middleware(
        Guard, limits=limits, metrics=metrics, access=Access(keys), admit=gateway.refuse_overload, refuse=_answer_of
    )
    return app


def _lifespan(gateway: Gateway, writer: ItemWriter) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await writer.close()
        await gateway.close()

    return lifespan


def _add_routes(app: FastAPI, gateway: Gateway, writer: ItemWriter) -> None:
    for kind in (RequestError, HashlightError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _refuse)
    for add_routes in (
        _add_searches, exploring.add_exploring, _add_items, _add_operations, administration.add_administration
    ):  # fmt: skip
        add_routes(app, gateway)
    _add_writes(app, writer)


class _Page(Mount):
    """Static files, matched after the API, so that a wrong method there is not reported as a missing file."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match everything outside the API's paths."""
        return (Match.NONE, {}) if scope["path"].startswith(API_PATHS) else super().matches(scope)


def _add_searches(app: FastAPI, gateway: Gateway) -> None:
    @app.post("/v1/search", **search_body(schemas.SearchBody, schemas.SearchOptions))
    async def search(request: Request) -> Response:
        """Find the nearest items of each query."""
        return await gateway.search(request, schemas.SearchBody, schemas.SearchOptions)

    @app.post("/v1/range_search", **search_body(schemas.RangeBody, schemas.RangeOptions))
    async def range_search(request: Request) -> Response:
        """Find all items within a Hamming radius of each query."""
        return await gateway.search(request, schemas.RangeBody, schemas.RangeOptions)

    @app.post("/v1/count", **json_body(schemas.CountBody, schemas.CountAnswer))
    async def count(request: Request) -> Response:
        """Count the items that match."""
        return await gateway.count(request)

    @app.post("/v1/facets", **json_body(schemas.FacetsBody, schemas.FacetsAnswer))
    async def facets(request: Request) -> Response:
        """Count how often each value of an attribute occurs among the items that match."""
        return await gateway.facets(request)

    @app.post("/v1/encode", **encode_body())
    async def encode(request: Request) -> Response:
        """Return the codes of images, or of queries of any kind."""
        return await gateway.encode(request)


def _add_items(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/items", response_model=schemas.ItemsModel)
    async def items(
        request: Request,
        ids: Annotated[
            str | None, Query(description="Ids, joined by commas.", pattern=r"^[0-9]{1,19}(,[0-9]{1,19})*$")
        ] = None,
        filter: Annotated[str | None, Query(max_length=10_000, description="Without `ids`: as for a search.")] = None,
        after: Annotated[int | None, Query(ge=0, le=schemas.MAX_ID, description=schemas.AFTER)] = None,
        limit: Annotated[
            int | None, Query(ge=1, description=f"Items of a page; {schemas.PAGE_ITEMS} by default.")
        ] = None,
        version: Annotated[int | None, Query(ge=0, description=schemas.VERSION)] = None,
        sequence: Annotated[int, Query(ge=0, description=schemas.SEQUENCE)] = 0,
        timeout_ms: Timeout = None,
    ) -> Response:
        """Return stored items: some, in the order requested, or a page of all that match, ascending by id."""
        page = {"filter": filter, "after": after, "limit": limit, "version": version, "sequence": sequence or None}
        if ids is None:
            asked = Page(filter, None, after, limit or schemas.PAGE_ITEMS, version, sequence)
            return await gateway.page(request, asked, timeout_ms)
        if given := [name for name, value in page.items() if value is not None]:
            raise invalid(f"`{given[0]}` is for pages of items: leave it or `ids` out", given[0])
        return await gateway.items(request, _ids(ids, gateway.limits.queries), timeout_ms)

    @app.post("/v1/scroll", **json_body(schemas.ScrollBody, schemas.ItemsModel))
    async def scroll(request: Request) -> Response:
        """Return a page of all items that match, ascending by id."""
        return await gateway.scroll(request)

    @app.get("/v1/items/{id}", response_model=schemas.ItemModel)
    async def item(request: Request, id: ItemId, timeout_ms: Timeout = None) -> Response:
        """Return one stored item."""
        return await gateway.item(request, id, timeout_ms)

    @app.get("/v1/items/{id}/thumbnail", response_class=Response)
    async def thumbnail(request: Request, id: ItemId, timeout_ms: Timeout = None) -> Response:
        """Return the thumbnail of one item."""
        return await gateway.thumbnail(request, id, timeout_ms)


def _add_writes(app: FastAPI, writer: ItemWriter) -> None:
    put = write_body(schemas.PutBody, schemas.PutOptions, arrow=_PUT_COLUMNS, form=True)

    @app.post(ITEMS_PATH, **put)
    async def put_items(request: Request) -> Response:
        """Store items, in the place of those that have their ids; answers when they cannot be lost."""
        return await writer.put(request)

    @app.patch(ITEMS_PATH, **write_body(schemas.PatchBody, schemas.WriteOptions, arrow=_PATCH_COLUMNS))
    async def change_items(request: Request) -> Response:
        """Change attributes of items; all else that they have stays."""
        return await writer.update(request)

    @app.delete(ITEMS_PATH, **write_body(schemas.DeleteBody, schemas.WriteOptions))
    async def delete_items(request: Request) -> Response:
        """Delete items, as far as they are there."""
        return await writer.delete(request)


def _add_operations(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/collection", response_model=schemas.CollectionModel)
    async def collection() -> Response:
        """Describe the collection being served."""
        return json_response(await gateway.describe())

    @app.put(REPLICAS_PATH, **json_body(schemas.ReplicasModel, schemas.ReplicasModel))
    async def replicas(request: Request) -> Response:
        """Set the number of replicas of every group; returns when they are ready."""
        return await gateway.scale(request)

    @app.get("/health/live", response_model=schemas.HealthModel)
    async def live() -> Response:
        """Report that the process is running."""
        return json_response({"status": "live"})

    @app.get("/health/ready", response_model=schemas.ReadyModel)
    async def ready(request: Request) -> Response:
        """Report that some shards can be searched, as far as is known, and which are missing."""
        if request.scope.get(DRAINING):
            raise NotReadyError("this server is about to end: ask another")
        return json_response(gateway.ready())

    @app.get("/health/complete", response_model=schemas.CompleteModel)
    async def complete() -> Response:
        """Search in every shard, and report that all were found; 503 that names those that were not."""
        return json_response(await gateway.prove_complete())

    @app.get(METRICS_PATH, response_class=Response)
    async def metrics() -> Response:
        """Return the Prometheus metrics."""
        return Response(render(gateway.metrics), media_type=CONTENT_TYPE)


def _ids(text: str, max_ids: int) -> list[int]:
    ids = [int(part) for part in text.split(",")]
    if len(ids) > max_ids:
        raise invalid(f"`ids` must be 1 to {max_ids} ids, got {len(ids)}: split them into several requests", "ids")
    if max(ids) > schemas.MAX_ID:
        raise invalid(f"`ids` must be at most {schemas.MAX_ID}, got {max(ids)}", "ids")
    return ids


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        return _answer_of(_refusal_of_path(request, error))
    return _answer_of(error)


def _refusal_of_path(request: Request, error: HTTPException) -> RequestError:
    """Point to the paths or methods that do exist."""
    if error.status_code == 404:
        return RequestError(404, "not_found", f"there is no {request.url.path[:100]}; see /openapi.json")
    expected = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow") or "another method"
    message = f"{request.url.path[:100]} expects {expected}, got {request.method[:20]}"
    return RequestError(405, "method_not_allowed", message, headers=error.headers)


def _answer_of(error: Exception) -> Response:
    """Turn any error into an answer of the common form."""
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        error = invalid(f"`{field}`: {what_is_wrong(first)}", field)
    elif isinstance(error, HTTPException):
        error = RequestError(error.status_code, "malformed", str(error.detail), headers=error.headers)
    refusal = refusal_of(error)
    return json_response(refusal.document(), refusal.status, refusal.headers)
