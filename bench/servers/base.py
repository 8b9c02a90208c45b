"""What a scenario asks of a server under test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp
from yarl import URL

from bench.load.connection import Connection, JoinError
from bench.processes import alive, family

START_S = 40.0


class ServerError(RuntimeError):
    """A server did not start or refused; the text has its last words."""


class Server(ABC):
    """One server in processes of its own. ``async with`` starts and ends it."""

    name = "server"
    start_s = START_S
    """It must serve within so long."""
    rest_s = 2.0
    """After a start it has so long to finish what a start leaves to do."""
    local = "127.0.0.1"
    """Where its clients' sockets are bound."""

    def __init__(self, cores: set[int]) -> None:
        self.cores = cores
        self.directory = Path(tempfile.mkdtemp(prefix=f"bench-{self.name}-"))
        self.http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=False, limit=0), timeout=aiohttp.ClientTimeout(total=60)
        )
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Server:
        try:
            await self.start()
        except BaseException:
            await self.end()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.end()

    @abstractmethod
    async def start(self) -> None:
        """Start and wait until it serves. Raises ``ServerError``."""

    @abstractmethod
    async def version(self) -> str:
        """Say which version this is."""

    async def open_room(self, room: str) -> None:  # noqa: B027 - not every server has rooms to open
        """Make a room, and whatever its parties need to join."""

    async def admit(self, room: str, identity: str) -> None:  # noqa: B027 - nor tokens to give out
        """Make what a participant needs to join, as the call platform does before."""

    @abstractmethod
    async def publish(self, room: str, identity: str, connection: Connection) -> None:
        """Exchange SDP for a publisher. Raises ``JoinError``."""

    @abstractmethod
    async def subscribe(self, room: str, identity: str, target: str, connection: Connection) -> None:
        """Exchange SDP for a subscriber to ``target``. Raises ``JoinError``."""

    async def leave(self, connection: Connection) -> None:
        """Tell the server that a connection ends: DELETE of its WHIP or WHEP resource, where it has one."""
        if connection.resource:
            async with self.http.delete(connection.resource, headers=connection.credentials):
                pass

    def processes(self) -> list[int]:
        """Return its living processes, none if they are not ours to see."""
        return family(self._process.pid) if self._process else []

    async def launch(self, command: Sequence[str], environment: Mapping[str, str], probe: str) -> None:
        """Run a command pinned to the server's cores until ``probe`` answers. Raises ``ServerError``."""
        log = self.directory / "server.log"
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            )
        os.sched_setaffinity(self._process.pid, self.cores)
        deadline = asyncio.get_running_loop().time() + self.start_s
        while asyncio.get_running_loop().time() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self.http.get(probe) as answer:
                    if answer.status < 500:
                        return
            await asyncio.sleep(0.1)
        words = log.read_text(errors="replace")[-2000:]
        raise ServerError(f"{self.name} did not serve within {self.start_s:.0f} s:\n{words}")

    async def end(self) -> None:
        """End its processes and remove what it wrote."""
        await self.http.close()
        if self._process is not None:
            everybody = self.processes()
            self._process.terminate()
            try:
                await asyncio.to_thread(self._process.wait, 30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            for process in everybody:  # a child that outlived it would disturb every later measurement
                if alive(process):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
        await asyncio.to_thread(_remove, self.directory)

    async def exchange(
        self, url: str, connection: Connection, headers: Mapping[str, str] | None = None
    ) -> None:
        """Offer over WHIP or WHEP and take the answer. Raises ``JoinError``."""
        given = {"Content-Type": "application/sdp", **(headers or {})}
        async with self.http.post(url, data=connection.offer(), headers=given) as answer:
            text = await answer.text()
            if answer.status != 201:
                raise JoinError(f"{url}: {answer.status} {text[:300]}")
            if location := answer.headers.get("Location"):
                connection.resource = str(answer.url.join(URL(location)))
                connection.credentials = dict(headers or {})
        connection.answered(text)


def _remove(directory: Path) -> None:
    import shutil

    shutil.rmtree(directory, ignore_errors=True)


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Find a port of loopback that is free now."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_address() -> str:
    """Return an address of this machine other than loopback, for servers that do not offer loopback; what is
    sent to it stays inside the machine. Raises ``ServerError``.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.200", 9))  # sends nothing
            found = str(probe.getsockname()[0])
        except OSError:
            found = "127.0.0.1"
    if found.startswith("127."):
        raise ServerError(
            "this machine has no address but loopback, which this server does not offer; add one, for example"
            " `ip link add bench0 type dummy; ip addr add 10.255.0.1/24 dev bench0; ip link set bench0 up`"
        )
    return found
