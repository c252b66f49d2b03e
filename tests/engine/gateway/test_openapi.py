"""The OpenAPI document: its examples work, and requests made from it never end in a 500."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis

from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.door.keys import Keys
from hashlight.engine.service.limits import Limits
from tests import serving


@pytest.fixture(scope="module")
def app(searcher):
    return create_app(searcher, encoder=serving.AverageHash(), limits=Limits(timeout_s=60))


OPERATIONS = [
    "POST /v1/search", "POST /v1/range_search", "POST /v1/encode", "GET /v1/items", "GET /v1/items/{id}",
    "GET /v1/items/{id}/thumbnail", "POST /v1/count", "POST /v1/facets", "POST /v1/scroll", "POST /v1/histogram",
    "GET /v1/representatives", "GET /v1/collection",
    "GET /health/live", "GET /health/ready", "GET /health/complete", "GET /metrics",
]  # fmt: skip
WITH_ARGUMENTS = OPERATIONS[:11]  # the others have no arguments that could be wrong


def no_server_error(context, response, case):
    # A request may set a timeout shorter than its answer takes; 504 is then correct.
    assert response.status_code < 500 or (response.status_code == 504 and "timeout_ms" in repr(case))


CHECKS = [
    no_server_error,
    schemathesis.checks.response_schema_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.status_code_conformance,
]


@pytest.fixture(scope="module")
def operations(app):
    with serving.running(app) as url:
        api = schemathesis.openapi.from_dict(app.openapi())
        api.config.update(base_url=url)
        yield {result.ok().label: result.ok() for result in api.get_all_operations()}


@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, "positive") for label in OPERATIONS] + [(label, "negative") for label in WITH_ARGUMENTS],
)
def test_no_request_from_the_document_ends_in_a_500(operations, label, mode):
    strategy = operations[label].as_strategy(generation_mode=schemathesis.GenerationMode(mode))

    @hypothesis.given(case=strategy)
    @hypothesis.settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def check(case):
        case.call_and_validate(checks=CHECKS)

    check()


def test_example_bodies_are_accepted_or_the_error_names_what_is_missing(app, http):
    tried = 0
    for path, operations in app.openapi()["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        for example in content.get("application/json", {}).get("examples", {}).values():
            answer = http.post(path, json=example["value"])
            # The example's item may not be in this collection, and its code may have another length.
            # This server only reads.
            assert answer.status_code in ((403,) if path == "/v1/items" else (200, 404)), answer.text
            tried += 1
    assert tried == 20


def test_the_document_lists_every_route_and_the_ways_to_send_a_key(app, searcher):
    document = app.openapi()
    assert set(document["paths"]) == {
        "/v1/search", "/v1/range_search", "/v1/encode", "/v1/items", "/v1/items/{id}", "/v1/items/{id}/thumbnail",
        "/v1/count", "/v1/facets", "/v1/scroll", "/v1/collection", "/v1/replicas", "/health/live", "/health/ready",
        "/health/complete", "/metrics", "/v1/histogram", "/v1/representatives", "/v1/duplicates",
        "/v1/admin/collection", "/v1/admin/versions", "/v1/admin/rollback", "/v1/admin/servers",
        "/v1/admin/slow_queries", "/v1/admin/rejects", "/v1/admin/rejects/{number}/picture",
    }  # fmt: skip
    assert set(document["paths"]["/v1/search"]["post"]["requestBody"]["content"]) == {
        "application/json", "multipart/form-data", "application/vnd.apache.arrow.stream"
    }  # fmt: skip
    assert "securitySchemes" not in document["components"]
    keys = Keys.load(None, {"HASHLIGHT_API_KEYS": "page search searching-is-all-0001"})
    secured = create_app(searcher, keys=keys).openapi()
    assert set(secured["components"]["securitySchemes"]) == {"bearer", "header"}
    assert "security" not in secured["paths"]["/health/live"]["get"]
    assert secured["paths"]["/v1/search"]["post"]["security"]
