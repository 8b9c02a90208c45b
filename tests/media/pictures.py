"""Pictures of a party: its colour, something that moves, its bar code, and a flash every second."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from tests.media.barcode import WHITE, Luma, Stamp, paint

Planes = npt.NDArray[np.uint8]
"""I420 as one array ``(H * 3 // 2, W)`` uint8, limited range; what ``av.VideoFrame.from_ndarray`` takes."""

WIDTH, HEIGHT, FPS = 640, 360, 15
FLASH_MS = 100
"""A flash lasts as long as this from the whole second; at least one frame at 10 fps and more."""
FLASH = (0.30, 0.10, 0.40, 0.20)
"""Place of the flash in the picture (x, y, width, height as fractions): inside what a cropped tile keeps."""
FLASH_DARK, FLASH_BRIGHT = 30, WHITE


@dataclass(frozen=True, slots=True)
class Party:
    """One who takes part, as the tests recognise it by eye and by machine."""

    number: int
    identity: str
    role: str
    colour: tuple[int, int]
    """(U, V) of the background."""
    tone_hz: float
    """Pitch of the beep at each whole second."""
    voice: str
    """Voice of espeak-ng."""
    words: tuple[str, ...]
    """Spoken one at a time, at the times ``sounds.word_times`` gives."""


AGENT = Party(
    1, "agent-01", "agent", (170, 90), 1000.0, "en-us", ("agent", "product", "contract", "question")
)
CUSTOMER = Party(2, "customer-01", "customer", (80, 150), 1700.0, "cmn", ("同意", "风险", "明白", "清楚"))
EXPERT = Party(3, "expert-01", "expert", (120, 200), 2500.0, "en-us", ("expert", "advice", "table", "number"))


@lru_cache(maxsize=16)
def _backdrop(party: Party, width: int, height: int) -> Planes:
    picture = np.empty((height * 3 // 2, width), np.uint8)
    # A slope across the picture: a flat one hides blocking and half-updated frames.
    picture[:height] = np.linspace(70, 150, width).astype(np.uint8)
    cv2.putText(
        picture[:height],
        party.identity,
        (round(width * 0.27), round(height * 0.5)),
        cv2.FONT_HERSHEY_SIMPLEX,
        width / 500,
        (220,),
        2,
        cv2.LINE_AA,
    )
    # Planar chroma of one colour: both planes lie one after the other behind the luma.
    chroma = picture[height:].reshape(2, -1)
    chroma[0], chroma[1] = party.colour
    return picture


def picture(
    party: Party, time_ms: int, width: int = WIDTH, height: int = HEIGHT, *, stamp_ms: int | None = None
) -> Planes:
    """Paint the picture of ``party`` captured at ``time_ms`` (``stamp_ms``: what the code says instead)."""
    planes = _backdrop(party, width, height).copy()
    luma: Luma = planes[:height]
    x0 = round(width * 0.27 + (time_ms % 2000) / 2000 * width * 0.40)
    y0 = round(height * 0.86)
    luma[y0 : y0 + height // 12, x0 : x0 + width // 16] = 200
    left, top, wide, high = FLASH
    box = np.s_[
        round(top * height) : round((top + high) * height), round(left * width) : round((left + wide) * width)
    ]
    luma[box] = FLASH_BRIGHT if time_ms % 1000 < FLASH_MS else FLASH_DARK
    paint(luma, Stamp(party.number, (time_ms if stamp_ms is None else stamp_ms) % 2**32))
    return planes


def flash_level(luma: Luma, box: tuple[float, float, float, float]) -> float:
    """Return how bright the flash field of the picture in ``box`` (x, y, width, height in pixels) is, 0 …
    1.
    """
    x, y, wide, high = box
    left, top, part_x, part_y = FLASH
    x0, x1 = round(x + (left + 0.1) * wide), round(x + (left + part_x - 0.1) * wide)
    y0, y1 = round(y + (top + 0.06) * high), round(y + (top + part_y - 0.06) * high)
    return float((luma[y0:y1, x0:x1].mean() - FLASH_DARK) / (FLASH_BRIGHT - FLASH_DARK))
