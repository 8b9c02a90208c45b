"""Put packets back into the order of sending; say where some are missing for good."""

from __future__ import annotations

from dataclasses import dataclass

from compositor.timeline.delay import Mapping
from recorder.rtp import RtpPacket, sequence_after

_OPENING_NS = 100_000_000
"""At the beginning of a stream nobody knows the first number: packets that overtook it get this long."""
_RESTART = 3000
"""A number this far off is a sender that began anew, if the next packet agrees (RFC 3550 appendix A.1)."""


@dataclass(slots=True)
class Arrival:
    """A packet on its way through the timeline."""

    packet: RtpPacket
    arrival_ns: int
    media_ns: int
    """Unwrapped media time."""
    due_ns: int
    """Until when holes before it are waited for."""
    mapping: Mapping


class Reorder:
    """Reordering of one stream (SSRC). Duplicates and packets behind what was released are dropped."""

    def __init__(self, missing: int = 0, begins_at: int | None = None) -> None:
        """``missing``: packets known to be lost before the first one. ``begins_at``: time stamp of the
        picture that the stream begins with; of those before it nothing is taken, and what of it has lower
        numbers than its first arrival is waited for as for any hole."""
        self._waiting: dict[int, Arrival] = {}
        self._highest: int | None = None
        self._next: int | None = None
        self._first: int | None = None
        self._begins_at = begins_at
        self._opens_ns = 0
        self._suspect: int | None = None
        self._missing = missing
        self.dropped = 0
        """Duplicates and packets that came too late."""
        self.due_ns: int | None = None
        """When ``release`` has something to give up waiting for; None: nothing waits."""

    def restarts(self, number: int) -> bool:
        """Tell whether the sender began to count anew: two packets in a row, far from all before.

        The first such packet is to be ignored (False, and ``push`` drops it).
        """
        if self._highest is None or abs(sequence_after(self._highest & 0xFFFF, number)) <= _RESTART:
            self._suspect = None
            return False
        again = self._suspect == number
        self._suspect = number + 1 & 0xFFFF
        return again

    def push(self, item: Arrival) -> None:
        """Take a packet."""
        number = item.packet.sequence_number
        if self._highest is None:
            self._highest = self._first = number
            self._opens_ns = item.arrival_ns + _OPENING_NS if self._begins_at is None else item.due_ns
        ahead = sequence_after(self._highest & 0xFFFF, number)
        extended = self._highest + ahead
        assert self._first is not None
        before = self._begins_at is not None and extended < self._first
        if before and item.packet.timestamp != self._begins_at:
            self.dropped += 1
            return
        if abs(ahead) > _RESTART or extended in self._waiting or (self._next or extended) > extended:
            self.dropped += 1
            return
        self._highest = max(self._highest, extended)
        self._waiting[extended] = item
        due_ns = item.due_ns if self._next is not None else self._opens_ns
        self.due_ns = due_ns if self.due_ns is None else min(due_ns, self.due_ns)

    def release(self, now_ns: int) -> list[tuple[Arrival, int]]:
        """Return packets in order, each with the number of packets missing before it."""
        released: list[tuple[Arrival, int]] = []
        while self._waiting:
            if self._next is None or self._next not in self._waiting:
                if self.due_ns is None or now_ns < self.due_ns:
                    break
                first = min(self._waiting)
                if self._next is not None:
                    self._missing += first - self._next
                self._next = first
            while (item := self._waiting.pop(self._next, None)) is not None:
                released.append((item, self._missing))
                self._missing = 0
                self._next += 1
            self.due_ns = min((other.due_ns for other in self._waiting.values()), default=None)
        return released

    def end(self) -> list[tuple[Arrival, int]]:
        """Return all that waits: the stream has ended."""
        released: list[tuple[Arrival, int]] = []
        while self._waiting:
            self.due_ns = 0
            released += self.release(1)
        return released
