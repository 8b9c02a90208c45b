"""Stock aiortc with its MediaRelay, which decodes and encodes again."""

from __future__ import annotations

import sys
from importlib.metadata import version

from bench.load.connection import Connection
from bench.servers.base import Server, free_port, own_address


class Stock(Server):
    """`stock_server` in a process of its own."""

    name = "stock"

    def __init__(self, cores: set[int]) -> None:
        super().__init__(cores)
        self.local = own_address()  # aioice leaves loopback out
        self._port = free_port()

    async def start(self) -> None:
        command = [sys.executable, "-m", "bench.servers.stock_server", str(self._port)]
        await self.launch(command, {}, f"http://127.0.0.1:{self._port}/")

    async def version(self) -> str:
        return f"aiortc {version('aiortc')}"

    async def publish(self, room: str, identity: str, connection: Connection) -> None:
        await self.exchange(f"http://127.0.0.1:{self._port}/whip/{room}-{identity}", connection)

    async def subscribe(self, room: str, identity: str, target: str, connection: Connection) -> None:
        await self.exchange(f"http://127.0.0.1:{self._port}/whep/{room}-{target}", connection)
