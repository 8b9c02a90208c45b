"""Tell from arrival times whether the queue before the narrowest link grows.

Arrival-time filter and over-use detector of draft-ietf-rmcat-gcc-02, sections 5.3 to 5.5. The filter is not
the draft's Kalman filter but the line fit (trendline) that libwebrtc has put in its place; all numbers are
those of its trendline_estimator.cc (read at 0810a7c2).
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final

_WINDOW: Final = 20
_RENEW: Final = 128
_SMOOTHING: Final = 0.9
_GAIN: Final = 4.0
_MIN_DELTAS: Final = 60
_FIRST_THRESHOLD_MS: Final = 12.5
"""``del_var_th(0)`` of the draft's table 1."""
_MIN_THRESHOLD_MS: Final = 6.0
_MAX_THRESHOLD_MS: Final = 600.0
_MAX_ADAPT_MS: Final = 15.0
"""A trend farther beyond the threshold does not move it: it is a fall of the link's rate, not noise."""
_K_UP: Final = 0.0087
_K_DOWN: Final = 0.039
_MAX_STEP_MS: Final = 100.0
_OVERUSE_MS: Final = 10.0
"""``overuse_time_th`` of the draft's table 1."""
_RESET_MS: Final = 3000.0
"""Arrival clocks that jump so far have been set (libwebrtc's inter_arrival.h)."""


class Usage(Enum):
    """What the arrival times say of the path."""

    NORMAL = 1
    OVER = 2
    UNDER = 3


class TrendDetector:
    """The detector of one path; groups of packets in, ``Usage`` out."""

    def __init__(self) -> None:
        self.threshold_ms = _FIRST_THRESHOLD_MS
        self._deltas = 0
        self._accumulated = self._smoothed = 0.0
        self._points: deque[tuple[float, float]] = deque()
        self._origin_ms = 0.0
        self._sum_x = self._sum_y = self._sum_xy = self._sum_xx = 0.0
        """Over the points, x from ``_origin_ms`` on."""
        self._trend = 0.0
        self._over_ms = -1.0
        self._over_count = 0
        self._usage = Usage.NORMAL
        self._adapted_ms: float | None = None

    def update(self, sent_delta_ms: float, arrival_delta_ms: float, arrival_ms: float) -> Usage:
        """Take a group: its distance to the group before when sent and when arrived, and its arrival."""
        if abs(arrival_delta_ms - sent_delta_ms) > _RESET_MS:
            self.__init__()  # type: ignore[misc]
            return Usage.NORMAL
        self._deltas += 1
        self._accumulated += arrival_delta_ms - sent_delta_ms
        self._smoothed = _SMOOTHING * self._smoothed + (1 - _SMOOTHING) * self._accumulated
        self._points.append((arrival_ms, self._smoothed))
        if self._deltas % _RENEW == 1:
            self._renew(arrival_ms)
        else:
            self._add(arrival_ms, self._smoothed, 1)
        trend = self._trend
        if len(self._points) > _WINDOW:
            self._add(*self._points.popleft(), -1)
        if len(self._points) == _WINDOW:
            below = _WINDOW * self._sum_xx - self._sum_x * self._sum_x
            if below > 0:  # least squares, ms of delay per ms
                trend = (_WINDOW * self._sum_xy - self._sum_x * self._sum_y) / below
        self._detect(trend, sent_delta_ms)
        self._trend = trend
        return self._usage

    def _add(self, x: float, y: float, sign: int) -> None:
        x -= self._origin_ms
        self._sum_x += sign * x
        self._sum_y += sign * y
        self._sum_xy += sign * x * y
        self._sum_xx += sign * x * x

    def _renew(self, origin_ms: float) -> None:
        """Add the sums up anew: rounding must not pile up."""
        self._origin_ms = origin_ms
        self._sum_x = self._sum_y = self._sum_xy = self._sum_xx = 0.0
        for x, y in self._points:
            self._add(x, y, 1)

    def _detect(self, trend: float, sent_delta_ms: float) -> None:
        if self._deltas < 2:
            return
        modified = min(self._deltas, _MIN_DELTAS) * trend * _GAIN
        if modified > self.threshold_ms:
            self._over_ms = sent_delta_ms / 2 if self._over_ms < 0 else self._over_ms + sent_delta_ms
            self._over_count += 1
            if self._over_ms > _OVERUSE_MS and self._over_count > 1 and trend >= self._trend:
                self._over_ms = 0.0
                self._over_count = 0
                self._usage = Usage.OVER
        else:
            self._over_ms = -1.0
            self._over_count = 0
            self._usage = Usage.UNDER if modified < -self.threshold_ms else Usage.NORMAL
        self._adapt(abs(modified))

    def _adapt(self, modified: float) -> None:
        now_ms = self._points[-1][0]
        last_ms = now_ms if self._adapted_ms is None else self._adapted_ms
        self._adapted_ms = now_ms
        if modified > self.threshold_ms + _MAX_ADAPT_MS:
            return
        k = _K_DOWN if modified < self.threshold_ms else _K_UP
        step_ms = min(max(now_ms - last_ms, 0.0), _MAX_STEP_MS)
        changed = self.threshold_ms + k * (modified - self.threshold_ms) * step_ms
        self.threshold_ms = min(max(changed, _MIN_THRESHOLD_MS), _MAX_THRESHOLD_MS)
