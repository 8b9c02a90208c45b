"""Calls made up for the tests: real encoders, real RTP, as the records a journal would hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from compositor.canvas import Canvas, Floats, Planes
from compositor.compose import Composition
from compositor.timeline import Frame
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
from recorder.template import parse_template
from tests.compositor.call_simulator import build_red
from tests.recorder.coded_video import ENCODERS, payloads, without_root

MS = 1_000_000
START_NS = 5_000_000_000_000
"""Monotonic time at which the recordings of the tests are armed."""
UTC_NS = 1_795_636_447_000_000_000
"""UTC at that moment: 2026-11-25 19:54:07 UTC."""

Paint = Callable[[int], int]


def track(number: int, seat: str, mime: str, source: str = "", name: str = "") -> TrackInfo:
    """Describe a track of ``seat``, such as ``customer#1``."""
    kind = mime.split("/")[0]
    role = seat.split("#")[0]
    return TrackInfo(
        track=number,
        identity=f"{role}-id",
        seat=seat,
        role=role,
        name=name or f"{role} name",
        kind=kind,
        source=source or ("camera" if kind == "video" else "microphone"),
        mime=mime,
        clock_rate=90_000 if kind == "video" else 48_000,
        payload_type=96 if kind == "video" else 111,
        ssrc=1000 + number,
        channels=2 if kind == "audio" else 1,
        stream=seat,
    )


