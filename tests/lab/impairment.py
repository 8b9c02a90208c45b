"""What a bad line does to packets: the decisions, without any I/O.

One `Direction` is one way of a line. Packets and the time (monotonic ns) go in, packets that are through come
out; nothing here reads a clock or a socket, and all chance comes from a seed. The order of what happens to a
packet is that of a real access line:

    loss at the entry (cut, outage, bursts, random) → queue of limited bytes → rate → delay and jitter

Every packet draws the same count of numbers whatever is set, so that packet n meets the same chance in two
runs of one seed.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

MS: Final = 1_000_000
"""ns in a millisecond."""
CAUSES: Final = ("cut", "outage", "burst", "random", "queue")


class SettingsError(ValueError):
    """A setting is unknown or out of its range; the message names it."""


@dataclass(frozen=True, slots=True)
class Impairment:
    """What one direction does. The default does nothing."""

    loss: float = 0.0
    """Share of packets lost, each by itself, 0 … 1."""
    burst_enter: float = 0.0
    """Gilbert-Elliott: chance per packet that a burst begins, 0 … 1."""
    burst_leave: float = 1.0
    """Chance per packet that it ends, 0 … 1; a burst lasts 1 / this packets on average."""
    burst_loss: float = 1.0
    """Share of packets lost within a burst, 0 … 1."""
    outage_every_ms: float = 0.0
    """Scheduled total loss once in so many ms, at the end of each period; 0: never."""
    outage_ms: float = 0.0
    """How long each lasts."""
    delay_ms: float = 0.0
    """On the way for at least so long."""
    jitter_ms: float = 0.0
    """And up to so much longer, evenly spread: the mean is ``delay_ms + jitter_ms / 2``."""
    reorder: float = 0.0
    """Share of packets whose jitter may let them overtake, 0 … 1; the others wait for those before them."""
    rate_bps: int = 0
    """Bits per second of whole IP packets; 0: no limit."""
    queue_bytes: int = 64_000
    """What may wait for the line; a packet that finds no room is dropped (drop tail)."""
    cut: bool = False
    """Nothing passes. What is on the way already arrives."""

    def __post_init__(self) -> None:
        for name in ("loss", "burst_enter", "burst_leave", "burst_loss", "reorder"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} is not between 0 and 1: {getattr(self, name)}")
        for name in ("outage_every_ms", "outage_ms", "delay_ms", "jitter_ms", "rate_bps", "queue_bytes"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} is negative: {getattr(self, name)}")
        if self.outage_ms > self.outage_every_ms:
            raise SettingsError(f"outage_ms is longer than outage_every_ms: {self.outage_ms}")

    def changed(self, changes: Mapping[str, Any]) -> Impairment:
        """Return these settings with some of them changed. Raises SettingsError."""
        known = {one.name for one in fields(self)}
        if unknown := set(changes) - known:
            raise SettingsError(f"no such setting: {', '.join(sorted(unknown))}")
        for name, value in changes.items():
            wanted = bool if name == "cut" else int | float
            if not isinstance(value, wanted) or (name != "cut" and isinstance(value, bool)):
                raise SettingsError(f"{name} is no {'truth value' if name == 'cut' else 'number'}: {value!r}")
        return replace(self, **changes)


class Histogram:
    """Times in steps of 0.25 ms up to 10 s; longer ones count as that."""

    STEP_NS: Final = MS // 4
    STEPS: Final = 40_000

    def __init__(self) -> None:
        self._counts = [0] * self.STEPS
        self.count = 0

    def add(self, time_ns: int) -> None:
        """Count one time, ns."""
        self._counts[min(max(time_ns, 0) // self.STEP_NS, self.STEPS - 1)] += 1
        self.count += 1

    def percentile_ms(self, percent: float) -> float:
        """Return a percentile in ms, the middle of its step; 0 when nothing was counted."""
        wanted = self.count * percent / 100
        seen = 0
        for step, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return (step + 0.5) * self.STEP_NS / MS
        return 0.0


@dataclass
class Statistics:
    """What happened to the packets of one direction. Bytes are those of whole IP packets."""

    offered_packets: int = 0
    offered_bytes: int = 0
    delivered_packets: int = 0
    delivered_bytes: int = 0
    overtaken: int = 0
    """Delivered after a packet that had come later."""
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))
    queue: Histogram = field(default_factory=Histogram)
    """From arrival until its last bit is on the line."""
    way: Histogram = field(default_factory=Histogram)
    """From arrival to delivery, all together."""

    def row(self) -> dict[str, Any]:
        """Return it all as JSON values; times in ms."""
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
            "dropped": dict(self.dropped),
            "queue_ms": {f"p{one}": self.queue.percentile_ms(one) for one in (50, 95, 99, 100)},
            "way_ms": {f"p{one}": self.way.percentile_ms(one) for one in (50, 95, 99, 100)},
        }


_COUNTERS: Final = ("offered_packets", "offered_bytes", "delivered_packets", "delivered_bytes", "overtaken")


@dataclass(slots=True)
class _Waiting:
    """A packet in the queue, with the chances it has drawn."""

    number: int
    came_ns: int
    packet: bytes
    jitter: float
    reorders: float


class Direction:
    """One way of a line. Call `offer` for each packet that comes, `due` at `next_ns` at the latest."""

    def __init__(self, seed: int, impairment: Impairment | None = None, *, now_ns: int = 0) -> None:
        self._chance = random.Random(seed)
        self.statistics = Statistics()
        self._impairment = impairment or Impairment()
        self._since_ns = now_ns
        self._in_burst = False
        self._numbers = itertools.count()
        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        self._line_free_ns: int | None = None
        """When the packet at the head of the queue will be on the line; None: nothing is being sent."""
        self._travelling: list[tuple[int, int, int, bytes]] = []
        """A heap of (delivery ns, number, arrival ns, packet)."""
        self._last_ns = 0
        """Delivery of the last packet that keeps the order."""
        self._delivered_number = -1

    @property
    def impairment(self) -> Impairment:
        """Return what is set now."""
        return self._impairment

    def change(self, impairment: Impairment, now_ns: int) -> None:
        """Set anew. A packet being sent ends at the old rate; what travels keeps its time. Outages are
        counted from now.
        """
        self._serve(now_ns)
        self._impairment, self._since_ns = impairment, now_ns
        if not impairment.burst_enter:
            self._in_burst = False

    def offer(self, packet: bytes, now_ns: int) -> str | None:
        """Take a packet; returns why it was dropped, None when it will be delivered."""
        self._serve(now_ns)
        chance, now = self._chance.random, self._impairment
        turn, lost, jitter, reorders = chance(), chance(), chance(), chance()
        statistics = self.statistics
        statistics.offered_packets += 1
        statistics.offered_bytes += len(packet)
        self._in_burst = turn >= now.burst_leave if self._in_burst else turn < now.burst_enter
        cause = self._lost(lost, now_ns)
        if cause is None and self._queue and self._queued_bytes + len(packet) > now.queue_bytes:
            cause = "queue"
        if cause is not None:
            statistics.dropped[cause] += 1
            return cause
        waiting = _Waiting(next(self._numbers), now_ns, packet, jitter, reorders)
        if not now.rate_bps and not self._queue:
            self._depart(waiting, now_ns)
            return None
        self._queue.append(waiting)
        self._queued_bytes += len(packet)
        if self._line_free_ns is None:
            self._line_free_ns = now_ns + self._send_ns(packet)
        return None

    def due(self, now_ns: int) -> list[bytes]:
        """Return the packets that are through by now, in the order of their delivery."""
        self._serve(now_ns)
        through = []
        while self._travelling and self._travelling[0][0] <= now_ns:
            _, number, came_ns, packet = heapq.heappop(self._travelling)
            statistics = self.statistics
            statistics.delivered_packets += 1
            statistics.delivered_bytes += len(packet)
            statistics.way.add(now_ns - came_ns)
            if number < self._delivered_number:
                statistics.overtaken += 1
            self._delivered_number = max(number, self._delivered_number)
            through.append(packet)
        return through

    def next_ns(self) -> int | None:
        """Return when `due` will have something to do, None: not before the next packet."""
        times = [self._travelling[0][0]] if self._travelling else []
        if self._line_free_ns is not None:
            times.append(self._line_free_ns)
        return min(times, default=None)

    @property
    def held(self) -> int:
        """Return how many packets are inside, waiting or travelling."""
        return len(self._queue) + len(self._travelling)

    def _lost(self, drawn: float, now_ns: int) -> str | None:
        now = self._impairment
        if now.cut:
            return "cut"
        if now.outage_every_ms and now.outage_ms:
            into_ms = (now_ns - self._since_ns) / MS % now.outage_every_ms
            if into_ms >= now.outage_every_ms - now.outage_ms:
                return "outage"
        if self._in_burst and drawn < now.burst_loss:
            return "burst"
        return "random" if drawn < now.loss else None

    def _send_ns(self, packet: bytes) -> int:
        rate_bps = self._impairment.rate_bps
        return len(packet) * 8 * 1000 * MS // rate_bps if rate_bps else 0

    def _serve(self, now_ns: int) -> None:
        """Put on the line what had its turn by now."""
        while self._line_free_ns is not None and self._line_free_ns <= now_ns:
            sent = self._queue.popleft()
            self._queued_bytes -= len(sent.packet)
            self._depart(sent, self._line_free_ns)
            self._line_free_ns = (
                self._line_free_ns + self._send_ns(self._queue[0].packet) if self._queue else None
            )

    def _depart(self, sent: _Waiting, at_ns: int) -> None:
        now = self._impairment
        self.statistics.queue.add(at_ns - sent.came_ns)
        delivery_ns = at_ns + round((now.delay_ms + now.jitter_ms * sent.jitter) * MS)
        if sent.reorders >= now.reorder:
            self._last_ns = delivery_ns = max(delivery_ns, self._last_ns)
        heapq.heappush(self._travelling, (delivery_ns, sent.number, sent.came_ns, sent.packet))
