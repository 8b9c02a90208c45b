"""From media time to the session's time: the minimum-delay filter.

A packet's delay is its arrival minus its media time. The network only ever adds to it, so the least delay of
the last seconds is the best guess of the sender's clock against ours; it follows drift by itself. ``Mapping``
goes after that guess smoothly::

    arrival - media
       |   x        x
       |     x   x      x  x        x: packets
       |  x    x    x  ____x_____   _: least delay of the window
       |__x_________x_/
       +------------------------ arrival

Downwards (earlier) at most 0.5 % in running speech, upwards at most 0.1 %: more than any clock drifts, and a
queue that builds up somewhere for some seconds must not move the time. Only what cannot be the network jumps.
"""

from __future__ import annotations

from collections import deque

from compositor.timeline.model import LATE_NS, MS, SECOND

WINDOW_NS = 10 * SECOND
JUMP_NS = 250 * MS
"""A change of the least delay by more than this is the sender's doing: media time itself has jumped."""
SOUND, PICTURES, UP = 0.005, 0.02, 0.001
"""Corrections per media time: all together of sound and of pictures, and of the least delay upwards."""


class Delays:
    """The least delay over a sliding window, in amortised constant time."""

    def __init__(self) -> None:
        self._least: deque[tuple[int, int]] = deque()  # (arrival, delay), delays increasing

    def add(self, arrival_ns: int, delay_ns: int) -> None:
        """Take one packet; arrivals never decrease."""
        least = self._least
        while least and least[-1][1] >= delay_ns:
            least.pop()
        least.append((arrival_ns, delay_ns))
        while least[0][0] < arrival_ns - WINDOW_NS:
            least.popleft()

    def forget_before(self, arrival_ns: int) -> None:
        """Forget packets that arrived before, unless none would remain."""
        while len(self._least) > 1 and self._least[0][0] < arrival_ns:
            self._least.popleft()

    def least(self) -> int | None:
        """Return the least delay of the window, None before the first packet."""
        return self._least[0][1] if self._least else None

    def least_since(self, arrival_ns: int) -> int | None:
        """Return the least delay of packets that arrived then or later."""
        for arrival, delay in self._least:
            if arrival >= arrival_ns:
                return delay
        return None


class Mapping:
    """Delay applied to one run of media time (an epoch): between jumps of a sender's timestamps."""

    def __init__(self, *, sound: bool, relation_ns: int | None = None) -> None:
        """``relation_ns``: what was applied in the run before."""
        self.delays = Delays()
        self.delay_ns: int | None = None
        """Smoothed least delay: of the track alone, without ``relation_ns``."""
        self.relation_ns = relation_ns
        """What is added (at most 0: earlier) to lay one sender's pictures and sound on each other; None until
        it was ever known."""
        self._sound = sound
        self._last_media_ns = 0
        self._last_arrival_ns = 0

    def estimate(self, media_ns: int, arrival_ns: int, relation_ns: int | None = None) -> int:
        """Return about where a packet just arrived will be placed."""
        delay = self.delay_ns if self.delay_ns is not None else self.delays.least()
        at_ns = media_ns + (delay or 0) + (self.relation_ns or relation_ns or 0)
        return max(arrival_ns - LATE_NS, min(arrival_ns, at_ns))

    def is_jump(self, delay_ns: int) -> bool:
        """Tell whether a packet's delay is too low for the network: its media time has jumped ahead."""
        least = self.delays.least()
        if least is None:
            return False
        return delay_ns < least - (JUMP_NS if self.delay_ns is not None else 4 * JUMP_NS)

    def place(self, media_ns: int, arrival_ns: int, pause_ns: int, relation_ns: int | None) -> int:
        """Return where a frame belongs, all that came until its deciding in view, and move on.

        ``pause_ns``: silence before it, which may shrink at once. ``relation_ns``: see ``relation_ns``; None
        keeps what there is.
        """
        least = self.delays.least()
        assert least is not None
        if self.delay_ns is None:
            self.delay_ns = least
            if self.relation_ns is None:
                self.relation_ns = relation_ns
        else:
            elapsed = max(0, media_ns - self._last_media_ns)
            budget = int(elapsed * (SOUND if self._sound else PICTURES)) + pause_ns
            budget -= self._follow(least, media_ns, arrival_ns, elapsed, budget)
            if relation_ns is not None:
                now = self.relation_ns or 0
                self.relation_ns = now + max(-budget, min(budget, relation_ns - now))
        self._last_media_ns = media_ns
        self._last_arrival_ns = arrival_ns
        at_ns = media_ns + self.delay_ns + (self.relation_ns or 0)
        return max(arrival_ns - LATE_NS, min(arrival_ns, at_ns))

    def _follow(self, least: int, media_ns: int, arrival_ns: int, elapsed: int, budget: int) -> int:
        """Move the delay towards the least one; return how much of the budget that took."""
        assert self.delay_ns is not None
        since = self.delays.least_since(arrival_ns)
        stalled = arrival_ns - self._last_arrival_ns >= JUMP_NS
        late = arrival_ns - media_ns - self.delay_ns > LATE_NS
        if since is not None and since - self.delay_ns >= JUMP_NS and (stalled or late):
            # The pause was longer on our clock than in media time, and everything after it stays late: the
            # sender's timestamps stood still, or fell back.
            self.delay_ns = since
            self.delays.forget_before(arrival_ns)
            return 0
        step = max(-budget, min(int(elapsed * UP), least - self.delay_ns))
        self.delay_ns += step
        return max(0, -step)
