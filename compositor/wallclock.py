"""The server's wall clock at any moment of the recording, for the clock burnt into the picture.

The first pair of both times is frozen: a step of the system clock later (someone sets it, NTP jumps) moves
neither the burnt-in clock nor anything else; it is listed. Slewing needs no care, since it moves both clocks
of Linux alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo

from recorder.records import ClockRecord

STEP_NS = 50_000_000
"""A difference to the frozen pair larger than this is a step of the system clock."""


@dataclass(slots=True)
class WallClock:
    """Maps monotonic ns to UTC ns by the first pair seen."""

    first: ClockRecord | None = None
    steps: list[tuple[int, int]] = field(default_factory=list)
    """Steps seen as (monotonic ns, by how many ns the system clock then differs from the frozen one)."""
    trusted: bool = True
    """False as soon as one pair said ``degraded``."""
    _difference_ns: int = 0

    def feed(self, pair: ClockRecord) -> None:
        """Take the first pair, watch the others for steps."""
        self.trusted = self.trusted and pair.trust == "trusted"
        if self.first is None:
            self.first = pair
            return
        difference = pair.utc_ns - pair.at_ns - (self.first.utc_ns - self.first.at_ns)
        if abs(difference - self._difference_ns) > STEP_NS:
            self._difference_ns = difference
            self.steps.append((pair.at_ns, difference))

    def utc_ns(self, at_ns: int) -> int | None:
        """Return UTC at a monotonic time; None while no pair is known."""
        if self.first is None:
            return None
        return self.first.utc_ns + at_ns - self.first.at_ns


class ClockText:
    """A clock's text, made anew each second: between, only its milliseconds change."""

    def __init__(self, pattern: str, zone: tzinfo) -> None:
        self._pattern = re.sub("%(.)", lambda match: "\0" if match[1] == "L" else match[0], pattern)
        self._zone = zone
        self._second: int | None = None
        self._parts: list[str] = []

    def at(self, utc_ns: int | None) -> str:
        """Return what ``clock_text`` does."""
        if utc_ns is None:
            return clock_text(None, self._pattern, self._zone)
        second, rest = divmod(utc_ns, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._parts = clock_text(second * 1_000_000_000, self._pattern, self._zone).split("\0")
        return f"{rest // 1_000_000:03d}".join(self._parts)


def clock_text(utc_ns: int | None, pattern: str, zone: tzinfo) -> str:
    """Write a UTC time by a ClockOverlay's format, milliseconds cut off, the zone's offset behind."""
    if utc_ns is None:
        return "----"
    seconds, rest = divmod(utc_ns, 1_000_000_000)
    local = datetime.fromtimestamp(seconds, UTC).astimezone(zone)
    offset = local.strftime("%z")
    offset = f"{offset[:3]}:{offset[3:5]}"
    values = {
        "Y": f"{local.year:04d}",
        "m": f"{local.month:02d}",
        "d": f"{local.day:02d}",
        "H": f"{local.hour:02d}",
        "M": f"{local.minute:02d}",
        "S": f"{local.second:02d}",
        "L": f"{rest // 1_000_000:03d}",
        "z": offset,
        "%": "%",
    }
    text = re.sub("%(.)", lambda match: values[match[1]], pattern)
    return text if "%z" in pattern else f"{text} {offset}"
