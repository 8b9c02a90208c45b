"""When what is sent to a subscriber leaves: no faster than a pace, so that a large picture does not run over
a short buffer on the way.

A leaky bucket, as libwebrtc's pacing_controller.cc is one: what was sent is a debt that the pace pays off.
Nothing waits while ``QUANTUM_NS`` of it or less is owed: at 2.5 times the estimate most pictures are no
larger, so only keyframes and the like wait, and leave in runs that GSO keeps together. What waits leaves in
the order in which it came and within ``LONGEST_NS``: where the pace is too slow for that it is raised until
nothing waits any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from typing import Final, Generic, TypeVar

QUANTUM_NS: Final = 20_000_000
"""With 5 ms every picture is cut in two or three, which costs 20 to 50 timers a second instead of 3, and
saves no more keyframes but in the shortest buffers (docs/bandwidth.md)."""
LONGEST_NS: Final = 250_000_000
_BITS_NS: Final = 8_000_000_000

Item = TypeVar("Item")


class Pacer(Generic[Item]):
    """The pace of one subscriber, and what waits for it."""

    def __init__(self) -> None:
        self.bps = 0
        """0: nothing comes to wait."""
        self._rate = 0
        self._free_ns = 0
        """When the debt is paid."""
        self._waiting: deque[tuple[int, int, Item]] = deque()
        """Since when, bytes, what."""
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def set(self, bps: int, now: int) -> None:
        """Set the pace, bit/s."""
        self.bps = bps
        self._change(max(bps, self._bytes * _BITS_NS // LONGEST_NS), now)

    def _change(self, rate: int, now: int) -> None:
        if rate and self._free_ns > now:  # what is owed stays as many bytes
            self._free_ns = now + min((self._free_ns - now) * self._rate // rate, LONGEST_NS)
        self._rate = rate

    def spend(self, size: int, now: int) -> None:
        """Note that a datagram of ``size`` bytes leaves."""
        if self.bps:
            free_ns = max(self._free_ns, now) + size * _BITS_NS // self._rate
            self._free_ns = min(free_ns, now + LONGEST_NS)

    def waits(self, now: int) -> bool:
        """Tell whether the next packet that can wait must."""
        return bool(self._waiting) or (self.bps > 0 and self._free_ns > now + QUANTUM_NS)

    def add(self, item: Item, size: int, now: int) -> None:
        """Let a packet wait."""
        self._waiting.append((now, size, item))
        self._bytes += size
        self._change(max(self._rate, self._bytes * _BITS_NS // LONGEST_NS), now)

    def due_ns(self) -> float:
        """Return when the first packet, and what may leave with it, is to leave; infinity if none waits."""
        return min(self._free_ns, self._waiting[0][0] + LONGEST_NS) if self._waiting else inf

    def may_leave(self, now: int) -> bool:
        """Tell whether the first packet may leave, once some are due."""
        if not self._waiting:
            return False
        since_ns = self._waiting[0][0]
        return not self.bps or self._free_ns <= now + QUANTUM_NS or since_ns + LONGEST_NS <= now

    def take(self) -> tuple[int, int, Item]:
        """Take the first packet: since when it has waited, its bytes, and itself."""
        taken = self._waiting.popleft()
        self._bytes -= taken[1]
        if not self._waiting:
            self._rate = self.bps
        return taken

    def drop(self, which: Callable[[Item], bool]) -> Iterator[tuple[int, Item]]:
        """Take some packets out of the queue; their bytes and themselves."""
        for _ in range(len(self._waiting)):
            since_ns, size, item = self.take()
            if which(item):
                yield size, item
            else:
                self.add(item, size, since_ns)
