"""Real coded pictures, and how senders cut them into RTP payloads: input of the depacketising tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache

import av
import numpy as np
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder

ENCODERS = {
    "video/VP8": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}),
    "video/VP9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}),
    "video/H264": ("libx264", {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline"}),
    "video/AV1": ("libsvtav1", {"preset": "12", "svtav1-params": "pred-struct=1:lookahead=0"}),
}

NOBODY = 65534


@contextmanager
def without_root() -> Iterator[None]:
    """Encode without root's rights; a decorator too.

    As root SVT-AV1 makes its caller SCHED_FIFO 99; every later child would inherit it and starve the machine.
    """
    user = os.geteuid()
    os.seteuid(NOBODY if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


@cache
@without_root()
def coded_frames(
    mime: str, count: int = 12, width: int = 320, height: int = 180
) -> tuple[tuple[bytes, bool], ...]:
    """Encode moving noise; return (data, keyframe) per picture, the first and the seventh being keyframes."""
    name, options = ENCODERS[mime]
    encoder = av.CodecContext.create(name, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25, 1)
    encoder.options = options
    encoder.gop_size = 6
    noise = np.random.default_rng(7).integers(0, 255, (height * 3 // 2, width), np.uint8)
    found: list[tuple[bytes, bool]] = []
    for index in range(count):
        picture = av.VideoFrame.from_ndarray(np.roll(noise, 3 * index, axis=1), format="yuv420p")
        picture.pts = index
        found += [(bytes(packet), packet.is_keyframe) for packet in encoder.encode(picture)]
    found += [(bytes(packet), packet.is_keyframe) for packet in encoder.encode(None)]
    return tuple(found)


def payloads(mime: str, data: bytes, number: int, keyframe: bool, size: int = 1000) -> list[bytes]:
    """Cut one coded picture into payloads as a sender would. VP8 and H.264: stock aiortc does it."""
    if mime == "video/VP8":
        return list(Vp8Encoder._packetize(data, number & 0x7FFF))
    if mime == "video/H264":
        return list(H264Encoder._packetize(H264Encoder._split_bitstream(data)))
    if mime == "video/VP9":
        return _vp9_payloads(data, number, keyframe, size)
    return _av1_payloads(data, keyframe, size)


def _vp9_payloads(data: bytes, number: int, keyframe: bool, size: int) -> list[bytes]:
    found = []
    for at in range(0, len(data), size):
        first = (
            0x80
            | (0 if keyframe else 0x40)
            | (0x08 if at == 0 else 0)
            | (0x04 if at + size >= len(data) else 0)
        )
        picture_id = (0x8000 | number & 0x7FFF).to_bytes(2, "big")
        found.append(bytes((first,)) + picture_id + data[at : at + size])
    return found


def _av1_payloads(data: bytes, keyframe: bool, size: int) -> list[bytes]:
    """One OBU element after the other, sizes removed as section 4.3 wants, split over packets (W = 1)."""
    found: list[bytes] = []
    first = True
    for obu in split_obus(data):
        if obu[0] >> 3 & 15 == 2:  # temporal delimiters are not sent
            continue
        chunks = [obu[at : at + size] for at in range(0, len(obu), size)]
        for index, chunk in enumerate(chunks):
            head = 0x10 | (0x80 if index else 0) | (0x40 if index < len(chunks) - 1 else 0)
            head |= 0x08 if first and keyframe else 0
            found.append(bytes((head,)) + chunk)
            first = False
    return found


def split_obus(data: bytes) -> list[bytes]:
    """Split a temporal unit into OBUs without size fields."""
    found = []
    offset = 0
    while offset < len(data):
        head = data[offset]
        start = offset + (2 if head & 4 else 1)
        size, shift = 0, 0
        while True:
            size |= (data[start] & 0x7F) << shift
            shift += 7
            start += 1
            if data[start - 1] < 0x80:
                break
        extension = data[offset + 1 : offset + 2] if head & 4 else b""
        found.append(bytes((head & ~2,)) + extension + data[start : start + size])
        offset = start + size
    return found
