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

from recorder.journal.encoding import MAX_PACKET, JournalError, encode
from recorder.records import GapRecord, Record, RtcpRecord, RtpRecord

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
        self._batches: deque[Sequence[Record]] = deque()
        self._marks: list[Future[int]] = []
        self._held = 0
        self._lost: dict[int, list[int]] = {}
        self.lost_packets = 0
        """Packets that did not fit, since the beginning."""

    @property
    def held(self) -> int:
        """Bytes put and not yet released."""
        return self._held

    def put(self, records: Sequence[Record]) -> int:
        """Put records; return the bytes now held. What does not fit is counted, never waited for.

        Raises JournalError for a record that cannot be written at all; then none of them is put.
        """
        size = 0
        packets_only = True
        for record in records:
            if type(record) is RtpRecord or type(record) is RtcpRecord:
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

    def take(self) -> tuple[list[Record], int, list[Future[int]]]:
        """Take all records (gaps included), the bytes they hold (to release), and the marks after them."""
        with self._lock:
            batches, self._batches = self._batches, deque()
            records: list[Record] = [record for batch in batches for record in batch]
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

    def _count_lost(self, records: Sequence[Record]) -> None:
        for record in records:
            if isinstance(record, RtpRecord | RtcpRecord):
                track, at_ns = record.track, record.arrival_ns
            else:
                # Track 0 stands for what belongs to no track.
                track, at_ns = 0, record.to_ns if isinstance(record, GapRecord) else record.at_ns
            lost = self._lost.setdefault(track, [at_ns, at_ns, 0])
            lost[0], lost[1], lost[2] = min(lost[0], at_ns), max(lost[1], at_ns), lost[2] + 1
            self.lost_packets += 1

    def _take_gaps(self) -> list[Record]:
        lost, self._lost = self._lost, {}
        return [
            GapRecord(track, first, last, count, "queue_full") for track, (first, last, count) in lost.items()
        ]
