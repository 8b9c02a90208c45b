"""A recorded call in the laboratory: a phone publishes, a desk watches, both in Chromium behind lines."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from playwright.async_api import expect

from recorder.records import Record, RtpRecord, TrackRecord
from recorder.rtp import RtpPacket, Unwrapper
from tests.e2e.api import Api
from tests.e2e.browser import Participant, chromium, participant
from tests.e2e.evidence import records_of
from tests.e2e.stage import Stage
from tests.e2e.test_changes import CONNECTIONS
from tests.e2e.test_page import opened, sees
from tests.e2e.test_walls import wall
from tests.lab.network import SERVER, Laboratory, Network
from tests.media.pictures import CUSTOMER
from tests.media.sounds import PERIOD_S, RATE, Sound

Devices = tuple[Path, Path]
"""Files of the camera and the microphone."""
ROOM, VIEWER = "counter-lab", "desk-01"
COMPOSE_S = 180.0
"""Within which a minute is composed on two busy cores."""
SETTLE_S = 5.0
"""The first keyframes, and the estimator's start, are not what is asked."""
NOTE_SHOWN = """identity => {
    window.stage = {shown: []};
    const tile = [...document.querySelectorAll(".tile")].find(({dataset}) => dataset.identity === identity);
    const video = tile.querySelector("video");
    const look = now => {
        stage.shown.push([0, performance.timeOrigin + now]);
        video.requestVideoFrameCallback(look);
    };
    video.requestVideoFrameCallback(look);
}"""
LOCAL = """async () => {
    const found = [];
    for (const connection of connections.filter(({connectionState}) => connectionState === "connected")) {
        const reports = await connection.getStats();
        for (const {type, nominated, localCandidateId} of reports.values())
            if (type === "candidate-pair" && nominated) found.push({...reports.get(localCandidateId)});
    }
    return found;
}"""


class OnThePage(Participant):
    """Somebody who has the server's own page open."""

    async def watch_shown(self, target: str) -> None:
        """Note from now on when the tile of ``target`` shows a picture; which is not read."""
        await sees(self.page, target)
        await self.page.evaluate(NOTE_SHOWN, target)

    async def local(self) -> list[dict[str, Any]]:
        """Return the local candidates that its connections use."""
        found: list[dict[str, Any]] = await self.page.evaluate(LOCAL)
        return found


@dataclass
class Pair:
    """Two browsers with a server between them, ours or another: the phone publishes, the desk watches."""

    phone: Network
    desk: Network
    publisher: Participant
    viewer: Participant

    async def inbound(self) -> dict[str, Any]:
        """Return the viewer's statistics of the picture it receives."""
        streams = (await self.viewer.stats())[f"subscribe {CUSTOMER.identity}"]["streams"]
        return next((one for one in streams if one["kind"] == "video"), {})

    async def allow(self, bits_per_s: int) -> None:
        """Let the publisher's browser use so much for its picture, whatever it thinks enough."""
        await self.publisher.page.evaluate(
            """async bits => {
              const senders = stage.sessions.get("publish camera").connection.getSenders();
              const sender = senders.find(({ track }) => track.kind === "video");
              const parameters = sender.getParameters();
              parameters.encodings[0].maxBitrate = bits;
              await sender.setParameters(parameters);
            }""",
            bits_per_s,
        )

    async def shown_s(self) -> list[float]:
        """Return when (UTC s) the viewer showed a picture."""
        return [utc_ms / 1000 for _, utc_ms in await self.viewer.shown()]

    async def back_s(self, since_s: float, timeout_s: float = 30.0) -> float | None:
        """Return how long after a time (UTC s) pictures flowed again, None if not within the timeout.

        Flowing is three pictures within half a second: what the jitter buffer still held is not.
        """
        while True:
            after = [at for at in await self.shown_s() if at >= since_s]
            for first, _, third in zip(after, after[1:], after[2:], strict=False):
                if third - first < 0.5:
                    return first - since_s
            if time.time() - since_s > timeout_s:
                return None
            await asyncio.sleep(0.2)


