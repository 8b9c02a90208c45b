"""What a report's numbers mean to a reader: medians with their ends, names of servers, units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAMES = {
    "ours": "this server",
    "ours-python": "this server, Python loop",
    "janus": "Janus",
    "stock": "stock aiortc",
    "aiortc": "stock aiortc",
    "ffmpeg": "ffmpeg",
    "floor": "floor",
    "native": "this server",
    "native-libsrtp": "this server, libsrtp",
    "python": "this server, Python loop",
}


@dataclass(frozen=True)
class Measure:
    """A measured value: the median of its runs, and the least and the greatest of them."""

    median: float
    low: float
    high: float
    runs: int = 1

    def text(self, unit: str = "") -> str:
        """Return ``19.1 µs``."""
        return f"{number(self.median)} {unit}".rstrip()

    def spread(self) -> str:
        """Return ``18.6–19.9 in 3 runs``, or that there was one run."""
        if self.runs < 2:
            return "one run"
        return f"{number(self.low)}–{number(self.high)} in {self.runs} runs"

    def times(self, factor: float) -> Measure:
        """Return the same in another unit."""
        return Measure(self.median * factor, self.low * factor, self.high * factor, self.runs)


def measured(value: object) -> Measure | None:
    """Read a figure of a report: a number, or its median with spread. None if it was not measured."""
    if isinstance(value, Mapping):
        if not {"median", "min", "max"} <= value.keys():
            return None
        middle, low, high = (float(value[name]) for name in ("median", "min", "max"))
        if math.isnan(middle + low + high):
            return None
        return Measure(middle, low, high, len(value.get("runs", ())) or 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return Measure(float(value), float(value), float(value))


def at(figures: Mapping[str, Any], path: str) -> Measure | None:
    """Read ``delay_ms.p99`` of a server's figures; None if it is not there."""
    value: object = figures
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return measured(value)


def number(value: float) -> str:
    """Return three significant digits, thousands apart: ``0.0412``, ``19.1``, ``2,600``."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value:,.0f}"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    shown = f"{value:,.{digits}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def percent(share: float) -> str:
    """Return a share such as a loss: ``0 %``, ``0.08 %``, ``7.6 %``."""
    return f"{number(share * 100)} %"


def label(server: str) -> str:
    """Return how a reader knows a server."""
    if server.startswith(("http://", "https://")):
        return server.split("/")[2]
    return NAMES.get(server, server)
