"""A real worker process, its control line, and stock aiortc clients, for the tests of this directory."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCBundlePolicy,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from av import AudioFrame, VideoFrame

from mediaserver.ipc import IpcClient
from mediaserver.settings import Log, Media, Recording, WorkerConfig
from recorder.keys import FileProvider, ProviderConfig

TENANT = "default"
JsonObject = dict[str, Any]


class Worker:
    """One worker process and the line to it."""

    def __init__(self, process: subprocess.Popen[bytes], client: IpcClient, directory: Path) -> None:
        self.process = process
        self.client = client
        self.directory = directory
        self.events: list[JsonObject] = []
        self._changed = asyncio.Condition()

    async def follow(self) -> None:
        """Collect events for ever."""
        async for event in self.client.events:
            async with self._changed:
                self.events.append(event)
                self._changed.notify_all()

    async def wait_for(
        self, event_type: str, /, room: str | None = None, timeout_s: float = 20.0, **data: object
    ) -> JsonObject:
        """Return the first event of a type (and room) whose data has these members."""

        def found() -> JsonObject | None:
            for event in self.events:
                here = room is None or event["room"] == room
                if (
                    here
                    and event["type"] == event_type
                    and all(event["data"].get(k) == v for k, v in data.items())
                ):
                    return event
            return None

        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: found() is not None)
        event = found()
        assert event is not None
        return event

    async def call(self, method: str, **params: object) -> JsonObject:
        """Call a method of the tenant the tests use."""
        return await self.client.call(method, {"tenant": TENANT, **params}, timeout_s=15)

    async def record(self, recording: str, room: str, part: int = 1, **info: object) -> tuple[Path, bytes]:
        """Start a recording; returns its directory and data key."""
        directory = self.directory / recording
        secret = bytes(range(16))
        await self.call(
            "recording.start",
            recording=recording,
            room=room,
            directory=str(directory),
            part=part,
            data_key_id="test",
            data_key=base64.b64encode(secret).decode(),
            info={"mode": "both", **info},
        )
        return directory, secret


@contextlib.asynccontextmanager
async def worker(
    tmp_path: Path,
    *,
    index: int = 0,
    tcp_port: int = 0,
    bind: str | tuple[str, ...] = "127.0.0.1",
    **media: Any,
) -> AsyncIterator[Worker]:
    """Run a worker process on free ports of the loopback interface, or of the given addresses."""
    bind = (bind,) if isinstance(bind, str) else bind
    crypto = tmp_path / "crypto"
    if not crypto.exists():
        FileProvider.create(crypto)
    config = WorkerConfig(
        index=index,
        socket=tmp_path / f"w{index}.sock",
        bind=bind,
        port=0,
        tcp_port=tcp_port,
        advertised=bind,
        media=Media(**media),
        recording=Recording(),
        keys=ProviderConfig(directory=crypto).for_sealing(),
        log=Log(),
    )
    log = (tmp_path / f"worker{index}.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, "-m", "mediaserver.media.worker"], stdin=subprocess.PIPE, stderr=log, stdout=log
    )
    assert process.stdin is not None
    process.stdin.write(config.model_dump_json().encode() + b"\n")
    process.stdin.close()
    client = IpcClient(config.socket)
    running = Worker(process, client, tmp_path)
    try:
        await client.connect(15)
        follower = asyncio.create_task(running.follow())
        yield running
        follower.cancel()
    finally:
        await client.close()
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            log.close()
    problems = [
        line
        for line in (tmp_path / f"worker{index}.log").read_text().splitlines()
        if '"level": "error"' in line or "Traceback" in line
    ]
    assert not problems, problems[0]


class Picture(MediaStreamTrack):
    """A moving picture of 160x120 at 30 frames/s; its brightness tells who sends it."""

    kind = "video"

    def __init__(self, shade: int = 128) -> None:
        super().__init__()
        self._shade = shade
        self._count = 0

    async def recv(self) -> VideoFrame:
        await asyncio.sleep(1 / 30)
        image = np.full((120, 160, 3), self._shade, np.uint8)
        image[:, self._count % 160] = 255 - self._shade
        frame = VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = self._count * 3000, Fraction(1, 90_000)
        self._count += 1
        return frame


class Tone(MediaStreamTrack):
    """A 440 Hz tone in blocks of 20 ms."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    async def recv(self) -> AudioFrame:
        await asyncio.sleep(0.02)
        time = np.arange(self._count * 960, (self._count + 1) * 960) / 48_000
        samples = (np.sin(2 * np.pi * 440 * time) * 8000).astype(np.int16)
        frame = AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = 48_000
        frame.pts, frame.time_base = self._count * 960, Fraction(1, 48_000)
        self._count += 1
        return frame


async def connect(worker: Worker, peer: RTCPeerConnection, method: str, **params: object) -> JsonObject:
    """Offer over the worker's line and take the answer."""
    await peer.setLocalDescription(await peer.createOffer())
    reply = await worker.call(method, sdp=peer.localDescription.sdp, **params)
    await peer.setRemoteDescription(RTCSessionDescription(reply["sdp"], "answer"))
    return reply


async def publish(
    worker: Worker, room: str, identity: str, *, source: str = "camera", shade: int = 128
) -> tuple[RTCPeerConnection, JsonObject]:
    """Publish picture and tone."""
    peer = RTCPeerConnection()
    peer.addTransceiver(Tone(), direction="sendonly")
    peer.addTransceiver(Picture(shade), direction="sendonly")
    reply = await connect(
        worker,
        peer,
        "whip",
        room=room,
        identity=identity,
        role=identity,
        seat=f"{identity}#1",
        name=f"Name of {identity}",
        source=source,
    )
    return peer, reply


class Viewer:
    """A subscriber that decodes what it gets."""

    def __init__(self, videos: int = 1) -> None:
        # Under its default policy aiortc 1.16 leaves a second video m-line on a transport that never starts.
        self.peer = RTCPeerConnection(RTCConfiguration(bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        self.frames: dict[str, int] = {}
        self.last: dict[str, object] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.peer.addTransceiver("audio", direction="recvonly")
        for _ in range(videos):
            self.peer.addTransceiver("video", direction="recvonly")
        self.peer.on("track", self._track)

    def _track(self, track: MediaStreamTrack) -> None:
        self._tasks.append(asyncio.create_task(self._read(track)))

    async def _read(self, track: MediaStreamTrack) -> None:
        mids = [t.mid for t in self.peer.getTransceivers() if t.receiver.track is track]
        name = f"{track.kind}{mids[0]}"
        with contextlib.suppress(Exception):
            while True:
                self.last[name] = await track.recv()
                self.frames[name] = self.frames.get(name, 0) + 1

    async def wait_frames(self, name: str, count: int, timeout_s: float = 20.0) -> None:
        """Wait until so many more frames of a track (``video1``) were decoded."""
        goal = self.frames.get(name, 0) + count
        async with asyncio.timeout(timeout_s):
            while self.frames.get(name, 0) < goal:
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        await self.peer.close()
        for task in self._tasks:
            task.cancel()


def dump(value: object) -> str:
    """Return JSON for messages of failed tests."""
    return json.dumps(value, indent=1, default=str)
