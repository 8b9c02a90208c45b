"""A subscriber's estimate with the real forwarder, a real worker, and real clients."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page

from mediaserver.forwarder import TRANSPORT_CC
from mediaserver.media.bandwidth import Sending
from mediaserver.media.bandwidth.estimator import FLOOR_BPS, START_BPS
from recorder import rtcp
from recorder.rtcp_transport import TransportFeedback
from tests.e2e.browser import chromium
from tests.forwarder.ends import SUBSCRIBED, End, World, rtp
from tests.media_worker.rig import Viewer, Worker, connect, publish, worker

RTX_SSRC = 0x3333


class Call:
    """A publisher and a subscriber on a real forwarder; the subscriber answers with feedback."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.publisher, self.subscriber = world.end(), world.end()
        stream = world.stream(self.publisher)
        self.route = world.route(
            stream, self.subscriber, extensions=SUBSCRIBED, rtx_ssrc=RTX_SSRC, rtx_payload_type=112
        )
        self.woken = 0
        self.padding = 0
        self._sequence = 0
        self._number = 0
        self.sending = Sending(
            world.forwarder,
            self.subscriber.peer,
            numbered=True,
            padded=lambda: self.route,
            routes=lambda: [self.route],
            wake=self._wake,
        )
        self.sending.start()

    def _wake(self) -> None:
        self.woken += 1

    def step(self, *, answer: bool = True) -> int | None:
        """Send a burst, let the subscriber answer, let the timer do its work."""
        self.publisher.send(*(rtp(self._sequence + i, payload=bytes(600)) for i in range(2)))
        self._sequence += 2
        arrivals = self._receive(self.subscriber)
        if answer:
            for feedback in TransportFeedback.from_arrivals(5, 6, 0, arrivals):
                self.subscriber.send_rtcp(rtcp.build([feedback]))
            self.world.settle()
        return self.sending.handle_timer(time.monotonic_ns())

    def _receive(self, end: End) -> list[tuple[int, int]]:
        arrivals = []
        for packet in end.receive():
            self.padding += packet.ssrc == RTX_SSRC
            low = int.from_bytes(packet.elements[SUBSCRIBED[TRANSPORT_CC]], "big")
            self._number += (low - self._number) & 0xFFFF
            arrivals.append((self._number, time.monotonic_ns()))
        return arrivals


@pytest.mark.parametrize("kind", ["python", "native"])
def test_a_probe_pads_the_line_and_raises_the_estimate(kind: str) -> None:
    world = World(kind)
    try:
        call = Call(world)
        told: list[int] = []
        call.sending.on_change = told.append
        assert call.sending.available_bps is None
        assert call.sending.target_bps == START_BPS
        assert call.woken == 1
        call.sending.wanted_bps = 3_000_000
        deadline = time.monotonic() + 20
        while call.sending.target_bps < 1.5 * START_BPS:
            assert time.monotonic() < deadline, "the estimate does not rise"
            assert call.step() is not None
            time.sleep(0.01)
        assert call.padding > 0
        assert call.sending.available_bps == call.sending.target_bps
        assert told, "who chooses layers was told"
        assert told[-1] > START_BPS
        assert world.forwarder.route_stats(call.route).padding > 0
    finally:
        world.close()


@pytest.mark.parametrize("kind", ["python", "native"])
def test_feedback_that_tells_of_nothing_is_rested_on(kind: str) -> None:
    """A calm line of which no packet is known to have arrived: there is no shortest way yet."""
    world = World(kind)
    try:
        call = Call(world)
        now = time.monotonic_ns()
        for number in range(100):
            call.publisher.send(rtp(number, payload=bytes(600)))
            call.subscriber.receive()
            call.subscriber.send_rtcp(rtcp.build([TransportFeedback(5, 6, 40_000, 0, 0, (1,))]))
            world.settle()
            now += 100_000_000
            assert call.sending.handle_timer(now) is not None
        assert call.sending.target_bps >= FLOOR_BPS
    finally:
        world.close()


def test_the_timer_rests_when_nothing_is_sent_and_wakes_again() -> None:
    world = World("native")
    try:
        call = Call(world)
        call.step()
        begun = time.monotonic_ns()
        assert call.sending.handle_timer(begun) is not None
        assert call.sending.handle_timer(begun + 1_200_000_000) is None
        call.sending.look(begun + 1_300_000_000)
        assert call.woken == 1
        call.publisher.send(rtp(1000))
        world.settle()
        call.sending.look(begun + 2_300_000_000)
        assert call.woken == 2
    finally:
        world.close()


def test_a_client_without_rtx_is_not_probed() -> None:
    world = World("native")
    try:
        call = Call(world)
        call.sending._padded = lambda: None
        call.sending.wanted_bps = 3_000_000
        for _ in range(60):
            call.step()
            time.sleep(0.005)
        assert call.sending.estimator.prober.made > 0
        assert call.sending.estimator.prober.padding_until() == 0
        assert call.padding == 0
    finally:
        world.close()


