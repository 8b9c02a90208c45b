"""A rate from the loss, for queues too short to be seen in the delay.

Draft-ietf-rmcat-gcc-02, section 6: above 10 % down by half the loss, below 2 % up. Radio links lose a share
of everything whatever one sends, and by that rule alone a path with 12 % of such loss would be throttled to
nothing. So the rule applies to what is above the path's *own* loss, which is found by the step down itself:
if a quarter less is sent, the same share is lost and less arrives, the loss was not ours, and the step is
taken back. (A full link would deliver as much as before.) That, its numbers and the quick fall above 20 %
are ours, not the draft's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

SECOND_NS: Final = 1_000_000_000
LOW: Final = 0.02
HIGH: Final = 0.10
HEAVY: Final = 0.20
INCREASE: Final = 1.08
"""Per second, as libwebrtc's send_side_bandwidth_estimation.cc; the draft's 1.05 is per report."""
_SLICE_NS: Final = SECOND_NS // 4
_SLICE_PACKETS: Final = 10
_SLICES: Final = 4
_DECREASE_NS: Final = 300_000_000
"""kBweDecreaseInterval of libwebrtc's send_side_bandwidth_estimation.cc; a round trip more is waited for."""
_OUTAGE_NS: Final = 350_000_000
_OUTAGE_PACKETS: Final = 5
_STEP: Final = 0.75
_SAME: Final = 0.7
_TOLERATED: Final = 0.05
_MAX_OWN: Final = 0.4


@dataclass(slots=True)
class _Slice:
    begun_ns: int
    lost: int = 0
    packets: int = 0
    lost_bytes: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Onset:
    """What was so when the loss began."""

    bps: float
    sent: float
    arrived: float
    loss: float


class LossControl:
    """What the loss allows, bit/s."""

    def __init__(self, bps: float, max_bps: float) -> None:
        self.bps = bps
        self._max_bps = max_bps
        self.own = 0.0
        """Share that the path was shown to lose whatever is sent."""
        self._tolerated = 0.0
        """Share that is taken for the path's own without a step down, at most ``_TOLERATED``."""
        self.loss = 0.0
        """Share lost over the last second."""
        self._slices: deque[_Slice] = deque(maxlen=_SLICES)
        self._open: _Slice | None = None
        self._outage: _Slice | None = None
        self._onset: _Onset | None = None
        self._reduced_ns = 0
        self._updated_ns = 0

    def update(
        self,
        now: int,
        *,
        lost: int,
        packets: int,
        lost_bytes: int,
        arrived_bytes: int,
        target_bps: float,
        rtt_s: float,
        calm: bool,
    ) -> None:
        """Take what was lost and what arrived since the last call, and the rate aimed at now, bit/s;
        ``calm``: there is no queue that could be full."""
        lost, lost_bytes = self._sift(lost, packets, lost_bytes, now)
        current = self._open
        if current is None:
            current = self._open = _Slice(now)
        current.lost += lost
        current.packets += packets
        current.lost_bytes += lost_bytes
        current.bytes += arrived_bytes
        if now - current.begun_ns < _SLICE_NS or current.lost + current.packets < _SLICE_PACKETS:
            return
        self._slices.append(current)
        self._open = _Slice(now)
        seconds = (now - self._slices[0].begun_ns) / SECOND_NS
        known = sum(one.lost + one.packets for one in self._slices)
        self.loss = max(sum(one.lost for one in self._slices), 0) / max(known, 1)
        arrived = sum(one.bytes for one in self._slices) * 8 / seconds
        sent = arrived + sum(one.lost_bytes for one in self._slices) * 8 / seconds
        self.take_loss(now, self.loss, sent, arrived, target_bps, rtt_s, calm=calm)

    def _sift(self, lost: int, packets: int, lost_bytes: int, now: int) -> tuple[int, int]:
        """Leave out an outage: most is lost at once, and nothing of what comes after it. That a line is full
        shows in the next packets as well."""
        outage = self._outage
        if lost > packets:
            self._outage = outage = outage or _Slice(now)
            outage.lost += lost
            outage.lost_bytes += lost_bytes
            lost = lost_bytes = 0
        elif outage is not None and packets > _OUTAGE_PACKETS and lost <= HIGH * packets:
            self._outage = outage = None
        if outage is not None and now - outage.begun_ns > _OUTAGE_NS:
            lost, lost_bytes = lost + outage.lost, lost_bytes + outage.lost_bytes
            self._outage = None
        return lost, lost_bytes

    def take_loss(
        self,
        now: int,
        loss: float,
        sent: float,
        arrived: float,
        target_bps: float,
        rtt_s: float,
        *,
        calm: bool = False,
    ) -> None:
        """Take a share lost (0 to 1) with the rates sent and arrived, bit/s."""
        elapsed_s = min((now - self._updated_ns) / SECOND_NS, 1.0) if self._updated_ns else 0.0
        self._updated_ns = now
        if loss < self.own:
            self.own += 0.1 * (loss - self.own)
        # "If the packet loss ratio does not increase, the losses are probably not related to self-inflicted
        # congestion" (the draft's section 6); bounded, lest a queue's loss be learned step by step.
        if calm and loss < HIGH:
            self._tolerated = min(self._tolerated + 0.05 * (loss - self._tolerated), _TOLERATED)
        self._judge(loss, sent, arrived, calm=calm)
        excess = loss - max(self.own, self._tolerated)
        if excess > HIGH:
            if now - self._reduced_ns >= _DECREASE_NS + rtt_s * SECOND_NS:
                self._decrease(now, excess, loss, sent, arrived, target_bps)
        elif excess < LOW:
            self._onset = None
            self.bps = min(self.bps * INCREASE**elapsed_s, self._max_bps)

    def raise_to(self, bps: float) -> None:
        """Take what a probe has shown, if that is more."""
        self.bps = max(self.bps, bps)

    def _decrease(
        self, now: int, excess: float, loss: float, sent: float, arrived: float, target_bps: float
    ) -> None:
        base = min(self.bps, target_bps)
        if self._onset is None:
            self._onset = _Onset(base, sent, arrived, loss)
        self._reduced_ns = now
        share = 1 - excess if excess > HEAVY else 1 - 0.5 * excess
        # What arrives fits: there is no reason to go below.
        self.bps = min(max(base * share, min(arrived, base)), base)

    def _judge(self, loss: float, sent: float, arrived: float, *, calm: bool) -> None:
        onset = self._onset
        if onset is None or sent > _STEP * onset.sent:
            return
        # Not while there is a queue: others may have taken what was given up.
        if calm and loss >= _SAME * onset.loss and arrived < 0.85 * onset.arrived:
            self.own = min(loss, onset.loss, _MAX_OWN)
            self.bps = max(self.bps, onset.bps)
        self._onset = None
