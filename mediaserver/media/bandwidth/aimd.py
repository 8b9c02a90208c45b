"""A rate from the state of the queue: up by a little, down by a share (AIMD).

Rate control of draft-ietf-rmcat-gcc-02, section 5.5, with the numbers of libwebrtc's aimd_rate_control.cc
(read at 0040b66a) where the draft leaves them open.
"""

from __future__ import annotations

import math
from typing import Final

from mediaserver.media.bandwidth.trend import Usage

SECOND_NS: Final = 1_000_000_000
BETA: Final = 0.85
"""Decrease factor of the draft's table 1."""
ETA: Final = 1.08
"""Multiplicative increase per second, far from what the link was seen to carry."""
MIN_INCREASE_BPS: Final = 4_000
_ALPHA: Final = 0.05
_MIN_VARIANCE: Final = 0.4
_MAX_VARIANCE: Final = 2.5
"""Of the measured capacity over its mean, kbit/s: 0.4 is 14 kbit/s at 500 kbit/s."""
_PACKET_BYTES: Final = 1200
_FRAMES_PER_S: Final = 30
_DETECTION_S: Final = 0.1


class RateControl:
    """What the delay allows, bit/s."""

    def __init__(self, bps: float) -> None:
        self.bps = bps
        self._holding = False
        self._changed_ns: int | None = None
        self._reduced_ns = 0
        self._mean_kbps: float | None = None
        self._variance = _MIN_VARIANCE

    def update(
        self, usage: Usage, acked_bps: float | None, rtt_s: float, now: int, *, hold: bool = False
    ) -> None:
        """Take the state of the queue and the rate that arrives, bit/s; ``hold``: do not rise now."""
        if usage is Usage.OVER:
            if acked_bps is not None and self._may_reduce(acked_bps, rtt_s, now):
                self._decrease(acked_bps, now)
            self._holding = True
            self._changed_ns = now
            return
        if usage is Usage.UNDER or hold:
            self._holding = True
        elif self._holding:
            self._holding = False
            self._changed_ns = now
        if self._holding:
            return
        elapsed_s = min((now - self._changed_ns) / SECOND_NS, 1.0) if self._changed_ns is not None else 0.0
        self._changed_ns = now
        self._increase(acked_bps, rtt_s, elapsed_s)

    def raise_to(self, bps: float, now: int) -> None:
        """Take what a probe has shown, if that is more."""
        if bps > self.bps:
            self.bps = bps
            self._changed_ns = now
            if self._mean_kbps is not None and bps / 1000 > self._mean_kbps + 3 * self._deviation():
                self._mean_kbps = None

    def _may_reduce(self, acked_bps: float, rtt_s: float, now: int) -> bool:
        wait_s = min(max(rtt_s, 0.01), 0.2)
        return now - self._reduced_ns >= wait_s * SECOND_NS or acked_bps < 0.5 * self.bps

    def _deviation(self) -> float:
        return math.sqrt(self._variance * (self._mean_kbps or 0.0))

    def _decrease(self, acked_bps: float, now: int) -> None:
        wanted = BETA * acked_bps
        if wanted > self.bps and self._mean_kbps is not None:
            wanted = BETA * self._mean_kbps * 1000
        self.bps = min(wanted, self.bps)
        self._reduced_ns = now
        self._learn(acked_bps / 1000)

    def _increase(self, acked_bps: float | None, rtt_s: float, elapsed_s: float) -> None:
        if acked_bps is None:
            return
        if self._mean_kbps is not None and acked_bps / 1000 > self._mean_kbps + 3 * self._deviation():
            self._mean_kbps = None
        if self._mean_kbps is not None:
            frame_bits = self.bps / _FRAMES_PER_S
            packets = max(-(-frame_bits // (8 * _PACKET_BYTES)), 1)
            response_s = 2 * (rtt_s + _DETECTION_S)
            added = max(MIN_INCREASE_BPS, frame_bits / packets / response_s) * elapsed_s
        else:
            added = max(self.bps * (ETA**elapsed_s - 1), 1000 * elapsed_s)
        # More than half above what arrives says nothing of the link: probing decides that.
        limit = 1.5 * acked_bps + 10_000
        self.bps = max(self.bps, min(self.bps + added, limit))

    def _learn(self, kbps: float) -> None:
        """Learn what the link carries from what arrived when its queue grew."""
        if self._mean_kbps is not None and kbps < self._mean_kbps - 3 * self._deviation():
            self._mean_kbps = None
        if self._mean_kbps is None:
            self._mean_kbps = kbps
            return
        self._mean_kbps += _ALPHA * (kbps - self._mean_kbps)
        error = (self._mean_kbps - kbps) ** 2 / max(self._mean_kbps, 1.0)
        self._variance += _ALPHA * (error - self._variance)
        self._variance = min(max(self._variance, _MIN_VARIANCE), _MAX_VARIANCE)
