"""What was sent to a subscriber under transport-cc numbers, and what its feedback says of it.

Feedback: draft-holmer-rmcat-transport-wide-cc-extensions-01, section 3.1. Packets that left within 5 ms are
one group, as are packets that a queue on the way pressed together: both differences say nothing of the
path's load (draft-ietf-rmcat-gcc-02, sections 5.2 and 5.3). Groups leave in batches, no call per packet.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

from mediaserver.forwarder.counters import SendFeedback, SendGroup

SENT_LOG: Final = 2048
"""Numbers that are remembered: 8 s of 2 Mbit/s."""
MAX_GROUPS: Final = 256
DROPPED_GROUPS: Final = 64
"""So many of the oldest go when they are too many: the newest say most of the line."""
WATCH_SILENCE_NS: Final = 500_000_000
BURST_NS: Final = 5_000_000
"""``burst_time`` of draft-ietf-rmcat-gcc-02, section 5.2, when sending and when arriving."""
MAX_BURST_NS: Final = 100_000_000
"""Longest group of packets pressed together on the way, as libwebrtc's inter_arrival.cc has it."""
MAX_REFERENCE: Final = 1 << 32
"""In 64 ms, 8.7 years: a clock that has gone so far lies and is begun anew: nanoseconds have 64 bits."""
_TICK_NS: Final = 250_000
_SENT: Final = 0
_LOST: Final = 1
_RECEIVED: Final = 2
_GROUP: Final = Struct("qqqqqii")
"""fwd_group_t."""


