"""Calls made up for the composing benchmark: talking heads and voices, as a journal and as plain files.

The plain files hold the very packets of the journal, so that ffmpeg decodes what the compositor does.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from aiortc.codecs.h264 import H264Encoder

from bench.journals import JournalInSteps
from recorder.records import (
    ClockRecord,
    EndRecord,
    EventRecord,
    Record,
    RtpRecord,
    SessionRecord,
    TrackInfo,
    TrackRecord,
)
from recorder.rtp import RtpPacket
from recorder.sealed import DataKey

CLIP_SECONDS = 10
FPS = 25
START_NS = 1_000_000_000_000
UTC_NS = 1_795_636_447_000_000_000
KEY = DataKey("bench", b"bench key, no se")
PACKET_BYTES = 1100
Pictures = list[tuple[bytes, bool]]
"""Encoded frames; True: a keyframe."""


@dataclass(frozen=True)
class Kind:
    """What the cameras send."""

    mime: str
    width: int
    height: int
    bitrate_bps: int

    @property
    def suffix(self) -> str:
        """Of the plain file that holds it beside Opus."""
        return "webm" if self.mime == "video/VP8" else "mkv"


VP8_360P = Kind("video/VP8", 640, 360, 700_000)
H264_720P = Kind("video/H264", 1280, 720, 1_500_000)


def _encoder(kind: Kind) -> Any:
    encoder: Any = av.CodecContext.create("libvpx" if kind.mime == "video/VP8" else "libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = kind.width, kind.height, "yuv420p"
    encoder.time_base, encoder.framerate, encoder.gop_size = Fraction(1, FPS), Fraction(FPS), 3000
    encoder.bit_rate, encoder.thread_count = kind.bitrate_bps, 1
    if kind.mime == "video/VP8":
        encoder.options = {
            "deadline": "realtime",
            "cpu-used": "8",
            "lag-in-frames": "0",
            "error-resilient": "1",
        }
    else:
        encoder.options = {"preset": "veryfast", "tune": "zerolatency", "profile": "baseline"}
    return encoder


def talking_head(seed: int, kind: Kind = VP8_360P) -> Pictures:
    """Encode a moving head before a static room with sensor noise, as a browser would."""
    encoder = _encoder(kind)
    width, height = kind.width, kind.height
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32) * np.float32(360 / height)
    room = 90 + 40 * np.sin(columns / 55 + seed) + 20 * (rows > 250) + 15 * ((columns // 80) % 2)
    noise = random.normal(0, 1.6, (8, height, width)).astype(np.float32)
    packets = []
    for number in range(CLIP_SECONDS * FPS):
        t = number / FPS
        x, y = 320 + 30 * np.sin(t * 1.3 + seed), 170 + 8 * np.sin(t * 2.1)
        head = ((columns - x) / 80) ** 2 + ((rows - y) / 110) ** 2 < 1
        mouth = ((columns - x) / 26) ** 2 + ((rows - y - 50) / (4 + 9 * abs(np.sin(t * 7)))) ** 2 < 1
        luma = np.where(mouth, 60, np.where(head, 175 - (rows - y) / 6, room)) + noise[number % 8]
        picture = np.full((height * 3 // 2, width), 128, np.uint8)
        picture[:height] = np.clip(luma, 16, 235)
        chroma = picture[height:].reshape(-1)
        small = head[::2, ::2].ravel()
        chroma[: small.size][small] = 112
        chroma[small.size :][small] = 150
        frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.pts = number
        packets += [(bytes(packet), bool(packet.is_keyframe)) for packet in encoder.encode(frame)]
    return packets + [(bytes(packet), bool(packet.is_keyframe)) for packet in encoder.encode(None)]


def voice(hertz: float) -> list[bytes]:
    """Encode something with the rhythm of speech as Opus packets of 20 ms."""
    encoder: Any = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.format, encoder.layout = 48_000, "s16", "stereo"
    encoder.time_base, encoder.bit_rate = Fraction(1, 48_000), 40_000
    at = np.arange(CLIP_SECONDS * 48_000)
    wave = np.sin(2 * np.pi * hertz * at / 48_000) * (0.2 + 0.2 * np.sin(2 * np.pi * 3 * at / 48_000))
    pcm = (wave * 32767).astype(np.int16)
    packets = []
    for number in range(CLIP_SECONDS * 50):
        part = np.repeat(pcm[number * 960 : (number + 1) * 960], 2)[None, :]
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout="stereo")
        frame.sample_rate, frame.pts = 48_000, number * 960
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    return packets


@dataclass(frozen=True)
class Side:
    """What one party sends."""

    kind: Kind
    pictures: Pictures
    sounds: list[bytes]

    @classmethod
    def make(cls, seed: int, kind: Kind, seconds: int) -> Side:
        """Make a party's packets, in loops of ten seconds."""
        loops = seconds // CLIP_SECONDS
        return cls(kind, talking_head(seed, kind) * loops, voice(120.0 * seed) * loops)


