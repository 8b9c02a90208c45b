"""Clients that come by TCP: RFC 4571 frames, checks by aioice, stock aiortc behind a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket

from aioice import stun


def check(local: str, remote: str, password: str, *, nominate: bool = True) -> bytes:
    """Build a Binding request for the server's name ``local`` of a full agent called ``remote``."""
    message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    message.attributes["USERNAME"] = f"{local}:{remote}"
    message.attributes["PRIORITY"] = 1
    message.attributes["ICE-CONTROLLING"] = 7
    if nominate:
        message.attributes["USE-CANDIDATE"] = None
    message.add_message_integrity(password.encode())
    return bytes(message)


def framed(datagram: bytes) -> bytes:
    """Put the length before a datagram."""
    return len(datagram).to_bytes(2, "big") + datagram


def credentials(sdp: str) -> tuple[str, str]:
    """Return name and password of an SDP."""
    return (
        re.findall(r"a=ice-ufrag:(\S+)", sdp)[0],
        re.findall(r"a=ice-pwd:(\S+)", sdp)[0],
    )


def tcp_port(sdp: str) -> int:
    """Return the port of the passive TCP candidate of an answer."""
    return int(re.findall(r"a=candidate:\d+ 1 tcp \d+ \S+ (\d+) typ host tcptype passive", sdp)[0])


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """Read one frame; raises asyncio.IncompleteReadError at the end of the stream."""
    length = int.from_bytes(await reader.readexactly(2), "big")
    return await reader.readexactly(length)


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect with a small window, which can be closed by not reading for a moment."""
    sock = socket.socket()
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10
    )  # counts only before the connection is there
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=sock)


class Proxy(asyncio.DatagramProtocol):
    """Carries an aiortc client's datagrams over one TCP connection: aiortc knows UDP candidates only."""

    def __init__(self) -> None:
        self.client: tuple[str, int] | None = None
        self.frames = 0
        self.checked = False

    async def redirect(self, sdp: str) -> str:
        """Connect to the answer's TCP candidate; returns the answer with the proxy as its only candidate."""
        self.reader, self.writer = await connect(tcp_port(sdp))
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        port = self.transport.get_extra_info("sockname")[1]
        self.pump = asyncio.create_task(self._pump())
        kept = [line for line in sdp.split("\r\n") if not line.startswith("a=candidate:")]
        told = f"a=candidate:1 1 udp 2130706431 127.0.0.1 {port} typ host"
        return "\r\n".join(
            part for line in kept for part in ([told, line] if line == "a=end-of-candidates" else [line])
        )

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Put the client's datagram on the connection."""
        self.client = addr
        self.checked = self.checked or data[0] < 4
        if self.checked:  # a connection begins with a check
            self.writer.write(framed(data))

    async def reconnect(self, port: int) -> None:
        """Break the connection and make a new one."""
        self.pump.cancel()
        self.writer.close()
        self.checked = False
        self.reader, self.writer = await connect(port)
        self.pump = asyncio.create_task(self._pump())

    async def _pump(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                datagram = await read_frame(self.reader)
                self.frames += 1
                if self.client is not None:
                    self.transport.sendto(datagram, self.client)

    async def close(self) -> None:
        """Close both sides."""
        self.pump.cancel()
        self.transport.close()
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
