"""Share what a subscriber's line bears among the pictures on it; pure, from what is known of their layers.

Sound and pictures that have one size only take what they take. What is left goes to the others: first every
one its smallest layer, then all climb together, step by step, the first of them first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mediaserver.media.layer_choice import HEADROOM, LayerState

SOUND_BPS: Final = 60_000
"""Taken for each track of sound: Opus at 40 kbit/s with its headers, 50 packets a second."""
COPIES_BPS: Final = 40_000
"""Taken for the copies in it where each packet repeats the frame before (RFC 2198)."""
PAYLOAD: Final = 0.94
"""Share of what is sent that is payload: headers, authentication tags, some packets again."""
SLACK: Final = 1.1
"""A layer that is sent may weigh so much more than in the last second before it is left."""
_ROOM: Final = 1.1
"""More than all wished layers need is asked for, so that the line is found to bear them with headroom."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture that is sent to the subscriber."""

    layers: Sequence[LayerState]
    current: int | None
    """The layer that is sent, from 0; None: none yet."""
    limit: int
    """The highest layer that is wished."""

    def wished(self) -> list[int]:
        """Return the layers that may be chosen; one too large is better than none."""
        live = [number for number, layer in enumerate(self.layers) if layer.alive]
        return [number for number in live if number <= self.limit] or live[:1]

    def steps(self) -> list[tuple[int, float]]:
        """Return what may be chosen, from the smallest: the share it needs, and the share to give it."""
        found = []
        for number in self.wished():
            bps = self.layers[number].bps
            sent = self.current is not None and number <= self.current
            found.append((bps, bps * SLACK) if sent else (int(bps * HEADROOM), bps * HEADROOM))
        return found


def share(target_bps: int, taken_bps: int, pictures: Sequence[Picture]) -> list[int]:
    """Return what each picture may have, payload bit/s, of ``target_bps`` less ``taken_bps``; earlier ones go
    first. What nobody needs is divided equally: it is the room to climb into."""
    left = (target_bps - taken_bps) * PAYLOAD
    ladders = [picture.steps() for picture in pictures]
    shares = [0.0] * len(pictures)
    reached = [-1] * len(pictures)
    for step in range(max(map(len, ladders), default=0)):
        for at, ladder in enumerate(ladders):
            if reached[at] != step - 1 or step >= len(ladder):
                continue
            needed, given = ladder[step]
            if step and needed - shares[at] > left:
                continue
            left -= given - shares[at]
            shares[at], reached[at] = given, step
    spare = max(left, 0.0) / max(len(pictures), 1)
    return [int(one + spare) for one in shares]


def wanted(taken_bps: int, pictures: Sequence[Picture]) -> int:
    """Return what would be sent if everything that is wished for fitted, with room to climb, bit/s."""
    tops = sum(max((picture.layers[n].bps for n in picture.wished()), default=0) for picture in pictures)
    return int((taken_bps + tops * HEADROOM / PAYLOAD) * _ROOM)
