"""The HTTP API as a bank's back end uses it: one call, one answer, problems raised with their code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from mediaserver.tokens import ApiKey, server_token

JSON = dict[str, Any]


class Problem(Exception):
    """The server answered with application/problem+json."""

    def __init__(self, status: int, body: JSON) -> None:
        super().__init__(f"{status} {body.get('code')}: {body.get('detail')}")
        self.status, self.body, self.code = status, body, str(body.get("code"))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Parse the body as JSON."""
        import json

        return json.loads(self.body)


class Api:
    """One server seen with one API key. Close it, or use ``async with``."""

    def __init__(self, base: str, key: ApiKey) -> None:
        self.base, self.key = base, key
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=30), connector=aiohttp.TCPConnector(ssl=False)
        )

    async def __aenter__(self) -> Api:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        bearer: str | None = None,
    ) -> Answer:
        """Send one request and return whatever is answered; ``bearer`` replaces the server's own token."""
        given = {"Authorization": f"Bearer {bearer or server_token(self.key)}", **(headers or {})}
        url = path if path.startswith("http") else self.base + path
        async with self._session.request(method, url, json=json, data=data, headers=given) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def call(self, method: str, path: str, json: Any = None, **more: Any) -> Any:
        """Send one request; returns the parsed JSON of a 2xx answer (None for an empty one) or raises
        Problem.
        """
        answer = await self.ask(method, path, json=json, **more)
        if answer.status >= 300:
            kind = answer.headers.get("Content-Type", "")
            body = answer.json() if "json" in kind else {"code": kind, "detail": repr(answer.body[:200])}
            raise Problem(answer.status, body)
        return answer.json() if answer.body else None

    async def room(self, name: str, **options: Any) -> Any:
        """Create a room."""
        return await self.call("POST", "/v1/rooms", {"name": name, **options})

    async def token(self, room: str, identity: str, role: str, name: str = "", **more: Any) -> str:
        """Ask for a client token."""
        body = {"identity": identity, "role": role, **({"name": name} if name else {}), **more}
        made = await self.call("POST", f"/v1/rooms/{room}/tokens", body)
        return str(made["token"])

    async def record(self, room: str, business_no: str, mode: str = "composite", **more: Any) -> Any:
        """Start a recording; returns the recording object."""
        body = {"business_no": business_no, "mode": mode, **more}
        return await self.call("POST", f"/v1/rooms/{room}/recordings", body)

    async def recording(self, recording: str) -> Any:
        """Return a recording object."""
        return await self.call("GET", f"/v1/recordings/{recording}")

    async def stop(self, recording: str) -> Any:
        """Stop a recording; returns the recording object."""
        return await self.call("POST", f"/v1/recordings/{recording}/stop")

    async def composed(self, recording: str, timeout_s: float = 60.0) -> tuple[Any, float]:
        """Wait until the composite is done; returns the recording object and how long it took in s."""
        begin = time.monotonic()
        while True:
            shown = await self.recording(recording)
            state = shown["composing"]["state"]
            if state == "done":
                return shown, time.monotonic() - begin
            if state == "failed":
                raise AssertionError(f"composing failed: {shown['composing']}")
            if time.monotonic() - begin > timeout_s:
                raise AssertionError(f"not composed after {timeout_s} s: {shown['composing']}")
            await asyncio.sleep(0.1)

    async def file(self, recording: str, name: str, **headers: str) -> Answer:
        """Fetch a file of a recording."""
        return await self.ask("GET", f"/v1/recordings/{recording}/files/{name}?purpose=test", headers=headers)

    async def participants(self, room: str) -> list[JSON]:
        """List a room's participants."""
        listed = await self.call("GET", f"/v1/rooms/{room}/participants")
        people: list[JSON] = listed["participants"]
        return people

    async def tracks(self, room: str) -> set[str]:
        """Return the ids of all tracks in a room."""
        return {track["id"] for person in await self.participants(room) for track in person["tracks"]}
