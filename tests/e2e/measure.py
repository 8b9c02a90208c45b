"""What a composite is measured by: the delay of every tile in every frame, and who is where."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
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


@dataclass(slots=True)
class Delay:
    """Clock minus capture time over all frames of a tile that show a party."""

    frames: int
    median_ms: float
    spread_ms: float
    """Largest distance from the median."""
    longest_repeat: int
    """Most frames of the composite in a row that showed the same picture."""


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


def delay(
    frames: list[Shown], tile: str, party: Party, *, offset_ms: int = 0, period_ms: float | None = None
) -> Delay:
    """Measure a tile. ``offset_ms`` is added to capture times to make them UTC.

    With a period the capture time is a place in a file that Chromium plays in a loop; the delay is then
    known up to a constant. Chromium shows the first picture of the file twice in every round but the first,
    so a round lasts one picture longer than the file, and that picture's time is not known: it is left out.
    """
    differences: list[float] = []
    shown = runs = run = 0
    last: tuple[int, int] | None = None
    for frame in frames:
        code = frame.codes[tile]
        if code is None or code[0] != party.number:
            last = None
            continue
        shown += 1
        if period_ms and code[1] == 0:
            continue
        difference = frame.clock_ms - code[1] - offset_ms
        differences.append(difference % (period_ms + FRAME_MS) if period_ms else difference)
        run = run + 1 if code == last else 1
        runs, last = max(runs, run), code
    if not differences:
        return Delay(0, 0.0, 0.0, 0)
    if period_ms:
        # A loop's differences lie on a circle: turn it so that none sits at the seam.
        first, round_ms = differences[0], period_ms + FRAME_MS
        differences = [(value - first + round_ms / 2) % round_ms - round_ms / 2 for value in differences]
    middle = statistics.median(differences)
    spread = max(abs(value - middle) for value in differences)
    return Delay(shown, middle, spread, runs)


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
