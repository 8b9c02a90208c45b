"""The generators and readers themselves: what is painted and said is read back, through codecs and
scaling.
"""

from __future__ import annotations

import fractions
import io

import av
import cv2
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext

from tests.media.barcode import Box, Luma, Stamp, crc8, paint, read
from tests.media.film import read_film
from tests.media.pictures import AGENT, CUSTOMER, HEIGHT, WIDTH, flash_level, picture
from tests.media.sounds import RATE, beep_onsets, locate, programme, speak, word_times


def encoded(codec: str, bit_rate: int, times_ms: list[int]) -> list[Luma]:
    """Encode pictures of AGENT as a sender would and return the decoded luma planes."""
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    encoder.bit_rate, encoder.time_base = bit_rate, fractions.Fraction(1, 15)
    if codec == "libvpx":
        encoder.options = {"deadline": "realtime", "cpu-used": "-6", "lag-in-frames": "0"}
    else:
        encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline"}
    decoder = av.CodecContext.create("vp8" if codec == "libvpx" else "h264", "r")
    assert isinstance(decoder, VideoCodecContext)
    packets = []
    for index, time_ms in enumerate(times_ms):
        frame = av.VideoFrame.from_ndarray(picture(AGENT, time_ms), format="yuv420p")
        frame.pts = index
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    frames = [frame for packet in packets for frame in decoder.decode(packet)] + decoder.decode(None)
    return [np.asarray(frame.to_ndarray()[:HEIGHT], np.uint8) for frame in frames]


def test_crc_knows_its_polynomial() -> None:
    assert crc8(0, 36) != 0
    assert all(crc8(1 << bit, 36) != crc8(0, 36) for bit in range(36))


@pytest.mark.parametrize("codec", ["libvpx", "libx264"])
@pytest.mark.parametrize("size", [(640, 360), (426, 240), (320, 180)])
def test_code_survives_codec_and_scaling(codec: str, size: tuple[int, int]) -> None:
    times = [4_294_000_000 + round(index * 1000 / 15) for index in range(20)]
    got = []
    for luma in encoded(codec, 400_000, times):
        small = cv2.resize(luma, size, interpolation=cv2.INTER_LINEAR)
        got.append(read(np.asarray(small, np.uint8)))
    assert got == [Stamp(AGENT.number, time_ms) for time_ms in times]


def test_code_is_read_from_a_cropped_tile() -> None:
    source = picture(CUSTOMER, 123_456)[:HEIGHT]
    tile = Box(640, 0, 640, 720)
    box = tile.placed(WIDTH, HEIGHT, "crop")
    canvas = np.full((720, 1920), 100, np.uint8)
    canvas[:, 320:1600] = cv2.resize(source, (round(box.width), round(box.height)))
    assert (box.x, box.width) == (320, 1280)
    assert read(canvas, box) == Stamp(2, 123_456)


def test_no_code_no_stamp() -> None:
    rng = np.random.default_rng(1)
    assert read(np.full((360, 640), 128, np.uint8)) is None
    noise = [read(rng.integers(16, 235, (360, 640), dtype=np.uint8)) for _ in range(50)]
    assert noise == [None] * 50
    luma = np.full((360, 640), 100, np.uint8)
    paint(luma, Stamp(1, 77))
    assert read(luma, Box(30, 0, 640, 360)) is None, "half a cell aside must not be believed"


def test_flash_only_in_the_first_tenth() -> None:
    box = (0.0, 0.0, float(WIDTH), float(HEIGHT))
    assert flash_level(picture(AGENT, 5000)[:HEIGHT], box) > 0.95
    assert flash_level(picture(AGENT, 5200)[:HEIGHT], box) < 0.05


def test_beeps_and_words_are_found_in_the_mix_through_opus() -> None:
    mixed = programme(AGENT)[: 8 * RATE] * 0.7 + programme(CUSTOMER)[: 8 * RATE] * 0.7
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono", bit_rate=96000)
        video = container.add_stream("libx264", rate=15, width=64, height=64, pix_fmt="yuv420p")
        container.mux(video.encode(av.VideoFrame(64, 64, "yuv420p")))
        frame = av.AudioFrame.from_ndarray(mixed[None, :].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, fractions.Fraction(1, RATE)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.mux(video.encode(None))
    film = read_film(buffer.getvalue())
    assert film.sound_gaps == []
    for party in (AGENT, CUSTOMER):
        onsets = beep_onsets(film.sound, party.tone_hz)
        assert [round(onset) for onset in onsets] == list(range(8))
        assert all(abs(onset - round(onset)) < 0.003 for onset in onsets)
        for start_s, word in word_times(party):
            at_s, likeness = locate(film.sound, speak(word, party.voice))
            assert abs(at_s - start_s) < 0.005, (word, at_s, likeness)
            assert likeness > 0.7


def test_words_can_be_told_apart() -> None:
    spoken = {word: speak(word, party.voice) for party in (AGENT, CUSTOMER) for word in party.words}
    for word, sound in spoken.items():
        assert 0.2 < len(sound) / RATE < 0.84, (word, len(sound) / RATE)
        for other, template in spoken.items():
            if other != word:
                padded = np.pad(sound, (len(template), len(template)))
                assert locate(padded, template)[1] < 0.55, (word, other)
