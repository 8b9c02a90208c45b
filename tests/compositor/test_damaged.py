"""Journals cut, truncated and bit-flipped at random: composed from what is there, and nothing else is shown.

Both cameras send pictures of the size of their places, so a place's pixels are a decoded picture's, unscaled:
each shown one is looked up among those sent.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from bench.journals import JournalInSteps
from compositor.canvas import Planes, frame_planes
from compositor.compose import Composition
from recorder.journal import JournalReader
from recorder.records import Record, RtpRecord
from recorder.sealed import DataKey
from recorder.storage import list_segments
from recorder.template import parse_template
from tests.compositor.calls import MS, START_NS, UTC_NS, Call, Watch, track
from tests.recorder.coded_video import ENCODERS, payloads

KEY = DataKey("damaged", b"fedcba9876543210")
SECONDS, FPS, SIZE = 12, 25, (320, 240)
TEMPLATE: dict[str, Any] = {
    "width": 640,
    "height": 240,
    "fps": FPS,
    "static_fps": None,
    "overlays": [],
    "layout": "side_by_side",
}
SEATS = ("agent#1", "customer#1")
CODECS = {"video/VP8": "vp8", "video/H264": "h264"}
SEEDS = range(6)
Shown = tuple[bytes, bytes]


def left_and_right(planes: Planes) -> Shown:
    """Return the digests of both places' pixels."""
    return digest(planes.box(0, 0, *SIZE)), digest(planes.box(SIZE[0], 0, *SIZE))


def digest(planes: Planes) -> bytes:
    """Return a digest of a picture: kept themselves, those of all tests took 3.5 GB."""
    return blake2b(
        b"".join(plane.tobytes() for plane in (planes.y, planes.u, planes.v)), digest_size=16
    ).digest()


