"""ICE-TCP against who means harm: streams of rubbish, one token that fills the door, no descriptors left."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mediaserver.media import tcp
from mediaserver.media.ice import CheckResult
from mediaserver.media.tcp import MAX_FAULTS, MAX_FRAMES, PER_SESSION, TcpDoor
from tests.media_worker.rig import Worker, worker
from tests.media_worker.tcp_client import check, framed, read_frame
from tests.media_worker.test_tcp import entered

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    async with worker(tmp_path_factory.mktemp("tcp")) as running:
        yield running


@pytest.mark.parametrize("proven", [False, True])
async def test_a_stream_of_rubbish_is_cut_off(server: Worker, proven: bool) -> None:
    """Each check is looked at in Python; 64 KiB of them are 20,000, of which an attacker has any number."""
    name, password, remote, port = await entered(server, f"rubbish-{proven}")
    before = (await server.call("stats"))["tcp"]["malformed"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if proven:
        writer.write(framed(check(name, remote, password)))
        assert await asyncio.wait_for(read_frame(reader), 5)
    writer.write(framed(b"\0") * (MAX_FAULTS + 1))
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert (await server.call("stats"))["tcp"]["malformed"] == before + 1


async def test_more_frames_than_media_has_are_not_carried(server: Worker) -> None:
    """Each is a datagram to send on: 22,000 in what one read takes, a tenth of a second."""
    name, password, remote, port = await entered(server, "hurry")
    before = (await server.call("stats"))["tcp"]["malformed"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(framed(check(name, remote, password)))
    assert await asyncio.wait_for(read_frame(reader), 5)
    writer.write(framed(b"\x80") * 4 * MAX_FRAMES)  # some of it may fall into the next second
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert (await server.call("stats"))["tcp"]["malformed"] == before + 1


async def test_a_good_check_makes_up_for_bad_ones(server: Worker) -> None:
    name, password, remote, port = await entered(server, "forgiven")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(3):
        writer.write(framed(check(name, remote, "wrong" * 5)) * (MAX_FAULTS // 2))
        writer.write(framed(check(name, remote, password)))
        assert await asyncio.wait_for(read_frame(reader), 5)
    writer.close()


async def test_one_session_does_not_fill_the_door(server: Worker) -> None:
    name, password, remote, port = await entered(server, "hoard")
    before = (await server.call("stats"))["tcp"]["connections"]
    held = []
    for _ in range(3 * PER_SESSION):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(framed(check(name, remote, password)))
        assert await asyncio.wait_for(read_frame(reader), 5)
        held.append((reader, writer))
    assert (await server.call("stats"))["tcp"]["connections"] - before <= PER_SESSION
    reader, writer = held[-1]  # who came last is served
    writer.write(framed(check(name, remote, password)))
    assert await asyncio.wait_for(read_frame(reader), 5)
    for _, writer in held:
        writer.close()


class Counting(socket.socket):
    """A listener that counts what is asked of it."""

    asked = 0

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        self.asked += 1
        return super().accept()


def door_of(listener: socket.socket, tmp_path: Path, inner: socket.socket) -> TcpDoor:
    inner.bind(("127.0.0.1", 0))
    door = TcpDoor(
        [listener], index=0, directory=tmp_path, forwarder_address=inner.getsockname(), forwarder_socket=1
    )
    door.start(
        lambda *_: CheckResult(), lambda _: None, lambda _: None, lambda _: False, lambda: time.monotonic_ns()
    )
    return door


async def test_without_descriptors_it_waits_and_does_not_spin(tmp_path: Path) -> None:
    listener = Counting(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
    inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    door = door_of(listener, tmp_path, inner)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = socket.socket()
    number = free.fileno()  # the lowest that is free
    free.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert listener.asked == 1
        door.sweep(time.monotonic_ns())
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert listener.asked == 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    door.sweep(time.monotonic_ns())
    async with asyncio.timeout(5):
        while len(door) < 3:
            await asyncio.sleep(0.01)
    door.close()
    for one in (*clients, inner):
        one.close()


async def test_it_leaves_half_of_the_descriptors_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who proves nothing makes way, however few connections there may be."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    listener = tcp.listen(["127.0.0.1"], 0)[0]
    inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    door = door_of(listener, tmp_path, inner)
    monkeypatch.undo()
    clients = [socket.create_connection(listener.getsockname()) for _ in range(40)]
    async with asyncio.timeout(5):
        while door.counters.accepted < 40:
            await asyncio.sleep(0.01)
    assert len(door) == 16
    door.close()
    for one in (*clients, inner):
        one.close()