@dataclass
class Call(Pair):
    """A recorded call through our server."""

    stage: Stage
    api: Api
    recording: str

    async def end(self) -> list[Record]:
        """Stop the recording; returns its journal."""
        await self.api.stop(self.recording)
        return await records_of(self.stage, self.recording)

    async def listed(self) -> dict[str, Any]:
        """Compose the ended recording; returns the account of what its picture shows."""
        asked = await self.api.file(self.recording, "composite.mp4")
        assert asked.status == 202, asked.body
        await self.api.composed(self.recording, COMPOSE_S)
        timeline = await self.api.call("GET", f"/v1/recordings/{self.recording}/timeline")
        composite: dict[str, Any] = timeline["composite"]
        return composite


Made = TypeVar("Made", bound=Pair)


async def settled(made: Made) -> Made:
    """Note from now on what the viewer shows, and wait for the call to become steady; returns it."""
    await made.viewer.watch_shown(CUSTOMER.identity)
    await asyncio.sleep(SETTLE_S)
    return made


@asynccontextmanager
async def on_the_page(
    api: Api, base: str, devices: Devices, program: Path, identity: str, role: str
) -> AsyncIterator[OnThePage]:
    """Join by an invitation's address, with the server's own page; TURN's certificate is trusted."""
    camera, microphone = devices
    flags = (f"--use-file-for-fake-video-capture={camera}", f"--use-file-for-fake-audio-capture={microphone}")
    body = {"room": ROOM, "role": role, "name": identity, "identity": identity}
    code = (await api.call("POST", "/v1/invites", body))["code"]
    async with (
        chromium(*flags, "--ignore-certificate-errors", program=program) as browser,
        opened(browser, f"{base}/#code={code}", before=CONNECTIONS, ignore_https_errors=True) as page,
    ):
        page.on("console", lambda said: print(f"{time.time():.2f} {identity}: {said.text}"))
        await page.get_by_test_id("join").click()
        await expect(page.get_by_test_id("connection")).to_have_text("Connected")
        yield OnThePage(page)


@asynccontextmanager
async def call(
    lab: Laboratory,
    directory: Path,
    devices: Devices,
    *,
    page: bool = False,
    watching: bool = False,
    walls: tuple[str, ...] = (),
    only: str = "",
    settings: Mapping[str, object] | None = None,
) -> AsyncIterator[Call]:
    """Start the server, both browsers and the recording; the lines are clean until a scenario sets them.

    ``page``: the phone has the server's own page open, which connects again by itself; else it is a bare
    WHIP client that leaves everything to Chromium. ``watching``: the desk has it open; else it is a bare WHEP
    client. ``walls``: what leaves the phone's network besides calls of the API (rules of nft(8)), none:
    everything. ``only``: the bare client's media goes through TURN servers whose URL has this text.
    ``settings`` of the server.
    """
    camera, microphone = devices
    phone, desk = lab.add("phone"), lab.add("desk")
    with lab.stage(directory / "data", **{"composing.when": "on_demand", **(settings or {})}) as stage:
        if walls:
            wall(phone.namespace, f"tcp dport {stage.port} accept", "meta l4proto icmpv6 accept", *walls)
        base = f"https://{SERVER}:{stage.port}"
        async with (
            Api(stage.base, stage.key()) as api,
            AsyncExitStack() as stack,
        ):
            await api.room(ROOM)
            program, viewing = phone.chromium(directory), desk.chromium(directory)
            publisher: Participant
            viewer: Participant
            if watching:
                viewer = await stack.enter_async_context(
                    on_the_page(api, base, devices, viewing, VIEWER, "agent")
                )
            else:
                viewer = await stack.enter_async_context(
                    participant(base, camera, microphone, program=viewing)
                )
            if page:
                publisher = await stack.enter_async_context(
                    on_the_page(api, base, devices, program, CUSTOMER.identity, CUSTOMER.role)
                )
            else:
                trusting = ("--ignore-certificate-errors",) if only else ()
                bare = participant(base, camera, microphone, *trusting, program=program)
                publisher = await stack.enter_async_context(bare)
                if only:
                    await publisher.page.evaluate(
                        "only => Object.assign(stage, {only, onlyRelay: true})", only
                    )
                await publisher.page.evaluate("stage.audioNack = stage.climbs = true")
                token = await api.token(ROOM, CUSTOMER.identity, CUSTOMER.role)
                await publisher.publish(ROOM, token, hint="")
            recording = await api.record(ROOM, "LAB-1")
            if not watching:
                await viewer.page.evaluate("stage.audioNack = stage.patient = true")
                await viewer.subscribe(ROOM, CUSTOMER.identity, await api.token(ROOM, VIEWER, "agent"))
            yield await settled(Call(phone, desk, publisher, viewer, stage, api, recording["id"]))