def estimate(hello: dict[str, Any], identity: str) -> int | None:
    people = [person for room in hello["rooms"] for person in room["participants"]]
    sessions = [s for person in people if person["identity"] == identity for s in person["sessions"]]
    return next((s["available_bps"] for s in sessions if s["kind"] == "subscribe"), None)


async def wait_estimate(server: Worker, identity: str) -> int:
    async with asyncio.timeout(20):
        while (bps := estimate(await server.call("hello"), identity)) is None:
            await asyncio.sleep(0.2)
    return bps


PUBLISH = """async () => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [640, 360];
  const pen = canvas.getContext("2d");
  let count = 0;
  setInterval(() => {
    pen.fillStyle = `hsl(${(count += 7) % 360} 70% 60%)`;
    pen.fillRect((count * 3) % 600, 0, 40, 360);
  }, 66);
  window.pc = new RTCPeerConnection({bundlePolicy: "max-bundle"});
  pc.addTransceiver(canvas.captureStream(15).getVideoTracks()[0], {
    direction: "sendonly",
    sendEncodings: [{rid: "h", scaleResolutionDownBy: 2, maxBitrate: 150000}, {rid: "f", maxBitrate: 400000}],
  });
  await pc.setLocalDescription(await pc.createOffer());
  return pc.localDescription.sdp;
}"""
SUBSCRIBE = """async () => {
  window.pc = new RTCPeerConnection({bundlePolicy: "max-bundle"});
  pc.addTransceiver("audio", {direction: "recvonly"});
  pc.addTransceiver("video", {direction: "recvonly"});
  await pc.setLocalDescription(await pc.createOffer());
  return pc.localDescription.sdp;
}"""
ANSWER = """async sdp => { await pc.setRemoteDescription({type: "answer", sdp}); }"""
DECODED = """async () => {
  for (const report of (await pc.getStats()).values())
    if (report.type === "inbound-rtp" && report.kind === "video") return report.framesDecoded || 0;
  return 0;
}"""


async def subscribe(server: Worker, page: Page, target: str) -> str:
    """Let a page receive a participant; returns the answer once 10 pictures were decoded."""
    reply = await server.call(
        "whep", room="r", identity="agent", target=target, sdp=await page.evaluate(SUBSCRIBE)
    )
    await page.evaluate(ANSWER, reply["sdp"])
    async with asyncio.timeout(20):
        while await page.evaluate(DECODED) < 10:
            await asyncio.sleep(0.1)
    return str(reply["sdp"])


async def test_clients_tell_while_there_are_layers_to_choose_from(tmp_path: Path) -> None:
    """Chromium by transport-cc, aiortc by REMB; both only until the last layered track has gone."""
    async with worker(tmp_path) as server, chromium() as browser:
        await server.call("room.open", room="r")
        sender, watcher = await browser.new_page(), await browser.new_page()
        who = {"identity": "customer", "role": "customer", "seat": "customer#1", "name": "Wang"}
        offer = await sender.evaluate(PUBLISH)
        published = await server.call("whip", room="r", source="camera", sdp=offer, **who)
        await sender.evaluate(ANSWER, published["sdp"])
        answered = await subscribe(server, watcher, "customer")
        assert "transport-cc" in answered
        assert "goog-remb" not in answered
        viewer = Viewer()
        await connect(server, viewer.peer, "whep", room="r", identity="expert", target="customer")
        await viewer.wait_frames("video1", 10)
        assert await wait_estimate(server, "expert") > 0
        await wait_estimate(server, "agent")
        stats = await server.call("stats")
        assert stats["bandwidth_estimates"] == 2
        assert stats["available_bps"] > 0
        await asyncio.sleep(3)
        bps = await wait_estimate(server, "agent")
        print(f"Chromium on loopback: {bps} bit/s")
        assert bps >= START_BPS * 0.5, "an empty line is not taken for a full one"
        customer, _ = await publish(server, "r", "customer")  # in one size, instead of the layers
        await viewer.wait_frames("video1", 60)
        assert estimate(await server.call("hello"), "agent") is None
        assert (await server.call("stats"))["bandwidth_estimates"] == 0
        await viewer.close()
        await customer.close()


async def test_where_there_is_nothing_to_choose_nothing_is_measured(tmp_path: Path) -> None:
    async with worker(tmp_path) as server, chromium() as browser:
        await server.call("room.open", room="r")
        customer, _ = await publish(server, "r", "customer")
        page = await browser.new_page()
        await subscribe(server, page, "customer")
        await asyncio.sleep(2)
        assert estimate(await server.call("hello"), "agent") is None
        assert (await server.call("stats"))["bandwidth_estimates"] == 0
        await customer.close()