def write_plain(path: Path, side: Side) -> None:
    """Put a party's packets into a file for ffmpeg to read."""
    with av.open(str(path), "w", format="matroska") as container:
        video: Any = container.add_stream("libvpx" if side.kind.mime == "video/VP8" else "h264", rate=FPS)
        video.width, video.height, video.pix_fmt = side.kind.width, side.kind.height, "yuv420p"
        audio: Any = container.add_stream("libopus", rate=48_000)
        audio.layout = "stereo"
        for number, (data, key) in enumerate(side.pictures):
            packet = av.Packet(data)
            packet.stream, packet.time_base = video, Fraction(1, FPS)
            packet.pts = packet.dts = number
            packet.is_keyframe = key
            container.mux(packet)
            for index in range(number * 2, number * 2 + 2):
                sound = av.Packet(side.sounds[index])
                sound.stream, sound.time_base = audio, Fraction(1, 50)
                sound.pts = sound.dts = index
                container.mux(sound)


def _payloads(kind: Kind, data: bytes) -> list[bytes]:
    if kind.mime == "video/H264":
        return list(H264Encoder._packetize(H264Encoder._split_bitstream(data)))
    return [
        (b"\x10" if at == 0 else b"\x00") + data[at : at + PACKET_BYTES]
        for at in range(0, len(data), PACKET_BYTES)
    ]


def write_journal(
    directory: Path, sides: list[Side], seconds: int, *, camera_off_s: int | None = None
) -> None:
    """Write the packets as a recording's journal.

    ``camera_off_s``: from then on the last party's camera is off.
    """
    timed: list[tuple[int, Record]] = []
    for side, party in enumerate(sides):
        role = "agent" if side == 0 else "customer"
        off = camera_off_s if side == len(sides) - 1 else None
        for offset, (mime, rate) in enumerate(((party.kind.mime, 90_000), ("audio/opus", 48_000))):
            number = 1 + side * 2 + offset
            kind, source = ("audio", "microphone") if offset else ("video", "camera")
            info = TrackInfo(
                number, role, f"{role}#1", role, role, kind, source, mime, rate, 96 + offset, number, 2
            )
            timed.append((START_NS, TrackRecord(START_NS, info)))
            timed += _packets(info, party, off if kind == "video" else None)
            if off is not None and kind == "video":
                at_ns = START_NS + off * 10**9
                timed.append((at_ns, EventRecord(at_ns, {"type": "track.muted", "data": {"track": number}})))
    timed += [
        (at, ClockRecord(at, UTC_NS + at - START_NS, 0, "ntp", 2, "trusted"))
        for at in range(START_NS, START_NS + seconds * 10**9, 10**9)
    ]
    timed.sort(key=lambda entry: entry[0])
    session = {"recording": "bench", "armed_ns": START_NS, "business_no": "B-1", "room": "bench"}
    end = EndRecord(START_NS + seconds * 10**9, True, "stopped")
    records = [SessionRecord(START_NS, 1, session), *(record for _, record in timed), end]
    journal = JournalInSteps(directory, KEY, records, UTC_NS)
    journal.write()
    journal.close()


def _packets(info: TrackInfo, party: Side, off_s: int | None) -> list[tuple[int, Record]]:
    timed: list[tuple[int, Record]] = []
    sequence = 0
    video = info.kind == "video"
    frames = [data for data, _ in party.pictures] if video else party.sounds
    for index, data in enumerate(frames):
        at_ns = START_NS + index * (40_000_000 if video else 20_000_000) + 5_000_000
        if off_s is not None and at_ns >= START_NS + off_s * 10**9:
            break
        stamp = index * (3600 if video else 960)
        payloads = _payloads(party.kind, data) if video else [data]
        for at, payload in enumerate(payloads):
            last = at + 1 == len(payloads)
            packet = RtpPacket(info.payload_type, sequence & 0xFFFF, stamp, info.track, payload, last)
            timed.append((at_ns, RtpRecord(info.track, at_ns, packet.build())))
            sequence += 1
    return timed
