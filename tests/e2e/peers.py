"""A stock aiortc client over WHIP and WHEP: nothing in aiortc is changed or reached into."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urljoin

import av
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from tests.e2e.api import Api, Problem
from tests.media.lossy import LossyLink


@dataclass
class Session:
    """One WHIP or WHEP session."""

    api: Api
    connection: RTCPeerConnection
    location: str
    etag: str
    token: str
    joined_s: float
    """From the POST to its answer."""

    async def close(self) -> None:
        """DELETE the session and close the connection; a session that is gone already is fine."""
        await self.api.ask("DELETE", self.location, bearer=self.token)
        await self.connection.close()


@dataclass
class Received:
    """What arrived of one track."""

    kind: str
    first_s: float = 0.0
    """Monotonic time of the first frame, 0 before it."""
    last_s: float = 0.0
    frames: int = 0
    on_picture: Callable[[av.VideoFrame], None] | None = None

    async def follow(self, track: MediaStreamTrack) -> None:
        """Take frames until the track ends."""
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            self.last_s = time.monotonic()
            self.first_s = self.first_s or self.last_s
            self.frames += 1
            if self.on_picture is not None and isinstance(frame, av.VideoFrame):
                self.on_picture(frame)


@dataclass
class Subscription:
    """A WHEP session and what arrives over it."""

    session: Session
    asked_s: float
    video: Received = field(default_factory=lambda: Received("video"))
    audio: Received = field(default_factory=lambda: Received("audio"))
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def first_picture(self, timeout_s: float = 10.0) -> float:
        """Wait for the first picture; returns s since the POST."""
        deadline = time.monotonic() + timeout_s
        while not self.video.first_s:
            if time.monotonic() > deadline:
                raise AssertionError(f"no picture within {timeout_s} s")
            await asyncio.sleep(0.01)
        return self.video.first_s - self.asked_s

    async def close(self) -> None:
        """End the session and the readers."""
        await self.session.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def _negotiate(
    api: Api, connection: RTCPeerConnection, path: str, token: str, link: LossyLink | None = None
) -> Session:
    await connection.setLocalDescription(await connection.createOffer())
    begin = time.monotonic()
    answer = await api.ask(
        "POST",
        path,
        data=connection.localDescription.sdp,
        headers={"Content-Type": "application/sdp"},
        bearer=token,
    )
    if answer.status != 201:
        await connection.close()
        raise Problem(answer.status, answer.json())
    sdp = answer.body.decode()
    if link is not None:
        sdp = await link.redirect(sdp)
    await connection.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
    return Session(
        api,
        connection,
        urljoin(api.base, answer.headers["Location"]),
        answer.headers.get("ETag", ""),
        token,
        time.monotonic() - begin,
    )


async def publish(
    api: Api,
    room: str,
    token: str,
    tracks: list[MediaStreamTrack],
    *,
    source: str = "camera",
    codec: str = "VP8",
    link: LossyLink | None = None,
) -> Session:
    """Publish tracks over WHIP, through a bad line if one is given. Raises Problem."""
    connection = RTCPeerConnection()
    for track in tracks:
        connection.addTrack(track)
    for transceiver in connection.getTransceivers():
        if transceiver.kind == "video":
            wanted = f"video/{codec}".lower()
            known = RTCRtpSender.getCapabilities("video").codecs
            chosen = [one for one in known if one.mimeType.lower() in (wanted, "video/rtx")]
            transceiver.setCodecPreferences(chosen)
    return await _negotiate(api, connection, f"/v1/whip/{room}?source={source}", token, link)


async def subscribe(
    api: Api,
    room: str,
    target: str,
    token: str,
    *,
    on_picture: Callable[[av.VideoFrame], None] | None = None,
) -> Subscription:
    """Subscribe to a participant over WHEP. Raises Problem."""
    connection = RTCPeerConnection()
    connection.addTransceiver("audio", direction="recvonly")
    connection.addTransceiver("video", direction="recvonly")
    waiting: list[MediaStreamTrack] = []
    connection.on("track", waiting.append)
    begin = time.monotonic()
    session = await _negotiate(api, connection, f"/v1/whep/{room}/{target}", token)
    subscription = Subscription(session, begin)
    subscription.video.on_picture = on_picture
    for track in waiting:
        received = subscription.video if track.kind == "video" else subscription.audio
        subscription.tasks.append(asyncio.create_task(received.follow(track)))
    return subscription


async def connected(session: Session, timeout_s: float = 10.0) -> None:
    """Wait until ICE and DTLS are through. Raises AssertionError."""
    deadline = time.monotonic() + timeout_s
    while session.connection.connectionState != "connected":
        if time.monotonic() > deadline or session.connection.connectionState in ("failed", "closed"):
            raise AssertionError(f"connection is {session.connection.connectionState}")
        await asyncio.sleep(0.02)
