"""Call participants for the benchmarks: stock aiortc over WHIP and WHEP, sending media encoded beforehand.

They encode nothing, so that what they cost is mostly decoding what they receive; they run in a process of
their own, and only the server's CPU time is counted.
"""

from __future__ import annotations

import asyncio
import fractions
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import aioice.ice
import av
import numpy as np
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaBlackhole

FRAMES_PER_S = 25
VIDEO_CLOCK = fractions.Fraction(1, 90_000)
AUDIO_CLOCK = fractions.Fraction(1, 48_000)

# aioice leaves loopback out of its candidates; a benchmark's load must not leave it.
aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]


@dataclass(frozen=True)
class Clip:
    """Encoded media of some seconds: VP8 pictures and 20 ms Opus packets."""

    video: Sequence[bytes]
    audio: Sequence[bytes]


def encode_clip(seconds: int = 4, width: int = 640, height: int = 360, bitrate_bps: int = 1_000_000) -> Clip:
    """Encode moving noise over a gradient and a 440 Hz tone, the video at about ``bitrate_bps``."""
    random = np.random.default_rng(1)
    video = av.CodecContext.create("libvpx", "w")
    video.width, video.height, video.pix_fmt = width, height, "yuv420p"
    video.time_base = fractions.Fraction(1, FRAMES_PER_S)
    video.bit_rate = bitrate_bps
    video.gop_size = FRAMES_PER_S
    video.options = {"deadline": "realtime", "cpu-used": "8", "error-resilient": "1"}
    pictures = []
    for number in range(seconds * FRAMES_PER_S):
        luma = (np.add.outer(np.arange(height), np.arange(width)) + 4 * number) % 256
        luma = np.clip(luma + random.integers(-6, 7, luma.shape), 0, 255).astype(np.uint8)
        picture = np.vstack([luma, np.full((height // 2, width), 128, np.uint8)])
        frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.pts = number
        pictures += [bytes(packet) for packet in video.encode(frame)]
    audio = av.CodecContext.create("libopus", "w")
    audio.sample_rate, audio.layout, audio.format = 48_000, "stereo", "s16"
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(48_000 * seconds) / 48_000)).astype(np.int16)
    sounds = []
    for at in range(0, len(tone), 960):
        sound = av.AudioFrame.from_ndarray(
            np.repeat(tone[at : at + 960], 2)[None], format="s16", layout="stereo"
        )
        sound.sample_rate, sound.pts = 48_000, at
        sounds += [bytes(packet) for packet in audio.encode(sound)]
    return Clip(pictures, sounds)


class EncodedTrack(MediaStreamTrack):
    """Send encoded packets again and again, in real time."""

    def __init__(self, kind: str, packets: Sequence[bytes]) -> None:
        super().__init__()
        self.kind = kind
        self._packets = packets
        self._every = 90_000 // FRAMES_PER_S if kind == "video" else 960
        self._clock = VIDEO_CLOCK if kind == "video" else AUDIO_CLOCK
        self._sent = 0
        self._began = 0.0

    async def recv(self) -> av.Packet[Any]:
        """Return the next packet when its time has come."""
        now = asyncio.get_running_loop().time()
        self._began = self._began or now
        due = self._began + float(self._sent * self._every * self._clock)
        await asyncio.sleep(max(0.0, due - now))
        packet = av.Packet(self._packets[self._sent % len(self._packets)])
        packet.pts = packet.dts = self._sent * self._every
        packet.time_base = self._clock
        self._sent += 1
        return packet


class Participant:
    """One party of a call: publishes over WHIP, watches the others over WHEP."""

    def __init__(self, http: aiohttp.ClientSession, token: str) -> None:
        self._http = http
        self._token = token
        self._publishing: RTCPeerConnection | None = None
        self._watching: list[tuple[RTCPeerConnection, MediaBlackhole]] = []

    async def publish(self, url: str, clip: Clip) -> None:
        """Send the clip's sound and pictures to a WHIP endpoint."""
        connection = self._publishing = RTCPeerConnection()
        connection.addTrack(EncodedTrack("audio", clip.audio))
        connection.addTrack(EncodedTrack("video", clip.video))
        await self._exchange(connection, url)

    async def watch(self, url: str) -> None:
        """Receive and drop what a WHEP endpoint sends."""
        connection, sink = RTCPeerConnection(), MediaBlackhole()
        connection.on("track", sink.addTrack)
        connection.addTransceiver("audio", direction="recvonly")
        connection.addTransceiver("video", direction="recvonly")
        await self._exchange(connection, url)
        await sink.start()
        self._watching.append((connection, sink))

    async def _exchange(self, connection: RTCPeerConnection, url: str) -> None:
        await connection.setLocalDescription(await connection.createOffer())
        headers = {"Content-Type": "application/sdp", "Authorization": f"Bearer {self._token}"}
        offer = connection.localDescription.sdp
        async with self._http.post(url, data=offer, headers=headers) as answer:
            text = await answer.text()
            if answer.status != 201:
                raise RuntimeError(f"{url}: {answer.status} {text}")
        await connection.setRemoteDescription(RTCSessionDescription(text, "answer"))

    async def packets_received(self) -> int:
        """Count the RTP packets that arrived over all watched connections."""
        count = 0
        for connection, _ in self._watching:
            report: dict[str, Any] = await connection.getStats()
            count += sum(entry.packetsReceived for entry in report.values() if entry.type == "inbound-rtp")
        return count

    async def leave(self) -> None:
        """Close every connection."""
        for connection, sink in self._watching:
            await sink.stop()
            await connection.close()
        if self._publishing:
            await self._publishing.close()


def trusting_session() -> aiohttp.ClientSession:
    """Open an HTTP client that takes the self-signed certificate of a server on loopback."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))
