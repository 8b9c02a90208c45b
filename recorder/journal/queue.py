"""The bounded queue between the media thread and the disk.

A journal that cannot write (a full or slow disk) must neither block the media thread nor eat the memory of
the other journals: each queue has its own bound, all queues of a worker share another. What does not fit is
counted per track and becomes ``GapRecord`` items at the very place in the order where it is missing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

from recorder.journal.encoding import MAX_PACKET, JournalError, encode, record_time
from recorder.records import GapRecord, PacketBatch, Queued, RtcpRecord, RtpRecord

_PACKET_OVERHEAD = 160
_RESERVE = 1 << 20
"""Events and tracks are few and tell what the packets mean: they may overdraw the bound by this much."""


class Budget:
    """Bytes that all queues of a worker may hold together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._lock = threading.Lock()

    def take(self, size: int, reserve: int = 0) -> bool:
        """Reserve ``size`` bytes; False, and nothing reserved, if they do not fit."""
        with self._lock:
            if self.used + size > self.limit + reserve:
                return False
            self.used += size
            return True

    def give_back(self, size: int) -> None:
        """Free bytes taken before."""
        with self._lock:
            self.used -= size


class RecordQueue:
    """Records on their way to one journal; any thread puts, one thread takes. No call waits for I/O."""

    def __init__(self, budget: Budget, limit: int) -> None:
        self._budget = budget
        self._limit = limit
        self._lock = threading.Lock()
        self._batches: deque[Sequence[Queued]] = deque()
        self._marks: list[Future[int]] = []
        self._held = 0
        self._lost: dict[int, list[int]] = {}
        self.lost_packets = 0
        """Packets that did not fit, since the beginning."""

    @property
    def held(self) -> int:
        """Bytes put and not yet released."""
        return self._held

    def put(self, records: Sequence[Queued]) -> int:
        """Put records; return the bytes now held. What does not fit is counted, never waited for.

        Raises JournalError for a record that cannot be written at all; then none of them is put.
        """
        size = 0
        packets_only = True
        for record in records:
            if type(record) is PacketBatch:
                size += len(record.items) + _PACKET_OVERHEAD * (1 + len(record.counts))
            elif type(record) is RtpRecord or type(record) is RtcpRecord:
                length = len(record.packet)
                if length > MAX_PACKET or not 0 <= record.track <= 0xFFFF:
                    raise JournalError(f"packet of {length} bytes of track {record.track} fits no journal")
                size += length + _PACKET_OVERHEAD
            else:
                size += len(encode((record,))) + _PACKET_OVERHEAD
                packets_only = False
        with self._lock:
            reserve = 0 if packets_only else _RESERVE
            if self._held + size > self._limit + reserve or not self._budget.take(size, reserve):
                self._count_lost(records)
                return self._held
            if self._lost:
                gaps = self._take_gaps()
                self._batches.append(gaps)
            self._batches.append(tuple(records))
            self._held += size
            return self._held

    def mark(self) -> Future[int]:
        """Return a future for the moment when everything put so far is dealt with; see ``take``."""
        future: Future[int] = Future()
        with self._lock:
            self._marks.append(future)
        return future

    def take(self) -> tuple[list[Queued], int, list[Future[int]]]:
        """Take all records (gaps included), the bytes they hold (to release), and the marks after them."""
        with self._lock:
            batches, self._batches = self._batches, deque()
            records: list[Queued] = [record for batch in batches for record in batch]
            if self._lost:
                records.extend(self._take_gaps())
            size = self._held
            marks, self._marks = self._marks, []
        return records, size, marks

    def release(self, size: int) -> None:
        """Free the bytes of records that are written or given up."""
        with self._lock:
            self._held -= size
        self._budget.give_back(size)

    def _count_lost(self, records: Sequence[Queued]) -> None:
        for gap in gaps_of(records, ""):
            lost = self._lost.setdefault(gap.track, [gap.from_ns, gap.to_ns, 0])
            lost[:] = [min(lost[0], gap.from_ns), max(lost[1], gap.to_ns), lost[2] + gap.packets]
            self.lost_packets += gap.packets

    def _take_gaps(self) -> list[GapRecord]:
        lost, self._lost = self._lost, {}
        return [
            GapRecord(track, first, last, count, "queue_full") for track, (first, last, count) in lost.items()
        ]


def gaps_of(records: Sequence[Queued], reason: str) -> list[GapRecord]:
    """Return what is missing, track by track, where ``records`` could not be kept.

    Track 0 stands for what belongs to no track.
    """
    lost: dict[int, list[int]] = {}

    def add(track: int, first_ns: int, last_ns: int, packets: int) -> None:
        item = lost.setdefault(track, [first_ns, last_ns, 0])
        item[:] = [min(item[0], first_ns), max(item[1], last_ns), item[2] + packets]

    for record in records:
        if isinstance(record, PacketBatch):
            for count in record.counts:
                first_ns = count.first_ns if count.packets else record.latest_ns
                last_ns = count.last_ns if count.packets else record.latest_ns
                add(count.track, first_ns, last_ns, count.packets + count.rtcp_packets)
        else:
            track = record.track if isinstance(record, RtpRecord | RtcpRecord) else 0
            add(track, record_time(record), record_time(record), 1)
    return [GapRecord(track, first, last, packets, reason) for track, (first, last, packets) in lost.items()]
