"""Items that stand for the collection, found once for each version."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import Request, Response

from hashlight.engine.service.api.gateway import Gateway, json_response
from hashlight.engine.service.asking.rendering import coverage_frame, hex_codes
from hashlight.engine.service.asking.representatives import find_representatives
from hashlight.engine.service.asking.retrieval import time_left
from hashlight.engine.service.telemetry.requests import note

_KEPT = 8  # answers, of the counts that were asked for last


class Wall:
    """Finds the items that stand for the collection of a gateway. Belongs to its event loop."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._finding = asyncio.Lock()
        self._found: dict[tuple[str, int], dict[str, Any]] = {}  # by manifest and count

    async def answer(self, request: Request, count: int, timeout_ms: int | None) -> Response:
        """Return up to `count` items, those of the largest groups first."""
        gateway = self._gateway
        deadline_s = time.monotonic() + gateway.timeout_s(timeout_ms)
        async with gateway.within(request, deadline_s), self._finding:
            known = self._found.get((gateway.searcher.manifest, count))
            if known is None:
                known = await self._find(count, deadline_s)
        note(version=known["version"])
        return json_response(known)

    async def _find(self, count: int, deadline_s: float) -> dict[str, Any]:
        gateway = self._gateway
        manifest = gateway.searcher.manifest
        found = await gateway.run(
            lambda: find_representatives(gateway.searcher, count, timeout_s=time_left(deadline_s))
        )
        codes = hex_codes(found.codes, bits=gateway.searcher.bits)
        items = [
            {"id": id_, "size": size, "code": code}
            for id_, size, code in zip(found.ids.tolist(), found.sizes.tolist(), codes, strict=True)
        ]
        document = {"items": items, "sampled": found.sampled, **coverage_frame(found.coverage)}
        if found.coverage.complete and gateway.searcher.manifest == manifest:
            self._found[manifest, count] = document
            while len(self._found) > _KEPT:
                del self._found[next(iter(self._found))]
        return document
