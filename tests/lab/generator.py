"""The load generator of bench/ as a client of the laboratory; runs as a program in a client's network.

Reads ``{base, local, tokens: {room: {identity: token}}, seconds}`` from its standard input and prints what it
counted, as ``bench forward`` names it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from bench.load import clip
from bench.load.connection import Connection
from bench.load.engine import Engine
from bench.scenarios.calls import SETTLE_S, Calls
from bench.servers.base import Server

MIME = "video/VP8"


class Distant(Server):
    """A server that runs already, at the far end of a line."""

    def __init__(self, base: str, local: str, tokens: dict[str, dict[str, str]]) -> None:
        super().__init__(set())
        self.local = local
        self._base, self._tokens = base, tokens

    async def start(self) -> None:
        """It runs already."""

    async def version(self) -> str:
        return "as started by the laboratory"

    async def publish(self, room: str, identity: str, connection: Connection) -> None:
        await self._exchange(room, identity, f"whip/{room}", connection)

    async def subscribe(self, room: str, identity: str, target: str, connection: Connection) -> None:
        await self._exchange(room, identity, f"whep/{room}/{target}", connection)

    async def _exchange(self, room: str, identity: str, path: str, connection: Connection) -> None:
        headers = {"Authorization": f"Bearer {self._tokens[room][identity]}"}
        await self.exchange(f"{self._base}/v1/{path}", connection, headers)


async def run(base: str, local: str, tokens: dict[str, dict[str, str]], seconds: float) -> dict[str, Any]:
    """Hold a call of two in every room for a time; returns what was counted in it."""
    with Engine(clip.video(MIME, 300_000), clip.audio()) as engine:
        async with Distant(base, local, tokens) as server:
            calls = Calls(server, engine, MIME)
            try:
                await calls.open(len(tokens))
                await asyncio.sleep(SETTLE_S)
                return (await calls.measure(seconds)).figures()
            finally:
                await calls.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(**json.load(sys.stdin)))))