class SendLog:
    """The log of one subscriber; see the module's text."""

    def __init__(self) -> None:
        self._entries: dict[int, list[int]] = {}
        """Number modulo ``SENT_LOG`` to number, time, size and what is known of it."""
        self._open: list[int] | None = None
        self._groups: list[SendGroup] = []
        self._far = False
        self._reference: int | None = None
        self._told_ns = 0
        self._packets = self._bytes = self._lost = self._lost_bytes = self._dropped = 0
        self._shortest_ns = 0
        self._watched: tuple[int, int] | None = None
        """Longest way and fewest lost packets that are told at once."""

    def note(self, number: int, sent_ns: int, size: int) -> bool:
        """Note that a datagram of ``size`` bytes left under a number (extended, from 0); true if feedback has
        been awaited for too long."""
        self._entries[number % SENT_LOG] = [number, sent_ns, size, _SENT]
        if self._watched is None or sent_ns - self._told_ns <= WATCH_SILENCE_NS:
            return False
        self._watched = None
        return True

    def told(self, data: bytes, at: int, length: int, sent: int, told_ns: int) -> bool:
        """Read the feedback at ``at``; ``sent`` numbers were given so far. Malformed ends are ignored.

        True if it tells what is watched for."""
        self._far = False
        self._read(data, at, length, sent, told_ns)
        if self._watched is None or not (self._far or self._lost >= self._watched[1]):
            return False
        self._watched = None
        return True

    def _read(self, data: bytes, at: int, length: int, sent: int, told_ns: int) -> None:
        if length < 20 or not self._entries:
            return
        end = at + length
        count = data[at + 14] << 8 | data[at + 15]
        chunks: list[int] = []
        place, seen = at + 20, 0
        while seen < count and place + 2 <= end:
            chunks.append(data[place] << 8 | data[place + 1])
            seen += _symbols_in(chunks[-1])
            place += 2
        self._told_ns = told_ns
        newest = sent - 1
        number = newest - ((newest - (data[at + 12] << 8 | data[at + 13])) & 0xFFFF)
        raw = int.from_bytes(data[at + 16 : at + 19], "big")
        if self._reference is None:
            self._reference = raw
        else:
            self._reference += ((raw - self._reference + 0x800000) & 0xFFFFFF) - 0x800000
            if abs(self._reference) > MAX_REFERENCE:
                self._reference = raw
        ticks = self._reference * 256
        for chunk in chunks:
            symbols = min(_symbols_in(chunk), count)
            count -= symbols
            if not chunk & 0xE000:
                first = max(number, newest - SENT_LOG + 1)
                for one in range(first, min(number + symbols, newest + 1)):
                    self._note_lost(one)
                number += symbols
                continue
            for index in range(symbols):
                symbol = _symbol_at(chunk, index)
                if symbol == 0:
                    self._note_lost(number)
                elif symbol == 3 or place + symbol > end:
                    return  # what follows has no times
                else:
                    ticks += int.from_bytes(data[place : place + symbol], "big", signed=symbol == 2)
                    place += symbol
                    self._note_received(number, ticks * _TICK_NS, told_ns)
                number += 1

    def take(self, sent: int, bytes_sent: int, watch: tuple[int, int] | None = None) -> SendFeedback:
        """Take what was told; with ``watch`` (way, lost) the groups stay."""
        groups: list[SendGroup] = []
        if watch is None:
            groups, self._groups = self._groups, groups
        self._watched = watch
        taken = SendFeedback(
            sent,
            bytes_sent,
            self._told_ns,
            self._packets,
            self._bytes,
            self._lost,
            self._lost_bytes,
            self._dropped,
            self._shortest_ns,
            groups,
            None if self._open is None else SendGroup._make(self._open),
        )
        self._packets = self._bytes = self._lost = self._lost_bytes = self._dropped = 0
        self._shortest_ns = 0
        return taken

    def _find(self, number: int) -> list[int] | None:
        entry = self._entries.get(number % SENT_LOG)
        return entry if entry is not None and entry[0] == number else None

    def _note_lost(self, number: int) -> None:
        entry = self._find(number)
        if entry is not None and entry[3] == _SENT:
            entry[3] = _LOST
            self._lost += 1
            self._lost_bytes += entry[2]

    def _note_received(self, number: int, arrival_ns: int, told_ns: int) -> None:
        entry = self._find(number)
        if entry is None or entry[3] == _RECEIVED:
            return
        _, sent_ns, size, state = entry
        if state == _LOST:
            self._lost -= 1
            self._lost_bytes -= size
        entry[3] = _RECEIVED
        way_ns = arrival_ns - sent_ns
        self._shortest_ns = min(self._shortest_ns, way_ns) if self._packets else way_ns
        self._far = self._far or (self._watched is not None and way_ns > self._watched[0])
        self._packets += 1
        self._bytes += size
        group = self._open
        if group is not None:
            first_sent, last_sent, first_arrival, last_arrival = group[:4]
            late = sent_ns < first_sent
            gap = arrival_ns - last_arrival
            burst = gap <= BURST_NS and gap < sent_ns - last_sent
            burst = burst and arrival_ns - first_arrival < MAX_BURST_NS
            # Whatever arrivals are claimed, what a group holds is bounded.
            if group[6] < SENT_LOG and (late or burst or sent_ns - first_sent <= BURST_NS):
                group[4] = told_ns
                group[5] += size
                group[6] += 1
                if not late:
                    group[1] = max(last_sent, sent_ns)
                    group[3] = max(last_arrival, arrival_ns)
                return
            if len(self._groups) == MAX_GROUPS:
                del self._groups[:DROPPED_GROUPS]
                self._dropped += DROPPED_GROUPS
            self._groups.append(SendGroup._make(group))
        self._open = [sent_ns, sent_ns, arrival_ns, arrival_ns, told_ns, size, 1]


def _symbols_in(chunk: int) -> int:
    if chunk & 0x8000 == 0:
        return chunk & 0x1FFF
    return 7 if chunk & 0x4000 else 14


def _symbol_at(chunk: int, at: int) -> int:
    if chunk & 0x8000 == 0:
        return chunk >> 13 & 3
    return chunk >> (12 - 2 * at) & 3 if chunk & 0x4000 else chunk >> (13 - at) & 1


def read_feedback(ffi: Any, totals: Any, groups: Any, count: int) -> SendFeedback:
    """Read what ``fwd_take_feedback`` wrote."""
    last = totals.open
    return SendFeedback(
        totals.sent,
        totals.bytes_sent,
        totals.told_ns,
        totals.packets,
        totals.bytes,
        totals.lost,
        totals.lost_bytes,
        totals.dropped,
        totals.shortest_ns,
        [SendGroup._make(one) for one in _GROUP.iter_unpack(ffi.buffer(groups, count * _GROUP.size))],
        SendGroup._make(_GROUP.unpack(ffi.buffer(ffi.addressof(last)))) if last.packets else None,
    )