def sent_pictures(mime: str, seed: int) -> list[tuple[bytes, bool]]:
    """Encode a rolling texture with a key frame each second."""
    name, options = ENCODERS[mime]
    encoder: Any = av.CodecContext.create(name, "w")
    encoder.width, encoder.height, encoder.pix_fmt = *SIZE, "yuv420p"
    encoder.time_base, encoder.framerate, encoder.gop_size = Fraction(1, FPS), Fraction(FPS), FPS
    encoder.options, encoder.bit_rate, encoder.thread_count = options, 600_000, 1
    coarse = np.random.default_rng(seed).integers(40, 216, (SIZE[1] * 3 // 16, SIZE[0] // 8), np.uint8)
    texture = coarse.repeat(8, 0).repeat(8, 1)
    coded = []
    for number in range(SECONDS * FPS):
        frame = av.VideoFrame.from_ndarray(np.roll(texture, 5 * number, axis=1), format="yuv420p")
        frame.pts = number
        coded += [(bytes(packet), bool(packet.is_keyframe)) for packet in encoder.encode(frame)]
    return coded + [(bytes(packet), bool(packet.is_keyframe)) for packet in encoder.encode(None)]


class Sent:
    """A call, and the digests of all pictures that were sent by each side."""

    def __init__(self) -> None:
        call = Call(SECONDS * 1000)
        self.pictures: list[set[bytes]] = []
        for number, (seat, mime) in enumerate(zip(SEATS, CODECS, strict=True)):
            picture, sound = track(1 + 2 * number, seat, mime), track(2 + 2 * number, seat, "audio/opus")
            call.join(picture)
            call.join(sound)
            coded = sent_pictures(mime, number)
            frames = [
                (index * 1000 / FPS, payloads(mime, data, index, key))
                for index, (data, key) in enumerate(coded)
            ]
            call.packets(picture, frames)
            call.audio(sound, 300 + 200 * number)
            decoder: Any = av.CodecContext.create(CODECS[mime], "r")
            decoded = [one for data, _ in coded for one in decoder.decode(av.Packet(data))]
            decoded += decoder.decode(None)
            assert len(decoded) == SECONDS * FPS
            self.pictures.append({digest(frame_planes(one)) for one in decoded})
        self.records = call.records()


@pytest.fixture(scope="module")
def sent() -> Sent:
    return Sent()


@pytest.fixture(scope="module")
def whole(sent: Sent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "recording"
    journal = JournalInSteps(directory, KEY, sent.records, UTC_NS)
    journal.write()
    journal.close()
    return directory


def compose(records: list[Record], unreadable: list[str]) -> tuple[Watch, dict[str, Any]]:
    watch = Watch(left_and_right)
    composition = Composition(parse_template(TEMPLATE), watch.open)
    for record in records:
        composition.feed(record)
        composition.advance()
    return watch, composition.finish(unreadable=unreadable)


def check(sent: Sent, watch: Watch, report: dict[str, Any]) -> list[int]:
    """Look every shown picture up among the sent ones; return how many were shown in each place."""
    found = [0, 0]
    for place in (0, 1):
        changes = [one for one in report["shown"] if one["place"] == place]
        for number, frame in zip(watch.numbers, watch.frames, strict=True):
            at_ms = round(number * 1000 / FPS)
            before = [one for one in changes if one["at_ms"] <= at_ms]
            if before and before[-1]["shown"] == "picture":
                side = SEATS.index(before[-1]["seat"])
                assert frame[place] in sent.pictures[side], f"frame {number}, place {place}"
                found[place] += 1
    return found


def test_a_whole_journal_shows_all(sent: Sent, whole: Path) -> None:
    reader = JournalReader(whole, KEY)
    watch, report = compose(reader.poll(), reader.damage)
    assert report["unreadable"] == report["gaps"] == report["damage"] == []
    assert check(sent, watch, report) == [SECONDS * FPS, SECONDS * FPS]


def flip(path: Path, chance: random.Random) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def flip_many(path: Path, chance: random.Random) -> None:
    """Change one bit in each of twenty places."""
    for _ in range(20):
        flip(path, chance)


def truncate(path: Path, chance: random.Random) -> None:
    """Cut the file somewhere."""
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


def cut(path: Path, chance: random.Random) -> None:
    """Take a piece out of the middle."""
    data = path.read_bytes()
    begin = chance.randrange(len(data))
    path.write_bytes(data[:begin] + data[begin + chance.randrange(1, 5000) :])


def swap(path: Path, chance: random.Random) -> None:
    """Put other bytes in."""
    data = bytearray(path.read_bytes())
    begin = chance.randrange(len(data))
    data[begin : begin + 200] = chance.randbytes(200)
    path.write_bytes(data)


def remove(path: Path, chance: random.Random) -> None:
    """Delete the file."""
    path.unlink()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spoil", [flip, flip_many, truncate, cut, swap, remove])
def test_damaged_files(
    sent: Sent, whole: Path, tmp_path: Path, spoil: Callable[[Path, random.Random], None], seed: int
) -> None:
    chance = random.Random(f"{spoil.__name__} {seed}")
    directory = tmp_path / "recording"
    shutil.copytree(whole, directory)
    segments = [path for _, path in list_segments(directory)]
    assert len(segments) >= 2
    spoil(chance.choice(segments), chance)
    reader = JournalReader(directory, KEY)
    records = reader.poll()
    watch, report = compose(records, reader.damage)
    found = check(sent, watch, report)
    lost = len(records) < len(sent.records)
    assert lost == bool(reader.damage or report["gaps"] or report["duration_ms"] < SECONDS * 1000), (
        reader.damage
    )
    assert report["unreadable"] == reader.damage
    if spoil is flip and lost:
        # A bit costs one chunk of a quarter of a second, and pictures until the next key frame; or, where it
        # hits a file's structure, what follows in that file.
        structure = any("does not open" not in detail for detail in reader.damage)
        assert structure or min(found) > (SECONDS - 2.5) * FPS


@pytest.mark.parametrize("seed", SEEDS)
def test_damaged_packets(sent: Sent, seed: int) -> None:
    """Lost, doubled, swapped: only sent pictures. Changed inside, which SRTP would not let pass: no crash."""
    chance = random.Random(seed)
    records: list[Record] = []
    for record in sent.records:
        fate = chance.random() if isinstance(record, RtpRecord) else 1.0
        if fate < 0.01:
            continue
        records += [record, record] if fate < 0.02 else [record]
        if fate < 0.03 and len(records) > 1 and isinstance(records[-2], RtpRecord):
            records[-1], records[-2] = records[-2], records[-1]
    watch, report = compose(records, [])
    check(sent, watch, report)
    assert report["gaps"]
    changed = [
        RtpRecord(record.track, record.arrival_ns, spoilt(record.packet, chance))
        if isinstance(record, RtpRecord) and chance.random() < 0.05
        else record
        for record in records
    ]
    watch, report = compose(changed, [])
    assert report["duration_ms"] == SECONDS * 1000
    assert len(watch.frames) == SECONDS * FPS


def spoilt(packet: bytes, chance: random.Random) -> bytes:
    """Flip a bit, or cut the packet."""
    if chance.random() < 0.3:
        return packet[: chance.randrange(len(packet))]
    data = bytearray(packet)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def test_ends_where_the_journal_does(sent: Sent) -> None:
    """A journal cut at any record is composed up to there."""
    chance = random.Random(4)
    for at in (chance.randrange(10, len(sent.records)) for _ in range(4)):
        records = sent.records[:at]
        watch, report = compose(records, [])
        check(sent, watch, report)
        last = records[-1]
        last_ns = last.arrival_ns if isinstance(last, RtpRecord) else getattr(last, "at_ns", START_NS)
        assert abs(report["duration_ms"] - (last_ns - START_NS) / MS) <= 1000 / FPS
