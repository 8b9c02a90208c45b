"""Any server with WHIP and WHEP, by its address; its processes are not ours to see, so no CPU is counted."""

from __future__ import annotations

from bench.load.connection import Connection
from bench.servers.base import Server, own_address


class Other(Server):
    """``https://host/whip/{room}/{identity}``; WHEP is at the same address with ``whep`` for ``whip``."""

    def __init__(self, url: str) -> None:
        self.name = "other"
        super().__init__(set())
        self._url = url
        self.local = "127.0.0.1" if "://127.0.0.1" in url or "://localhost" in url else own_address()

    async def start(self) -> None:
        """It runs already."""

    async def version(self) -> str:
        return self._url

    async def publish(self, room: str, identity: str, connection: Connection) -> None:
        await self.exchange(self._url.format(room=room, identity=identity), connection)

    async def subscribe(self, room: str, identity: str, target: str, connection: Connection) -> None:
        url = self._url.replace("whip", "whep").format(room=room, identity=target)
        await self.exchange(url, connection)
