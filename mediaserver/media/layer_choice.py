"""Which simulcast layer to take: a pure decision from what is received and what the line bears.

Layers are numbered from the smallest, 0. A layer lives while pictures of it come; it is dead when its
siblings send and it does not, because a camera that delivers nothing silences all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MS = 1_000_000
SECOND_NS = 1_000 * MS

MAX_LAYERS = 3
"""Layers of a track that are taken; browsers send no more."""
LOOK_NS = 150 * MS
"""Between two looks at a simulcast publication's layers."""
SILENT_NS = 400 * MS
"""So long behind its siblings a layer is dead: two pictures at 5 a second. With ``LOOK_NS`` it is left within
0.55 s, so that the next keyframe of another one comes within 1 s."""
SETTLE_NS = 1 * SECOND_NS
"""A layer that is new or was dead must live so long before it is climbed to."""
CLIMB_NS = 2 * SECOND_NS
"""The line must have borne a higher layer so long before it is climbed to."""
HEADROOM = 1.15
"""A layer is climbed to when the line bears so many times its rate; it is left when the line bears less than
the rate itself. Between the two nothing changes."""
_RATE_NS = 1 * SECOND_NS
_SWAP_NS = 3 * SECOND_NS


@dataclass(frozen=True, slots=True)
class LayerState:
    """What is known of one layer now."""

    alive: bool
    alive_since_ns: int
    bps: int
    """Payload rate of the last second, bit/s; 0: not known yet."""


class LayerMeter:
    """Measures one layer from the payload octets its stream has had."""

    def __init__(self) -> None:
        self.bps = 0
        self.media_ns = 0
        """When it was last seen that pictures came; 0: never."""
        self.alive = False
        self.alive_since_ns = 0
        self._octets = 0
        self._from_octets = 0
        self._from_ns = 0

    def look(self, octets: int, now: int) -> None:
        """Take the stream's count of payload octets, padding not counted."""
        if octets > self._octets:
            self.media_ns = now
        self._octets = octets
        if not self._from_ns:
            self._from_ns, self._from_octets = now, octets
        elif now - self._from_ns >= _RATE_NS:
            self.bps = (octets - self._from_octets) * 8 * SECOND_NS // (now - self._from_ns)
            self._from_ns, self._from_octets = now, octets

    def state(self, newest_ns: int, now: int) -> LayerState:
        """Judge the layer; ``newest_ns`` is the latest ``media_ns`` of all its siblings."""
        alive = self.media_ns > 0 and newest_ns - self.media_ns <= SILENT_NS
        if alive and not self.alive:
            self.alive_since_ns = now
        self.alive = alive
        return LayerState(alive, self.alive_since_ns, self.bps)


class OrderWatch:
    """Finds out when layers were offered from the largest to the smallest, by what they weigh.

    Neither RFC 8853 nor browsers fix the order; Chromium keeps that of ``sendEncodings``.
    """

    def __init__(self) -> None:
        self._since_ns: int | None = None

    def reversed(self, states: Sequence[LayerState], now: int) -> bool:
        """Tell whether the first has for 3 s weighed more than the last: the caller turns the list round."""
        first, last = states[0], states[-1]
        heavy = len(states) > 1 and first.alive and last.alive and last.bps > 0
        if not heavy or first.bps * 2 < last.bps * 3:
            self._since_ns = None
            return False
        self._since_ns = now if self._since_ns is None else self._since_ns
        if now - self._since_ns < _SWAP_NS:
            return False
        self._since_ns = None
        return True


class LayerPolicy:
    """The choice for one subscription, or for the recordings of one track."""

    def __init__(self, preferred: int | None = None, maximum: int | None = None) -> None:
        """Numbers from 0, the smallest layer; None: the highest."""
        self.preferred = preferred
        self.maximum = maximum
        self.target_bps: int | None = None
        """What the line bears for this track, bit/s; None: anything."""
        self._fits: dict[int, int] = {}

    @property
    def limit(self) -> int:
        """Return the highest layer that is wished and allowed."""
        wishes = [wish for wish in (self.preferred, self.maximum) if wish is not None]
        return min(wishes, default=MAX_LAYERS - 1)

    def choose(self, layers: Sequence[LayerState], current: int | None, now: int) -> int | None:
        """Return the layer to take now, None if no layer lives and there is none to stay with.

        Down at once, when the line bears less than the present layer weighs, or it is dead, or no longer
        wished. Up only to a layer that has settled and that the line has borne for a while.
        """
        live = [number for number, layer in enumerate(layers) if layer.alive]
        if not live:
            return current
        limit = self.limit
        wished = [number for number in live if number <= limit]
        if wished and current == wished[-1] and self._bears(layers[current], 1.0):
            self._fits.clear()  # there is nothing to climb to
            return current
        self._note_fits(layers, now)
        if not wished:  # a picture too large is better than none
            return live[0]
        borne = [number for number in wished if self._bears(layers[number], 1.0)]
        best = borne[-1] if borne else wished[0]
        if current is None or current not in wished:
            return best
        if current not in borne:
            return best
        for number in reversed([n for n in wished if n > current]):
            since = self._fits.get(number)
            settled = now - layers[number].alive_since_ns >= SETTLE_NS
            if settled and since is not None and (self.target_bps is None or now - since >= CLIMB_NS):
                return number
        return current

    def _bears(self, layer: LayerState, times: float) -> bool:
        return self.target_bps is None or layer.bps * times <= self.target_bps

    def _note_fits(self, layers: Sequence[LayerState], now: int) -> None:
        for number, layer in enumerate(layers):
            if layer.alive and self._bears(layer, HEADROOM):
                self._fits.setdefault(number, now)
            else:
                self._fits.pop(number, None)
