"""A bad line between a client and the server: a relay of datagrams on loopback that loses and delays some."""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any

_CANDIDATE = re.compile(
    r"^(a=candidate:\S+ \d+ udp \d+ )(\S+) (\d+)( typ host.*)$", re.MULTILINE | re.IGNORECASE
)
LOOPBACK = "127.0.0.1"


class _End(asyncio.DatagramProtocol):
    """One side's socket; hands on what it receives."""

    def __init__(self, link: LossyLink, *, client: bool) -> None:
        self._link, self._client = link, client

    def datagram_received(self, data: bytes, address: tuple[str | Any, int]) -> None:
        self._link.received(data, address, from_client=self._client)


class LossyLink:
    """One client's way to the server. Both directions lose and delay alike; delays reorder."""

    def __init__(self, seed: int) -> None:
        self.loss = 0.0
        """Share of datagrams lost, 0 … 1."""
        self.jitter_s = 0.0
        """Each datagram is held up between 0 and so long, evenly spread."""
        self.delay_s = 0.0
        """Each datagram is held up at least so long: half of what this adds to the round trip."""
        self.passed = self.lost = 0
        self._chance = random.Random(seed)
        self._client: tuple[str | Any, int] | None = None
        self._near: asyncio.DatagramTransport | None = None
        self._far: asyncio.DatagramTransport | None = None

    async def redirect(self, sdp: str) -> str:
        """Open the line to the server an answer names; returns the answer with the line's candidate in it."""
        candidates = [found for found in _CANDIDATE.finditer(sdp) if found[2] == LOOPBACK]
        assert candidates, f"no candidate on loopback in {sdp}"
        port = int(candidates[0][3])
        loop = asyncio.get_running_loop()
        self._near, _ = await loop.create_datagram_endpoint(
            lambda: _End(self, client=True), local_addr=(LOOPBACK, 0)
        )
        self._far, _ = await loop.create_datagram_endpoint(
            lambda: _End(self, client=False), remote_addr=(LOOPBACK, port)
        )
        own = self._near.get_extra_info("sockname")[1]
        return _CANDIDATE.sub(lambda found: f"{found[1]}{LOOPBACK} {own}{found[4]}", sdp)

    def received(self, data: bytes, address: tuple[str | Any, int], *, from_client: bool) -> None:
        """Lose a datagram or send it on, now or later."""
        if from_client:
            self._client = address
        if self._chance.random() < self.loss:
            self.lost += 1
            return
        self.passed += 1
        send = self._to_server if from_client else self._to_client
        asyncio.get_running_loop().call_later(
            self.delay_s + self._chance.uniform(0, self.jitter_s), send, data
        )

    def _to_server(self, data: bytes) -> None:
        if self._far is not None and not self._far.is_closing():
            self._far.sendto(data)

    def _to_client(self, data: bytes) -> None:
        if self._near is not None and not self._near.is_closing():
            self._near.sendto(data, self._client)

    def close(self) -> None:
        """Close both sockets."""
        for end in (self._near, self._far):
            if end is not None:
                end.close()
