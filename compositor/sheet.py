"""What a composite looks like at a glance: a contact sheet of moments evenly spaced, and a thumbnail.

While a call runs nobody knows how long it will be. So a moment is kept each second, and when there are too
many every other one is let go and the distance doubled: the same moments are kept whether a recording is
composed live or later.
"""

from __future__ import annotations

import cv2
import numpy as np

from compositor.canvas import Bytes, Planes, blend, new_planes, scale_into
from compositor.text import Style, text_stamp

COLUMNS = 4
MOST = 24
WIDTH = 480
QUALITY = 82
GAP = 6


class Sheet:
    """Keeps moments; at most ``MOST``, at least half as many of a recording that is long enough."""

    def __init__(self, width: int, height: int, fps: int) -> None:
        self._fps = fps
        self._size = (WIDTH, 2 * round(WIDTH * height / width / 2))
        self._moments: list[tuple[int, Planes]] = []
        self._distance = 1
        """Seconds between two moments."""
        self._next = 0

    def offer(self, planes: Planes, number: int) -> None:
        """Show the frame of this number on the grid; it is copied if it is one to keep."""
        if number < self._next:
            return
        kept = new_planes(*self._size)
        scale_into(kept, planes)
        self._moments.append((number, kept))
        if len(self._moments) > MOST:
            self._distance *= 2
            self._moments = self._moments[::2]
        self._next = self._moments[-1][0] // self._fps // self._distance * self._distance + self._distance
        self._next *= self._fps

    def thumbnail(self) -> bytes | None:
        """Return a JPEG of the middle moment, 480 wide; None if there was no frame."""
        if not self._moments:
            return None
        return _jpeg(_rgb(self._moments[len(self._moments) // 2][1]))

    def render(self) -> bytes | None:
        """Return the contact sheet as a JPEG, each moment with its time from the start; None without one."""
        if not self._moments:
            return None
        width, height = self._size
        rows = -(-len(self._moments) // COLUMNS)
        columns = min(COLUMNS, len(self._moments))
        sheet = np.full(
            (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), (32, 24, 16), np.uint8
        )
        for index, (number, planes) in enumerate(self._moments):
            row, column = divmod(index, COLUMNS)
            top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
            shown = new_planes(width, height)
            shown.copy_from(planes)
            minutes, seconds = divmod(number // self._fps, 60)
            label = text_stamp(f"{minutes:02d}:{seconds:02d}", Style(22, shade=0.6))
            blend(shown, label, width - label.width - 4, 4)
            sheet[top : top + height, left : left + width] = _rgb(shown)
        return _jpeg(sheet)


def _rgb(planes: Planes) -> Bytes:
    """Convert to (H, W, 3) in OpenCV's order, blue first (BT.601, limited range)."""
    packed = np.concatenate([planes.y.ravel(), planes.u.ravel(), planes.v.ravel()])
    picture = packed.reshape(planes.height * 3 // 2, planes.width)
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_YUV2BGR_I420), np.uint8)


def _jpeg(picture: Bytes) -> bytes:
    made, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not made:
        raise ValueError("OpenCV could not encode a JPEG")
    return data.tobytes()
