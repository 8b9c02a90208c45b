"""What the load generator sends: real VP8, H.264 and Opus, encoded once and packetised."""

from __future__ import annotations

import fractions
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
from aiortc.codecs.h264 import H264Encoder

FPS = 25
SECONDS = 4
PACKET_BYTES = 1100
"""Payload of a video packet at most, without the generator's stamp of 24 bytes."""


@dataclass(frozen=True)
class Clip:
    """Frames of RTP payloads; ``opaque_bytes`` at a payload's begin may be rewritten by a server.

    ``stamped``: each payload gets the generator's stamp at its end, which arrivals are verified by. It is no
    part of the codec's stream: what a server is to decode goes without.
    """

    mime: str
    frames: Sequence[Sequence[bytes]]
    period_ms: int
    clock_step: int
    opaque_bytes: int = 0
    stamped: bool = True

    @property
    def packets_per_s(self) -> float:
        return sum(map(len, self.frames)) / len(self.frames) * 1000 / self.period_ms


def pictures(width: int, height: int) -> list[av.VideoFrame]:
    """Draw moving noise over a gradient: about as hard to encode as a face before a wall."""
    random = np.random.default_rng(1)
    made = []
    for number in range(SECONDS * FPS):
        luma = (np.add.outer(np.arange(height), np.arange(width)) + 4 * number) % 256
        luma = np.clip(luma + random.integers(-6, 7, luma.shape), 0, 255).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(
            np.vstack([luma, np.full((height // 2, width), 128, np.uint8)]), format="yuv420p"
        )
        frame.pts = number
        made.append(frame)
    return made


def video(mime: str = "video/VP8", bitrate_bps: int = 1_000_000, width: int = 640, height: int = 360) -> Clip:
    """Encode 4 s at 25 fps with a keyframe at their begin; raises ValueError for another codec."""
    names = {"video/VP8": "libvpx", "video/H264": "libx264"}
    if mime not in names:
        raise ValueError(f"the generator sends {' and '.join(names)}, not {mime}")
    encoder = av.VideoCodecContext.create(names[mime], "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base = fractions.Fraction(1, FPS)
    encoder.bit_rate = bitrate_bps
    encoder.gop_size = SECONDS * FPS
    if mime == "video/VP8":
        encoder.options = {"deadline": "realtime", "cpu-used": "8", "error-resilient": "1"}
    else:
        encoder.options = {"preset": "veryfast", "tune": "zerolatency", "profile": "baseline", "level": "3.1"}
    encoded = [bytes(packet) for frame in pictures(width, height) for packet in encoder.encode(frame)]
    encoded += [bytes(packet) for packet in encoder.encode(None)]
    return packetised(mime, encoded)


def packetised(mime: str, encoded: Sequence[bytes], *, stamped: bool = True) -> Clip:
    """Make a clip of VP8 or H.264 frames of 25 fps, the first a keyframe."""
    if mime == "video/VP8":
        frames = [_vp8(data, number) for number, data in enumerate(encoded)]
    else:
        frames = [H264Encoder._packetize(H264Encoder._split_bitstream(data)) for data in encoded]
    return Clip(mime, frames, 1000 // FPS, 90_000 // FPS, 8 if mime == "video/VP8" else 0, stamped)


def audio(bitrate_bps: int = 32_000) -> Clip:
    """Encode 4 s of a tone as Opus in packets of 20 ms."""
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, "stereo", "s16"
    encoder.bit_rate = bitrate_bps
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(48_000 * SECONDS) / 48_000)).astype(np.int16)
    frames = []
    for at in range(0, len(tone), 960):
        sound = av.AudioFrame.from_ndarray(
            np.repeat(tone[at : at + 960], 2)[None], format="s16", layout="stereo"
        )
        sound.sample_rate, sound.pts = 48_000, at
        frames += [[bytes(packet)] for packet in encoder.encode(sound)]
    return Clip("audio/opus", frames, 20, 960)


def _vp8(data: bytes, picture: int) -> list[bytes]:
    """Split a frame into payloads of nearly one size, with 15-bit picture ids (RFC 7741 section 4.2)."""
    count = -(-len(data) // PACKET_BYTES)
    size = -(-len(data) // count)
    number = (0x8000 | picture).to_bytes(2, "big")
    return [
        bytes((0x90 if at == 0 else 0x80, 0x80)) + number + data[at : at + size]
        for at in range(0, len(data), size)
    ]
