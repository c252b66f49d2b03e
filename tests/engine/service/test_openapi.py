"""The OpenAPI document: its examples work, and requests made from it never end in a 500."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis

from engine.service.gateway import create_app
from engine.service.keys import Keys
from engine.service.limits import Limits
from tests import serving


@pytest.fixture(scope="module")
def app(searcher):
    return create_app(searcher, encoder=serving.AverageHash(), limits=Limits(timeout_s=60))


@pytest.fixture(scope="module")
def api(app):
    with serving.running(app) as url:
        document = app.openapi()
        yield schemathesis.openapi.from_dict({**document, "servers": [{"url": url}]})


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@hypothesis.settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_no_request_from_the_document_ends_in_a_500(case):
    response = case.call()
    assert response.status_code < 500, response.text
    case.validate_response(
        response,
        checks=[
            schemathesis.checks.not_a_server_error,
            schemathesis.checks.response_schema_conformance,
            schemathesis.checks.content_type_conformance,
            schemathesis.checks.status_code_conformance,
        ],
    )


def test_examples_of_bodies_are_accepted_or_name_what_is_missing(app, http):
    tried = 0
    for path, operations in app.openapi()["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        for example in content.get("application/json", {}).get("examples", {}).values():
            answer = http.post(path, json=example["value"])
            # The item of the example need not be in this collection, nor its code of the same length.
            assert answer.status_code in (200, 404), answer.text
            tried += 1
    assert tried == 5


def test_the_document_names_every_route_and_how_to_bring_a_key(app, searcher):
    document = app.openapi()
    assert set(document["paths"]) == {
        "/v1/search", "/v1/range_search", "/v1/encode", "/v1/items", "/v1/items/{id}", "/v1/items/{id}/thumbnail",
        "/v1/collection", "/health/live", "/health/ready", "/metrics",
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
