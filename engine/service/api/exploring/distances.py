"""How many items lie at each distance from queries."""

from __future__ import annotations

import time

from fastapi import Request, Response

from hashlight.engine.service.api import bodies
from hashlight.engine.service.api.exploring.schemas import HistogramBody
from hashlight.engine.service.api.gateway import Gateway, json_response
from hashlight.engine.service.asking.rendering import coverage_frame
from hashlight.engine.service.asking.retrieval import time_left
from hashlight.engine.service.problems import invalid
from hashlight.engine.service.telemetry.requests import note


async def histogram(gateway: Gateway, request: Request) -> Response:
    """Count the items at each distance from each query of a request."""
    arrived_s = time.monotonic()
    timing_ms: dict[str, float] = {}
    searcher, limits = gateway.searcher, gateway.limits
    with gateway.metrics.stage("read", timing_ms):
        asked = await bodies.read_queries(request, HistogramBody, bits=searcher.bits, limits=limits)
    count = len(asked.queries.codes)
    if (wanted := count * (searcher.bits + 1)) > limits.results:
        raise invalid(
            f"{count} queries have {wanted} counts, more than {limits.results}: ask for fewer at a time", "queries"
        )
    options, deadline_s = asked.options, arrived_s + gateway.timeout_s(asked.options.timeout_ms)
    async with gateway.within(request, deadline_s) as account:
        account.hold(8 * wanted)
        codes_QW = await gateway.codes_of(asked.queries, deadline_s, timing_ms)
        with gateway.metrics.stage("search", timing_ms):
            counts_QD, coverage = await gateway.run(
                lambda: searcher.histogram(
                    codes_QW,
                    options.filter,
                    asked.lists,
                    timeout_s=time_left(deadline_s),
                    allow_partial=options.allow_partial,
                )
            )
    if not coverage.complete:
        gateway.metrics.partial.inc()
    note(queries=count, version=coverage.version, coverage=coverage.share)
    results = [{"counts": counts} for counts in counts_QD.tolist()]
    return json_response({"results": results, **coverage_frame(coverage), "timing_ms": timing_ms})
