"""A capture time in the picture itself: 3 rows of 16 cells in the middle of the frame.

The code takes less than the central half of the width, so that a tile cropped from 16:9 to 8:9 still holds
it, and 16-pixel cells at 640x360, so that it survives VP8 at 300 kbit/s and scaling to a quarter. Layout,
row by row:

    1 0 | party, 4 bits | time in ms, 32 bits | CRC-8 of both | 0 1

The four fixed cells give the threshold; cells between watermark and shade are decided relative to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Luma = npt.NDArray[np.uint8]

COLUMNS, ROWS = 16, 3
LEFT, TOP, WIDTH, HEIGHT = 192 / 640, 208 / 360, 256 / 640, 48 / 360
"""Place of the code in the picture, as fractions; 256x48 pixels at (192, 208) of 640x360: each cell there is
one
macroblock, because an encoder in a hurry leaves out a block of which only a sliver changed."""
BLACK, WHITE = 16, 235
LEAST_CONTRAST = 60
"""Between the fixed white and black cells; the full range is 219. Less is not a code but a picture."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Who captured a picture and when."""

    party: int
    """0 … 15."""
    time_ms: int
    """0 … 2**32 - 1; what clock it is, the sender decides."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels, fractions allowed."""

    x: float
    y: float
    width: float
    height: float

    def placed(self, source_width: int, source_height: int, fit: str) -> Box:
        """Return where a whole source picture lies when it is fitted (``contain`` or ``crop``) into this
        box.
        """
        choose = {"contain": min, "crop": max}[fit]
        scale = choose(self.width / source_width, self.height / source_height)
        width, height = source_width * scale, source_height * scale
        return Box(self.x + (self.width - width) / 2, self.y + (self.height - height) / 2, width, height)


def crc8(value: int, bits: int) -> int:
    """Return the CRC-8 (polynomial 0x07, start 0xFF) of the lowest ``bits`` bits of ``value``."""
    crc = 0xFF
    for index in range(bits - 1, -1, -1):
        bit = (value >> index) & 1
        crc = ((crc << 1) ^ (0x07 if ((crc >> 7) ^ bit) & 1 else 0)) & 0xFF
    return crc


def cells(stamp: Stamp) -> npt.NDArray[np.bool_]:
    """Return the code of a stamp, ``(ROWS, COLUMNS)``, True is white."""
    if not (0 <= stamp.party < 16 and 0 <= stamp.time_ms < 2**32):
        raise ValueError(f"not a stamp: {stamp}")
    payload = stamp.party << 32 | stamp.time_ms
    word = (0b10 << 46) | (payload << 10) | (crc8(payload, 36) << 2) | 0b01
    bits = [(word >> index) & 1 for index in range(COLUMNS * ROWS - 1, -1, -1)]
    return np.array(bits, dtype=np.bool_).reshape(ROWS, COLUMNS)


def paint(luma: Luma, stamp: Stamp) -> None:
    """Draw the code into a luma plane ``(H, W)``, limited range, in place."""
    height, width = luma.shape
    x, y = round(LEFT * width), round(TOP * height)
    cell_x, cell_y = round(WIDTH * width / COLUMNS), round(HEIGHT * height / ROWS)
    code = np.where(cells(stamp), np.uint8(WHITE), np.uint8(BLACK))
    luma[y : y + cell_y * ROWS, x : x + cell_x * COLUMNS] = code.repeat(cell_y, 0).repeat(cell_x, 1)


def read(luma: Luma, box: Box | None = None) -> Stamp | None:
    """Read the code of the picture that fills ``box`` (default: the whole plane), or None where there is
    none.

    ``luma`` is ``(H, W)``. The middle third of each cell is averaged: codec ringing and scaling stay outside
    it.
    """
    height, width = luma.shape
    box = box or Box(0, 0, width, height)
    step_x, step_y = box.width * WIDTH / COLUMNS, box.height * HEIGHT / ROWS
    left, top = box.x + LEFT * box.width, box.y + TOP * box.height
    if left < 0 or top < 0 or left + step_x * COLUMNS > width or top + step_y * ROWS > height:
        return None
    half_x, half_y = max(step_x / 6, 0.5), max(step_y / 6, 0.5)
    means = np.empty((ROWS, COLUMNS))
    for row in range(ROWS):
        y = top + (row + 0.5) * step_y
        y0, y1 = round(y - half_y), max(round(y + half_y), round(y - half_y) + 1)
        band = luma[y0:y1].mean(axis=0)
        for column in range(COLUMNS):
            x = left + (column + 0.5) * step_x
            x0, x1 = round(x - half_x), max(round(x + half_x), round(x - half_x) + 1)
            means[row, column] = band[x0:x1].mean()
    values = means.ravel()
    white, black = min(values[0], values[-1]), max(values[1], values[-2])
    if white - black < LEAST_CONTRAST:
        return None
    # The mean of both white (black) cells, because a translucent watermark may lie over one of them.
    threshold = (values[0] + values[-1] + values[1] + values[-2]) / 4
    word = 0
    for bit in values > threshold:
        word = word << 1 | int(bit)
    payload = (word >> 10) & (2**36 - 1)
    if word >> 46 != 0b10 or word & 0b11 != 0b01 or (word >> 2) & 0xFF != crc8(payload, 36):
        return None
    return Stamp(payload >> 32, payload & 0xFFFFFFFF)
