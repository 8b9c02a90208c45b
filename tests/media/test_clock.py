"""The clock reader against the compositor's glyphs, through H.264 and over a lively ground."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext

from compositor.text import GlyphRow, Style
from tests.media.barcode import Luma
from tests.media.clock import ClockError, ClockReader

BEGIN = datetime(2026, 11, 25, 3, 59, 58, 900_000, UTC)
CHINA = timezone(timedelta(hours=8))


def shown(at: datetime) -> str:
    return at.astimezone(CHINA).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + " +08:00"


def burn(luma: Luma, text: str) -> None:
    stamp = GlyphRow(Style(25, shade=0.45)).stamp(text)
    view = luma[14 : 14 + stamp.height, 26 : 26 + stamp.width]
    view[...] = (stamp.y + stamp.keep.astype(np.uint32) * view) // 255


def test_every_millisecond_shown_is_read() -> None:
    rng = np.random.default_rng(7)
    encoder = av.CodecContext.create("libx264", "w")
    decoder = av.CodecContext.create("h264", "r")
    assert isinstance(encoder, VideoCodecContext)
    assert isinstance(decoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 1280, 720, "yuv420p", Fraction(1, 25)
    encoder.options = {"preset": "veryfast", "crf": "26"}
    packets, times = [], [BEGIN + timedelta(milliseconds=40 * index + index % 7) for index in range(60)]
    for index, at in enumerate(times):
        picture = np.full((1080, 1280), 128, np.uint8)
        picture[:720] = np.linspace(30, 220, 1280).astype(np.uint8)
        picture[:720] = np.roll(picture[:720], index * 9, axis=1) // 2 + rng.integers(
            0, 60, (720, 1280), np.uint8
        )
        burn(picture[:720], shown(at))
        frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.pts = index
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    reader = ClockReader()
    read: list[datetime] = []
    for frame in [one for packet in packets for one in decoder.decode(packet)] + decoder.decode(None):
        luma = np.asarray(frame.to_ndarray()[:720], np.uint8)
        if not read:
            assert reader.find(luma, BEGIN) == (26, 14)
        read.append(reader.read(luma))
    assert read == [at.replace(microsecond=at.microsecond // 1000 * 1000) for at in times]


def test_no_clock_is_said() -> None:
    ground = np.random.default_rng(1).integers(16, 235, (720, 1280), dtype=np.uint8)
    reader = ClockReader()
    with pytest.raises(ClockError, match="no clock"):
        reader.find(ground, BEGIN)
    burn(ground, shown(BEGIN))
    reader.find(ground, BEGIN)
    ground[:60] = 40
    with pytest.raises(ClockError):
        reader.read(ground)
