"""Which composites may follow their calls: as many as the cores bear, by what composing was measured to cost.

A composite that follows its call must keep up with it. One too many and all fall behind; so a recording
whose composite would not fit is composed after its end. What a second of a composite costs is learned from
those that were made, and until then taken from docs/composing.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from recorder.template import Template

BASE_PIXELS_PER_S = 1280 * 720 * 25
BASE_CORES = 0.25
"""Of a composite of 1280 x 720 at 25 pictures a second, before any was measured here."""
SOUND_CORES = 0.03
WEIGHT = 0.2
"""Of each new measurement in what is expected."""


@dataclass
class Admission:
    """Counts the cores that live composites take."""

    cores: float
    """That may be taken."""
    factor: float = 1.0
    """What composites really cost, over what was expected of them."""
    taken: float = 0.0

    def expected(self, template: Template) -> float:
        """Return the cores a live composite of this template takes."""
        pixels_per_s = template.width * template.height * template.frame_rate if template.video else 0
        return self.factor * (SOUND_CORES + (BASE_CORES - SOUND_CORES) * pixels_per_s / BASE_PIXELS_PER_S)

    def admit(self, template: Template) -> float | None:
        """Take the cores of one more live composite; None if there are too few. The first always fits."""
        share = self.expected(template)
        if self.taken > 0 and self.taken + share > self.cores:
            return None
        self.taken += share
        return share

    def release(self, share: float) -> None:
        """Give back what ``admit`` took."""
        self.taken = max(0.0, self.taken - share)

    def learn(self, template: Template, cpu_s: float, duration_s: float) -> None:
        """Note what a composite has cost; short ones say little, the start weighs too much in them."""
        if cpu_s > 0 and duration_s >= 10:
            seen = cpu_s / duration_s / self.expected(template) * self.factor
            self.factor += WEIGHT * (max(0.2, min(5.0, seen)) - self.factor)
