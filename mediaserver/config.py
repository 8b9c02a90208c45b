"""Reads the settings: one strict YAML file, then environment variables on top.

Unknown keys, duplicate keys, wrong types and units are refused with their dotted path, all faults at once.
``SHUANGLU__HTTP__PORT=8443`` overrides ``http.port``; the value is read as YAML. A key that holds a secret
can be given as a file, ``…_file``. What can be set is in settings.py.
"""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import BaseModel

from mediaserver.section import Section
from mediaserver.settings import Settings, WorkerConfig, is_loopback
from recorder.keys.environment import PREFIX as KEYS_PREFIX

__all__ = [
    "ConfigError",
    "Settings",
    "WorkerConfig",
    "default_yaml",
    "dump",
    "for_children",
    "is_loopback",
    "keys",
    "load",
]

ENVIRONMENT_PREFIX = "SHUANGLU__"


class ConfigError(Exception):
    """The configuration is wrong; ``problems`` has one line for each fault, with the key's dotted path."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without duplicate keys, and without turning dates into objects JSON does not have."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        where = f"line {key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            raise ConfigError([f"{where}: the key {key!r} is not text"])
        if key in seen:
            raise ConfigError([f"{where}: the key {key} is given twice"])
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str) -> Any:
    """Parse YAML strictly; ConfigError for duplicate keys, keys that are no text, and broken YAML."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  a SafeLoader
    except yaml.YAMLError as error:
        # Not the error's own text: it quotes the line, and there may be a secret in it.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigError([f"not YAML{where}"]) from None


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read the settings from ``path`` (None: defaults only) and ``environ``; ConfigError lists all faults."""
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            parsed = parse_yaml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"{path}: {error}"]) from error
        if parsed is not None and not isinstance(parsed, dict):
            raise ConfigError([f"{path}: must hold keys and values"])
        raw = parsed or {}
    for name, value in sorted(environ.items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            _override(raw, name, value)
    _read_secret_files(raw)
    try:
        return Settings.model_validate_json(json.dumps(raw))
    except pydantic.ValidationError as error:
        raise ConfigError([_explain(fault) for fault in error.errors()]) from None
    except (TypeError, ValueError) as error:
        raise ConfigError([str(error)]) from error


def for_children(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without our settings and keys: children are told what they need to know."""
    own = (ENVIRONMENT_PREFIX, KEYS_PREFIX)
    return {name: value for name, value in environ.items() if not name.startswith(own)}


def _override(raw: dict[str, Any], name: str, value: str) -> None:
    keys = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
    section = raw
    for key in keys[:-1]:
        inner = section.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError([f"{name}: {key} is not a section"])
        section = inner
    section[keys[-1]] = parse_yaml(value)


def _read_secret_files(raw: dict[str, Any]) -> None:
    """Put the content of ``…_file`` into the key it stands for."""
    for section_name, key in (("crypto", "passphrase"), ("database", "url"), ("turn", "secret")):
        section = raw.get(section_name)
        file = section.get(f"{key}_file") if isinstance(section, dict) else None
        if not isinstance(section, dict) or file is None:
            continue
        where = f"{section_name}.{key}_file"
        if section.get(key) is not None:
            raise ConfigError([f"{where}: {section_name}.{key} is given as well; give one"])
        try:
            content = Path(str(file)).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"{where}: {error}"]) from error
        if not content:
            raise ConfigError([f"{where}: {file} is empty"])
        section[key] = content


_UNITS = {"_s": "seconds", "_ms": "milliseconds", "_bytes": "bytes", "_hours": "hours"}


def unit_of(key: str) -> str:
    """Return the unit a key's name carries, or an empty string."""
    return next((unit for suffix, unit in _UNITS.items() if key.endswith(suffix)), "")


def _explain(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    kind = str(fault["type"])
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(path, [key for key, _, _ in keys()], n=1)
        return f"{path}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
    if kind == "value_error" and not path:
        return str(fault["ctx"]["error"])
    unit = unit_of(path)
    hint = f" (a plain number of {unit})" if unit and kind.endswith(("_type", "_parsing")) else ""
    given = fault["input"]
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) and "secret" not in kind else ""
    if path in SECRET_KEYS:
        shown = ""
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]}{hint}{shown}"


SECRET_KEYS = ("crypto.passphrase", "database.url", "turn.secret")


def keys() -> Iterator[tuple[str, Any, str]]:
    """Give every key: dotted path, default as JSON value, description. Sections give their docstring."""
    defaults = Settings().model_dump(mode="json")
    yield from _keys(Settings, defaults, "")


def _keys(model: type[BaseModel], defaults: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any, str]]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield f"{prefix}{name}", None, (annotation.__doc__ or "").strip()
            yield from _keys(annotation, defaults[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", defaults[name], _documented(field.description or "", annotation)


def _documented(description: str, annotation: Any) -> str:
    choices = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
    if choices and not all(str(choice) in description for choice in choices):
        return f"{' | '.join(choices)}. {description}"
    return description


def default_yaml() -> str:
    """Return configs/default.yaml: every key with its default and the consequence of changing it."""
    lines = [
        "# Shuanglu media server: every setting with its default. No file is needed; write what differs.",
        "# Unknown and duplicate keys are refused. Names carry the unit: _s is seconds, _ms milliseconds.",
        "# SHUANGLU__HTTP__PORT=9443 in the environment overrides http.port.",
        "# Made by: mediaserver config --default",
    ]
    sections = set(_sections(Settings, ""))
    for path, default, description in keys():
        depth = path.count(".")
        indent = "  " * depth
        name = path.rsplit(".", 1)[-1]
        lines += ["", *(f"{indent}# {line}" for line in _wrap(description, 108 - 2 * depth))]
        lines.append(f"{indent}{name}:" if path in sections else f"{indent}{name}: {json.dumps(default)}")
    return "\n".join(lines) + "\n"


def _sections(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and _is_section(annotation):
            yield f"{prefix}{name}"
            yield from _sections(annotation, f"{prefix}{name}.")


def _is_section(annotation: Any) -> bool:
    return (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, Section)
    )


def _wrap(text: str, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width - 2:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line] if line else lines


def dump(settings: Settings) -> str:
    """Return the effective settings as YAML, secrets starred out."""
    text: str = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text
