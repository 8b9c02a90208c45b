"""The layers of one scalable stream (SVC): VP9 or AV1 in spatial and temporal layers under one SSRC.

Its spatial layers are chosen from like simulcast layers, numbered from the smallest. They differ in this: to
show one all below it must be there, so a layer's rate is that of all up to it; going down needs no keyframe;
and one that the sender leaves out for a while is missed by nobody, who has it chosen sees the one below.
"""

from __future__ import annotations

from collections.abc import Sequence

from mediaserver.media.layer_choice import MAX_LAYERS, LayerMeter, LayerState


class ScalableLayers:
    """What is known of the layers of one stream."""

    def __init__(self) -> None:
        self._meters: list[LayerMeter] = []
        self._since_ns: list[int] = []
        self._temporal: list[LayerMeter] = []
        self.states: list[LayerState] = []
        """Of the spatial layers that were ever seen, with rates of all up to each."""
        self.alive: list[bool] = []

    @property
    def found(self) -> bool:
        """Tell whether there is more than one layer, spatial or temporal."""
        return len(self._meters) > 1 or len(self._temporal) > 1

    @property
    def top(self) -> int:
        """Return the highest spatial layer that the sender sends now."""
        return max((number for number, alive in enumerate(self.alive) if alive), default=0)

    @property
    def temporal(self) -> int:
        """Return how many temporal layers were ever seen."""
        return len(self._temporal)

    def look(self, octets: Sequence[Sequence[int]], now: int) -> bool:
        """Take the stream's counts (``Forwarder.layer_bytes``); tell whether spatial layers came or went."""
        before = self.alive
        spatial = [sum(row) for row in octets[:MAX_LAYERS]]
        for number, count in enumerate(spatial):
            if count and number >= len(self._meters):
                self._meters += [LayerMeter() for _ in range(number + 1 - len(self._meters))]
                self._since_ns += [now] * (number + 1 - len(self._since_ns))
        for meter, count in zip(self._meters, spatial, strict=False):
            meter.look(count, now)
        self._look_temporal(octets[0], now)
        newest = max((meter.media_ns for meter in self._meters), default=0)
        self.alive = [meter.state(newest, now).alive for meter in self._meters]
        total = 0
        self.states = []
        for meter, since, alive in zip(self._meters, self._since_ns, self.alive, strict=True):
            total += meter.bps if alive else 0
            self.states.append(LayerState(alive=True, alive_since_ns=since, bps=total))
        return len(self.alive) > 1 and bool(before) and before != self.alive

    def _look_temporal(self, smallest: Sequence[int], now: int) -> None:
        for number, count in enumerate(smallest):
            if count and number >= len(self._temporal):
                self._temporal += [LayerMeter() for _ in range(number + 1 - len(self._temporal))]
        for meter, count in zip(self._temporal, smallest, strict=False):
            meter.look(count, now)

    def temporal_for(self, target_bps: int | None, wish: int | None) -> int | None:
        """Return the highest temporal layer of the smallest picture that the line bears, not above the wish;
        None: all."""
        if target_bps is None or not self.states or self.states[0].bps <= target_bps:
            return wish
        total, borne = 0, 0
        for number, meter in enumerate(self._temporal):
            total += meter.bps
            if total <= target_bps:
                borne = number
        return borne if wish is None else min(borne, wish)
