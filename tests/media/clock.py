"""Read the burnt-in clock back from a composite's pixels, digit by digit.

What a digit looks like comes from the compositor's own glyphs; where the clock is and what it says is found
in the picture alone. Every cell is compared with all ten digits (normalised cross-correlation), so a wrong
clock reads as what it shows, not as what was expected.
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta, timezone

import cv2
import numpy as np
import numpy.typing as npt

from compositor.text import GlyphRow, Style
from tests.media.barcode import Luma

Floats = npt.NDArray[np.float32]

LEAST_LIKENESS = 0.55
"""Of a digit's cell to its glyph; a right one has 0.8 and more at crf 26."""
SHAPE = "dddd-dd-dd dd:dd:dd.ddd"
"""The default format ``%Y-%m-%d %H:%M:%S.%L``; d is a digit."""


GROUND = 90
"""Luma under the glyphs the cells are compared with; the comparison itself ignores brightness."""


class ClockError(AssertionError):
    """There is no clock in the picture, or it cannot be read."""


class ClockReader:
    """Reads clocks of one size and zone; finds the place once and then stays with it."""

    def __init__(self, size_px: int = 25, *, zone_hours: int = 8, shade: float = 0.45) -> None:
        self._row = GlyphRow(Style(size_px, shade=shade))
        self._zone = timezone(timedelta(hours=zone_hours))
        self._at: tuple[int, int] | None = None
        two = self._width("00")
        edges = [0, two // 2]
        for character in SHAPE[1:].replace("d", "0"):
            edges.append(edges[-1] + self._width(f"0{character}0") - two)
        self._cells = list(itertools.pairwise(edges))
        drawn = [self._draw(SHAPE.replace("d", str(digit)) + " ") for digit in range(10)]
        # (cell, digit, pixels), each normalised to zero mean and length 1, so that a product is the likeness.
        self._digits = [
            np.stack([_normal(picture[:, left:right]) for picture in drawn]) for left, right in self._cells
        ]

    def find(self, luma: Luma, about: datetime, *, region: tuple[int, int] = (400, 80)) -> tuple[int, int]:
        """Find the clock's top left corner in the picture's ``region`` (width, height) by its date.

        Raises ClockError when nothing there looks like the date of ``about``.
        """
        day = about.astimezone(self._zone).strftime("%Y-%m-%d ")
        wide, high = region
        field = np.ascontiguousarray(luma[:high, :wide]).astype(np.float32)
        pattern = self._draw(day + "0")[:, : self._cells[len(day)][0]]
        found = cv2.matchTemplate(field, pattern, cv2.TM_CCOEFF_NORMED)
        _, likeness, _, (x, y) = cv2.minMaxLoc(found)
        if likeness < LEAST_LIKENESS:
            raise ClockError(f"no clock with the date {day}: best likeness {likeness:.2f} at {x}, {y}")
        self._at = (int(x), int(y))
        return self._at

    def read(self, luma: Luma) -> datetime:
        """Return the time the clock shows, UTC. Raises ClockError; ``find`` must have been called."""
        text, worst = self.text(luma)
        if worst < LEAST_LIKENESS:
            raise ClockError(f"a digit of {text} is like its glyph by {worst:.2f} only")
        try:
            local = datetime.strptime(text + "000", "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=self._zone)
        except ValueError as error:
            raise ClockError(f"the clock shows {text}") from error
        return local.astimezone(UTC)

    def read_ms(self, luma: Luma) -> int:
        """Return what the clock shows as ms of UTC since 1970."""
        return round(self.read(luma).timestamp() * 1000)

    def text(self, luma: Luma) -> tuple[str, float]:
        """Return the clock's text as read, and the likeness of the least certain digit."""
        if self._at is None:
            raise ClockError("call find first")
        x, y = self._at
        band = luma[y : y + self._row.height].astype(np.float32)
        read, worst = [], 1.0
        for kind, (left, right), digits in zip(SHAPE, self._cells, self._digits, strict=True):
            if kind != "d":
                read.append(kind)
                continue
            likeness = digits @ _normal(band[:, x + left : x + right])
            best = int(likeness.argmax())
            worst = min(worst, float(likeness[best]))
            read.append(str(best))
        return "".join(read), worst

    def _width(self, text: str) -> int:
        return self._row.stamp(text).width

    def _draw(self, text: str) -> Floats:
        stamp = self._row.stamp(text)
        drawn = (stamp.y + stamp.keep * np.float32(GROUND)) / np.float32(255)
        return np.asarray(drawn, np.float32)


def _normal(pixels: Floats) -> Floats:
    """Flatten to zero mean and length 1; a flat cell becomes zeros."""
    flat = pixels.ravel() - pixels.mean()
    length = max(float(np.sqrt((flat * flat).sum())), 1e-3)
    return np.asarray(flat / np.float32(length), np.float32)
