"""The routes of this room."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request, Response

from hashlight.engine.service.api.exploring import distances, schemas
from hashlight.engine.service.api.exploring.duplicates import Groups
from hashlight.engine.service.api.exploring.representatives import Wall
from hashlight.engine.service.api.gateway import Gateway
from hashlight.engine.service.api.openapi import json_body
from hashlight.engine.service.api.schemas import GIVE_UP, MAX_ID

BODIES = (schemas.HistogramBody,)


def add_exploring(app: FastAPI, gateway: Gateway) -> None:
    """Add the routes to an application."""
    wall, groups = Wall(gateway), Groups(gateway)

    @app.post("/v1/histogram", **json_body(schemas.HistogramBody, schemas.HistogramAnswer))
    async def histogram(request: Request) -> Response:
        """Count how many items lie at each Hamming distance of each query."""
        return await distances.histogram(gateway, request)

    @app.get("/v1/representatives", response_model=schemas.RepresentativesAnswer)
    async def representatives(
        request: Request,
        count: Annotated[int, Query(ge=1, le=schemas.MAX_REPRESENTATIVES, description="Items at most.")] = 60,
        timeout_ms: Annotated[int | None, Query(ge=1, description=GIVE_UP)] = None,
    ) -> Response:
        """Return items that stand for the collection: medoids of a random sample, the same ones for a version."""
        return await wall.answer(request, count, timeout_ms)

    @app.get("/v1/duplicates", response_model=schemas.DuplicatesAnswer)
    async def duplicates(
        request: Request,
        after: Annotated[int, Query(ge=0, le=MAX_ID, description="`next` of the page before.")] = 0,
        limit: Annotated[int, Query(ge=1, le=schemas.MAX_GROUPS, description="Groups of a page.")] = 20,
        members: Annotated[int, Query(ge=1, le=schemas.MAX_MEMBERS, description="Items of a group at most.")] = 12,
        timeout_ms: Annotated[int | None, Query(ge=1, description=GIVE_UP)] = None,
    ) -> Response:
        """Return groups of near-duplicates that `hashlight dedup` has found, the largest first, page by page."""
        return await groups.answer(request, after=after, limit=limit, members=members, timeout_ms=timeout_ms)
