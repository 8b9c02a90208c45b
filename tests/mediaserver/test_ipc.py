"""Control and worker over a real Unix socket: answers, errors, events that survive a lost connection."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mediaserver.ipc import (
    MAX_LINE,
    IpcClient,
    IpcError,
    IpcServer,
    JsonObject,
    decode_line,
    encode_line,
)


async def echo(params: JsonObject) -> JsonObject:
    return params


async def refuse(params: JsonObject) -> JsonObject:
    raise IpcError("codec_mismatch", "VP9 against VP8", 422)


async def fail(params: JsonObject) -> JsonObject:
    raise RuntimeError("a secret that must not travel")


async def forever(params: JsonObject) -> JsonObject:
    await asyncio.Event().wait()
    return {}


HANDLERS = {"echo": echo, "refuse": refuse, "fail": fail, "forever": forever}


@asynccontextmanager
async def pair(path: Path) -> AsyncIterator[tuple[IpcServer, IpcClient]]:
    server, client = IpcServer(path, HANDLERS), IpcClient(path)
    await server.start()
    await client.connect()
    try:
        yield server, client
    finally:
        await client.close()
        for task in list(server._tasks):
            task.cancel()
        await server.close()


async def take(client: IpcClient, count: int) -> list[JsonObject]:
    """Process ``count`` events, the last one's acknowledgement included."""
    taken: list[JsonObject] = []
    iterator = client.events
    for _ in range(count):
        taken.append(await anext(iterator))
    more = asyncio.ensure_future(anext(iterator))  # asking for the next one acknowledges the last
    await asyncio.sleep(0)
    more.cancel()
    await asyncio.gather(more, return_exceptions=True)
    return taken


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_answers_and_keeps_many_requests_apart(tmp_path: Path) -> None:
    async with pair(tmp_path / "w.sock") as (_, client):
        answers = await asyncio.gather(*(client.call("echo", {"n": n, "名": "双录"}) for n in range(50)))
        assert [answer["n"] for answer in answers] == list(range(50))
        assert client.peer_pid == os.getpid()
        assert (tmp_path / "w.sock").stat().st_mode & 0o777 == 0o600


async def test_errors_carry_code_and_status(tmp_path: Path) -> None:
    async with pair(tmp_path / "w.sock") as (_, client):
        with pytest.raises(IpcError) as refused:
            await client.call("refuse")
        assert (refused.value.code, refused.value.status) == ("codec_mismatch", 422)
        with pytest.raises(IpcError) as unknown:
            await client.call("nothing")
        assert unknown.value.code == "method_unknown"
        with pytest.raises(IpcError) as internal:
            await client.call("fail")
        assert internal.value.code == "internal"
        assert "secret" not in str(internal.value)
        with pytest.raises(TimeoutError):
            await client.call("forever", timeout_s=0.05)
        assert await client.call("echo", {"still": 1}) == {"still": 1}


async def test_a_path_too_long_for_a_socket_address_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 60)
    deep.mkdir(parents=True)
    async with pair(deep / "worker-0.sock") as (_, client):
        assert await client.call("echo", {"a": 1}) == {"a": 1}


async def test_events_are_kept_until_acknowledged_and_come_in_order(tmp_path: Path) -> None:
    server = IpcServer(tmp_path / "w.sock", HANDLERS)
    await server.start()
    for n in range(600):  # more than one window, published before anyone listens
        server.publish({"type": "t", "n": n})
    client = IpcClient(tmp_path / "w.sock")
    await client.connect()
    assert [event["n"] for event in await take(client, 600)] == list(range(600))
    await until(lambda: server.unacknowledged == 0)
    await client.close()
    await server.close()


async def test_an_event_whose_processing_was_not_survived_comes_again(tmp_path: Path) -> None:
    server = IpcServer(tmp_path / "w.sock", HANDLERS)
    await server.start()
    for n in range(3):
        server.publish({"n": n})
    first = IpcClient(tmp_path / "w.sock")
    await first.connect()
    iterator = first.events
    await anext(iterator)
    assert (await anext(iterator))["n"] == 1  # acknowledges 0; 1 is being processed when control dies
    await until(lambda: server.unacknowledged == 2)
    await first.close()
    second = IpcClient(tmp_path / "w.sock")
    await second.connect()
    assert [event["n"] for event in await take(second, 2)] == [1, 2]
    await second.close()
    await server.close()


async def test_the_oldest_events_are_dropped_and_counted(tmp_path: Path) -> None:
    server = IpcServer(tmp_path / "w.sock", HANDLERS, keep_events=10)
    await server.start()
    for n in range(25):
        server.publish({"n": n})
    assert (server.dropped_events, server.unacknowledged) == (15, 10)
    client = IpcClient(tmp_path / "w.sock")
    await client.connect()
    assert [event["n"] for event in await take(client, 10)] == list(range(15, 25))
    await client.close()
    await server.close()


async def test_a_lost_server_fails_pending_calls_and_the_client_reconnects(tmp_path: Path) -> None:
    path = tmp_path / "w.sock"
    lost: list[int] = []
    server = IpcServer(path, HANDLERS)
    await server.start()
    client = IpcClient(path, on_lost=lambda: lost.append(1))
    await client.connect()
    pending = asyncio.ensure_future(client.call("forever"))
    await until(lambda: bool(server._tasks))
    for task in list(server._tasks):
        task.cancel()
    await server.close()
    with pytest.raises((ConnectionError, IpcError)):
        await pending
    await until(lambda: lost == [1])
    with pytest.raises(ConnectionError):
        await client.call("echo")
    again = IpcServer(path, HANDLERS)
    await again.start()
    again.publish({"n": "first of the new one"})
    await client.connect()
    assert await client.call("echo", {"b": 2}) == {"b": 2}
    assert (await take(client, 1))[0]["n"] == "first of the new one"
    await client.close()
    await again.close()


async def test_nobody_listening_is_a_connection_error(tmp_path: Path) -> None:
    client = IpcClient(tmp_path / "none.sock")
    with pytest.raises(ConnectionError, match=r"none\.sock"):
        await client.connect(timeout_s=0.05)
    await client.close()


@pytest.mark.parametrize(
    "rubbish",
    [b"\xff\xfe\n", b"[]\n", b"{}\n", b'{"id":"x"}\n', b'{"ack":"x"}\n', b"x" * (MAX_LINE + 1) + b"\n"],
)
async def test_rubbish_closes_that_connection_only(tmp_path: Path, rubbish: bytes) -> None:
    async with pair(tmp_path / "w.sock") as (_, client):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "w.sock"))
        writer.write(rubbish)
        async with asyncio.timeout(5):
            while await reader.read(65536):
                pass
        writer.close()
        assert await client.call("echo", {"a": 1}) == {"a": 1}


def test_a_line_is_bounded_and_an_object() -> None:
    with pytest.raises(ValueError, match="limit"):
        encode_line({"a": "x" * MAX_LINE})
    with pytest.raises(ValueError):
        encode_line({"a": float("nan")})
    for line in (b"", b"1", b"[" * 100_000):
        with pytest.raises(ValueError):
            decode_line(line)
