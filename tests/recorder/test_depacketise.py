"""Frames out of payloads: real coded pictures, loss, hostile bytes."""

from __future__ import annotations

import ctypes
import random
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recorder.depacketise import MediaFrame, depacketiser, is_keyframe
from recorder.depacketise.audio import opus_duration, opus_repeated
from recorder.rtp import RtpError
from tests.recorder.coded_video import ENCODERS, coded_frames, payloads

MIMES = sorted(ENCODERS)
DECODERS = {"video/VP8": "vp8", "video/VP9": "vp9", "video/H264": "h264", "video/AV1": "libdav1d"}


def stream(mime: str) -> list[tuple[bytes, int, bool, int]]:
    """Return (payload, timestamp, marker, picture) of all test pictures."""
    packets = []
    for number, (data, keyframe) in enumerate(coded_frames(mime)):
        cut = payloads(mime, data, number, keyframe)
        packets += [(part, number * 3600, at == len(cut) - 1, number) for at, part in enumerate(cut)]
    return packets


def assemble(mime: str, packets: list[tuple[bytes, int, bool, int]], lost: set[int]) -> list[MediaFrame]:
    """Push what is not lost."""
    target = depacketiser(mime)
    frames: list[MediaFrame] = []
    missing = False
    for index, (payload, timestamp, marker, _) in enumerate(packets):
        if index in lost:
            missing = True
            continue
        frames += target.push(payload, timestamp, marker, missing)
        missing = False
    return frames + target.flush()


def expected(mime: str, data: bytes) -> bytes:
    """Return what the frame should be: H.264 start codes are all made four bytes long."""
    if mime == "video/H264":
        return data.replace(b"\x00\x00\x00\x01", b"\x00\x00\x01").replace(
            b"\x00\x00\x01", b"\x00\x00\x00\x01"
        )
    return data


@pytest.mark.parametrize("mime", MIMES)
def test_real_pictures_come_out_as_they_went_in(mime: str) -> None:
    packets = stream(mime)
    frames = assemble(mime, packets, set())
    coded = coded_frames(mime)
    assert [frame.timestamp for frame in frames] == [number * 3600 for number in range(len(coded))]
    assert not any(frame.damaged or frame.lost_before for frame in frames)
    assert [frame.keyframe for frame in frames] == [keyframe for _, keyframe in coded]
    for frame, (data, _) in zip(frames, coded, strict=True):
        assert frame.data == expected(mime, data)
    assert sum(keyframe for _, keyframe in coded) >= 2


@pytest.mark.parametrize("mime", MIMES)
def test_a_decoder_takes_them(mime: str) -> None:
    decoder = av.CodecContext.create(DECODERS[mime], "r")
    assert isinstance(decoder, av.VideoCodecContext)
    pictures = 0
    for frame in assemble(mime, stream(mime), set()):
        pictures += len(decoder.decode(av.Packet(frame.data)))
    pictures += len(decoder.decode(None))
    assert pictures == len(coded_frames(mime))


@pytest.mark.parametrize("mime", MIMES)
def test_without_markers_the_timestamp_cuts(mime: str) -> None:
    packets = [(payload, timestamp, False, number) for payload, timestamp, _, number in stream(mime)]
    frames = assemble(mime, packets, set())
    assert [frame.data for frame in frames] == [expected(mime, data) for data, _ in coded_frames(mime)]
    assert [frame.damaged for frame in frames] == [False] * (len(frames) - 1) + [True]


