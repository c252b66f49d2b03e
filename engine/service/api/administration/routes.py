"""The routes of this room."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as InPath

from hashlight.engine.service.api.administration import schemas
from hashlight.engine.service.api.administration.operations import Operations
from hashlight.engine.service.api.gateway import Gateway, json_response
from hashlight.engine.service.api.openapi import json_body
from hashlight.engine.service.api.schemas import MAX_ID
from hashlight.engine.service.door.access import ADMIN_PATH

BODIES = (schemas.RollbackBody,)
ADMIN_PAGE = "/admin"  # one of the files of the page


def add_administration(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes to an application, and `operations` to its state."""
    app.state.operations = operations = Operations(gateway)

    @app.get(f"{ADMIN_PATH}/collection", response_model=schemas.OverviewModel)
    async def overview() -> Response:
        """Describe the collection as it is served: coverage, a version that cannot be, the write log."""
        return json_response(await operations.overview())

    @app.get(f"{ADMIN_PATH}/versions", response_model=schemas.VersionsAnswer)
    async def versions() -> Response:
        """List the versions of the collection that it can be rolled back to."""
        return await operations.versions()

    @app.post(f"{ADMIN_PATH}/rollback", **json_body(schemas.RollbackBody, schemas.RollbackAnswer))
    async def rollback(request: Request) -> Response:
        """Make the next version what an earlier one was; the versions between stay as they are."""
        return await operations.rollback(request)

    @app.get(f"{ADMIN_PATH}/servers", response_model=schemas.ServersAnswer)
    async def servers() -> Response:
        """List the shard servers: the versions that each has, its last answer, whether it is avoided."""
        return operations.servers()

    @app.get(f"{ADMIN_PATH}/slow_queries", response_model=schemas.SlowQueriesAnswer)
    async def slow_queries(request: Request) -> Response:
        """List the slow queries that were logged last, each with how it was answered."""
        return operations.slow_queries(request)

    @app.get(f"{ADMIN_PATH}/rejects", response_model=schemas.RejectsAnswer)
    async def rejects(
        after: Annotated[int, Query(ge=0, le=MAX_ID, description="`next` of the page before.")] = 0,
        limit: Annotated[int, Query(ge=1, le=schemas.MAX_REJECTS, description="Rejects of a page.")] = 100,
    ) -> Response:
        """List images that could not be encoded, with the reasons."""
        return await operations.rejects(after, limit)

    @app.get(f"{ADMIN_PATH}/rejects/{{number}}/picture", response_class=Response)
    async def picture(number: Annotated[int, InPath(ge=0, le=MAX_ID)]) -> Response:
        """Return the file of an image that could not be encoded, where it can be read."""
        return await operations.picture(number)
