"""The page of the HTTP API, made from the schema that a server gives at `/openapi.json`."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hashlight import Collection
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.asking.searcher import CollectionSearcher

INTRODUCTION = """\
# HTTP API

Every server describes itself at `/openapi.json` (OpenAPI 3.1). This page is made from that schema, so it has every
path, field and default. [Asking over HTTP](serving.md) explains how they are used, with examples.

Bodies are JSON unless another type is listed. A server with keys expects one in `Authorization: Bearer KEY` or
`X-API-Key: KEY` ([security](security.md#keys)). Ids are whole numbers below 2^63: read them with a JSON library that
keeps large integers exact.
"""


def schema() -> dict[str, Any]:
    """Return the OpenAPI document of a server."""
    with tempfile.TemporaryDirectory() as folder:
        collection = Collection.create(Path(folder) / "example", np.arange(4, dtype=np.uint64)[:, None], bits=48)
        document: dict[str, Any] = create_app(CollectionSearcher(collection)).openapi()
    return document


def render_page() -> str:
    """Return the page as Markdown."""
    document = schema()
    models = document["components"]["schemas"]
    lines = [INTRODUCTION]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines += _operation(method, path, operation)
    lines += ["## Models", "", "What bodies and answers consist of.", ""]
    for name, model in sorted(models.items()):
        lines += [f"### {name}", "", model.get("description", ""), "", *_fields(model), ""]
    return "\n".join(lines)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"## {method.upper()} {path}", "", operation.get("description", ""), "")
    if parameters := operation.get("parameters"):
        yield from ("| parameter | in | type | |", "|---|---|---|---|")
        for parameter in parameters:
            kind = _kind(parameter["schema"])
            text = parameter.get("description") or parameter["schema"].get("description", "")
            required = "**required**; " if parameter.get("required") and parameter["in"] != "path" else ""
            yield f"| `{parameter['name']}` | {parameter['in']} | {kind} | {required}{_cell(text)} |"
        yield ""
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield from (f"**Body**, `{kind}`: {_body(content['schema'])}", "")
        if "properties" in content["schema"]:
            yield from (*_fields(content["schema"]), "")
    for example in _examples(operation):
        yield from ("```json", _shown(example), "```", "")
    answer = operation["responses"].get("200", {}).get("content", {})
    yield from ("**Answer**: " + "; ".join(f"`{kind}`: {_body(of['schema'])}" for kind, of in answer.items()), "")


def _body(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _link(schema)
    return str(schema.get("description") or ("the fields below" if "properties" in schema else _kind(schema)))


def _examples(operation: Mapping[str, Any]) -> list[Any]:
    contents = operation.get("requestBody", {}).get("content", {}).values()
    return [example["value"] for content in contents for example in content.get("examples", {}).values()]


def _shown(example: Any) -> str:
    line = re.sub(r'"[A-Za-z0-9+/=]{60,}"', '"(a file in base64)"', json.dumps(example))
    return line if len(line) <= 80 else json.dumps(json.loads(line), indent=2)


def _fields(model: Mapping[str, Any]) -> Iterator[str]:
    if not model.get("properties"):
        yield "Without fields."
        return
    yield from ("| field | type | default | |", "|---|---|---|---|")
    required = model.get("required", ())
    for name, field in model["properties"].items():
        default = "**required**" if name in required else ""
        if "default" in field:
            default = f"`{json.dumps(field['default'])}`"
        yield f"| `{name}` | {_kind(field)} | {default} | {_cell(field.get('description', ''))} |"


def _kind(schema: Mapping[str, Any]) -> str:
    """Return a type as text, with links to models and its limits."""
    if "$ref" in schema:
        return _link(schema)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_kind(one) for one in schema[several]))
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}{_limits(schema, 'minItems', 'maxItems', ' items')}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {_kind(schema['additionalProperties'])}"
    if kind == "string":
        return f"string{_limits(schema, 'minLength', 'maxLength', ' characters')}"
    return f"{kind}{_limits(schema, 'minimum', 'maximum', '')}"


def _limits(schema: Mapping[str, Any], least: str, most: str, unit: str) -> str:
    low, high = (_number(schema[name]) if name in schema else None for name in (least, most))
    if low is not None and high is not None:
        return f", {low} to {high}{unit}"
    return f", at least {low}{unit}" if low is not None else f", at most {high}{unit}" if high is not None else ""


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else str(value)


def _link(schema: Mapping[str, Any]) -> str:
    name = schema["$ref"].rpartition("/")[2]
    return f"[{name}](#{name.lower()})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
