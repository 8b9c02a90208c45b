"""Room on the disk: each level is told once, and not again for a little more or less."""

from __future__ import annotations

from typing import Any

import pytest

from mediaserver.disk_watch import DiskWatch, Level, level_of
from mediaserver.metrics import Metrics
from mediaserver.settings import Recording

LIMITS = Recording(min_free_bytes=100, low_free_bytes=1000)


class Told:
    """An event log that keeps what it was told, or refuses as a full disk does."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, bool]] = []
        self.full = False

    async def append(self, kind: str, *, tenant: str, data: dict[str, Any]) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.events.append((kind, tenant, data["refuses_new"]))


@pytest.mark.parametrize(
    ("free", "before", "found"),
    [
        (1000, Level.OK, Level.OK),
        (999, Level.OK, Level.LOW),
        (1249, Level.LOW, Level.LOW),
        (1250, Level.LOW, Level.OK),
        (99, Level.OK, Level.FULL),
        (124, Level.FULL, Level.FULL),
        (125, Level.FULL, Level.LOW),
        (1249, Level.FULL, Level.LOW),
        (5000, Level.FULL, Level.OK),
    ],
)
def test_levels(free: int, before: Level, found: Level) -> None:
    assert level_of(free, before, low=1000, least=100) == found


def test_a_low_mark_below_the_least_counts_as_the_least() -> None:
    assert level_of(99, Level.OK, low=0, least=100) == Level.FULL
    assert level_of(101, Level.OK, low=0, least=100) == Level.OK


async def test_each_level_is_told_once_to_every_tenant() -> None:
    told, metrics = Told(), Metrics()
    watch = DiskWatch(LIMITS, ["b", "a", "b"], told, metrics)  # type: ignore[arg-type]
    for free in (5000, 900, 1100, 900, 50, 110, 50, 2000, 2000):
        await watch.look(free)
    assert told.events == [
        (kind, tenant, kind == "disk.full")
        for kind in ("disk.low", "disk.full", "disk.restored")
        for tenant in ("a", "b")
    ]
    assert b"shuanglu_disk_level 0.0" in metrics.text()


async def test_what_the_disk_does_not_take_is_told_later() -> None:
    told, metrics = Told(), Metrics()
    watch = DiskWatch(LIMITS, ["a"], told, metrics)  # type: ignore[arg-type]
    told.full = True
    with pytest.raises(OSError, match="No space"):
        await watch.look(10)
    assert b"shuanglu_disk_level 2.0" in metrics.text()
    told.full = False
    await watch.look(5000)
    assert told.events == [("disk.full", "a", True), ("disk.restored", "a", False)]
