"""What comes up from the packets to Python: events and tapped packets, in bounded queues, told by one
eventfd."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from mediaserver.forwarder.interface import Event, RawDatagram, Rtcp, TapDropped, Tapped

MAX_UNKNOWN: Final = 256
"""STUN of unknown addresses: a flood of it must not push out what bound peers say."""
MAX_RAW: Final = 1024
MAX_TOLD: Final = 128
"""Datagrams and RTCP of one peer between two takes: a peer that floods fills its own share only."""
MAX_EVENTS: Final = 16384
MAX_TAPPED_BYTES: Final = 16 << 20
TAP_SIGNAL_NS: Final = 100_000_000


class Outbox:
    """Queues of events and tapped packets. Not locked: the forwarder's lock guards it."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.events_dropped = 0
        self.tap_dropped = 0
        self._events: list[Event] = []
        self._unknown = 0
        self._raw = 0
        self._told: dict[int, int] = {}
        self._tapped: list[Tapped] = []
        self._tapped_bytes = 0
        self._held: int | None = None
        self._lost: dict[int, TapDropped] = {}
        self._signalled = False
        self._tap_signalled_ns = 0

    def put(self, event: Event) -> bool:
        """Queue an event, or drop and count it; tell which."""
        if isinstance(event, RawDatagram | Rtcp) and event.peer is not None:
            told = self._told.get(event.peer, 0)
            if told >= MAX_TOLD:
                self.events_dropped += 1
                return False
            self._told[event.peer] = told + 1
        if isinstance(event, RawDatagram):
            if event.peer is None:
                self._unknown += 1
                full = self._unknown > MAX_UNKNOWN
            else:
                self._raw += 1
                full = self._raw > MAX_RAW
        else:
            full = len(self._events) >= MAX_EVENTS + MAX_RAW + MAX_UNKNOWN
        if full:
            self.events_dropped += 1
        else:
            self._events.append(event)
        return not full

    def hold(self) -> None:
        """Keep back what is tapped from here on until the events are taken: a tap has moved."""
        if self._held is None:
            self._held = len(self._tapped)

    def tap(self, track: int, arrival_ns: int, packet: bytes, is_rtcp: bool) -> None:
        """Queue a tapped packet, or drop it, count it and tell it by ``TapDropped``."""
        if self._tapped_bytes + len(packet) > MAX_TAPPED_BYTES:
            self.tap_dropped += 1
            lost = self._lost.get(track)
            if lost is None:
                self._lost[track] = TapDropped(track, 1, arrival_ns, arrival_ns)
            else:
                self._lost[track] = TapDropped(track, lost.packets + 1, lost.from_ns, arrival_ns)
            return
        self._tapped.append((track, arrival_ns, packet, is_rtcp))
        self._tapped_bytes += len(packet)

    def signal(self, now_ns: int) -> None:
        """Make the eventfd readable if there is something new to say."""
        if self._signalled:
            return
        tapped = self._tapped and now_ns - self._tap_signalled_ns >= TAP_SIGNAL_NS
        if not self._events and not tapped and not self._lost:
            return
        self._tap_signalled_ns = now_ns
        self._signalled = True
        os.eventfd_write(self.fd, 1)

    def waiting(self) -> bool:
        """Tell whether tapped packets wait for a later signal."""
        return bool(self._tapped) and not self._signalled

    def take_events(self) -> list[Event]:
        """Take all events and reset the eventfd."""
        with contextlib.suppress(BlockingIOError):  # not signalled: nothing to reset
            os.eventfd_read(self.fd)
        self._signalled = False
        self._held = None
        events = self._events
        events.extend(self._lost.values())
        self._events = []
        self._lost = {}
        self._unknown = self._raw = 0
        self._told = {}
        return events

    def take_tapped(self) -> list[Tapped]:
        """Take all tapped packets that are not held back."""
        tapped, self._tapped = self._tapped, []
        if self._held is not None:
            tapped, self._tapped = tapped[: self._held], tapped[self._held :]
            self._held = 0
        self._tapped_bytes = sum(len(packet) for _, _, packet, _ in self._tapped)
        return tapped

    def close(self) -> None:
        """Close the eventfd."""
        os.close(self.fd)
