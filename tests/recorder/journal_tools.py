"""What the journal tests share: a virtual clock, a signer that counts, records to write."""

from __future__ import annotations

import os
import random
from pathlib import Path

from recorder.gm.sm3 import sm3
from recorder.records import (
    ClockRecord,
    EventRecord,
    Record,
    RtcpRecord,
    RtpRecord,
    SessionRecord,
    TrackInfo,
    TrackRecord,
)
from recorder.sealed import DataKey, RecordType, scan
from recorder.storage import list_segments

KEY = DataKey("test-key", bytes(range(16)))
MS = 1_000_000
SECOND = 1_000 * MS


class VirtualClock:
    """A clock that a test moves."""

    def __init__(self, now_ns: int = 5 * SECOND) -> None:
        self.now = now_ns

    def now_ns(self) -> int:
        return self.now

    def utc_ns(self) -> int:
        return self.now + 1_700_000_000 * SECOND

    def pair(self) -> ClockRecord:
        return ClockRecord(self.now, self.utc_ns(), 5, "ntp", 0, "trusted")


class DigestSigner:
    """Stands in for SM2 where only the tree matters: its signature is the SM3 of the message."""

    def __init__(self) -> None:
        self.calls = 0

    def sign(self, message: bytes) -> bytes:
        self.calls += 1
        return sm3(message)


def session(part: int = 1, at_ns: int = 5 * SECOND) -> SessionRecord:
    return SessionRecord(at_ns, part, {"recording": "0197a0b0", "armed_ns": at_ns})


def track(number: int) -> TrackInfo:
    return TrackInfo(
        number,
        "zhang",
        "customer#1",
        "customer",
        "张三",
        "video",
        "camera",
        "video/VP8",
        90000,
        96,
        1000 + number,
    )


def packets(count: int, now_ns: int, seed: int = 0, size: int = 900, track_number: int = 1) -> list[Record]:
    """Return random RTP records a millisecond apart."""
    generator = random.Random(seed)
    return [
        RtpRecord(track_number, now_ns + index * MS, generator.randbytes(generator.randrange(12, size)))
        for index in range(count)
    ]


def some_of_each(now_ns: int) -> list[Record]:
    """Return records of every kind a caller writes."""
    return [
        TrackRecord(now_ns, track(1)),
        EventRecord(now_ns, {"id": "x", "seq": 1, "type": "participant.joined", "data": {"name": "张三"}}),
        *packets(5, now_ns),
        RtcpRecord(1, now_ns + 6 * MS, os.urandom(28)),
        RtpRecord(2, now_ns + 7 * MS, b"\x80" * 12),
        *packets(3, now_ns + 8 * MS, seed=3),
    ]


def without_clocks(records: list[Record]) -> list[Record]:
    return [record for record in records if not isinstance(record, ClockRecord)]


def nonces(directory: Path) -> list[tuple[str, int]]:
    """Return (file id, record number) of every sealed record in the whole chain of each segment."""
    found = []
    for _, path in list_segments(directory):
        result = scan(path)
        if result.header is None:
            continue
        for record in result.records:
            if record.type in (RecordType.CHUNK, RecordType.INDEX):
                found.append((result.header.file_id, record.number))
    return found
