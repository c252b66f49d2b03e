"""Groups of near-duplicates, page by page."""

from __future__ import annotations

import time
from typing import Any

from fastapi import Request, Response

from hashlight.engine.service.api.gateway import Gateway, json_response
from hashlight.engine.service.asking.duplicates import Duplicates, members_of
from hashlight.engine.service.asking.retrieval import time_left
from hashlight.engine.service.problems import RequestError
from hashlight.engine.service.telemetry.requests import note


class Groups:
    """Answers for the groups of duplicates that a server was told of."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        location = gateway.beside.duplicates
        self._found = None if location is None else Duplicates(location)

    async def answer(
        self, request: Request, *, after: int, limit: int, members: int, timeout_ms: int | None
    ) -> Response:
        """Return some groups, the largest first, with the items that are still there."""
        gateway, found = self._gateway, self._found
        if found is None:
            raise RequestError(
                404,
                "not_found",
                "this server knows no groups of duplicates: find them with `hashlight dedup`, and start it with "
                "`--duplicates FOLDER`",
            )
        deadline_s = time.monotonic() + gateway.timeout_s(timeout_ms)

        def read() -> dict[str, Any]:
            about, groups = found.page(after, limit, members)
            kept, coverage = members_of(gateway.searcher, groups, timeout_s=time_left(deadline_s))
            note(version=coverage.version, coverage=coverage.share)
            told = [
                {
                    "size": group.size,
                    "representative": {"id": int(group.ids[0])},
                    "items": [member._asdict() for member in items],
                }
                for group, items in zip(groups, kept, strict=True)
            ]
            end = after + len(groups)
            more = end if end < about["clusters"] else None
            return {"groups": told, "next": more, "found": about, "version": coverage.version}

        async with gateway.within(request, deadline_s):
            return json_response(await gateway.run(read))
