"""The OpenAPI document: what FastAPI cannot infer, because the routes read their bodies themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from hashlight.engine.service.api import bodies, schemas

_REF = "#/components/schemas/{model}"
_BODIES: tuple[type[BaseModel], ...] = (
    schemas.SearchBody, schemas.RangeBody, schemas.EncodeBody, schemas.SearchOptions, schemas.RangeOptions,
    schemas.SearchAnswer, schemas.EncodeAnswer, schemas.ErrorAnswer, schemas.CountBody, schemas.FacetsBody,
    schemas.ScrollBody, schemas.ReplicasModel, schemas.PutBody, schemas.PatchBody, schemas.DeleteBody,
)  # fmt: skip
_ERRORS = {
    "4XX": "The request is refused; `error.field` names the field at fault.",
    "5XX": "The server cannot answer at present.",
}


_KEY = {
    "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    "description": "Of this request alone: a second delivery under the same key changes nothing, and has the answer of "
    "the first. Kept for a day.",
}


def search_body(body: type[BaseModel], options: type[BaseModel]) -> dict[str, Any]:
    """Return arguments for FastAPI's route decorator that describe a search's bodies and its answer."""
    stream = {"schema": {"type": "string", "format": "binary"}}
    described = _body(body, options, schemas.SearchAnswer)
    described["responses"][200]["content"][bodies.ARROW] = stream
    described["openapi_extra"]["requestBody"]["content"][bodies.ARROW] = {
        "schema": {**stream["schema"], "description": _ARROW}
    }
    return described


def encode_body() -> dict[str, Any]:
    """Return the same for encoding."""
    return _body(schemas.EncodeBody, schemas.EncodeOptions, schemas.EncodeAnswer)


def write_body(
    body: type[BaseModel], options: type[BaseModel], *, arrow: str | None = None, form: bool = False
) -> dict[str, Any]:
    """Return the same for a write: JSON, perhaps an Arrow stream of some columns, perhaps a form with one image."""
    binary = {"type": "string", "format": "binary"}
    content: dict[str, Any] = {bodies.JSON: {"schema": _ref(body), "examples": _examples(body)}}
    if form:
        fields = {
            "id": {"type": "integer", "minimum": 0, "maximum": schemas.MAX_ID},
            "attributes": {"type": "string", "description": 'JSON: {"label": 3}.'},
            "image": {**binary, "description": "An image file."},
            "thumbnail": {**binary, "description": "A small image file."},
        }
        content[bodies.FORM] = {
            "schema": {
                "type": "object",
                "required": ["id", "image"],
                "additionalProperties": False,
                "properties": fields,
            }
        }
    if arrow is not None:
        content[bodies.ARROW] = {"schema": {**binary, "description": arrow}}
    document = options.model_json_schema()["properties"]
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": _plain(schema), "description": schema["description"]}
        for name, schema in document.items()
    ]
    parameters.append({"name": "Idempotency-Key", "in": "header", "required": False, **_KEY})
    return {
        "response_model": schemas.WriteAnswer,
        "openapi_extra": {"requestBody": {"required": True, "content": content}, "parameters": parameters},
    }


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter in a URL, where none is left out instead of null."""
    kinds = schema.get("anyOf", [schema])
    return {name: value for name, value in kinds[0].items() if name not in ("title", "description", "default")}


def json_body(body: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """Return the same for a body that is JSON alone."""
    content = {bodies.JSON: {"schema": _ref(body), "examples": _examples(body)}}
    return {
        "response_model": answer,
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def _body(body: type[BaseModel], options: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    image = {"type": "string", "format": "binary", "description": "An image file."}
    form = {"type": "object", "required": ["image"], "additionalProperties": False}
    content: dict[str, Any] = {
        bodies.JSON: {"schema": _ref(body), "examples": _examples(body)},
        bodies.FORM: {"schema": {**form, "properties": {"image": image, **_form_fields(options)}}},
    }
    answered = {bodies.JSON: {"schema": _ref(answer)}}
    return {
        "response_model": None,
        "responses": {200: {"description": "Answers.", "content": answered}},
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


_ARROW = (
    "An Arrow IPC stream with one column `code`, fixed_size_binary of ceil(bits / 8); the options are URL parameters. "
    "The answer is a stream too: columns `query`, `id`, `distance` and what was included."
)


def describe_api(app: FastAPI, *, secured: bool, models: Sequence[type[BaseModel]]) -> None:
    """Complete `app.openapi`: models of bodies, those of other rooms too, errors of every route, how to send a key."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version="1", summary="Exact Hamming search of images.", routes=app.routes
            )
            _complete(document, secured=secured, models=[*_BODIES, *models])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any], *, secured: bool, models: Sequence[type[BaseModel]]) -> None:
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **definitions["$defs"]}
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for status, meaning in _ERRORS.items():
                content = {bodies.JSON: {"schema": _ref(schemas.ErrorAnswer)}}
                operation["responses"][status] = {"description": meaning, "content": content}
            if secured and not path.startswith("/health/"):
                operation["security"] = [{"bearer": []}, {"header": []}]
    if secured:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    for path in ("/v1/items/{id}/thumbnail", "/v1/admin/rejects/{number}/picture"):
        picture = document["paths"][path]["get"]["responses"]["200"]
        picture["content"] = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
    document["paths"]["/metrics"]["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}


def _form_fields(options: type[BaseModel]) -> dict[str, Any]:
    """Return the options as text fields of a form: lists are joined by commas, objects are JSON."""
    fields: dict[str, Any] = {}
    for name, field in options.model_fields.items():
        schema: dict[str, Any] = {"description": field.description or name}
        if name == "rerank":
            schema |= {"type": "string", "description": 'asymmetric, hamming, or JSON: {"pool": 100, "metric": "l2"}.'}
        elif name == "parameters":
            schema |= {"type": "string", "description": 'JSON: {"seen": [7, 8]}.'}
        elif name == "after":
            schema |= {"type": "string", "description": 'JSON: {"version": 5, "distance": 3, "id": 7}.'}
        elif name == "include":
            schema |= {"type": "string", "pattern": "^((attributes|code|explain)(,(?!$)|$)){0,3}$"}
        elif name == "filter":
            schema |= {"type": "string", "maxLength": 10_000}
        elif name == "allow_partial":
            schema |= {"type": "boolean"}
        else:
            schema |= {"type": "integer", "minimum": 0 if name == "radius" else 1}
        fields[name] = schema
    return fields


def _examples(body: type[BaseModel]) -> dict[str, Any]:
    extra = body.model_config.get("json_schema_extra")
    given: Any = extra.get("examples", []) if isinstance(extra, dict) else []
    return {f"example {number}": {"value": value} for number, value in enumerate(given, 1)}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}
