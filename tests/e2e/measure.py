"""What a composite is measured by: the delay of every tile in every frame, and who is where."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tests.media.barcode import Box, read
from tests.media.clock import ClockReader
from tests.media.film import Film
from tests.media.pictures import FPS, HEIGHT, WIDTH, Party

FRAME_MS = 1000 / FPS


@dataclass(slots=True)
class Shown:
    """One frame of the composite: what its clock says and what each tile shows."""

    at_s: float
    clock_ms: int
    """UTC as burnt in."""
    codes: dict[str, tuple[int, int] | None]
    """Tile → (party, capture time in ms), None where there is no code."""


@dataclass(frozen=True, slots=True)
class Delay:
    """How late a tile shows its party's pictures, over some frames of the composite."""

    frames: int
    """With a picture of the party."""
    median_ms: float
    """Of clock - capture time."""
    early_ms: float
    """By how much the most hurried frame was ahead of the median delay."""
    stale_ms: float
    """For how long, after the median delay, a picture still stood though a newer one had been sent; the
    worst.
    """


def look(
    film: Film, about: datetime, tiles: Mapping[str, Box], fits: Mapping[str, str] | None = None
) -> list[Shown]:
    """Read clock and codes of every frame. ``tiles``: name → place in the canvas; ``fits``: contain by
    default.
    """
    reader = ClockReader()
    frames: list[Shown] = []
    boxes = {
        name: box.placed(WIDTH, HEIGHT, (fits or {}).get(name, "contain")) for name, box in tiles.items()
    }
    for at_s, luma in film.pictures():
        if not frames:
            reader.find(luma, about)
        codes: dict[str, tuple[int, int] | None] = {}
        for name, box in boxes.items():
            stamp = read(luma, box)
            codes[name] = (stamp.party, stamp.time_ms) if stamp else None
        frames.append(Shown(at_s, reader.read_ms(luma), codes))
    return frames


def delay(frames: list[Shown], tile: str, party: Party, sent: Sequence[tuple[int, float]]) -> Delay:
    """Measure a tile against what its party sent: (time in the bar code, UTC ms of its capture) in order.

    A picture captured at c, followed by one captured at n, is right in frames whose clock is in c + D … n +
    D, where D is the constant delay of the path. A source that pauses is thus no fault of the composite.
    """
    captured = [utc_ms for _, utc_ms in sent]
    by_code: dict[int, list[int]] = {}
    for index, (code, _) in enumerate(sent):
        by_code.setdefault(code, []).append(index)
    shown: list[tuple[float, list[int]]] = []
    frames_with_party = 0
    for frame in frames:
        stamp = frame.codes[tile]
        if stamp is None or stamp[0] != party.number:
            continue
        frames_with_party += 1
        indices = [index for index in by_code.get(stamp[1], []) if captured[index] <= frame.clock_ms]
        if indices:
            shown.append((frame.clock_ms, indices))
    if not shown:
        return Delay(frames_with_party, 0.0, 0.0, 0.0)
    middle = statistics.median(clock_ms - captured[indices[-1]] for clock_ms, indices in shown)
    early = stale = 0.0
    for clock_ms, indices in shown:
        # A file played in a loop has the same code in every round, and its first picture twice.
        index = min(indices, key=lambda one: abs(clock_ms - captured[one] - middle))
        early = max(early, captured[index] + middle - clock_ms)
        if index + 1 < len(sent):
            stale = max(stale, clock_ms - middle - captured[index + 1])
    return Delay(frames_with_party, middle, early, stale)


def parties_shown(frames: list[Shown], tile: str) -> list[tuple[float, float, int | None]]:
    """Return the stretches (from s, to s, party) a tile went through; party None is no code."""
    stretches: list[tuple[float, float, int | None]] = []
    for frame in frames:
        code = frame.codes[tile]
        party = code[0] if code else None
        if stretches and stretches[-1][2] == party:
            stretches[-1] = (stretches[-1][0], frame.at_s, party)
        else:
            stretches.append((frame.at_s, frame.at_s, party))
    return stretches
