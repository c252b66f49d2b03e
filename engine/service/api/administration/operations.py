"""What operators ask one collection of a server."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

from fastapi import Request, Response

from hashlight.engine.errors import CollectionNotFoundError, NotReadyError
from hashlight.engine.service.api import bodies
from hashlight.engine.service.api.administration.history import describe_versions, roll_back
from hashlight.engine.service.api.administration.rejects import Rejects
from hashlight.engine.service.api.administration.schemas import RollbackBody
from hashlight.engine.service.api.gateway import Gateway, json_response
from hashlight.engine.service.api.writing import refuse_other_sites
from hashlight.engine.service.asking.rendering import coverage_frame
from hashlight.engine.service.problems import RequestError
from hashlight.engine.service.telemetry.slow import SLOW_QUERIES, SlowQueries

_LEAST_S = 60.0  # for a rollback, which other writers may hold up


class Operations:
    """Answers operators for the collection of a gateway. Belongs to its event loop."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        codes = gateway.beside.codes
        self._rejects = None if codes is None else Rejects(codes)

    async def overview(self) -> dict[str, Any]:
        """Return the collection as it is served; see `schemas.OverviewModel`."""
        gateway = self._gateway
        about = await asyncio.to_thread(gateway.searcher.describe)
        try:
            coverage = coverage_frame(gateway.searcher.reachable())["coverage"]
        except NotReadyError:
            coverage = None
        pending, written = gateway.pending, gateway.written
        return {
            "version": about["version"],
            "items": about["rows"],
            "shards": about["shards"],
            "bits": about["bits"],
            "encoder": about["encoder"],
            "location": gateway.beside.collection,
            "coverage": coverage,
            "pending": None if pending is None else dataclasses.asdict(pending),
            "write_log": None if written is None else dataclasses.asdict(written),
        }

    async def versions(self) -> Response:
        """Return the versions that are kept."""
        location = self._location()
        return json_response({"versions": await self._gateway.run(lambda: describe_versions(location))})

    async def rollback(self, request: Request) -> Response:
        """Write a version that is what an earlier one was."""
        location, gateway = self._location(), self._gateway
        refuse_other_sites(request)
        asked = await bodies.read_document(request, RollbackBody, gateway.limits)
        if (written := gateway.written) is None:
            raise RequestError(
                403, "read_only", "this server only reads its collection: start it with `--writable` to roll back"
            )
        if written.writes:
            raise RequestError(
                409,
                "conflict",
                f"{written.writes} writes are in the server's log, and would be made on top of the earlier version: "
                "try again when they are committed, in some seconds",
            )
        deadline_s = time.monotonic() + max(_LEAST_S, gateway.limits.timeout_s)
        async with gateway.within(request, deadline_s):
            try:
                version = await gateway.run(lambda: roll_back(location, asked.version))
            except CollectionNotFoundError as error:
                raise RequestError(404, "not_found", str(error), field="version") from error
        return json_response({"version": version})

    def servers(self) -> Response:
        """Return the shard servers, as the router and what finds them know them."""
        gateway = self._gateway
        stats = gateway.searcher.stats()
        known = {} if gateway.beside.servers is None else {one["address"]: one for one in gateway.beside.servers()}
        connected = {one["address"]: one for one in stats.get("replicas", ())}
        try:
            version = gateway.searcher.version
        except NotReadyError:
            version = None  # no server has been found yet
        told = [
            _server(address, known.get(address), connected.get(address), version)
            for address in sorted(known.keys() | connected.keys())
        ]
        told.sort(key=lambda one: one["group"])
        return json_response({"servers": told, "version": version})

    @staticmethod
    def slow_queries(request: Request) -> Response:
        """Return the slow queries that were logged last."""
        slow: SlowQueries = request.scope.get(SLOW_QUERIES) or SlowQueries(None)
        return json_response({"threshold_s": slow.threshold_s, "queries": slow.last()})

    async def rejects(self, after: int, limit: int) -> Response:
        """Return some of the images that could not be encoded."""
        rejects = self._known_rejects()
        kinds, rows = await self._gateway.run(lambda: rejects.page(after, limit))
        end = after + len(rows)
        more = end if end < sum(kinds.values()) and rows else None
        return json_response({"rejects": rows, "kinds": kinds, "next": more})

    async def picture(self, number: int) -> Response:
        """Return the file of an image that could not be encoded."""
        rejects = self._known_rejects()
        found = await self._gateway.run(lambda: rejects.picture(number))
        if found is None:
            raise RequestError(
                404, "not_found", f"the image of reject {number} cannot be read here, or no browser shows it"
            )
        return Response(found[0], media_type=found[1])

    def _location(self) -> str:
        location = self._gateway.beside.collection
        if location is None:
            raise RequestError(
                404,
                "not_found",
                "this gateway does not know where the collection is: start it with `hashlight gateway COLLECTION`",
            )
        return location

    def _known_rejects(self) -> Rejects:
        if self._rejects is None:
            raise RequestError(
                404,
                "not_found",
                "this server does not know the folder of the encode job: start it with `--rejects CODES`, what "
                "`hashlight encode` wrote to",
            )
        return self._rejects


def _server(address: str, known: Any, connected: Any, version: int | None) -> dict[str, Any]:
    """Return what is known of a server from whoever found it, and from the router if that has a connection."""
    found, replica = known or {}, connected or {}
    return {
        "address": address,
        "group": found.get("group", replica.get("group", 0) + 1),
        "versions": found.get("versions", [] if version is None else [version]),
        "fault": found.get("fault") or replica.get("reason"),
        "state": replica.get("state", "not served"),
        **{name: replica.get(name, 0) for name in ("under_way", "failures", "breaker_s", "breakers_opened")},
        "last_answer_s": replica.get("last_answer_s"),
    }
