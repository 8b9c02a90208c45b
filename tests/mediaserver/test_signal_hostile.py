"""The signalling WebSocket against who means harm, and what a client that just goes away leaves behind."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from mediaserver.api import signal
from mediaserver.api.routing import Call
from mediaserver.signal import line as lines
from mediaserver.signal.line import Line, Lines
from mediaserver.signal.messages import Done
from tests.mediaserver.running import Client, make_keys, running, settings_in
from tests.mediaserver.test_signal import connect, joined
from tests.mediaserver.test_signal_line import WHO

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    settings = settings_in(tmp_path_factory.mktemp("signal"))
    make_keys(settings)
    async with running(settings) as client:
        await client.ok("POST", "/v1/rooms", {"name": "hall"})
        yield client


async def told_lines(api: Client) -> float:
    """Return how many lines are told events, by the metrics."""
    text = (await api.ok("GET", "/metrics")).decode()
    return float(
        next(row for row in text.splitlines() if row.startswith("shuanglu_signal_sessions ")).split()[1]
    )


async def until_told(api: Client, count: float) -> None:
    async with asyncio.timeout(20):
        while await told_lines(api) != count:
            await asyncio.sleep(0.05)


async def test_a_page_without_an_origin_is_none_of_ours(api: Client) -> None:
    """Sandboxed frames and files say "null", which has no host, as an unset public_url has none."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await connect(api, headers={"Origin": "null"})
    assert refused.value.status == 403


async def test_who_leaves_leaves_nothing_behind_in_a_quiet_room(api: Client) -> None:
    before = await told_lines(api)
    for _ in range(10):
        socket, _ = await joined(api, "passer-by")
        await socket.send("leave")
        assert await socket.closed() == (1000, "left")
    await until_told(api, before)


async def test_who_is_gone_before_the_welcome_is_forgotten(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "GRACE_S", 0.2)
    before = await told_lines(api)
    for number in range(4):
        socket = await connect(api)
        await socket.send("join", token=api.participant("hall", f"hasty{number}", "customer"))
        connection = socket.socket._response.connection
        assert connection is not None
        assert connection.transport is not None
        connection.transport.abort()
    await asyncio.sleep(0.5)  # they have all been read by then
    await until_told(api, before)


async def test_a_token_shown_at_a_resume_is_revoked_with_its_bearer(api: Client) -> None:
    socket, welcome = await joined(api, "renewed")
    await socket.socket.close()
    fresh = api.participant("hall", "renewed", "customer")
    again = await connect(api)
    again.id = socket.id
    await again.send("resume", token=fresh, resume=welcome["resume"], last_seq=0)
    assert (await again.wait("welcome"))["resumed"]
    await api.ok("DELETE", "/v1/rooms/hall/participants/renewed")
    assert await again.closed() == (4401, "token_revoked")
    back = await connect(api)
    await back.send("join", token=fresh)
    assert (await back.wait("error"))["problem"]["code"] == "token_revoked"


async def test_who_says_nothing_makes_way(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "MAX_UNNAMED", 4)
    silent = [await connect(api) for _ in range(6)]
    socket, _ = await joined(api, "speaker")
    await socket.send("leave")
    assert await silent[0].closed() == (4429, "rate_limited")
    for one in silent:
        await one.socket.close()


class Deaf:
    """A client that sends, and reads nothing after the handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.id = 0

    def send(self, kind: str, **members: Any) -> None:
        self.id += 1
        text = json.dumps({"type": kind, "id": self.id, **members}).encode()
        self.writer.write(struct.pack("!BBH", 0x81, 0xFE, len(text)) + bytes(4) + text)


async def deaf(api: Client) -> Deaf:
    host, port = api.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=4096)
    key = base64.b64encode(bytes(16)).decode()
    writer.write(
        f"GET /v1/signal HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    return Deaf(reader, writer)


async def test_who_reads_nothing_is_cut_off_however_much_he_says(
    api: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "SEND_S", 0.5)
    before = await told_lines(api)
    client = await deaf(api)
    client.send("join", token=api.participant("hall", "deaf", "customer"))
    await until_told(api, before + 1)
    for _ in range(120):
        await api.control.events.append("room.note", tenant="one", room="hall", data={"x": "x" * 100_000})
    async with asyncio.timeout(15):
        while not client.writer.is_closing():
            client.send("ping", last_seq=0)
            try:
                await client.writer.drain()
            except ConnectionError:
                break
            await asyncio.sleep(0.2)
    await until_told(api, before)
    client.writer.close()


class Stuck:
    """A socket whose first message takes until it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.sent: list[int] = []

    async def send_str(self, text: str) -> None:
        if not self.sent:
            await self.go.wait()
        self.sent.append(json.loads(text)["seq"])


async def test_a_socket_that_was_replaced_takes_nothing_more() -> None:
    line = Line(WHO, "token")
    old, new = Stuck(), Stuck()
    call = cast(Call, SimpleNamespace(request=SimpleNamespace(transport=None)))
    line.socket = old
    for number in (1, 2, 3):
        line.put(Done, re=number)
    first = asyncio.create_task(signal._write(call, line, cast(web.WebSocketResponse, old)))
    await asyncio.sleep(0)
    assert line.rewind(0)
    line.socket = new
    old.go.set()
    await first
    assert old.sent == [1]
    new.go.set()
    second = asyncio.create_task(signal._write(call, line, cast(web.WebSocketResponse, new)))
    async with asyncio.timeout(5):
        while len(new.sent) < 3:
            await asyncio.sleep(0)
    assert new.sent == [1, 2, 3]
    second.cancel()


async def test_a_participant_has_one_allowance_for_all_his_sockets() -> None:
    kept = Lines()
    first, second = kept.allowance(WHO), kept.allowance(WHO)
    assert all(first.take() for _ in range(lines.BURST))
    assert not all(second.take() for _ in range(lines.BURST))
    assert kept.allowance(replace(WHO, identity="other")).take()
    for number in range(lines.MAX_ALLOWANCES):
        kept.allowance(replace(WHO, identity=f"one{number}"))
    assert len(kept._allowances) < lines.MAX_ALLOWANCES
    assert kept.allowance(WHO) is first, "who asks too much is not forgotten"


async def test_each_loss_of_a_socket_has_its_whole_grace() -> None:
    kept, line = Lines(), Line(WHO, "token")
    kept.add(line)
    line.socket = first = object()
    kept.lost(line, object())  # another's
    assert line.socket is first
    kept.lost(line, first)
    timer = line.grace
    line.socket = second = object()
    kept.lost(line, second)
    assert timer is not None
    assert timer.cancelled(), "else it ends the second grace early"
    kept.close()
