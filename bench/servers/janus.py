"""Janus (Debian's package) with its videoroom plugin over its WebSocket API."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from bench.load.connection import Connection, JoinError
from bench.servers.base import Server, ServerError, free_port, own_address

LIBRARIES = sorted(Path("/usr/lib").glob("*/janus"))
CONFIG = """
general: {{
  configs_folder = "{directory}"
  plugins_folder = "{libraries}/plugins"
  transports_folder = "{libraries}/transports"
  events_folder = "{libraries}/events"
  loggers_folder = "{libraries}/loggers"
  debug_level = 3
  session_timeout = 0
  protected_folders = []
}}
media: {{ rtp_port_range = "20000-39999" }}
nat: {{
  ice_lite = true
  ice_enforce_list = "{address}"
  mdns_enabled = false
}}
plugins: {{ disable = "{plugins}" }}
transports: {{ disable = "{transports}" }}
"""
WEBSOCKETS = """
general: {{ json = "compact", ws = true, ws_port = {port}, ws_ip = "{address}", wss = false, ws_logging = 0 }}
admin: {{ admin_ws = false }}
"""


class Janus(Server):
    """One Janus, configured for this comparison only: ICE-lite, no session timeout, videoroom alone."""

    name = "janus"

    def __init__(
        self,
        cores: set[int],
        *,
        record: bool = False,
        local: str | None = None,
        control: str = "127.0.0.1",
        launcher: Sequence[str] = (),
    ) -> None:
        """Prepare one whose media come by ``local`` (None: this machine's own address), whose API is at
        ``control``, and whose command stands behind ``launcher``, which may put it into another network.
        """
        super().__init__(cores)
        self.local = local or own_address()
        self.record = record
        self._control, self._launcher = control, launcher
        self._port = free_port()
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._session = 0
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self._rooms: dict[str, int] = {}
        self._feeds: dict[tuple[str, str], int] = {}
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        if shutil.which("janus") is None or not LIBRARIES:
            raise ServerError("Janus is not installed: apt-get install janus")
        libraries = LIBRARIES[0]

        def others(kind: str, kept: str) -> str:
            return ",".join(path.name for path in (libraries / kind).glob("*.so") if kept not in path.name)

        config = CONFIG.format(
            directory=self.directory,
            libraries=libraries,
            address=self.local,
            plugins=others("plugins", "videoroom"),
            transports=others("transports", "websockets"),
        )
        (self.directory / "janus.jcfg").write_text(config)
        (self.directory / "janus.transport.websockets.jcfg").write_text(
            WEBSOCKETS.format(port=self._port, address=self._control)
        )
        (self.directory / "janus.plugin.videoroom.jcfg").write_text("general: {}\n")
        command = ["janus", f"--configs-folder={self.directory}", f"--config={self.directory}/janus.jcfg"]
        await self.launch([*self._launcher, *command], {}, f"http://{self._control}:{self._port}/")
        self._socket = await self.http.ws_connect(
            f"ws://{self._control}:{self._port}/", protocols=("janus-protocol",), max_msg_size=0
        )
        self._reader = asyncio.create_task(self._read(), name="janus messages")
        self._session = (await self.ask({"janus": "create"}))["data"]["id"]

    async def end(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        await super().end()

    async def version(self) -> str:
        done = subprocess.run(["janus", "--version"], capture_output=True, text=True, check=False, timeout=10)
        found = re.search(r"Janus version: \d+ \(([\d.]+)\)|(\d+\.\d+\.\d+)", done.stdout + done.stderr)
        return f"Janus {next(filter(None, found.groups())) if found else 'of unknown version'}"

    async def open_room(self, room: str) -> None:
        number = self._rooms[room] = len(self._rooms) + 1
        handle = await self.attach()
        body = {
            "request": "create",
            "room": number,
            "publishers": 20,
            "audiocodec": "opus",
            "videocodec": "vp8,h264",
            "notify_joining": False,
            "record": self.record,
            "rec_dir": str(self.directory),
        }
        await self.message(handle, body)

    async def publish(self, room: str, identity: str, connection: Connection) -> None:
        connection.answered(await self.offered(room, identity, connection.offer()))

    async def offered(self, room: str, identity: str, sdp: str) -> str:
        """Let somebody publish what the offer has; returns the answer. Raises ``JoinError``."""
        handle = await self.attach()
        body = {
            "request": "joinandconfigure",
            "ptype": "publisher",
            "room": self._rooms[room],
            "display": identity,
        }
        event = await self.message(handle, body, {"type": "offer", "sdp": sdp})
        self._feeds[room, identity] = event["plugindata"]["data"]["id"]
        return str(event["jsep"]["sdp"])

    async def subscribe(self, room: str, identity: str, target: str, connection: Connection) -> None:
        handle, offer = await self.offer(room, target)
        await self.taken(handle, connection.answer(offer))

    async def offer(self, room: str, target: str) -> tuple[int, str]:
        """Return handle and offer for somebody who subscribes to ``target``. Raises ``JoinError``."""
        handle = await self.attach()
        body = {
            "request": "join",
            "ptype": "subscriber",
            "room": self._rooms[room],
            "streams": [{"feed": self._feeds[room, target]}],
        }
        for attempt in range(20):  # a publisher is a feed only once Janus, too, has seen its DTLS through
            try:
                event = await self.message(handle, body)
                break
            except JoinError as error:
                if "No such feed" not in str(error) or attempt == 19:
                    raise
                await asyncio.sleep(0.05)
        return handle, str(event["jsep"]["sdp"])

    async def taken(self, handle: int, sdp: str) -> None:
        """Let what ``offer`` offered flow by the subscriber's answer. Raises ``JoinError``."""
        await self.message(handle, {"request": "start"}, {"type": "answer", "sdp": sdp})

    async def attach(self) -> int:
        """Open a handle to the videoroom plugin."""
        answer = await self.ask({"janus": "attach", "plugin": "janus.plugin.videoroom"})
        return int(answer["data"]["id"])

    async def message(
        self, handle: int, body: dict[str, Any], jsep: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Send the plugin a request. Raises ``JoinError`` with the plugin's words."""
        request: dict[str, Any] = {"janus": "message", "handle_id": handle, "body": body}
        if jsep:
            request["jsep"] = jsep
        answer = await self.ask(request)
        data = answer.get("plugindata", {}).get("data", {})
        if "error" in data:
            raise JoinError(f"Janus: {data['error']}")
        return answer

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer (not the acknowledgement). Raises ``JoinError``."""
        assert self._socket is not None
        transaction = str(next(self._numbers))
        session = {"session_id": self._session} if self._session else {}
        future = self._waiting[transaction] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({**request, **session, "transaction": transaction})
        try:
            return await asyncio.wait_for(future, 20)
        except TimeoutError:
            raise JoinError(f"Janus did not answer {request['janus']} within 20 s") from None
        finally:
            self._waiting.pop(transaction, None)

    async def _read(self) -> None:
        assert self._socket is not None
        async for message in self._socket:
            answer = message.json()
            future = self._waiting.get(answer.get("transaction", ""))
            if future is None or future.done() or answer["janus"] == "ack":
                continue
            if answer["janus"] == "error":
                future.set_exception(JoinError(f"Janus: {answer['error']}"))
            else:
                future.set_result(answer)
