"""What sender reports are good for: how one sender's pictures lie to his sound, and nothing else.

A report pairs media time with the sender's own wallclock. The difference, ``wallclock - media``, of two
tracks of one sender relates them. The wallclock itself is the customer's and proves nothing: see ``delay``
for time.
"""

from __future__ import annotations

from collections import deque
from statistics import median_low

from compositor.timeline.model import MS

_KEPT = 5
_STEP_NS = 100 * MS
"""A report further off than this from those before it: the sender's wallclock was set. All relations of the
sender are learned anew, and what was applied stays until then."""
TRUSTED_NS = 500 * MS
"""A relation that would move pictures by more than this is not believed."""


class ReportedOffset:
    """Difference of wallclock and media time of one track: median of the last five reports."""

    def __init__(self) -> None:
        self._offsets: deque[int] = deque(maxlen=_KEPT)
        self._last: tuple[int, int] | None = None

    def add(self, wallclock_ns: int, media_ns: int) -> bool:
        """Take a report; False if it contradicts those before it (then it is not taken)."""
        if self._last == (wallclock_ns, media_ns):
            return True  # the same report, recorded once for each track of the sender
        self._last = (wallclock_ns, media_ns)
        offset = wallclock_ns - media_ns
        if self._offsets and abs(offset - median_low(self._offsets)) > _STEP_NS:
            return False
        self._offsets.append(offset)
        return True

    def forget(self) -> None:
        """Begin anew."""
        self._offsets.clear()
        self._last = None

    def value(self) -> int | None:
        """Return the offset, None if nothing is known."""
        return median_low(self._offsets) if self._offsets else None


def relation(
    sound_delay_ns: int, sound_offset_ns: int, picture_delay_ns: int, picture_offset_ns: int
) -> int | None:
    """Return by how much pictures must move to lie on the sound (below 0: earlier); None if beyond belief.

    Both delays are "session minus media", both offsets "sender's wallclock minus media".
    """
    wanted = sound_delay_ns - sound_offset_ns + picture_offset_ns - picture_delay_ns
    return wanted if abs(wanted) <= TRUSTED_NS else None
