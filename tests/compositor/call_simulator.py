"""A call in virtual time: senders with clocks of their own, a network with moods, a journal of what arrives.

Every picture and every packet of sound carries the true session time of its capture, so that a test can
compare where the timeline puts it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from compositor.timeline import Frame
from recorder.records import (
    RED,
    ClockRecord,
    EndRecord,
    EventRecord,
    Record,
    RtcpRecord,
    RtpRecord,
    SessionRecord,
    TrackInfo,
    TrackRecord,
)
from recorder.rtcp import SenderReport, ntp_from_utc_ns
from recorder.rtp import VIDEO_ORIENTATION, RtpPacket

MS = 1_000_000
SECOND = 1_000 * MS
START = 1_000 * SECOND
UTC = 1_700_000_000 * SECOND
RATES = {"audio": 48000, "video": 90000}
RED_TYPE = 63


@dataclass
class Network:
    """What happens to packets on the way."""

    delay_ns: int = 30 * MS
    jitter_ns: int = 0
    """Uniform, on top."""
    loss: float = 0.0
    duplicates: float = 0.0
    resend_ns: int | None = None
    """Lost packets come after all, this much later (as NACK and RTX do)."""
    held: list[tuple[int, int]] = field(default_factory=list)
    """Intervals (from, to) in which nothing passes: what is sent then arrives at its end, in a burst."""
    in_order: bool = False


@dataclass
class Sender:
    """One track of one participant."""

    track: int
    kind: str
    network: Network
    stream: str = "cname"
    ppm: float = 0.0
    """Error of the sender's media clock."""
    wallclock_offset_ns: int = 7_000 * SECOND
    """How wrong the sender's wallclock is."""
    report_every_ns: int = 2 * SECOND
    report_shift_ns: int = 0
    """A lie in the reports: wallclock of this track against the sender's other tracks."""
    encode_ns: int = 5 * MS
    period_ns: int = 0
    first_sequence: int = 100
    first_timestamp: int = 5_000
    ssrc: int = 0
    packets_a_picture: int = 3
    keyframe_every: int = 50
    silent: list[tuple[int, int]] = field(default_factory=list)
    """Intervals (from the start) in which nothing is captured (mute, DTX); timestamps go on."""
    stalled: list[tuple[int, int]] = field(default_factory=list)
    """Intervals in which nothing is captured and timestamps stand still."""
    jumps: list[tuple[int, int]] = field(default_factory=list)
    """(time from the start, ticks): the timestamp jumps by so much."""
    new_ssrc: list[int] = field(default_factory=list)
    """Times at which SSRC, sequence and timestamps change."""
    rotation: Callable[[int], int] | None = None
    probes: bool = False
    """A padding packet after every picture."""
    redundancy: int = 0
    """Frames of sound before its own that each packet carries again (RFC 2198)."""

    def __post_init__(self) -> None:
        self.period_ns = self.period_ns or (20 * MS if self.kind == "audio" else 40 * MS)
        self.ssrc = self.ssrc or 1000 + self.track

    @property
    def info(self) -> TrackInfo:
        audio = self.kind == "audio"
        return TrackInfo(
            self.track,
            "zhang",
            "customer#1",
            "customer",
            "张三",
            self.kind,
            "microphone" if audio else "camera",
            "audio/opus" if audio else "video/VP8",
            RATES[self.kind],
            111 if audio else 96,
            self.ssrc,
            stream=self.stream,
            extensions={VIDEO_ORIENTATION: 4},
            fmtp={RED: str(RED_TYPE)} if self.redundancy else {},
        )


def build_red(frames: list[tuple[int, bytes]], payload_type: int = 111) -> bytes:
    """Return a RED payload of frames (timestamp, data), oldest first, the last its own."""
    *copies, (timestamp, own) = frames
    heads = b"".join(
        (1 << 31 | payload_type << 24 | timestamp - before << 10 | len(data)).to_bytes(4, "big")
        for before, data in copies
    )
    return heads + bytes((payload_type,)) + b"".join(data for _, data in copies) + own


def inside(intervals: list[tuple[int, int]], at_ns: int) -> bool:
    return any(start <= at_ns < end for start, end in intervals)


