"""The log: structlog on standard error, JSON or for people, secrets and tokens starred out.

Everything goes through the standard library's handlers, which forgive a closed standard error: a worker
outlives the terminal it was started from.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from mediaserver.settings import Log

STARS = "***"

_SECRET_NAMES = re.compile(
    r"(secret|passphrase|password|token|authorization|cookie|private_?key|data_?key|jwt|credential)s?$", re.I
)
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*\.?[A-Za-z0-9_-]*")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+")
_IN_TEXT = re.compile(
    r"(?i)([\"']?\b(?:secret|passphrase|password|pwd|token|ice-pwd)[\"']?\s*[=:]\s*[\"']?)([^\s\"',;&}]+)"
)
_INVITE = re.compile(r"(#code=)[^\s&\"']+")
_URL_PASSWORD = re.compile(r"(://[^/\s:@]+:)[^@\s/]+@")
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*-----|\Z)", re.S)


_SUSPECT = re.compile(r"eyJ|bearer|basic|secret|passphrase|password|pwd|token|#code=|://|PRIVATE KEY", re.I)
"""Without one of these a text has nothing to star out: one look instead of six."""


def redact(text: str) -> str:
    """Star out what looks like a token, a password, a one-time code or a private key in running text."""
    if _SUSPECT.search(text) is None:
        return text
    text = _PEM.sub(STARS, text)
    text = _JWT.sub(STARS, text)
    text = _BEARER.sub(rf"\1 {STARS}", text)
    text = _INVITE.sub(rf"\1{STARS}", text)
    text = _URL_PASSWORD.sub(rf"\1{STARS}@", text)
    return _IN_TEXT.sub(rf"\1{STARS}", text)


def _redacted(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if depth < 6 and isinstance(value, dict):
        return {
            key: STARS if _is_secret(key) else _redacted(inner, depth + 1) for key, inner in value.items()
        }
    if depth < 6 and isinstance(value, list | tuple):
        return [_redacted(inner, depth + 1) for inner in value]
    return value


def _is_secret(name: object) -> bool:
    return isinstance(name, str) and _SECRET_NAMES.search(name) is not None


def redact_event(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Star out secrets in a log event (a structlog processor)."""
    for key, value in event.items():
        if not key.startswith("_"):
            event[key] = STARS if _is_secret(key) and isinstance(value, str | bytes) else _redacted(value)
    return event


def configure(settings: Log, **bound: Any) -> None:
    """Send all logging of this process to standard error; ``bound`` goes into every line (``worker=1``)."""
    structlog.contextvars.bind_contextvars(**bound)

    def with_bound(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for key, value in bound.items():  # other threads do not see our context variables
            event.setdefault(key, value)
        return event

    as_json = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        with_bound,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                redact_event,
                renderer,
            ],
        )
    )
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for noisy in ("aiohttp.access", "aioice", "aiortc", "dbos", "sqlalchemy.engine", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(settings.level.upper())))
