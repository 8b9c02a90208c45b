"""A control process in this process, with a real media worker, real SQLite and real sockets on loopback."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from mediaserver import config
from mediaserver.control import Control
from mediaserver.secrets import open_secrets
from mediaserver.settings import Settings
from mediaserver.tokens import ApiKey, Grants, client_token, server_token

KEYS = (
    ApiKey("key-one", "one" * 16, "one"),
    ApiKey("key-two", "two" * 16, "two"),
)


def settings_in(directory: Path, **changes: Any) -> Settings:
    """Give settings for a test: one worker, free ports, plain HTTP on loopback, data in ``directory``."""
    values: dict[str, Any] = {
        "data_dir": str(directory / "data"),
        "drain_s": 0,
        "http": {"host": "127.0.0.1", "port": 0, "max_body_bytes": 65536},
        "tls": {"enabled": False},
        "media": {"workers": 1, "port": 0, "tcp_port": 0, "bind": ["127.0.0.1"], "advertised": ["127.0.0.1"]},
        "recording": {"min_free_bytes": 1 << 20},
        "composing": {"when": "on_demand"},
        "log": {"level": "error"},
        "audit": {},
        "crypto": {},
    }
    for section, given in changes.items():
        values[section] = {**values.get(section, {}), **given} if isinstance(given, dict) else given
    path = directory / "settings.yaml"
    path.write_text(yaml.safe_dump(values))
    return config.load(path, {})


def make_keys(settings: Settings) -> None:
    """Lay down API keys of two tenants before the first start."""
    settings.secrets_dir.mkdir(parents=True, mode=0o700)
    path = settings.secrets_dir / "api-keys.yaml"
    path.write_text(
        yaml.safe_dump([{"id": key.id, "secret": key.secret, "tenant": key.tenant} for key in KEYS])
    )
    path.chmod(0o600)


class Client:
    """Asks the API."""

    def __init__(self, base: str, session: aiohttp.ClientSession, control: Control) -> None:
        self.base = base
        self.session = session
        self.control = control

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: ApiKey | None = KEYS[0],
        token: str | None = None,
        **options: Any,
    ) -> tuple[int, Any, Any]:
        """Send a request as a server (or with ``token``); returns status, parsed or raw body, headers."""
        headers = dict(options.pop("headers", {}))
        bearer = token if token is not None else server_token(key) if key is not None else None
        if bearer is not None:
            headers["Authorization"] = f"Bearer {bearer}"
        if body is not None:
            options["json"] = body
        async with self.session.request(method, self.base + path, headers=headers, **options) as answer:
            raw = await answer.read()
            parsed = json.loads(raw) if "json" in answer.content_type and raw else raw
            return answer.status, parsed, answer.headers

    async def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Send a request that must succeed; returns its body."""
        status, parsed, _ = await self.ask(method, path, body, **options)
        assert status < 300, parsed
        return parsed

    async def problem(self, method: str, path: str, body: Any = None, **options: Any) -> dict[str, Any]:
        """Send a request that must be refused; returns the problem, its form checked."""
        status, parsed, headers = await self.ask(method, path, body, **options)
        assert status >= 400, parsed
        assert headers["Content-Type"].startswith("application/problem+json")
        assert parsed["status"] == status
        assert {"type", "title", "code", "detail"} <= set(parsed)
        result: dict[str, Any] = parsed
        return result

    def participant(self, room: str, identity: str, role: str, **grants: bool) -> str:
        """Mint a client token offline."""
        given = Grants.from_json({**Grants.for_role(role).to_json(), **grants})
        return client_token(KEYS[0], identity=identity, room=room, role=role, grants=given)[0]


@asynccontextmanager
async def running(settings: Settings, *, leave_workers: bool = False) -> AsyncIterator[Client]:
    """Run a control process and a client of it."""
    control = Control(settings, open_secrets(settings))
    try:
        await control.start()
        base = f"http://127.0.0.1:{control.port}"
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            yield Client(base, session, control)
    finally:
        await control.close(leave_workers=leave_workers)