def simulate(senders: list[Sender], duration_ns: int, seed: int = 0, end: bool = True) -> list[Record]:
    """Return the journal of a call."""
    generator = random.Random(seed)
    arrivals: list[tuple[int, int, Record]] = []
    for sender in senders:
        arrivals += _sent(sender, duration_ns, generator)
    for second in range(duration_ns // SECOND + 2):
        at_ns = START + second * SECOND
        arrivals.append((at_ns, -1, ClockRecord(at_ns, at_ns + UTC, 0, "ntp", 0, "trusted")))
    arrivals.sort(key=lambda item: item[:2])
    head: list[Record] = [SessionRecord(START, 1, {"armed_ns": START, "boot_id": "one"})]
    head += [TrackRecord(START, sender.info) for sender in senders]
    tail: list[Record] = [EndRecord(arrivals[-1][0], True, "stopped")] if end else []
    return head + [record for _, _, record in arrivals] + tail


def _sent(sender: Sender, duration_ns: int, generator: random.Random) -> list[tuple[int, int, Record]]:
    arrivals: list[tuple[int, int, Record]] = []
    network = sender.network
    sequence, number, standing_ns, jumped = sender.first_sequence, 0, 0, 0
    ssrc, base = sender.ssrc, sender.first_timestamp
    last_arrival = next_report = 0
    pending_ssrc, pending_jumps = list(sender.new_ssrc), list(sender.jumps)
    spoken: list[tuple[int, bytes]] = []
    for index in range(duration_ns // sender.period_ns):
        at_ns = index * sender.period_ns
        if inside(sender.stalled, at_ns):
            standing_ns += sender.period_ns
            continue
        if inside(sender.silent, at_ns):
            continue
        if pending_jumps and at_ns >= pending_jumps[0][0]:
            jumped += pending_jumps.pop(0)[1]
        if pending_ssrc and at_ns >= pending_ssrc[0]:
            pending_ssrc.pop(0)
            ssrc, base, sequence = ssrc + 100, generator.getrandbits(32), generator.getrandbits(16)
        ticks = int((at_ns - standing_ns) * (1 + sender.ppm / 1e6) * RATES[sender.kind] / SECOND)
        timestamp = base + jumped + ticks & 0xFFFFFFFF
        capture = START + at_ns
        for payload, marker in _payloads(sender, number, capture):
            extensions = {}
            if marker and sender.rotation is not None:
                extensions[4] = bytes((sender.rotation(at_ns) // 90,))
            payload_type = sender.info.payload_type
            if sender.redundancy:
                spoken = [said for said in spoken if 0 < timestamp - said[0] < 1 << 14]
                spoken = [*spoken[-sender.redundancy :], (timestamp, payload)]
                payload, payload_type = build_red(spoken), RED_TYPE
            packet = RtpPacket(
                payload_type,
                sequence & 0xFFFF,
                timestamp,
                ssrc,
                payload,
                marker and sender.kind == "video",
                extensions=extensions,
                padding_size=0 if payload else 100,
            ).build()
            sequence += 1
            lost = generator.random() < network.loss
            if lost and network.resend_ns is None:
                continue
            arrival = (
                capture + sender.encode_ns + network.delay_ns + generator.randrange(network.jitter_ns + 1)
            )
            if sender.kind == "audio":
                arrival += sender.period_ns
            if lost and network.resend_ns is not None:
                arrival += network.resend_ns
            for start, stop in network.held:
                if START + start <= arrival < START + stop:
                    arrival = START + stop + (arrival - START - start) // 1000
            if network.in_order:
                arrival = last_arrival = max(arrival, last_arrival + 1)
            arrivals.append((arrival, len(arrivals), RtpRecord(sender.track, arrival, packet)))
            if generator.random() < network.duplicates:
                arrivals.append((arrival + MS, len(arrivals), RtpRecord(sender.track, arrival + MS, packet)))
        number += 1
        if at_ns >= next_report:
            next_report = at_ns + sender.report_every_ns
            wallclock = capture + UTC + sender.wallclock_offset_ns + sender.report_shift_ns
            report = SenderReport(ssrc, ntp_from_utc_ns(wallclock), timestamp, number, 0).build()
            arrival = capture + network.delay_ns + sender.encode_ns
            arrivals.append((arrival, len(arrivals), RtcpRecord(sender.track, arrival, report)))
    return arrivals


def _payloads(sender: Sender, number: int, capture_ns: int) -> list[tuple[bytes, bool]]:
    stamp = capture_ns.to_bytes(8, "big")
    if sender.kind == "audio":
        return [(b"\x78" + stamp, True)]
    picture_id = (0x8000 | number & 0x7FFF).to_bytes(2, "big")
    first = 0x00 if number % sender.keyframe_every == 0 else 0x01
    parts = []
    for index in range(sender.packets_a_picture):
        head = bytes((0x90 if index == 0 else 0x80, 0x80)) + picture_id
        body = bytes((first,)) + stamp if index == 0 else bytes((index,)) * 20
        parts.append((head + body, index == sender.packets_a_picture - 1))
    return [*parts, (b"", False)] if sender.probes else parts


def capture_ns(frame: Frame) -> int:
    """Return the true session time of a frame's capture."""
    return int.from_bytes(frame.data[1:9], "big")


def event(kind: str, at_ns: int, **data: object) -> EventRecord:
    return EventRecord(START + at_ns, {"type": kind, "data": data})


def insert(records: list[Record], extra: Record, at_ns: int) -> list[Record]:
    """Return the records with one more at its place in time."""
    for index, record in enumerate(records):
        time = (
            record.arrival_ns if isinstance(record, RtpRecord | RtcpRecord) else getattr(record, "at_ns", 0)
        )
        if time > START + at_ns:
            return [*records[:index], extra, *records[index:]]
    return [*records, extra]
