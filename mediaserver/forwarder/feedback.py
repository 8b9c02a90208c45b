"""Transport-wide congestion control: the log of arrivals of a publisher's packets, and the feedback made of
it.

Format: draft-holmer-rmcat-transport-wide-cc-extensions-01, section 3.1. Reading: what a subscriber's feedback
says.
"""

from __future__ import annotations

from typing import Final

MAX_LOG: Final = 4096
_MAX_STATUSES: Final = 1024
"""Statuses in one feedback packet: at most 3 bytes each here, which stays within one datagram with
_MAX_DELTAS."""
_MAX_DELTAS: Final = 256
_TICK_NS: Final = 250_000
_REFERENCE_TICKS: Final = 256  # 64 ms
_NOT_RECEIVED: Final = 0
_SMALL: Final = 1
_LARGE: Final = 2


class ArrivalLog:
    """Numbers and arrival times of one publisher's packets, bounded; what is not taken in time is
    overwritten."""

    __slots__ = ("count", "due_ns", "entries", "highest", "interval_ns", "media_ssrc", "next", "sender_ssrc")

    def __init__(self) -> None:
        self.entries: list[tuple[int, int]] = []
        self.highest = -1
        self.next = -1
        """First number (extended) that no feedback has spoken of."""
        self.count = 0
        self.interval_ns = 0
        self.due_ns = 0
        self.sender_ssrc = 1
        self.media_ssrc = 0

    def add(self, number: int, arrival_ns: int, ssrc: int) -> None:
        """Log one packet."""
        if self.highest < 0:
            extended = number + 0x10000
        else:
            delta = (number - self.highest) & 0xFFFF
            extended = self.highest + (delta - 0x10000 if delta >= 0x8000 else delta)
        self.highest = max(self.highest, extended)
        self.media_ssrc = ssrc
        self.entries.append((extended, arrival_ns))
        if len(self.entries) > MAX_LOG:
            del self.entries[: MAX_LOG // 4]

    def take(self) -> list[tuple[int, int]]:
        """Take the log as ``(number, arrival_ns)``."""
        taken = [(extended & 0xFFFF, arrival) for extended, arrival in self.entries]
        self.entries = []
        return taken

    def build(self) -> list[bytes]:
        """Make feedback of all that is logged, each an RFC 3550 compound (empty receiver report first)."""
        if not self.entries:
            return []
        arrivals: dict[int, int] = {}
        for extended, arrival in self.entries:
            arrivals.setdefault(extended, arrival)
        self.entries = []
        numbers = sorted(arrivals)
        packets = []
        at = 0
        while at < len(numbers):
            packet, at = self._one(numbers, at, arrivals)
            packets.append(packet)
        return packets

    def _one(self, numbers: list[int], at: int, arrivals: dict[int, int]) -> tuple[bytes, int]:
        # What comes late is told by itself, run by run: the numbers around it were told already and hold.
        late = self.next >= 0 and numbers[at] < self.next
        begin = numbers[at] if late or self.next < 0 else self.next
        # A jump of the numbers is not spelled out.
        if numbers[at] - begin >= _MAX_STATUSES:
            begin = numbers[at]
        first_ticks = arrivals[numbers[at]] // _TICK_NS
        reference = first_ticks // _REFERENCE_TICKS
        last = reference * _REFERENCE_TICKS
        statuses: list[int] = []
        deltas = bytearray()
        received = 0
        expected = begin
        while at < len(numbers) and received < _MAX_DELTAS:
            number = numbers[at]
            if late and (number != expected or expected >= self.next):
                break
            ticks = arrivals[number] // _TICK_NS
            delta = ticks - last
            if not -0x8000 <= delta < 0x8000 or number - begin >= _MAX_STATUSES:
                break
            statuses.extend([_NOT_RECEIVED] * (number - expected))
            if 0 <= delta <= 0xFF:
                statuses.append(_SMALL)
                deltas.append(delta)
            else:
                statuses.append(_LARGE)
                deltas += (delta & 0xFFFF).to_bytes(2, "big")
            last = ticks
            received += 1
            expected = number + 1
            at += 1
        body = bytearray()
        body += (begin & 0xFFFF).to_bytes(2, "big") + len(statuses).to_bytes(2, "big")
        body += (reference & 0xFFFFFF).to_bytes(3, "big") + bytes((self.count & 0xFF,))
        body += _chunks(statuses) + deltas
        self.count += 1
        padding = -len(body) % 4
        first = 0x80 | (0x20 if padding else 0) | 15
        if padding:
            body += bytes(padding - 1) + bytes((padding,))
        sender = self.sender_ssrc.to_bytes(4, "big")
        report = b"\x80\xc9\x00\x01" + sender
        words = 2 + len(body) // 4
        head = bytes((first, 205)) + words.to_bytes(2, "big") + sender + self.media_ssrc.to_bytes(4, "big")
        self.next = max(self.next, expected)
        return report + head + bytes(body), at


def _chunks(statuses: list[int]) -> bytes:
    """Runs of 7 and more as run length chunks, else vectors of seven two-bit symbols."""
    chunks = bytearray()
    at = 0
    while at < len(statuses):
        symbol = statuses[at]
        run = 1
        while at + run < len(statuses) and statuses[at + run] == symbol and run < 0x1FFF:
            run += 1
        if run >= 7 or at + run == len(statuses):
            chunks += (symbol << 13 | run).to_bytes(2, "big")
            at += run
            continue
        vector = 0xC000
        for place, status in enumerate(statuses[at : at + 7]):
            vector |= status << (12 - 2 * place)
        chunks += vector.to_bytes(2, "big")
        at += 7
    return bytes(chunks)


def read_feedback(data: bytes, at: int, length: int) -> tuple[int, int]:
    """Return ``(reported, lost)`` of a feedback packet at ``at``; statuses beyond its end do not count."""
    if length < 20:
        return 0, 0
    count = data[at + 14] << 8 | data[at + 15]
    place = at + 20
    end = at + length
    reported = lost = 0
    while reported < count and place + 2 <= end:
        chunk = data[place] << 8 | data[place + 1]
        place += 2
        if chunk & 0x8000 == 0:
            run = min(chunk & 0x1FFF, count - reported)
            reported += run
            if chunk & 0x6000 == 0:
                lost += run
        else:
            symbols = 7 if chunk & 0x4000 else 14
            for symbol in range(min(symbols, count - reported)):
                reported += 1
                status = chunk >> (12 - 2 * symbol) & 3 if chunk & 0x4000 else chunk >> (13 - symbol) & 1
                lost += status == 0
    return reported, lost


def nack_sequences(data: bytes, at: int, length: int) -> list[int]:
    """Return the sequence numbers that a generic NACK at ``at`` names (RFC 4585 section 6.2.1)."""
    found = []
    for place in range(at + 12, at + length - 3, 4):
        first = data[place] << 8 | data[place + 1]
        mask = data[place + 2] << 8 | data[place + 3]
        found.append(first)
        for bit in range(16):
            if mask >> bit & 1:
                found.append((first + bit + 1) & 0xFFFF)
    return found