def missing_packets(records: Sequence[Record]) -> dict[str, tuple[int, int]]:
    """Return kind → (packets missing, packets expected) of a journal, by the sequence numbers."""
    kinds = {record.info.track: record.info.kind for record in records if isinstance(record, TrackRecord)}
    numbers: dict[tuple[int, int], list[int]] = {}
    for record in records:
        if isinstance(record, RtpRecord):
            packet = RtpPacket.parse(record.packet)
            numbers.setdefault((record.track, packet.ssrc), []).append(packet.sequence_number)
    totals = {"audio": (0, 0), "video": (0, 0)}
    for (track, _), seen in numbers.items():
        unwrapper = Unwrapper(16)
        extended = [unwrapper.unwrap(number) for number in seen]
        expected = max(extended) - min(extended) + 1
        before = totals[kinds[track]]
        totals[kinds[track]] = (before[0] + expected - len(set(extended)), before[1] + expected)
    return totals


def recorded_sound(records: Sequence[Record]) -> Sound:
    """Decode the Opus packets of a journal's only audio track by their time; silence where one is missing."""
    info = next(one.info for one in records if isinstance(one, TrackRecord) and one.info.kind == "audio")
    packets = [
        RtpPacket.parse(one.packet)
        for one in records
        if isinstance(one, RtpRecord) and one.track == info.track
    ]
    unwrapper = Unwrapper(32)
    by_time = {unwrapper.unwrap(packet.timestamp): packet.payload for packet in packets if packet.payload}
    decoder = av.CodecContext.create("libopus", "r")
    decoder.sample_rate = RATE
    decoder.layout = "mono"
    first = min(by_time)
    sound = np.zeros(max(by_time) - first + RATE, np.float32)
    for at in sorted(by_time):
        for frame in decoder.decode(av.Packet(by_time[at])):
            samples = frame.to_ndarray().reshape(-1)
            sound[at - first :][: len(samples)] = samples / 32768 if samples.dtype == np.int16 else samples
    return sound


def delays_ms(captured: Sequence[tuple[int, float]], shown: Sequence[tuple[int, float]]) -> list[float]:
    """Return how long each shown picture took from the camera to the screen.

    The camera's film comes round every ``PERIOD_S``: of the captures of a code the last one before counts.
    """
    by_code: dict[int, list[float]] = {}
    for code, at_ms in captured:
        by_code.setdefault(code, []).append(at_ms)
    found = []
    for code, at_ms in shown:
        before = [captured_ms for captured_ms in by_code.get(code, ()) if captured_ms <= at_ms]
        if before and at_ms - before[-1] < PERIOD_S * 500:
            found.append(at_ms - before[-1])
    return found


def longest_pause_s(shown_s: Sequence[float], from_s: float, to_s: float) -> float:
    """Return the longest time without a new picture that began within the given times."""
    pauses = [later - earlier for earlier, later in itertools.pairwise(shown_s) if from_s <= earlier <= to_s]
    return max(pauses, default=to_s - from_s)
