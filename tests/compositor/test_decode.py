"""Decoders: damage is never shown, rubbish never raises, colours and rotation come out right."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from compositor.decode import AudioDecoder, UnknownCodec, VideoDecoder
from compositor.timeline import Frame
from tests.compositor.calls import coded, opus_tone, track

MIMES = ["video/VP8", "video/VP9", "video/H264", "video/AV1"]


def frames(mime: str, count: int = 12) -> list[Frame]:
    return [
        Frame(1, 1000 + 40_000_000 * index, 0, data, key, False, 0)
        for index, (data, key) in enumerate(coded(mime, [60 + 5 * n for n in range(count)], key_every=6))
    ]


@pytest.mark.parametrize("mime", MIMES)
def test_after_a_loss_nothing_until_the_keyframe(mime: str) -> None:
    sent = frames(mime)
    assert [frame.keyframe for frame in sent].count(True) == 2
    sent[3] = replace(sent[3], lost_before=True)
    decoder = VideoDecoder(track(1, "agent#1", mime))
    shown = [decoder.push(frame) is not None for frame in sent]
    assert shown == [True] * 3 + [False] * 3 + [True] * 6
    assert decoder.damage.held == 3
    assert decoder.damage.stretches == [[sent[3].at_ns, sent[6].at_ns]]


@pytest.mark.parametrize("mime", MIMES)
def test_begins_with_a_keyframe_only(mime: str) -> None:
    decoder = VideoDecoder(track(1, "agent#1", mime))
    assert [decoder.push(frame) is not None for frame in frames(mime)[3:]] == [False] * 3 + [True] * 6


@pytest.mark.parametrize("mime", MIMES)
def test_flipped_cut_and_empty_frames_do_not_raise(mime: str) -> None:
    source = frames(mime)
    chance = random.Random(7)
    for _ in range(12):
        decoder = VideoDecoder(track(1, "agent#1", mime))
        for frame in source:
            data = bytearray(frame.data)
            action = chance.randrange(4)
            if action == 0 and data:
                for _ in range(4):
                    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            elif action == 1:
                del data[chance.randrange(len(data) + 1) :]
            picture = decoder.push(replace(frame, data=bytes(data)))
            assert picture is None or picture.planes.width <= 4096


def test_rubbish_sound_does_not_raise_and_good_sound_follows() -> None:
    decoder = AudioDecoder(track(2, "agent#1", "audio/opus"))
    packets = opus_tone(440, 400)
    chance = random.Random(3)
    for packet in [b"", b"\xff" * 3, bytes(chance.randbytes(90)), packets[0][:1], *packets[:8]]:
        decoder.push(Frame(2, 0, 20_000_000, packet, True, False, 0))
    out = decoder.push(Frame(2, 0, 20_000_000, packets[8], True, False, 0))
    assert out is not None
    assert out.shape == (2, 960)
    assert out.dtype == np.float32
    assert 0.2 < np.abs(out).max() < 0.4


def test_telephone_sound() -> None:
    encoder: Any = av.CodecContext.create("pcm_alaw", "w")
    encoder.sample_rate, encoder.format, encoder.layout = 8000, "s16", "mono"
    encoder.time_base = Fraction(1, 8000)
    wave = (np.sin(2 * np.pi * 400 * np.arange(1600) / 8000) * 9000).astype(np.int16)
    decoder = AudioDecoder(replace(track(2, "agent#1", "audio/PCMA"), clock_rate=8000))
    parts = []
    for index in range(10):
        frame = av.AudioFrame.from_ndarray(wave[None, index * 160 : (index + 1) * 160], "s16", "mono")
        frame.sample_rate = 8000
        for packet in encoder.encode(frame):
            samples = decoder.push(Frame(2, 0, 20_000_000, bytes(packet), True, False, 0))
            assert samples is not None
            assert samples.shape == (1, 960)
            parts.append(samples[0])
    sound = np.concatenate(parts)
    assert np.abs(np.diff(sound)).max() < 0.05, "no step between packets"
    assert abs(np.abs(sound).max() - 9000 / 32768) < 0.02


def test_full_range_becomes_limited() -> None:
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 64, "yuvj420p"
    encoder.time_base, encoder.color_range = Fraction(1, 25), 2
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency"}
    encoder.thread_count = 1
    frame = av.VideoFrame.from_ndarray(np.full((96, 64), 255, np.uint8), format="yuvj420p")
    frame.pts = 0
    packets: list[Any] = [*encoder.encode(frame), *encoder.encode(None)]
    decoder = VideoDecoder(track(1, "agent#1", "video/H264"))
    picture = decoder.push(Frame(1, 0, 0, bytes(packets[0]), True, False, 0))
    assert picture is not None
    assert abs(int(picture.planes.y[32, 32]) - 235) <= 1


def test_rotation_turns_the_picture() -> None:
    decoder = VideoDecoder(track(1, "agent#1", "video/VP8"))
    picture = decoder.push(replace(frames("video/VP8")[0], rotation=90))
    assert picture is not None
    assert (picture.planes.width, picture.planes.height) == (180, 320)


def test_unknown_codecs_are_named() -> None:
    with pytest.raises(UnknownCodec, match="video/H265"):
        VideoDecoder(track(1, "agent#1", "video/H265"))
    with pytest.raises(UnknownCodec, match="audio/G722"):
        AudioDecoder(track(1, "agent#1", "audio/G722"))
