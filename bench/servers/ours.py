"""This project's server."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from bench.load.connection import Connection
from bench.servers.base import Server, ServerError, free_port
from mediaserver.tokens import ApiKey, server_token


class Ours(Server):
    """``mediaserver serve`` as it is installed here, HTTP on loopback, one worker unless told otherwise."""

    rest_s = 14.0  # the job runner looks for work that was left, for ten seconds

    def __init__(
        self,
        cores: set[int],
        *,
        forwarder: str = "native",
        record: bool = False,
        workers: int = 1,
        composing: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """``composing``: settings of that section; without them nothing is composed.

        ``settings``: further ones, as environment variables.
        """
        self.name = "ours" if forwarder == "native" else f"ours-{forwarder}"
        super().__init__(cores)
        self.forwarder, self.record, self.workers = forwarder, record, workers
        port = free_port()
        self._base = f"http://127.0.0.1:{port}"
        self._settings = {
            "SHUANGLU__DATA_DIR": str(self.directory / "data"),
            "SHUANGLU__HTTP__HOST": "127.0.0.1",
            "SHUANGLU__HTTP__PORT": str(port),
            "SHUANGLU__TLS__ENABLED": "false",
            "SHUANGLU__DRAIN_S": "1",
            "SHUANGLU__MEDIA__PORT": "0",
            "SHUANGLU__MEDIA__WORKERS": str(workers),
            "SHUANGLU__MEDIA__FORWARDER": forwarder,
            "SHUANGLU__MEDIA__ADVERTISED": '["127.0.0.1"]',
            **(settings or {}),
        }
        if record:
            for key, value in (composing or {"WHEN": "on_demand"}).items():
                self._settings[f"SHUANGLU__COMPOSING__{key}"] = value
        self._tokens: dict[tuple[str, str], str] = {}
        self._key: ApiKey | None = None

    async def start(self) -> None:
        command = [str(Path(sys.executable).with_name("mediaserver")), "serve"]
        await self.launch(command, self._settings, f"{self._base}/readyz")
        secrets = self.directory / "data" / "secrets" / "api-keys.yaml"
        self._key = ApiKey(**yaml.safe_load(secrets.read_text())[0])

    async def version(self) -> str:
        return f"{version('shuanglu')}, {self.forwarder} forwarder"

    async def open_room(self, room: str) -> None:
        await self.post("/rooms", {"name": room})

    async def admit(self, room: str, identity: str) -> None:
        await self.token(room, identity)

    async def token(self, room: str, identity: str) -> str:
        """Return a participant's token, the same for all its connections."""
        if (room, identity) not in self._tokens:
            body = {"identity": identity, "role": "agent"}
            self._tokens[room, identity] = (await self.post(f"/rooms/{room}/tokens", body))["token"]
        return self._tokens[room, identity]

    async def publish(self, room: str, identity: str, connection: Connection) -> None:
        headers = {"Authorization": f"Bearer {await self.token(room, identity)}"}
        await self.exchange(f"{self._base}/v1/whip/{room}", connection, headers)

    async def subscribe(self, room: str, identity: str, target: str, connection: Connection) -> None:
        headers = {"Authorization": f"Bearer {await self.token(room, identity)}"}
        await self.exchange(f"{self._base}/v1/whep/{room}/{target}", connection, headers)

    async def start_recording(self, room: str, template: dict[str, Any] | None = None) -> str:
        """Record every track of a room; returns the recording's id. ``template``: of a composite to make."""
        body: dict[str, Any] = {"business_no": f"BENCH-{room}", "mode": "single"}
        if template is not None:
            body |= {"mode": "composite", "template": template}
        return str((await self.post(f"/rooms/{room}/recordings", body))["id"])

    async def stop_recording(self, recording: str) -> None:
        """End a recording."""
        await self.post(f"/recordings/{recording}/stop", {})

    async def mute_video(self, room: str, identity: str) -> None:
        """Take a party's camera out of the call."""
        body = {"muted": True, "kind": "video"}
        await self.ask("PATCH", f"/rooms/{room}/participants/{identity}", body)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Call the API as the call platform does. Raises ``ServerError``."""
        return await self.ask("POST", path, body)

    async def get(self, path: str) -> dict[str, Any]:
        """Ask the API. Raises ``ServerError``."""
        return await self.ask("GET", path)

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the API. Raises ``ServerError``."""
        assert self._key is not None
        headers = {"Authorization": f"Bearer {server_token(self._key)}"}
        url = f"{self._base}/v1{path}"
        async with self.http.request(method, url, json=body, headers=headers) as answer:
            if answer.status >= 300:
                raise ServerError(f"{path}: {answer.status} {(await answer.text())[:300]}")
            result: dict[str, Any] = await answer.json()
            return result
