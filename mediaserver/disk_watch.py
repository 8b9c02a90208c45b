"""Room on the disk: told before it runs out, and when new recordings are refused; told once for each.

The levels are ``ok``, ``low`` (below ``recording.low_free_bytes``) and ``full`` (below
``recording.min_free_bytes``: no recording starts, running ones go on). A level is left upwards only with a
quarter more room than it begins with, so that a disk at the mark does not alarm every second.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mediaserver.events import EventLog
    from mediaserver.metrics import Metrics
    from mediaserver.settings import Recording

_log = logging.getLogger(__name__)
MORE = 1.25
"""Times the mark below which a level begins: with that much free it ends."""


class Level(IntEnum):
    """How much room there is; the number is the metric's."""

    OK = 0
    LOW = 1
    FULL = 2


EVENTS = {Level.OK: "disk.restored", Level.LOW: "disk.low", Level.FULL: "disk.full"}


def level_of(free_bytes: int, before: Level, *, low: int, least: int) -> Level:
    """Return the level for so many free bytes, given the level before. ``low`` is ``least`` at least."""
    marks = {Level.FULL: least, Level.LOW: max(low, least)}
    for level, mark in marks.items():
        if free_bytes < mark * (MORE if before >= level else 1.0):
            return level
    return Level.OK


class DiskWatch:
    """Looks at the free space now and then and tells every tenant when the level changes."""

    def __init__(self, limits: Recording, tenants: Iterable[str], events: EventLog, metrics: Metrics) -> None:
        self._limits, self._events, self._metrics = limits, events, metrics
        self._tenants = sorted(set(tenants))
        self.level = Level.OK
        self._untold: list[tuple[str, str, dict[str, Any]]] = []

    async def look(self, free_bytes: int) -> None:
        """Take the free space in. An event that the full disk does not take is tried at the next look."""
        limits = self._limits
        found = level_of(free_bytes, self.level, low=limits.low_free_bytes, least=limits.min_free_bytes)
        self._metrics.disk_level.set(int(found))
        if found != self.level:
            kind = EVENTS[found]
            if found > self.level:
                _log.error("%s: %d MiB of disk space are free", kind, free_bytes >> 20)
            data = {"free_bytes": free_bytes, "refuses_new": found == Level.FULL}
            self._untold += [(kind, tenant, data) for tenant in self._tenants]
            self.level = found
        while self._untold:
            kind, tenant, data = self._untold[0]
            await self._events.append(kind, tenant=tenant, data=data)
            del self._untold[0]
