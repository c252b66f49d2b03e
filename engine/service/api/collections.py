"""Several collections in one server, each an application of its own, told apart by the beginning of a path.

::

    /v1/collections                 their names, and what each is
    /v1/admin/collections           the same for operators
    /v1/collections/{name}          one of them: what `/v1/collection` of its application answers
    /v1/collections/{name}/...      `/v1/...` of its application
    /collections/{name}/...         anything of its application: its web page, its metrics
    /admin                          the page for operators, of the first one if there are several
    /health/ready, /health/complete whether all are
    anything else                   the only one's; 409 naming them if there are several
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import Message, Receive, Scope, Send

from hashlight.engine.errors import HashlightError, NotReadyError
from hashlight.engine.service.api.administration.routes import ADMIN_PAGE
from hashlight.engine.service.api.gateway import Gateway, json_response
from hashlight.engine.service.door.access import ADMIN_PATH, Access
from hashlight.engine.service.door.draining import DRAINING
from hashlight.engine.service.door.guard import Guard
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.problems import RequestError, refusal_of

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
LIST = "/v1/collections"
ADMIN_LIST = f"{ADMIN_PATH}/collections"

# What concerns all of them, also where there is one.
_OF_ALL = (LIST, ADMIN_LIST, "/openapi.json")

# How the paths of one collection begin, and what its application has in the place of that.
_ONE = ((re.compile(r"/v1/collections/([^/]+)(?=/|$)"), "/v1"), (re.compile(r"/collections/([^/]+)(?=/)"), ""))


class Collections:
    """Sends each request to the application of its collection. An ASGI application.

    Parameters
    ----------
    apps : mapping of str to FastAPI
        Name of each collection -> what `engine.service.api.app.create_app` gives for it.
    keys : Keys
        As those of the applications, which check every request that reaches them.

    Raises
    ------
    ValueError
        If there are none, or a name is not one.
    """

    def __init__(self, apps: Mapping[str, FastAPI], keys: Keys) -> None:
        if not apps:
            raise ValueError("a server has at least 1 collection, got 0")
        for name in apps:
            check_name(name)
        self._apps = dict(apps)
        self._access = Access(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or begin and end all applications."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        assert scope["type"] == "http", "the server has nothing else"
        with contextlib.ExitStack() as until_sent:
            try:
                app, path = self._app_of(scope, until_sent)
                if app is not None:
                    raw = quote(path, safe="/%:@!$&'()*+,;=-._~").encode()
                    await app({**scope, "path": path, "raw_path": raw}, receive, send)
                    return
                self._access.check(scope, until_sent)
                answer = await self._own(scope)
            except (HashlightError, RequestError) as error:
                refusal = refusal_of(error)
                answer = json_response(refusal.document(), refusal.status, refusal.headers)
            await answer(scope, receive, _with_headers(scope["path"], send))

    def _app_of(self, scope: Scope, until_sent: contextlib.ExitStack) -> tuple[FastAPI | None, str]:
        """Return the application of a request and its path there; None for what concerns all.

        Raises
        ------
        RequestError
            401, 403, 429 without a key for it, 404 if there is no such collection, 409 if none is named among several.
        """
        path = scope["path"]
        for pattern, place in _ONE:
            if found := pattern.match(path):
                rest = path[found.end() :] or "/collection"
                if found[1] not in self._apps:
                    self._access.check(scope, until_sent)
                    names = ", ".join(self._apps)
                    raise RequestError(404, "not_found", f"there is no collection {found[1][:100]}; there are: {names}")
                return self._apps[found[1]], place + rest
        if len(self._apps) == 1 and path not in _OF_ALL:
            return next(iter(self._apps.values())), path
        if path in (*_OF_ALL, ADMIN_PAGE) or path.startswith("/health/"):
            return None, path
        self._access.check(scope, until_sent)
        raise RequestError(
            409,
            "several_collections",
            f"this server has several collections: {', '.join(self._apps)}. Name one, as in "
            f"/v1/collections/{next(iter(self._apps))}/search, or /collections/{next(iter(self._apps))}/ for its page",
            details={"collections": list(self._apps)},
        )

    async def _own(self, scope: Scope) -> Response:
        """Answer what concerns all collections."""
        path = scope["path"]
        if path == "/openapi.json":
            return json_response(self._openapi())
        if scope["method"] not in ("GET", "HEAD"):
            raise RequestError(405, "method_not_allowed", f"{path} expects GET, got {scope['method'][:20]}")
        if path == LIST:
            told = [{"name": name, **await _gateway(app).describe()} for name, app in self._apps.items()]
            return json_response({"collections": told})
        if path == ADMIN_LIST:
            told = [{"name": name, **await app.state.operations.overview()} for name, app in self._apps.items()]
            return json_response({"collections": told})
        if path == ADMIN_PAGE:
            return RedirectResponse(f"collections/{next(iter(self._apps))}{ADMIN_PAGE}")
        if path == "/health/live":
            return json_response({"status": "live"})
        if path == "/health/ready":
            if scope.get(DRAINING):
                raise NotReadyError("this server is about to end: ask another")
            ready = {name: _gateway(app).ready() for name, app in self._apps.items()}
            return json_response({"status": "ready", "collections": ready})
        if path == "/health/complete":
            whole = {name: await _gateway(app).prove_complete() for name, app in self._apps.items()}
            return json_response({"status": "complete", "collections": whole})
        raise RequestError(404, "not_found", f"there is no {path[:100]}; see /openapi.json")

    def _openapi(self) -> dict[str, Any]:
        """Return the document of one collection, with its paths under its name, too."""
        document: dict[str, Any] = next(iter(self._apps.values())).openapi()
        named: dict[str, Any] = {}
        parameter = {
            "name": "name",
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": f"^{NAME}$"},
        }
        for path, operations in document["paths"].items():
            if path.startswith("/v1/"):
                rest = "" if path == "/v1/collection" else path.removeprefix("/v1")
                named[f"{LIST}/{{name}}{rest}"] = {
                    method: {
                        **operation,
                        "operationId": f"{operation['operationId']}_of_collection",
                        "parameters": [parameter, *operation.get("parameters", [])],
                    }
                    for method, operation in operations.items()
                }
        lists = {
            LIST: self._list_of(document, "/v1/collection", "CollectionModel", "collections"),
            ADMIN_LIST: self._list_of(document, f"{ADMIN_PATH}/collection", "OverviewModel", "admin_collections"),
        }
        return {**document, "paths": {**document["paths"], **named, **lists}}

    @staticmethod
    def _list_of(document: Mapping[str, Any], path: str, model: str, operation: str) -> dict[str, Any]:
        """Describe the list of what a path has of each collection."""
        described = document["paths"][path]["get"]
        one = {"allOf": [{"$ref": f"#/components/schemas/{model}"}], "required": ["name"]}
        schema = {"type": "object", "properties": {"collections": {"type": "array", "items": one}}}
        found = {"description": "All collections.", "content": {"application/json": {"schema": schema}}}
        return {
            "get": {
                **described,
                "operationId": operation,
                "summary": "Collections",
                "description": "Describe all collections of this server.",
                "responses": {**described["responses"], "200": found},
            }
        }

    async def _live(self, receive: Receive, send: Send) -> None:
        """Begin all applications, and end them when the server does."""
        await receive()
        async with contextlib.AsyncExitStack() as stack:
            try:
                for app in self._apps.values():
                    await stack.enter_async_context(app.router.lifespan_context(app))
            except BaseException as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                raise
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def check_name(name: str) -> str:
    """Return the name of a collection, or raise ValueError if it is not one."""
    if not re.fullmatch(NAME, name):
        raise ValueError(
            f"a collection's name has up to 64 letters, digits and any of . _ -, and begins with none of these, got "
            f"{name!r}"
        )
    return name


def _gateway(app: FastAPI) -> Gateway:
    gateway: Gateway = app.state.gateway
    return gateway


def _with_headers(path: str, send: Send) -> Send:
    async def send_guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            Guard.add_headers(path, MutableHeaders(scope=message), closes=False)
        await send(message)

    return send_guarded
