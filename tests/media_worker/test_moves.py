"""A client whose address changes in mid-call, as the worker sees it: the same session goes on at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription

from tests.media.lossy import LOOPBACK, LossyLink
from tests.media_worker.rig import Picture, Tone, Viewer, Worker, publish, worker


class MovingLink(LossyLink):
    """A line whose far end can become another socket: NAT rebinding. STUN is held back from then on."""

    def __init__(self) -> None:
        super().__init__(seed=1)
        self.moved = asyncio.Event()
        self.answered = asyncio.Event()
        """Something of the server came to the new address."""
        self.checks_held = 0

    async def move(self) -> None:
        """Send from another port from now on."""
        assert self._far is not None
        server = self._far.get_extra_info("peername")
        self._far.close()
        self._far, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _NewEnd(self), local_addr=(LOOPBACK, 0), remote_addr=server
        )
        self.moved.set()

    def received(self, data: bytes, address: tuple[str | Any, int], *, from_client: bool) -> None:
        if from_client and self.moved.is_set() and data[0] < 4:
            self.checks_held += 1
            return
        super().received(data, address, from_client=from_client)


class _NewEnd(asyncio.DatagramProtocol):
    def __init__(self, link: MovingLink) -> None:
        self._link = link

    def datagram_received(self, data: bytes, address: tuple[str | Any, int]) -> None:
        self._link.answered.set()
        self._link.received(data, address, from_client=False)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Worker]:
    async with worker(tmp_path) as running:
        yield running


async def received(server: Worker, size: int) -> dict[str, Any]:
    """Wait until so many bytes have come in all; returns the worker's counters then."""
    async with asyncio.timeout(20):
        while (counters := await server.call("stats"))["bytes_received"] < size:
            await asyncio.sleep(0.1)
    return counters


async def test_media_from_a_new_address_moves_its_session_before_any_check(server: Worker) -> None:
    await server.call("room.open", room="moving")
    link = MovingLink()
    peer = RTCPeerConnection()
    peer.addTransceiver(Tone(), direction="sendonly")
    peer.addTransceiver(Picture(), direction="sendonly")
    await peer.setLocalDescription(await peer.createOffer())
    reply = await server.call("whip", room="moving", identity="customer", sdp=peer.localDescription.sdp)
    sdp = await link.redirect(reply["sdp"])
    await peer.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
    await server.wait_for("session.connected", session=reply["session"])
    before = await received(server, 5_000)
    await link.move()
    async with asyncio.timeout(20):
        await link.answered.wait()
    after = await server.call("stats")
    assert after["paths_changed"] == before["paths_changed"] + 1
    assert after["ice"]["checks"] == before["ice"]["checks"], "it moved by its media alone"
    await received(server, after["bytes_received"] + 10_000)
    assert peer.connectionState == "connected"
    await peer.close()
    link.close()


async def test_a_viewer_that_was_cut_off_gets_a_keyframe_without_asking(server: Worker) -> None:
    """aiortc would ask only when 512 packets wait for those that are lost for good."""
    await server.call("room.open", room="cut")
    sender, _ = await publish(server, "cut", "customer")
    viewer, link = Viewer(), LossyLink(seed=1)
    await viewer.peer.setLocalDescription(await viewer.peer.createOffer())
    offer = viewer.peer.localDescription.sdp
    reply = await server.call("whep", room="cut", identity="agent", target="customer", sdp=offer)
    sdp = await link.redirect(reply["sdp"])
    await viewer.peer.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
    await viewer.wait_frames("video1", 30)
    await asyncio.sleep(2)  # it has reported

    async def keyframes() -> int:
        return int((await server.call("stats"))["keyframe_requests"])

    before = await keyframes()
    link.loss = 1.0
    await asyncio.sleep(2.5)
    assert await keyframes() == before
    link.loss = 0.0
    async with asyncio.timeout(10):
        while await keyframes() == before:
            await asyncio.sleep(0.1)
    await viewer.close()
    await sender.close()
    link.close()