@pytest.mark.parametrize("mime", MIMES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_after_losses_no_broken_frame_passes_for_whole(mime: str, seed: int) -> None:
    packets = stream(mime)
    generator = random.Random(seed)
    lost = {index for index in range(len(packets)) if generator.random() < 0.1}
    touched = {packets[index][3] for index in lost}
    coded = coded_frames(mime)
    reference = -1
    for frame in assemble(mime, packets, lost):
        number = frame.timestamp // 3600
        if not frame.damaged:
            assert frame.data == expected(mime, coded[number][0])
            assert number not in touched
            assert frame.lost_before == (number != reference + 1)
            reference = number


@pytest.mark.parametrize("mime", MIMES)
def test_keyframes_are_known_by_their_first_payload(mime: str) -> None:
    for number, (data, keyframe) in enumerate(coded_frames(mime)):
        flags = [is_keyframe(mime, part) for part in payloads(mime, data, number, keyframe)]
        assert flags[0] == keyframe
        assert not any(flags[2:])


def test_lost_padding_is_no_lost_picture() -> None:
    target = depacketiser("video/VP8")
    coded = coded_frames("video/VP8")
    frames = []
    for number in range(3):
        for at, part in enumerate(cut := payloads("video/VP8", coded[number][0], number, False)):
            frames += target.push(part, number * 3600, at == len(cut) - 1, lost=number == 2 and at == 0)
        assert target.push(b"", number * 3600, False) == []
    assert [frame.lost_before for frame in frames] == [False, False, False]
    assert not frames[2].damaged


def test_a_loss_noticed_at_a_padding_packet_counts() -> None:
    target = depacketiser("video/H264")
    target.push(b"\x41\x9a\x01", 0, True)
    assert target.push(b"", 0, False, lost=True) == []
    (frame,) = target.push(b"\x41\x9a\x02", 3600, True)
    assert frame.lost_before


@pytest.mark.parametrize("mime", [*MIMES, "audio/opus"])
@given(parts=st.lists(st.tuples(st.binary(max_size=30), st.booleans(), st.booleans()), max_size=20))
@settings(max_examples=60, deadline=None)
def test_hostile_payloads_raise_nothing(mime: str, parts: list[tuple[bytes, bool, bool]]) -> None:
    target = depacketiser(mime)
    frames = []
    for number, (payload, marker, lost) in enumerate(parts):
        frames += target.push(payload, number // 2, marker, lost)
        is_keyframe(mime, payload)
    frames += target.flush()
    assert all(frame.data for frame in frames)


@pytest.mark.parametrize("mime", MIMES)
def test_payloads_truncated_at_every_length(mime: str) -> None:
    first = payloads(mime, coded_frames(mime)[0][0], 0, True)[0][:60]
    for size in range(len(first)):
        target = depacketiser(mime)
        target.push(first[:size], 0, True)
        is_keyframe(mime, first[:size])
        assert target.malformed <= 1


def test_malformed_payloads_are_counted_and_damage_their_frame() -> None:
    target = depacketiser("video/H264")
    target.push(b"\x41\x9a\x01", 0, False)
    (frame,) = target.push(b"\x1d\x00", 0, True)
    assert frame.damaged
    assert target.malformed == 1


def test_vp9_layers_become_a_superframe() -> None:
    target = depacketiser("video/VP9")
    assert target.push(b"\xac\x00\x00\x00base", 0, False) == []
    (frame,) = target.push(b"\xec\x00\x02\x00better", 0, True)
    assert frame.data[:10] == b"basebetter"
    assert frame.data[10:] == bytes((0xC1, 4, 6, 0xC1))


def test_durations_of_audio() -> None:
    assert opus_duration(b"\x78") == 960  # hybrid fullband 20 ms, one frame
    assert opus_duration(b"\xfc\xff") == 960
    assert opus_duration(b"\x79") == 1920
    assert opus_duration(b"\x03\x03") == 1440  # SILK 10 ms, three frames
    for wrong in (b"", b"\x03", b"\x03\x00", b"\x1b\x3f"):
        with pytest.raises(RtpError):
            opus_duration(wrong)
    (frame,) = depacketiser("audio/PCMA").push(bytes(160), 5, False)
    assert (frame.duration, frame.timestamp, frame.keyframe) == (160, 5, True)
    opus = depacketiser("audio/opus")
    assert opus.push(b"", 0, False, lost=True) == []
    (frame,) = opus.push(b"\x78\x00", 960, False)
    assert frame.lost_before
    assert opus.push(b"\x03", 960, False) == []
    assert opus.malformed == 1


@pytest.mark.parametrize("milliseconds", [10, 20])
@pytest.mark.parametrize("bit_rate", [10_000, 24_000, 64_000])
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_what_opus_repeats_is_what_libopus_says(layout: str, bit_rate: int, milliseconds: int) -> None:
    says = ctypes.CDLL(str(next(Path(av.__file__).parent.with_name("av.libs").glob("libopus-*"))))
    at = np.arange(48_000) / 48_000
    voice = np.sign(np.sin(2 * np.pi * 150 * at)) * np.sin(2 * np.pi * 3 * at) * 3000
    encoder: Any = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.format, encoder.layout, encoder.bit_rate = 48_000, "s16", layout, bit_rate
    encoder.options = {
        "application": "voip",
        "fec": "1",
        "packet_loss": "25",
        "frame_duration": str(milliseconds),
    }
    size, channels, packets = 48 * milliseconds, 1 if layout == "mono" else 2, []
    for first in range(0, voice.size, size):
        part = np.repeat(voice[first : first + size].astype(np.int16), channels)[None, :]
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout=layout)
        frame.sample_rate, frame.pts = 48_000, first
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    told = [says.opus_packet_has_lbrr(packet, len(packet)) == 1 for packet in packets]
    assert [opus_repeated(packet) for packet in packets] == [size * one for one in told]
    assert any(told) == (bit_rate > 10_000)


def test_packets_of_other_makings_repeat_nothing() -> None:
    for other in (b"", b"\x78", b"\xf8\xff", b"\x79\xff", b"\x03\x03"):
        assert opus_repeated(other) == 0


def test_unknown_codecs_are_refused() -> None:
    with pytest.raises(ValueError, match="video/H265"):
        depacketiser("video/H265")
    assert not is_keyframe("video/H265", b"abc")
    assert is_keyframe("audio/opus", b"abc")