@dataclass
class Call:
    """Collects records; ``records()`` gives them in the order of a journal."""

    duration_ms: int = 2000
    info: dict[str, Any] = field(default_factory=dict)
    clock_step_ms: tuple[int, int] | None = None
    """At which ms the system clock steps by how many ms."""
    _records: list[tuple[int, int, Record]] = field(default_factory=list)
    _sequences: dict[int, int] = field(default_factory=dict)

    def put(self, at_ms: float, make: Callable[[int], Record]) -> None:
        """Add a record made for its time in ns."""
        at_ns = START_NS + round(at_ms * MS)
        self._records.append((at_ns, len(self._records), make(at_ns)))

    def join(self, info: TrackInfo, at_ms: float = 0) -> None:
        """A track begins."""
        self.put(at_ms, lambda at: TrackRecord(at, info))

    def event(self, at_ms: float, kind: str, **data: Any) -> None:
        """An event of the call."""
        self.put(at_ms, lambda at: EventRecord(at, {"type": kind, "data": data}))

    def packets(self, info: TrackInfo, frames: list[tuple[float, list[bytes]]]) -> None:
        """RTP of frames given as (ms, payloads), arriving at the media's time."""
        sequence = self._sequences.get(info.track, 100)
        for at_ms, parts in frames:
            stamp = round(at_ms * info.clock_rate / 1000) + 7000 & 0xFFFFFFFF
            for index, part in enumerate(parts):
                marker = index == len(parts) - 1 and info.kind == "video"
                packet = RtpPacket(
                    info.payload_type, sequence & 0xFFFF, stamp, info.ssrc, part, marker
                ).build()
                self.put(at_ms + index * 0.01, lambda at, p=packet: RtpRecord(info.track, at, p))  # type: ignore[misc]
                sequence += 1
        self._sequences[info.track] = sequence

    def video(
        self,
        info: TrackInfo,
        luma: Paint,
        *,
        from_ms: int = 0,
        to_ms: int | None = None,
        fps: int = 25,
        size: tuple[int, int] = (320, 180),
        key_every: int = 25,
        drop: tuple[int, ...] = (),
    ) -> None:
        """Send flat pictures of ``luma(n)``; frames numbered in ``drop`` get lost on the way."""
        to_ms = self.duration_ms if to_ms is None else to_ms
        count = (to_ms - from_ms) * fps // 1000
        frames = []
        for index, (data, key) in enumerate(
            coded(info.mime, [luma(n) for n in range(count)], size, fps, key_every)
        ):
            frames.append((from_ms + index * 1000 / fps, payloads(info.mime, data, index, key)))
        for index, frame in enumerate(frames):
            if index in drop:
                self._sequences[info.track] = self._sequences.get(info.track, 100) + len(frame[1])
            else:
                self.packets(info, [frame])

    def audio(
        self,
        info: TrackInfo,
        hertz: float,
        *,
        from_ms: int = 0,
        to_ms: int | None = None,
        level: float = 0.3,
        drop: tuple[int, ...] = (),
        copies: int = 0,
        encoded: list[bytes] | None = None,
    ) -> None:
        """Send a tone in Opus packets of 20 ms; those numbered in ``drop`` get lost on the way. ``copies``:
        so many frames are repeated in each (RFC 2198). ``encoded``: these packets instead of the tone."""
        to_ms = self.duration_ms if to_ms is None else to_ms
        encoded = encoded or opus_tone(hertz, to_ms - from_ms, level)
        for index, data in enumerate(encoded):
            if index in drop:
                self._sequences[info.track] = self._sequences.get(info.track, 100) + 1
                continue
            sent, payload = info, data
            if copies and info.redundancy is not None:
                row = [(960 * at, encoded[at]) for at in range(max(0, index - copies), index + 1)]
                sent, payload = replace(info, payload_type=info.redundancy), build_red(row)
            self.packets(sent, [(from_ms + 20 * index, [payload])])

    def records(self) -> list[Record]:
        """Return all records, with session, clock pairs and end."""
        info = {
            "recording": "0192f000-0000-7000-8000-000000000001",
            "tenant": "default",
            "room": "room-1",
            "business_no": "B-2026-0001",
            "armed_ns": START_NS,
            "metadata": {"branch": "浦东支行"},
            **self.info,
        }
        out: list[tuple[int, int, Record]] = [(START_NS - 1, -1, SessionRecord(START_NS, 1, info))]
        for second in range(self.duration_ms // 1000 + 1):
            at_ns = START_NS + second * 1000 * MS
            utc_ns = UTC_NS + second * 1000 * MS
            if self.clock_step_ms is not None and second * 1000 >= self.clock_step_ms[0]:
                utc_ns += self.clock_step_ms[1] * MS
            out.append((at_ns, -1, ClockRecord(at_ns, utc_ns, 0, "ntp", 2, "trusted")))
        end_ns = START_NS + self.duration_ms * MS
        out += [entry for entry in self._records if entry[0] <= end_ns]
        out.sort(key=lambda entry: entry[:2])
        return [*(record for _, _, record in out), EndRecord(end_ns, True, "stopped")]


@without_root()
def coded(
    mime: str, lumas: list[int], size: tuple[int, int] = (320, 180), fps: int = 25, key_every: int = 25
) -> list[tuple[bytes, bool]]:
    """Encode flat grey pictures with one darker corner; returns (data, keyframe) of each."""
    name, options = ENCODERS[mime]
    encoder: Any = av.CodecContext.create(name, "w")
    encoder.width, encoder.height = size
    encoder.pix_fmt = "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, fps), Fraction(fps)
    encoder.options = options
    encoder.gop_size = key_every
    if mime != "video/AV1":
        encoder.bit_rate = 1_500_000
    encoder.thread_count = 1
    out = []
    for index, luma in enumerate(lumas):
        picture = np.full((size[1] * 3 // 2, size[0]), 128, np.uint8)
        picture[: size[1]] = luma
        frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.pts = index
        out += [(bytes(packet), packet.is_keyframe) for packet in encoder.encode(frame)]
    out += [(bytes(packet), packet.is_keyframe) for packet in encoder.encode(None)]
    return out


def opus_tone(hertz: float, duration_ms: int, level: float = 0.3) -> list[bytes]:
    """Encode a tone as Opus packets of 20 ms."""
    at = np.arange(duration_ms * 48)
    return _opus(np.sin(2 * np.pi * hertz * at / 48_000) * level, 64_000)


def opus_voice(duration_ms: int) -> list[bytes]:
    """Encode what Opus takes for a voice as packets of 20 ms; most repeat the one before (in-band FEC)."""
    at = np.arange(duration_ms * 48) / 48_000
    pitch = np.cumsum(140 + 30 * np.sin(2 * np.pi * 1.3 * at)) / 48_000
    wave = sum(np.sin(2 * np.pi * harmonic * pitch) / harmonic for harmonic in range(1, 20))
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * 4 * at)
    return _opus(wave * swell * 0.15, 24_000, application="voip", fec="1", packet_loss="25")


def _opus(wave: npt.NDArray[np.float64], bit_rate: int, **options: str) -> list[bytes]:
    encoder: Any = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.format, encoder.layout = 48_000, "s16", "stereo"
    encoder.time_base = Fraction(1, 48_000)
    encoder.bit_rate, encoder.options = bit_rate, options
    samples = (wave * 32767).astype(np.int16)
    out = []
    for index in range(samples.size // 960):
        part = np.repeat(samples[index * 960 : (index + 1) * 960], 2)[None, :]
        frame = av.AudioFrame.from_ndarray(part, format="s16", layout="stereo")
        frame.sample_rate, frame.pts = 48_000, index * 960
        out += [bytes(packet) for packet in encoder.encode(frame)]
    return out


def audio_frame(number: int, at_ms: float, *, duration_ms: float = 20, lost_before: bool = False) -> Frame:
    """Return a timeline frame of sound without content, for the mixer's tests."""
    at_ns = START_NS + round(at_ms * MS)
    return Frame(number, at_ns, round(duration_ms * MS), b"x", True, lost_before, 0)


class Watch:
    """An output that keeps of each frame what a test asks for, and all sound."""

    def __init__(self, keep: Callable[[Planes], Any]) -> None:
        self._keep = keep
        self.frames: list[Any] = []
        self.numbers: list[int] = []
        self.channels = 0
        self._sound: list[Floats] = []

    def open(self, channels: int) -> Watch:
        """Be the composition's output."""
        self.channels = channels
        return self

    def picture(self, canvas: Canvas, number: int) -> None:
        """Keep a frame."""
        self.numbers.append(number)
        self.frames.append(self._keep(canvas.planes))

    def sound(self, samples: Floats) -> None:
        """Keep samples."""
        self._sound.append(samples)

    @property
    def samples(self) -> Floats:
        """All sound, (channels, n)."""
        return np.concatenate(self._sound, axis=1)


def compose(
    call: Call, template: dict[str, Any], keep: Callable[[Planes], Any]
) -> tuple[Watch, dict[str, Any]]:
    """Compose a call; returns what was kept and the report."""
    watch = Watch(keep)
    composition = Composition(parse_template(template), watch.open)
    for record in call.records():
        composition.feed(record)
        composition.advance()
    return watch, composition.finish()
