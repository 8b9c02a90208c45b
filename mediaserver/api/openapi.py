"""Make /openapi.json from the routes and their pydantic models, so that it cannot say other than they do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pydantic
from pydantic.json_schema import models_json_schema

from mediaserver.api.problems import CODES
from mediaserver.api.routing import Access, Route

_REFERENCE = "#/components/schemas/{model}"
_PARAMETER = re.compile(r"\{(\w+)\}")
_SECURITY: dict[Access, list[dict[str, list[str]]]] = {
    Access.PUBLIC: [],
    Access.SERVER: [{"server": []}],
    Access.CLIENT: [{"server": []}, {"client": []}],
    Access.READER: [{"server": []}, {"client": []}, {"cookie": []}],
    Access.COOKIE: [{"cookie": []}],
}


def describe(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """Give the OpenAPI 3.1 document."""
    wanted: list[tuple[type[pydantic.BaseModel], Any]] = []
    for route in routes:
        if isinstance(route.body, type):
            wanted.append((route.body, "validation"))
        if isinstance(route.answer, type):
            wanted.append((route.answer, "serialization"))
    references, definitions = models_json_schema(
        list(dict.fromkeys(wanted)), ref_template=_REFERENCE, title="Shuanglu"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, references)
    problem = {
        "type": "object",
        "required": ["type", "title", "status", "code", "detail"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "code": {"type": "string", "examples": sorted(CODES)},
            "detail": {"type": "string"},
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Shuanglu media server", "version": version},
        "paths": paths,
        "components": {
            "schemas": {**definitions.get("$defs", {}), "Problem": problem},
            "securitySchemes": {
                "server": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT signed with an API key"},
                "client": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT of a participant"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": "shuanglu_session"},
            },
        },
    }


def _operation(route: Route, references: Any) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    parameters += [
        {"name": one.name, "in": "query", "description": one.description, "schema": {"type": "string"}}
        for one in route.query
    ]
    if route.method == "POST":
        parameters.append(
            {"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 128}}
        )
    responses: dict[str, Any] = {str(route.status): {"description": route.summary}}
    if isinstance(route.answer, str):
        responses[str(route.status)]["content"] = {route.answer: {"schema": {"type": "string"}}}
    elif route.answer is not None:
        schema = references[(route.answer, "serialization")]
        responses[str(route.status)]["content"] = {"application/json": {"schema": schema}}
    by_status: dict[str, list[str]] = {}
    for code in route.codes:
        by_status.setdefault(str(CODES[code][0]), []).append(code)
    reference = {"$ref": "#/components/schemas/Problem"}
    for status, codes in by_status.items():
        responses[status] = {
            "description": ", ".join(codes),
            "content": {"application/problem+json": {"schema": reference}},
        }
    responses["default"] = {
        "description": "Any other problem",
        "content": {"application/problem+json": {"schema": reference}},
    }
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "description": (route.handler.__doc__ or "").strip(),
        "security": _SECURITY[route.access],
        "parameters": parameters,
        "responses": responses,
    }
    if isinstance(route.body, str):
        operation["requestBody"] = {
            "required": True,
            "content": {route.body: {"schema": {"type": "string"}}},
        }
    elif route.body is not None:
        schema = references[(route.body, "validation")]
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    return operation


def _operation_id(route: Route) -> str:
    return "_".join([route.method.lower(), *re.findall(r"\w+", route.path.removeprefix("/v1"))])
