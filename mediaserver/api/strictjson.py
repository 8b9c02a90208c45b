"""Read a JSON body strictly, so that what was validated is what is used.

Refused: duplicate keys, NaN and Infinity, what is not UTF-8, lone surrogates, nesting that exhausts the
parser, and everything the pydantic model does not name.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

import pydantic

from mediaserver.api.problems import Problem

Model = TypeVar("Model", bound=pydantic.BaseModel)
MAX_DEPTH = 32


def parse(body: bytes) -> Any:
    """Parse strict JSON; raises Problem json_invalid."""
    try:
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Problem("json_invalid", str(error) or "nested too deeply") from error
    _check(value, 0)
    return value


def read(body: bytes, model: type[Model]) -> Model:
    """Parse and validate a body; raises Problem json_invalid or body_invalid, the latter naming fields."""
    value = parse(body)
    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        fields = [
            {"field": ".".join(str(part) for part in fault["loc"]), "problem": str(fault["msg"])}
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        first = fields[0]
        detail = f"{first['field']}: {first['problem']}" if first["field"] else first["problem"]
        raise Problem("body_invalid", detail, fields=fields) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"the key {key[:64]!r} is given twice")
        seen[key] = value
    return seen


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise Problem("json_invalid", f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        if not value.isascii() and any(0xD800 <= ord(character) <= 0xDFFF for character in value):
            raise Problem("json_invalid", "a lone surrogate is not text")
    elif isinstance(value, float):
        if value in (float("inf"), float("-inf")):
            raise Problem("json_invalid", "a number is too large")
    elif isinstance(value, int):
        if abs(value) >= 1 << 63:
            raise Problem("json_invalid", "a whole number is too large")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check(key, depth + 1)
            _check(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1)
