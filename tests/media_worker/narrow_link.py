"""A subscriber's line for the tests of the bandwidth estimator: simulated, seeded, in virtual time.

A sender that obeys the estimate, with the real shell and the Python forwarder's send log and pacer, a link
with rate, queue, delay, jitter and loss that may carry other traffic, and a receiver that makes transport-cc
feedback as libwebrtc does.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import cast

from mediaserver.forwarder import Forwarder, SendFeedback
from mediaserver.forwarder.pace import Pacer
from mediaserver.forwarder.sent import SendLog
from mediaserver.media.bandwidth import Estimator, Sending
from recorder.rtcp_transport import TransportFeedback

MS = 1_000_000
SECOND_NS = 1_000 * MS
STEP_NS = 5 * MS


@dataclass
class Link:
    """A queue before a link whose rate is a function of the time in seconds."""

    rate: Callable[[float], float]
    queue_bytes: int = 64_000
    delay_ms: float = 25.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    seed: int = 1
    _free_ns: float = 0.0
    _last_ns: float = 0.0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def queue_ms(self, now: int) -> float:
        """How long a packet would wait that came now."""
        return max(self._free_ns - now, 0) / MS

    def carry(self, size: int, now: int) -> int | None:
        """Return when a datagram sent now arrives, None if it is lost."""
        size += 28  # IPv4 and UDP
        rate = self.rate(now / SECOND_NS)
        if self.queue_ms(now) / 1000 * rate / 8 + size > self.queue_bytes:
            return None
        self._free_ns = max(self._free_ns, now) + size * 8 * SECOND_NS / rate
        if self._rng.random() < self.loss:
            return None
        arrival = self._free_ns + (self.delay_ms + self._rng.random() * self.jitter_ms) * MS
        self._last_ns = max(self._last_ns, arrival)  # jitter of queues does not reorder
        return int(self._last_ns)


@dataclass
class Flow:
    """A subscriber: pictures and sound towards it, as much as its estimator says."""

    link: Link
    seed: int = 1
    max_bps: float = 2_500_000
    steps: tuple[float, ...] = ()
    """Rates of simulcast layers; empty: the sender follows the estimate exactly."""
    feedback_ns: int = 100 * MS
    clock_offset_ns: int = 123_456_789_000
    wants: bool = True
    keyframe_bytes: int = 0
    """Size of one picture in 3 s; 0: of none."""
    paced: bool = True
    samples: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Every 100 ms: s, target bit/s, rate arriving bit/s, queue in ms."""

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._log = SendLog()
        self.updates = 0
        """How often the timer ran."""
        self._wake_ns = self._now = 0
        self.pacer: Pacer[bool] = Pacer()
        self.sending = Sending(
            cast(Forwarder, self),  # all that it calls of one is here
            1,
            numbered=True,
            padded=lambda: 1,
            routes=lambda: [1],
            wake=self._wake,
        )
        self._number = self._bytes = 0
        self._frames = 0
        self.key_packets = self.key_dropped = 0
        """Packets of keyframes, and how many of them the line dropped."""
        self._arrivals: list[tuple[int, int]] = []
        self._flying: list[tuple[int, int, int]] = []
        self._feedbacks: list[tuple[int, int, bytes]] = []
        self._order = count()
        self._frame_ns = self._sound_ns = self._sample_ns = 0
        self._reported_ns = self._received = self._told = 0
        self.padding = 0
        self.sending.start()

    @property
    def estimator(self) -> Estimator:
        """Return the estimator under test."""
        return self.sending.estimator

    # --- as a forwarder

    def set_measured(self, peer: int, measured: bool) -> None:
        """Do nothing: whoever is simulated is measured."""

    def set_pace(self, peer: int, bps: int) -> None:
        """Set the pace."""
        self.pacer.set(bps if self.paced else 0, self._now)

    def take_feedback(self, peer: int) -> SendFeedback:
        """Take what feedback has told."""
        return self._log.take(self._number, self._bytes)

    def watch_feedback(self, peer: int, way_ns: int, lost: int) -> SendFeedback:
        """Take the totals and watch."""
        return self._log.take(self._number, self._bytes, (way_ns, lost))

    def send_padding(self, route: int, size: int) -> int:
        """Fill the line."""
        for _ in range(0, size, 1200):
            self._send(1200, self._now)
            self.padding += 1200
        return size

    # --- the flow

    def _wake(self) -> None:
        self._wake_ns = self._now

    def media_bps(self) -> float:
        """What is sent at the present estimate."""
        allowed = min(self.estimator.target_bps, self.max_bps)
        if not self.steps:
            return allowed
        return max((rate for rate in self.steps if rate <= allowed), default=min(self.steps))

    def wanted_bps(self) -> int:
        """What would be sent if it fitted."""
        return int(self.max_bps) if self.wants else 0

    def run(self, now: int) -> None:
        """Do what is due."""
        self._now = now
        if self.pacer.due_ns() <= now:
            while self.pacer.may_leave(now):
                _, size, key = self.pacer.take()
                self._leave(size, now, key)
        if now >= self._frame_ns:
            self._frame_ns += 33_333_333
            self._frames += 1
            key = bool(self.keyframe_bytes) and self._frames % 90 == 0
            left = max(self.media_bps() - 40_000, 10_000) / 30 / 8 * self._rng.uniform(0.8, 1.2)
            left = self.keyframe_bytes if key else left
            while left > 0:
                size = int(min(left, 1150)) + 50
                if self.pacer.waits(now):
                    self.pacer.add(key, size, now)
                else:
                    self._leave(size, now, key)
                left -= 1200
        if now >= self._sound_ns:
            self._sound_ns += 20 * MS
            self._leave(120, now, key=False)
        while self._flying and self._flying[0][0] <= now:
            arrival, number, size = heapq.heappop(self._flying)
            self._arrivals.append((number, arrival + self.clock_offset_ns))
            self._received += size
        if now >= self._reported_ns and self._arrivals:
            self._reported_ns = now + self.feedback_ns
            self._report(now)
        while self._feedbacks and self._feedbacks[0][0] <= now:
            _, _, data = heapq.heappop(self._feedbacks)
            if self._log.told(data, 0, len(data), self._number, now):
                self.sending.trouble()
        if now >= self._wake_ns:
            self.sending.wanted_bps = self.wanted_bps()
            self.updates += 1
            self._wake_ns = self.sending.handle_timer(now) or 1 << 62
        if now >= self._sample_ns:
            self._sample_ns = now + 100 * MS
            target = self.sending.target_bps
            self.samples.append((now / SECOND_NS, target, self._received * 80, self.link.queue_ms(now)))
            self._received = 0

    def _report(self, now: int) -> None:
        numbers = sorted(self._arrivals)
        self._arrivals = []
        for feedback in TransportFeedback.from_arrivals(5, 6, 0, numbers):
            base = feedback.base_sequence
            missing = (base - self._told) & 0xFFFF
            deltas = (*[None] * missing, *feedback.deltas) if missing < 1000 else feedback.deltas
            made = TransportFeedback(
                5,
                6,
                (base - missing) & 0xFFFF if missing < 1000 else base,
                0,
                feedback.reference_time,
                deltas,
            )
            self._told = base + len(feedback.deltas)
            due = now + int(self.link.delay_ms * MS)
            heapq.heappush(self._feedbacks, (due, next(self._order), made.build()))

    def _leave(self, size: int, now: int, key: bool) -> None:
        self.pacer.spend(size, now)
        arrives = self._send(size, now)
        self.key_packets += key
        self.key_dropped += key and not arrives

    def _send(self, size: int, now: int) -> bool:
        if self._log.note(self._number, now, size):
            self.sending.trouble()
        self._bytes += size
        arrival = self.link.carry(size, now)
        if arrival is not None:
            heapq.heappush(self._flying, (arrival, self._number, size))
        self._number += 1
        return arrival is not None

    def between(self, begin_s: float, end_s: float) -> list[tuple[float, float, float, float]]:
        """Return the samples of a stretch."""
        return [sample for sample in self.samples if begin_s <= sample[0] < end_s]

    def mean_target(self, begin_s: float, end_s: float) -> float:
        """Return the mean estimate of a stretch, bit/s."""
        found = self.between(begin_s, end_s)
        return sum(sample[1] for sample in found) / len(found)

    def mean_rate(self, begin_s: float, end_s: float) -> float:
        """Return the mean rate that arrived in a stretch, bit/s."""
        found = self.between(begin_s, end_s)
        return sum(sample[2] for sample in found) / len(found)


def run(flows: list[Flow], seconds: float, cross: Callable[[float], float] | None = None) -> None:
    """Let time pass; ``cross`` is other traffic on the first flow's link, bit/s at a time in s."""
    for now in range(0, int(seconds * SECOND_NS), STEP_NS):
        for flow in flows if now // STEP_NS % 2 else reversed(flows):  # nobody is always first in the queue
            flow.run(now)
        if cross is not None:
            left = cross(now / SECOND_NS) * STEP_NS / SECOND_NS / 8
            while left > 0:
                flows[0].link.carry(int(min(left, 1200)), now)
                left -= 1200
