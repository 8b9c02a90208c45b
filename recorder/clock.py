"""The server's clock: monotonic time for everything, UTC beside it with what the system knows of its error.

``SystemClock`` asks the kernel's clock discipline (adjtimex, see adjtimex(2)) whether UTC is synchronised and
how large its estimated error is, so that a recording can say how far its burnt-in clock is to be trusted.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from recorder.records import ClockRecord

_STA_PPSTIME, _STA_UNSYNC, _STA_CLOCKERR, _STA_NANO = 0x0004, 0x0040, 0x1000, 0x2000
_TIME_ERROR = 5
TRUSTED_ERROR_NS = 100_000_000
"""UTC whose stated largest error is above 100 ms is ``degraded`` even if the kernel calls it synchronised."""


class Clock(Protocol):
    """Where time comes from; tests hand in their own."""

    def now_ns(self) -> int:
        """Return CLOCK_MONOTONIC in ns."""

    def utc_ns(self) -> int:
        """Return UTC as Unix ns."""

    def pair(self) -> ClockRecord:
        """Read both times at one moment, with the state of the clock discipline."""


@dataclass(frozen=True, slots=True)
class Discipline:
    """What the kernel says of its UTC."""

    synchronised: bool
    offset_ns: int
    """Correction the discipline is still applying."""
    max_error_ns: int
    source: str
    """``ntp``, ``ptp`` or ``free``."""


class _Timeval(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_usec", ctypes.c_long))


class _Timex(ctypes.Structure):
    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time", _Timeval),
        ("tick", ctypes.c_long),
        ("ppsfreq", ctypes.c_long),
        ("jitter", ctypes.c_long),
        ("shift", ctypes.c_int),
        ("stabil", ctypes.c_long),
        ("jitcnt", ctypes.c_long),
        ("calcnt", ctypes.c_long),
        ("errcnt", ctypes.c_long),
        ("stbcnt", ctypes.c_long),
        ("tai", ctypes.c_int),
        ("reserved", ctypes.c_int * 11),
    )


def read_discipline() -> Discipline:
    """Ask adjtimex for the state of UTC. Where the call is not allowed: ``free``, not synchronised."""
    libc = ctypes.CDLL(None, use_errno=True)
    state = _Timex()
    result = libc.adjtimex(ctypes.byref(state))
    if result < 0:
        return Discipline(False, 0, 0, "free")
    unsynchronised = result == _TIME_ERROR or bool(state.status & (_STA_UNSYNC | _STA_CLOCKERR))
    unit = 1 if state.status & _STA_NANO else 1000
    source = "free" if unsynchronised else "ptp" if state.status & _STA_PPSTIME else "ntp"
    return Discipline(not unsynchronised, state.offset * unit, state.maxerror * 1000, source)


class SystemClock:
    """The machine's clocks."""

    def now_ns(self) -> int:
        """Return CLOCK_MONOTONIC in ns."""
        return time.monotonic_ns()

    def utc_ns(self) -> int:
        """Return UTC as Unix ns."""
        return time.time_ns()

    def pair(self) -> ClockRecord:
        """Read both times at one moment: UTC between two monotonic readings, their middle taken."""
        before = time.monotonic_ns()
        utc_ns = time.time_ns()
        after = time.monotonic_ns()
        discipline = read_discipline()
        trusted = discipline.synchronised and discipline.max_error_ns <= TRUSTED_ERROR_NS
        return ClockRecord(
            at_ns=(before + after) // 2,
            utc_ns=utc_ns,
            offset_ns=discipline.offset_ns,
            source=discipline.source,
            stratum=0,  # the kernel does not know it; 0 is NTP's "unspecified" (RFC 5905)
            trust="trusted" if trusted else "degraded",
        )


def rfc3339(utc_ns: int) -> str:
    """Write Unix ns as RFC 3339 UTC with milliseconds, cut, not rounded: ``2026-01-02T03:04:05.678Z``."""
    seconds, rest = divmod(utc_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    return f"{moment.isoformat(timespec='seconds')}.{rest // 1_000_000:03d}Z"


def boot_id() -> str:
    """Return the id of this boot: monotonic times of different boots are not comparable."""
    path = Path("/proc/sys/kernel/random/boot_id")
    if path.exists():
        return path.read_text().strip()
    return f"{os.uname().nodename}-{time.time_ns() - time.monotonic_ns() >> 33}"
