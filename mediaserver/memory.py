"""Tell the garbage collector what a server process is like: much that stays, little that circles."""

from __future__ import annotations

import asyncio
import gc

THRESHOLD = 20_000
"""New containers before the youngest are looked through (with Python's own 700: several times a join)."""


TIDY_S = 60.0
"""With 60 rooms a collection takes some 20 ms, in which no packet waits: the packet loop needs no Python."""


def settle_memory() -> None:
    """Once all is loaded, keep it out of every later collection, and collect less often.

    What is loaded (200,000 objects) lives as long as the process; without this a tenth of the CPU time of a
    worker goes into looking through it. What circles among the rest is collected by ``keep_tidy``.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(THRESHOLD, 10, 10)


async def keep_tidy() -> None:
    """Collect what circles, a session and its link, each minute; go on until cancelled.

    By the thresholds alone it would lie for hours between living objects, and memory would creep.
    """
    while True:
        await asyncio.sleep(TIDY_S)
        gc.collect()
